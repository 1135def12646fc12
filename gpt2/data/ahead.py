"""Reads the next batch while a step computes."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from gpt2.data.windows import Batch, Data


class Ahead:
    """Gives the batches of `data`. A thread reads the one that follows the last one which was asked for.

    It reads the same windows as `data` does. A batch that cannot be read raises its error when it is asked for.
    """

    def __init__(self, data: Data, micros: Sequence[int]):
        """`micros` are the numbers of the micro-batches that are taken of each step, in this order."""
        self.data, self.micros = data, list(micros)
        self.pool = ThreadPoolExecutor(1, "batches")
        self.place, self.coming = (-1, -1), Future[Batch]()

    def batch(self, step: int, micro: int) -> Batch:
        """See `Data.batch`."""
        found = self.coming.result() if self.place == (step, micro) else self.data.batch(step, micro)
        following = self.micros.index(micro) + 1
        self.place = (step, self.micros[following]) if following < len(self.micros) else (step + 1, self.micros[0])
        self.coming = self.pool.submit(self.data.batch, *self.place)
        return found
