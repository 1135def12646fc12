"""Learning-rate schedules, one file each: the value of LR_SCHEDULE names the module, which has `build(bind)`.

A schedule is a pure function of the step: what a run does at step s does not depend on how it got there. Warm-up is the
same for all of them and is here. Nothing in this package imports PyTorch, so a configuration is checked without it.
"""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any, Protocol

from lib.base.errors import UsageError
from lib.config.kconf import Options

_FEW_UPDATES = 10  # of masks in a run

Bind = Callable[[type], Any]  # the values of the options that a dataclass declares
Rate = Callable[[int], float]  # step (1 is the first) -> learning rate


@dataclasses.dataclass(frozen=True)
class ScheduleOptions(Options):
    """What is common to all schedules."""

    lr_schedule: str
    max_iters: int
    learning_rate: float
    warmup_steps: int
    min_lr: float | None  # None: the schedule has no minimum


@dataclasses.dataclass(frozen=True)
class UpdateOptions(Options):
    """When masks are chosen; None where nothing is pruned, or the method leaves no choice."""

    max_iters: int
    pruning_dynamics: str | None
    pruning_warmup: float | None  # up to 1 a share of the run, above 1 steps
    pruning_end: float | None
    pruning_interval: int | None


class Module(Protocol):
    """What a file of this folder defines. The schedule that `build` returns is asked from step `warmup_steps` on.

    A file may also have `warnings(bind) -> list[str]`: what to warn of before training.
    """

    build: Callable[[Bind], Rate]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How many steps a run makes, and the learning rate of each."""

    max_iters: int
    learning_rate: Rate


def build(bind: Bind) -> Schedule:
    """The chosen schedule after a linear warm-up, which reaches the peak at step WARMUP_STEPS."""
    options = bind(ScheduleOptions)
    after_warmup = _module(options).build(bind)

    def learning_rate(step: int) -> float:
        if step < options.warmup_steps:
            return options.learning_rate * step / options.warmup_steps
        return after_warmup(step)

    return Schedule(options.max_iters, learning_rate)


def _module(options: ScheduleOptions) -> Module:
    return importlib.import_module(f"lib.schedule.{options.lr_schedule.replace('-', '_')}")


# ---- checks before training ------------------------------------------------------------------------------------------


def warnings(bind: Bind) -> list[str]:
    """What to warn of in the schedules of a run; raises UsageError for one that contradicts itself."""
    leaps = bind(ScheduleOptions).lr_schedule == "restarts"  # few updates are meant, each with a cycle of its own
    return check(bind) + ([] if leaps else few_updates(bind(UpdateOptions)))


def check(bind: Bind) -> list[str]:
    """What to warn of in the learning-rate schedule; raises UsageError for one that contradicts itself."""
    options = bind(ScheduleOptions)
    if options.min_lr is not None and options.min_lr > options.learning_rate:
        raise UsageError(
            f"MIN_LR={options.min_lr:g} exceeds LEARNING_RATE={options.learning_rate:g}; lower it or use "
            "LR_SCHEDULE=constant"
        )
    if options.warmup_steps > options.max_iters:
        reached = f"{build(bind).learning_rate(options.max_iters):.3g}"
        return [f"WARMUP_STEPS={options.warmup_steps} exceeds MAX_ITERS={options.max_iters}: it ends at rate {reached}"]
    module = _module(options)
    return module.warnings(bind) if hasattr(module, "warnings") else []


def few_updates(options: UpdateOptions) -> list[str]:
    """A warning if masks are chosen so seldom that the path to the target sparsity becomes a few leaps.

    It is here, because few updates are meant where the learning rate restarts.
    """
    if options.pruning_interval is None:
        return []
    first, last = 1, options.max_iters  # ste and sr-ste choose masks to the end of the run
    if options.pruning_warmup is not None:
        first = _step(options.pruning_warmup, options.max_iters)
    if options.pruning_end is not None and options.pruning_dynamics != "ste":
        last = _step(options.pruning_end, options.max_iters)
    times = 1 + -(-(last - first) // options.pruning_interval)  # at the last step too
    if not 0 < times < _FEW_UPDATES:
        return []
    at_once = options.pruning_warmup is None and options.pruning_end is not None  # only exchanges weights
    better = "replaces weights more often" if at_once else "prunes in smaller leaps"
    return [
        f"PRUNING_INTERVAL={options.pruning_interval} chooses masks about {times} times in steps {first} to {last}; "
        f"a lower interval {better}"
    ]


def _step(value: float, max_iters: int) -> int:
    return max(1, round(value * max_iters) if value <= 1 else round(value))
