"""Pruning before the first step in several passes, each of which scores the network that the last one left.

The schedule is the exponential one of SynFlow (Tanaka et al., arXiv 2006.05467, section 6): after pass k of n the
density is the final density to the power of k / n.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, distributed, nn
from tqdm import tqdm

from lib.prune.pruner import Pruner
from lib.prune.score import Losses


class PassPruner(Pruner):
    """Static pruning by `choose`, which is not called if a checkpoint has the masks."""

    def __init__(self, *parts: Any, passes: int, batches: int | None):
        """`parts` are those of Pruner. Each pass reads so many batches; None: it reads no data."""
        super().__init__(*parts)
        self.passes, self.batches = passes, batches
        self.due_now = 0.0  # the sparsity after the present pass

    def begin(self) -> None:
        """Nothing yet: `choose` needs more than the weights."""

    def choose(self, model: nn.Module, losses: Losses) -> None:
        """Choose the masks. Random state and gradients are afterwards as before: there are no gradients.

        Raises PruningError for scores that are NaN, and what the criterion raises.
        """
        quiet = distributed.is_available() and distributed.is_initialized() and distributed.get_rank() > 0
        try:
            for number in tqdm(
                range(1, self.passes + 1),
                desc="pruning",
                unit=" passes",
                disable=quiet or None,  # None: shown in a terminal
                leave=False,
            ):
                self.criterion.measure(self.weights, model, losses)
                self.due_now = sparsity_after(number, self.passes, self.target)
                self._update(0, used=0)
        finally:
            model.zero_grad(set_to_none=True)

    def masks(self, step: int) -> list[Tensor]:
        return self._choose(self.criterion.score, self.due_now, self.criterion.by_rows, "own")

    def step(self, step: int, healthy: Callable[[], Tensor]) -> None:
        """Mask gradients. Raises RuntimeError if there are no masks: the run would be dense, and look pruned."""
        if self.kept > self.planned(1.0):
            raise RuntimeError("masks of several passes are missing: give `build` the losses, or load a checkpoint")
        self.hold()

    def timetable(self, steps: int) -> dict[str, str]:
        several = f"in {self.passes:,} passes, each on the network that the last one has left"
        found = {"updates": f"masks are chosen {'once' if self.passes == 1 else several}"}
        if self.batches is not None:
            several = f"the first {self.batches:,} batches, in each pass"
            found["read"] = "the first batch" if self.batches == 1 else several
        return super().timetable(steps) | found


def sparsity_after(number: int, passes: int, target: float) -> float:
    """The sparsity after pass `number`, from 1 to `passes`; exactly `target` after the last."""
    return target if number == passes else 1 - (1 - target) ** (number / passes)
