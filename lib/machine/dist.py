"""How the processes (ranks) of a run communicate: sums, requests to stop, and results of work that only rank 0 does.

Training is data parallel. Each rank sums the gradients of its share of a step's micro-batches, and the ranks add up
their sums. So every rank takes the same step from the same weights.

The ranks add up gradients while the last backward pass still computes others, as torch's DistributedDataParallel does
(Li et al., VLDB 2020, arXiv 2006.15704, section 3.2.3). That class sorts its buckets anew after the first step, in the
order in which gradients became ready. A resumed run would start with the old order, and with more than two ranks sums
in another order are rounded differently. Here the buckets depend only on the parameters, so a resume is bit-identical.
"""

import contextlib
import datetime
import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from lib.base.errors import UsageError, UserError
from lib.base.launch import Launch

T = TypeVar("T")
# How many ranks were asked to stop, and the event after which the CPU may read that number.
Request = tuple[Tensor, torch.cuda.Event | None]

# Gradients are summed in buckets of at least this size. Small buckets are sent early, large ones use the network well.
_GRADIENT_BYTES = 25 * 2**20
# How long the others wait for rank 0, which may prepare data for hours. torch's own time-out is 10 or 30 minutes.
_PATIENCE = datetime.timedelta(days=30)


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

    def summing(self, loss: Tensor, model: nn.Module, last: bool) -> AbstractContextManager[None]:
        """A context for a backward pass. If it is the `last` of a step, the gradients of `model` are summed meanwhile.

        Then `loss` and the gradient of each parameter are sums over the ranks when this context ends.
        """
        return contextlib.nullcontext()

    def agreed(self, asked: Callable[[], bool]) -> Callable[[], bool]:
        """A function that tells whether any rank was asked to stop; `asked` tells it for this rank.

        The answer changes only in a call of `sum` or at the end of `summing`, and at the same one on all ranks. So all
        ranks stop at the same step.
        """
        return asked

    def any(self, asked: bool) -> bool:
        """Whether `asked` is true on any rank; waits for all ranks."""
        return asked

    def highest(self, number: int) -> int:
        """The highest `number` of all ranks, below 2^24; waits for them."""
        return number

    def first(self, work: Callable[[], T]) -> T:
        """Call `work` only on rank 0, and return its result on all ranks. If it raises, all ranks end.

        The others wait as long as it takes, up to 30 days.
        """
        return work()

    def only_first(self, work: Callable[[], T], otherwise: T) -> T:
        """As `first`, but other ranks get `otherwise`; for a result that cannot be sent to them."""
        return work()

    def check_same(self, facts: Mapping[str, object]) -> None:
        """Raise UsageError if one of `facts` is not the same on all ranks."""

    def reseed(self, seed: int, step: int) -> None:
        """Seed the dropout of each rank differently; rank 0 keeps its random state."""


ALONE = Ranks()


def join(launch: Launch, device: torch.device, dtype: torch.dtype = torch.float32) -> Ranks:
    """Connect to the other processes of the job, or use the existing process group; raises UserError on failure.

    The ranks send each other gradients in `dtype`.
    """
    if launch.size == 1:
        return ALONE
    own = not distributed.is_initialized()
    try:
        if own:
            backend = "nccl" if device.type == "cuda" else "gloo"
            distributed.init_process_group(
                backend, init_method=launch.address, rank=launch.rank, world_size=launch.size
            )
        return _Group(launch, device, own, dtype)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"rank {launch.rank} of {launch.size} cannot meet the others at {launch.address} ({_line(error)}); "
            "MASTER_ADDR and MASTER_PORT must be the same on all machines"
        ) from None


