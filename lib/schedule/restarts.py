"""Restarts: a line from the peak to the minimum, again and again, so that masks are chosen just before a high rate.

The learning rate of GMP* (Kurtic & Alistarh, arXiv 2210.06384). In the authors' recipes it is called cyclic_linear: the
first step of a cycle is at the peak, and its last one at the minimum.
"""

import dataclasses
import math

from lib.base.errors import UsageError
from lib.schedule import Bind, Rate, UpdateOptions
from lib.schedule.decay import DecayOptions


@dataclasses.dataclass(frozen=True)
class RestartOptions(DecayOptions):
    """When the learning rate jumps back to the peak. Up to 1, a value is a share of the run; above 1, it is a step."""

    lr_cycle: int  # steps from one restart to the next
    lr_first_restart: float
    lr_last_restart: float


def build(bind: Bind) -> Rate:
    """The peak at the end of the warm-up and at each restart, the minimum in the step before and in the last step."""
    options = bind(RestartOptions)
    first, last = _ends(options)

    def rate(step: int) -> float:
        if step < first:
            begin, end = options.warmup_steps, first
        elif step < last:
            begin = step - (step - first) % options.lr_cycle
            end = min(begin + options.lr_cycle, last)
        else:
            begin, end = last, options.max_iters + 1
        done = min(1.0, (step - begin) / max(1, end - 1 - begin))
        return options.learning_rate - (options.learning_rate - options.min_lr) * done

    return rate


def warnings(bind: Bind) -> list[str]:
    """A warning if the rate restarts where no masks are chosen; raises UsageError for restarts outside the run."""
    options, updates = bind(RestartOptions), bind(UpdateOptions)
    first, last = _ends(options)
    if options.warmup_steps > first:
        return [
            f"LR_SCHEDULE=restarts: WARMUP_STEPS={options.warmup_steps} lasts beyond the first restart at step {first}"
            ", which therefore does not happen; lower WARMUP_STEPS or raise LR_FIRST_RESTART"
        ]
    if updates.pruning_dynamics != "gradual" or updates.pruning_interval is None or updates.pruning_warmup == 0:
        return []  # masks that are chosen before step 1 belong to no restart
    start, end = (_step(value, options.max_iters) for value in (updates.pruning_warmup, updates.pruning_end))
    chosen = range(start, end, updates.pruning_interval)
    restarts = (*range(first, last, options.lr_cycle), last)
    apart = next((step for step in restarts if step not in chosen and step != end), None)
    if apart is None:
        return []
    return [
        f"LR_SCHEDULE=restarts: the learning rate restarts at step {apart}, where no masks are chosen; let "
        "LR_FIRST_RESTART, LR_CYCLE and LR_LAST_RESTART follow PRUNING_WARMUP, PRUNING_INTERVAL and PRUNING_END"
    ]


def _ends(options: RestartOptions) -> tuple[int, int]:
    """The steps of the first and of the last restart; raises UsageError if they are not in the run in this order."""
    first = _step(options.lr_first_restart, options.max_iters)
    last = _step(options.lr_last_restart, options.max_iters)
    if not first <= last < options.max_iters:
        raise UsageError(
            f"LR_FIRST_RESTART={options.lr_first_restart:g} is step {first} and "
            f"LR_LAST_RESTART={options.lr_last_restart:g} is step {last}, but they must be steps in this order, before "
            f"the last of MAX_ITERS={options.max_iters}"
        )
    return first, last


def _step(value: float, max_iters: int) -> int:
    """The step that lib.prune.schedule makes of the same value, so that restarts can meet its updates."""
    return max(1, math.floor(value * max_iters + 0.5) if value <= 1 else round(value))
