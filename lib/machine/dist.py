"""What the processes of a run tell each other: sums, wishes to stop, and what the first of them alone has done.

Training is data parallel: each rank computes the gradients of its share of a step's micro-batches, the sums of all are
summed, and then every rank takes the same step from the same weights.
"""

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch._utils import _flatten_dense_tensors, _take_tensors, _unflatten_dense_tensors

from lib.base.errors import UsageError, UserError
from lib.base.launch import Launch

T = TypeVar("T")
Wish = tuple[Tensor, torch.cuda.Event | None]  # how many ranks were asked to stop, and when that has left the device

_BUCKET_BYTES = 64 * 2**20  # summed at once: what a bucket copies is all the memory that summing takes


class Ranks:
    """The processes of a run. This class is the run of one process: nobody to talk to, and nothing to wait for.

    Used as a context, which ends with the talk.
    """

    rank, size = 0, 1

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        pass

    def share(self, count: int) -> range:
        """Which of `count` equal pieces of work are this rank's."""
        return range(count)

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, in place; of the same shape and type on all."""

    def sum_step(self, loss: Tensor, parameters: Iterable[Tensor]) -> None:
        """The same for the loss of a step and the gradients of its parameters."""

    def agreed(self, asked: Callable[[], bool]) -> Callable[[], bool]:
        """Whether some rank was asked to stop, where `asked` says it of this one.

        The answer changes with a sum and at the same one on all ranks, so that they stop at the same step.
        """
        return asked

    def any(self, asked: bool) -> bool:
        """Whether `asked` holds on some rank; waits for all of them."""
        return asked

    def first(self, work: Callable[[], T]) -> T:
        """What `work` returns on rank 0, which alone calls it, on all ranks; what it raises ends all of them."""
        return work()

    def only_first(self, work: Callable[[], T], otherwise: T) -> T:
        """What `work` returns on rank 0, and `otherwise` on the others; for what cannot be told to them."""
        return work()

    def check_same(self, facts: Mapping[str, object]) -> None:
        """Raise UsageError if the ranks disagree about one of these."""

    def reseed(self, seed: int, step: int) -> None:
        """Let the dropout of each rank differ from here on; rank 0 goes on with the random state that it has."""


ALONE = Ranks()


def join(launch: Launch, device: torch.device) -> Ranks:
    """Meet the other processes of the job; raises UserError when that fails. A process group that exists is used."""
    if launch.size == 1:
        return ALONE
    own = not distributed.is_initialized()
    if own:
        backend = "nccl" if device.type == "cuda" else "gloo"
        try:
            distributed.init_process_group(
                backend, init_method=launch.address, rank=launch.rank, world_size=launch.size
            )
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"rank {launch.rank} of {launch.size} cannot meet the others at {launch.address} ({_line(error)}); "
                "MASTER_ADDR and MASTER_PORT say where, the same on all machines"
            ) from None
    return _Group(launch, device, own)


class _Group(Ranks):
    """Several processes, by torch.distributed."""

    def __init__(self, launch: Launch, device: torch.device, own: bool):
        self.rank, self.size, self.device, self.own = launch.rank, launch.size, device, own
        self.asked: Callable[[], bool] = lambda: False
        nobody = torch.zeros(()), None
        self.wishes = nobody, nobody  # the one to act on, and the last one

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # After a failure NCCL would wait for ranks that may never answer; gloo aborts processes that end without this.
        if self.own and (kind is None or self.device.type == "cpu"):
            distributed.destroy_process_group()

    def share(self, count: int) -> range:
        return range(self.rank, count, self.size)

    def sum(self, tensors: Iterable[Tensor]) -> None:
        wish = self._sum(tensors)
        self.wishes = wish, wish  # who wants such a sum waits for it

    def sum_step(self, loss: Tensor, parameters: Iterable[Tensor]) -> None:
        wish = self._sum([loss, *(p.grad for p in parameters if p.grad is not None)])
        self.wishes = self.wishes[1], wish  # a step later, so that a GPU need not be waited for while it computes one

    @torch.no_grad()
    def _sum(self, tensors: Iterable[Tensor]) -> Wish:
        wish = torch.full((), float(self.asked()), device=self.device)
        for bucket in _take_tensors([*tensors, wish], _BUCKET_BYTES):
            flat = _flatten_dense_tensors(bucket)
            with self._talk():
                distributed.all_reduce(flat)
            torch._foreach_copy_(bucket, _unflatten_dense_tensors(flat, bucket))
        here = wish.to("cpu", non_blocking=True)
        return here, torch.cuda.current_stream().record_event() if wish.is_cuda else None

    def agreed(self, asked: Callable[[], bool]) -> Callable[[], bool]:
        self.asked = asked
        return self._stopped

    def _stopped(self) -> bool:
        count, ready = self.wishes[0]
        if ready:
            ready.synchronize()
        return bool(count)

    def any(self, asked: bool) -> bool:
        flag = torch.full((), float(asked), device=self.device)
        with self._talk():
            distributed.all_reduce(flag)
        return bool(flag)

    def first(self, work: Callable[[], T]) -> T:
        answer: list[Any] = [None, None]  # what work returned; the exit code if it raised
        failure = None
        if self.rank == 0:
            try:
                answer[0] = work()
            except BaseException as error:
                failure, answer[1] = error, getattr(error, "exit_code", 1)
        with self._talk():
            distributed.broadcast_object_list(answer, src=0, device=self.device)
        if failure:
            raise failure
        if answer[1] is not None:  # rank 0 says why
            raise SystemExit(answer[1])
        return answer[0]

    def only_first(self, work: Callable[[], T], otherwise: T) -> T:
        made = [otherwise]

        def make() -> None:
            made[0] = work()

        self.first(make)
        return made[0]

    def check_same(self, facts: Mapping[str, object]) -> None:
        everyones: list[Any] = [None] * self.size
        with self._talk():
            distributed.all_gather_object(everyones, dict(facts))
        for rank, theirs in enumerate(everyones):
            if differ := sorted(name for name in facts if theirs.get(name) != everyones[0].get(name)):
                values = ", ".join(f"{name} is {everyones[0].get(name)} and {theirs.get(name)}" for name in differ)
                raise UsageError(f"ranks 0 and {rank} of one run differ: {values}; start all with the same")

    def reseed(self, seed: int, step: int) -> None:
        if self.rank:
            digest = hashlib.sha256(f"dropout {seed} {self.rank} {step}".encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:7], "big"))

    @contextlib.contextmanager
    def _talk(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise UserError(
                f"rank {self.rank} has lost the others of its run ({_line(error)}); what ended them is in their "
                "output; the run can go on from its last checkpoint"
            ) from None


def _line(error: BaseException) -> str:
    """The first line of what torch says, without the place in its own source."""
    return re.sub(r"^\[\S+:\d+\] ", "", (str(error) or type(error).__name__).splitlines()[0])[:200]
