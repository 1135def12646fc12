"""Losses and gradients that are NaN or infinite: which updates are skipped, and when the run has diverged."""

import dataclasses
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from lib.base.errors import UserError
from lib.config.kconf import Options


@dataclasses.dataclass(frozen=True)
class DivergenceOptions(Options):
    """What happens after a loss or gradient that is NaN or infinite."""

    nan_policy: str  # stop or skip
    nan_skip_limit: int | None  # updates; None where the first one stops the run


class Diverged(UserError):
    """More losses or gradients than the policy allows were NaN or infinite, or a weight is NaN or infinite."""

    def __init__(self, message: str, step: int, since: int, good: bool = True):
        """`step` is the last one whose update was made, `good` says whether its weights can be used.

        `since` is the first step that a retry must not trust.
        """
        super().__init__(f"{message}; lower LEARNING_RATE or lengthen WARMUP_STEPS")
        self.step, self.since, self.good = step, since, good

    def advise(self, dtype: torch.dtype) -> None:
        """Add the advice to use float32, unless `dtype` is float32."""
        if dtype != torch.float32:
            self.args = (f"{self}, or use DTYPE=float32",)


class Guard:
    """Counts skipped updates on the device, so that nothing waits for the device until `look`.

    After the first update beyond the limit, all later ones are skipped too. So the weights stay as they
    were before that update, however late `look` is called. The limit is 0 where the policy is to stop.
    """

    def __init__(self, options: DivergenceOptions, device: torch.device):
        self.skips, self.limit, self.device = options.nan_policy == "skip", options.nan_skip_limit or 0, device
        self.load([])

    def load(self, steps: list[int]) -> None:
        """Continue a run in which the updates of `steps` were skipped.

        If the user has lowered the limit below their number, their number is the limit.
        """
        self.limit = max(self.limit, len(steps))
        room = self.limit + 2 - len(steps)  # one beyond the limit, and one for steps that are not skipped
        self.steps = torch.tensor([*steps, *[0] * room], dtype=torch.int64, device=self.device)
        self.count = torch.tensor(len(steps), device=self.device)
        self.seen = len(steps)

    def left_out(self) -> list[int]:
        """The steps whose updates were skipped, for `load`; waits for the device."""
        return self.steps[: int(self.count)].tolist()

    def going(self) -> Tensor:
        """Whether updates are still made (a bool scalar on the device)."""
        return self.count <= self.limit

    def leave_out(self, step: int, bad: Tensor) -> Tensor:
        """Count the update of `step` if it is `bad`; returns whether to skip it. Both are bools on the device."""
        self.steps.index_fill_(0, self.count, step)  # stays only if it is counted; else the next step overwrites it
        self.count += bad & self.going()
        return bad | ~self.going()

    def look(self, alert: Callable[[str, str, str, int], None]) -> None:
        """Give an alert for each update that was skipped since the last look; waits for the device.

        Raises Diverged for an update beyond the limit. That update is then not counted, because a resumed run makes
        its step again.
        """
        if int(self.count) == self.seen:
            return
        steps = self.left_out()
        for number, step in list(enumerate(steps, 1))[self.seen : self.limit]:
            text = f"step {step}: the loss or its gradient is NaN or infinite; this update is skipped"
            alert("skipped", "warn", f"{text}, number {number} of {self.limit} at most", step)
        self.seen = min(len(steps), self.limit)
        if len(steps) > self.limit:
            self.count.fill_(self.limit)
            before = f", after {self.limit} skipped updates (NAN_SKIP_LIMIT)" if self.limit else ""
            text = f"step {steps[-1]}: the loss or its gradient is NaN or infinite{before}"
            raise Diverged(text, steps[-1] - 1, _began(steps))

    def metrics(self) -> dict[str, float]:
        """The number of skipped updates as of the last look, where the policy is to skip."""
        return {"skipped_updates": self.seen} if self.skips else {}


def _began(steps: list[int]) -> int:
    """The first of the consecutive steps at the end of `steps`: no update was made since."""
    pairs = list(itertools.pairwise([0, *steps]))
    return next(step for before, step in reversed(pairs) if step - before > 1 or before == 0)
