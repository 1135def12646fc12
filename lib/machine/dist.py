"""How the processes (ranks) of a run communicate: sums, requests to stop, and results of work that only rank 0 does.

Training is data parallel. Each rank sums the gradients of its share of a step's micro-batches, and then the ranks add
up their sums. So every rank takes the same step from the same weights.
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
# How many ranks were asked to stop, and the event after which the CPU may read that number.
Request = tuple[Tensor, torch.cuda.Event | None]

_BUCKET_BYTES = 64 * 2**20  # tensors are summed in buckets of this size; only one bucket is copied at a time


class Ranks:
    """The processes of a run. In this class the run has one process, so there is nothing to communicate.

    Used as a context manager, whose end destroys the process group.
    """

    rank, size = 0, 1

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        pass

    def share(self, count: int) -> range:
        """Which of `count` equal pieces of work this rank does."""
        return range(count)

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, in place. Shapes and dtypes must be the same on all ranks."""

    def sum_step(self, loss: Tensor, parameters: Iterable[Tensor]) -> None:
        """As `sum`, for the loss of a step and the gradients of `parameters`."""

    def agreed(self, asked: Callable[[], bool]) -> Callable[[], bool]:
        """A function that tells whether any rank was asked to stop; `asked` tells it for this rank.

        The answer changes only in a call of `sum` or `sum_step`, and in the same call on all ranks. So all ranks stop
        at the same step.
        """
        return asked

    def any(self, asked: bool) -> bool:
        """Whether `asked` is true on any rank; waits for all ranks."""
        return asked

    def first(self, work: Callable[[], T]) -> T:
        """Call `work` only on rank 0, and return its result on all ranks. If it raises, all ranks end."""
        return work()

    def only_first(self, work: Callable[[], T], otherwise: T) -> T:
        """As `first`, but other ranks get `otherwise`; for a result that cannot be sent to them."""
        return work()

    def check_same(self, facts: Mapping[str, object]) -> None:
        """Raise UsageError if one of `facts` is not the same on all ranks."""

    def reseed(self, seed: int, step: int) -> None:
        """Seed the dropout of each rank differently; rank 0 keeps its random state."""


ALONE = Ranks()


def join(launch: Launch, device: torch.device) -> Ranks:
    """Connect to the other processes of the job, or use the existing process group; raises UserError on failure."""
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
                "MASTER_ADDR and MASTER_PORT must be the same on all machines"
            ) from None
    return _Group(launch, device, own)


class _Group(Ranks):
    """Several processes, which communicate by torch.distributed."""

    def __init__(self, launch: Launch, device: torch.device, own: bool):
        self.rank, self.size, self.device, self.own = launch.rank, launch.size, device, own
        self.asked: Callable[[], bool] = lambda: False
        nobody = torch.zeros(()), None
        self.requests = nobody, nobody  # the request to act on, and the latest one

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # After a failure NCCL would wait here for ranks that never answer. gloo aborts processes that end without this.
        if self.own and (kind is None or self.device.type == "cpu"):
            distributed.destroy_process_group()

    def share(self, count: int) -> range:
        return range(self.rank, count, self.size)

    def sum(self, tensors: Iterable[Tensor]) -> None:
        request = self._sum(tensors)
        self.requests = request, request  # the caller waits for the sum anyway

    def sum_step(self, loss: Tensor, parameters: Iterable[Tensor]) -> None:
        request = self._sum([loss, *(p.grad for p in parameters if p.grad is not None)])
        self.requests = self.requests[1], request  # acted on one step later, so the CPU need not wait for it

    @torch.no_grad()
    def _sum(self, tensors: Iterable[Tensor]) -> Request:
        asked = torch.full((), float(self.asked()), device=self.device)
        for bucket in _take_tensors([*tensors, asked], _BUCKET_BYTES):
            flat = _flatten_dense_tensors(bucket)
            with self._talk():
                distributed.all_reduce(flat)
            torch._foreach_copy_(bucket, _unflatten_dense_tensors(flat, bucket))
        here = asked.to("cpu", non_blocking=True)
        return here, torch.cuda.current_stream().record_event() if asked.is_cuda else None

    def agreed(self, asked: Callable[[], bool]) -> Callable[[], bool]:
        self.asked = asked
        return self._stopped

    def _stopped(self) -> bool:
        count, ready = self.requests[0]
        if ready:
            ready.synchronize()
        return bool(count)

    def any(self, asked: bool) -> bool:
        flag = torch.full((), float(asked), device=self.device)
        with self._talk():
            distributed.all_reduce(flag)
        return bool(flag)

    def first(self, work: Callable[[], T]) -> T:
        answer: list[Any] = [None, None]  # what `work` returned; the exit code if `work` raised
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
        if answer[1] is not None:  # rank 0 prints why
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
                raise UsageError(f"ranks 0 and {rank} of one run differ: {values}; give all the same values")

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
                f"rank {self.rank} has lost the other ranks of its run ({_line(error)}); their output says why; "
                "the run can be resumed from its last checkpoint"
            ) from None


def _line(error: BaseException) -> str:
    """The first line of torch's message, without its place in torch's source."""
    return re.sub(r"^\[\S+:\d+\] ", "", (str(error) or type(error).__name__).splitlines()[0])[:200]
