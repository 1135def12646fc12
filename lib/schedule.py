"""Schedules as pure functions of the step: what a run does at step s does not depend on how it got there."""

import dataclasses
import math

from lib.errors import UsageError
from lib.kconf import Options


@dataclasses.dataclass(frozen=True)
class ScheduleOptions(Options):
    """The learning rate over a run."""

    max_iters: int
    learning_rate: float
    warmup_steps: int
    decay_lr: bool
    min_lr: float | None  # None: the peak is kept


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
