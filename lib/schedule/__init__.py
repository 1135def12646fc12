"""Schedules as pure functions of the step: what a run does at step s does not depend on how it got there."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from lib.base.errors import UsageError
from lib.config.kconf import Options

_FEW_UPDATES = 10  # of masks in a run


@dataclasses.dataclass(frozen=True)
class ScheduleOptions(Options):
    """The learning rate over a run."""

    max_iters: int
    learning_rate: float
    warmup_steps: int
    decay_lr: bool
    min_lr: float | None  # None: the peak is kept


@dataclasses.dataclass(frozen=True)
class UpdateOptions(Options):
    """When masks are chosen; None where nothing is pruned, or the method leaves no choice."""

    max_iters: int
    pruning_dynamics: str | None
    pruning_warmup: float | None  # up to 1 a share of the run, above 1 steps
    pruning_end: float | None
    pruning_interval: int | None


def warnings(bind: Callable[[type], Any]) -> list[str]:
    """What to warn of in the schedules of a run; raises UsageError for one that contradicts itself."""
    return check(bind(ScheduleOptions)) + few_updates(bind(UpdateOptions))


def few_updates(options: UpdateOptions) -> list[str]:
    """A warning if masks are chosen so seldom that the schedule's path becomes a few leaps."""
    if options.pruning_interval is None:
        return []
    first, last = 1, options.max_iters  # ste and sr-ste go on to the end
    if options.pruning_warmup is not None:
        first = _step(options.pruning_warmup, options.max_iters)
    if options.pruning_end is not None and options.pruning_dynamics != "ste":
        last = _step(options.pruning_end, options.max_iters)
    times = 1 + -(-(last - first) // options.pruning_interval)  # at the last step too
    if not 0 < times < _FEW_UPDATES:
        return []
    return [
        f"PRUNING_INTERVAL={options.pruning_interval} chooses masks about {times} times in steps {first} to {last}; "
        "a lower interval prunes in smaller leaps"
    ]


def _step(value: float, max_iters: int) -> int:
    return max(1, round(value * max_iters) if value <= 1 else round(value))


def check(options: ScheduleOptions) -> list[str]:
    """What to warn of in a schedule; raises UsageError for one that contradicts itself."""
    if options.min_lr is not None and options.min_lr > options.learning_rate:
        raise UsageError(
            f"MIN_LR={options.min_lr:g} exceeds LEARNING_RATE={options.learning_rate:g}; lower it or use --no-decay-lr"
        )
    if options.warmup_steps > options.max_iters:
        reached = f"{learning_rate(options.max_iters, options):.3g}"
        return [f"WARMUP_STEPS={options.warmup_steps} exceeds MAX_ITERS={options.max_iters}: it ends at rate {reached}"]
    return []


def learning_rate(step: int, options: ScheduleOptions) -> float:
    """The learning rate of update `step` (1 is the first): linear warm-up to the peak, then a cosine to the minimum.

    The peak is reached at step `warmup_steps`, the minimum at step `max_iters`.
    """
    peak, warmup = options.learning_rate, options.warmup_steps
    if step < warmup:
        return peak * step / warmup
    if not options.decay_lr:
        return peak
    progress = (step - warmup) / max(1, options.max_iters - warmup)  # 0 -> 1
    return options.min_lr + (peak - options.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
