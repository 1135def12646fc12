"""What cosine, linear and wsd have in common: the way from the peak to the minimum, each with its own shape."""

import dataclasses
from collections.abc import Callable

from lib.config.kconf import Options
from lib.schedule import Rate


@dataclasses.dataclass(frozen=True)
class DecayOptions(Options):
    """From where to where a schedule decays, and when it can begin."""

    max_iters: int
    learning_rate: float
    warmup_steps: int
    min_lr: float


def decay(options: DecayOptions, first: int, left: Callable[[float], float]) -> Rate:
    """A decay from the peak at step `first` to the minimum at the last step, for steps from `first` on.

    `left` is the part of the way down that is left (1.0 at first, 0.0 at last) after a share of its steps (0.0 to 1.0).
    """
    peak, minimum = options.learning_rate, options.min_lr

    def rate(step: int) -> float:
        done = min(1.0, (step - first) / max(1, options.max_iters - first))
        return minimum + (peak - minimum) * left(done)

    return rate