class _Group(Ranks):
    """Several processes, which communicate by torch.distributed."""

    def __init__(self, launch: Launch, device: torch.device, own: bool, dtype: torch.dtype):
        self.rank, self.size, self.device, self.own, self.dtype = launch.rank, launch.size, device, own, dtype
        # On any device by gloo, which notices at once when another rank ends, however long it may wait.
        self.patient = distributed.new_group(backend="gloo", timeout=_PATIENCE)
        self.asked: Callable[[], bool] = lambda: False
        nobody = torch.zeros(()), None
        self.requests = nobody, nobody  # the request to act on, and the latest one

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # After a failure NCCL would wait here for ranks that never answer. gloo aborts processes that end without this.
        if kind is None or self.device.type == "cpu":
            distributed.destroy_process_group(None if self.own else self.patient)

    def share(self, count: int) -> range:
        return range(self.rank, count, self.size)

    def sum(self, tensors: Iterable[Tensor]) -> None:
        asked = self._asked()
        for tensor in (*tensors, asked):
            with self._talk():
                distributed.all_reduce(tensor)
        request = self._request(asked)
        self.requests = request, request  # the caller waits for the sum anyway

    @contextlib.contextmanager
    def summing(self, loss: Tensor, model: nn.Module, last: bool) -> Iterator[None]:
        if not last:
            yield
            return
        step = torch.cat([loss.flatten(), self._asked()[None]])
        with self._talk():
            work = distributed.all_reduce(step, async_op=True)
        buckets = _Buckets(model, self.dtype, self._talk)
        with buckets:
            yield
        with self._talk():
            work.wait()
        buckets.finish()
        loss.copy_(step[:-1].view_as(loss))
        # Acted on one step later, so that the CPU need not wait for it.
        self.requests = self.requests[1], self._request(step[-1])

    def _asked(self) -> Tensor:
        """1.0 if this rank was asked to stop, else 0.0."""
        return torch.full((), float(self.asked()), device=self.device)

    def _request(self, count: Tensor) -> Request:
        here = count.to("cpu", non_blocking=True)
        return here, torch.cuda.current_stream().record_event() if count.is_cuda else None

    def agreed(self, asked: Callable[[], bool]) -> Callable[[], bool]:
        self.asked = asked
        return self._stopped

    def _stopped(self) -> bool:
        count, ready = self.requests[0]
        if ready:
            ready.synchronize()
        return bool(count)

    def any(self, asked: bool) -> bool:
        return bool(self.highest(asked))

    def highest(self, number: int) -> int:
        found = torch.full((), float(number), device=self.device)
        with self._talk():
            distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return int(found)

    def first(self, work: Callable[[], T]) -> T:
        answer: list[Any] = [None, None]  # what `work` returned; the exit code if `work` raised
        failure = None
        if self.rank == 0:
            try:
                answer[0] = work()
            except BaseException as error:
                failure, answer[1] = error, getattr(error, "exit_code", 1)
        with self._talk():
            distributed.broadcast_object_list(answer, src=0, group=self.patient)
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
            distributed.all_gather_object(everyones, dict(facts), group=self.patient)
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


class _Buckets:
    """Sums the gradients of a model over the ranks during a backward pass, which is a context of this object.

    The last layers get their gradients first. So the buckets take the parameters in reverse, and each bucket is sent
    once it and all before it are complete: all ranks send the same buckets in the same order.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, talk: Callable[[], AbstractContextManager[None]]):
        """`dtype` is that of the numbers that are sent."""
        self.dtype, self.talk, self.buckets = dtype, talk, _cut(model.parameters())
        self.missing = [len(bucket) for bucket in self.buckets]
        self.sent: list[tuple[distributed.Work, Tensor, Tensor]] = []  # with the gradients, and with what was sent

    def __enter__(self) -> None:
        self.hooks = [
            parameter.register_post_accumulate_grad_hook(functools.partial(self._ready, number))
            for number, bucket in enumerate(self.buckets)
            for parameter in bucket
        ]

    def __exit__(self, *exc_info: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _ready(self, number: int, parameter: nn.Parameter) -> None:
        """The hook of a parameter in bucket `number`: its gradient is complete on this rank."""
        self.missing[number] -= 1
        while len(self.sent) < len(self.buckets) and not self.missing[len(self.sent)]:
            self._send(self.buckets[len(self.sent)])

    @torch.no_grad()
    def _send(self, bucket: list[nn.Parameter]) -> None:
        """Begin to sum a bucket. Its gradients become parts of one tensor, so that they need not be copied back."""
        parts = [parameter.grad.flatten() for parameter in bucket]
        flat = torch.cat(parts) if len(parts) > 1 else parts[0]
        for parameter, part in zip(bucket, flat.split([len(part) for part in parts]), strict=True):
            parameter.grad = part.view_as(parameter)
        sent = flat.to(self.dtype)
        with self.talk():
            self.sent.append((distributed.all_reduce(sent, async_op=True), flat, sent))

    def finish(self) -> None:
        """Return when all gradients are sums. On a GPU, they are once its stream gets there."""
        if any(self.missing):
            raise RuntimeError("a parameter has no gradient, so its bucket was not sent")
        for work, flat, sent in self.sent:
            with self.talk():
                work.wait()
            if sent is not flat:
                flat.copy_(sent)


def _cut(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """The parameters in reverse, in buckets of at least _GRADIENT_BYTES; the last bucket may be smaller."""
    buckets, size = [], _GRADIENT_BYTES
    for parameter in reversed(list(parameters)):
        if size >= _GRADIENT_BYTES:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += parameter.nbytes
    return buckets


def _line(error: BaseException) -> str:
    """The first sentence of torch's message, without its place in torch's source."""
    line = re.sub(r"^\[\S+:\d+\] ", "", (str(error) or type(error).__name__).splitlines()[0])
    return line.partition(". ")[0][:200]
