"""Losses and gradients that are no number: which updates are left out for that, and when it ends a run."""

import dataclasses
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from lib.base.errors import UserError
from lib.config.kconf import Options


@dataclasses.dataclass(frozen=True)
class DivergenceOptions(Options):
    """What to do then."""

    nan_policy: str
    nan_skip_limit: int | None  # updates; None where the first one stops the run


class Diverged(UserError):
    """A loss or gradient is no number, once too often."""

    def __init__(self, message: str, step: int, since: int, good: bool = True):
        """The weights are those after `step` and `good` or not; from `since` on no step is to be trusted."""
        super().__init__(f"{message}; lower LEARNING_RATE or lengthen WARMUP_STEPS")
        self.step, self.since, self.good = step, since, good

    def advise(self, dtype: torch.dtype) -> None:
        """Add what else may help where the arithmetic was of this type."""
        if dtype != torch.float32:
            self.args = (f"{self}, or use DTYPE=float32",)


class Guard:
    """Counts the updates that are left out, on the device, so that nobody waits for it until `look`.

    With the first one beyond the limit all that follow are left out too: the weights stay those before it, however
    long nobody looks. The limit is 0 where the policy is to stop.
    """

    def __init__(self, options: DivergenceOptions, device: torch.device):
        """Nothing is left out yet."""
        self.skips, self.limit, self.device = options.nan_policy == "skip", options.nan_skip_limit or 0, device
        self.load([])

    def load(self, steps: list[int]) -> None:
        """Continue after the updates of `steps` were left out; if these are more than the limit, it was lowered."""
        self.limit = max(self.limit, len(steps))
        room = self.limit + 2 - len(steps)  # the last place is for the steps after the one beyond the limit
        self.steps = torch.tensor([*steps, *[0] * room], dtype=torch.int64, device=self.device)
        self.count = torch.tensor(len(steps), device=self.device)
        self.seen = len(steps)

    def left_out(self) -> list[int]:
        """The steps whose updates were left out, for `load`; waits for the device."""
        return self.steps[: int(self.count)].tolist()

    def going(self) -> Tensor:
        """Whether updates are still made (a bool scalar on the device)."""
        return self.count <= self.limit

    def leave_out(self, step: int, bad: Tensor) -> Tensor:
        """Whether to leave out the update of `step`, which is `bad` or not (bool scalars on the device)."""
        self.steps.index_fill_(0, self.count, step)  # stays there if it is counted, else the next step takes the place
        self.count += bad & self.going()
        return bad | ~self.going()

    def look(self, alert: Callable[[str, str, str, int], None]) -> None:
        """Give an alert for each update that was left out since the last look; waits for the device.

        Raises Diverged for one beyond the limit, and forgets it: that step has still to be made.
        """
        if int(self.count) == self.seen:
            return
        steps = self.left_out()
        for number, step in list(enumerate(steps, 1))[self.seen : self.limit]:
            text = f"step {step}: the loss or its gradient is not a number; this update is left out"
            alert("skipped", "warn", f"{text}, number {number} of {self.limit} at most", step)
        self.seen = min(len(steps), self.limit)
        if len(steps) > self.limit:
            self.count.fill_(self.limit)
            before = f", after {self.limit} updates were left out for that (NAN_SKIP_LIMIT)" if self.limit else ""
            text = f"step {steps[-1]}: the loss or its gradient is not a number{before}"
            raise Diverged(text, steps[-1] - 1, _began(steps))

    def metrics(self) -> dict[str, float]:
        """What a log line says of it, after a look."""
        return {"skipped_updates": self.seen} if self.skips else {}


def _began(steps: list[int]) -> int:
    """The first of the consecutive steps that `steps` ends with: since then no update was made."""
    pairs = list(itertools.pairwise([0, *steps]))
    return next(step for before, step in reversed(pairs) if step - before > 1 or before == 0)
