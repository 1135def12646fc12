"""Cosine: half a period of a cosine from the peak to the minimum (Loshchilov and Hutter, arXiv 1608.03983, eq. 5)."""

import dataclasses
import math

from lib.config.kconf import Options
from lib.schedule import Bind, Rate, progress


@dataclasses.dataclass(frozen=True)
class CosineOptions(Options):
    """From where to where, and when."""

    max_iters: int
    learning_rate: float
    warmup_steps: int
    min_lr: float


def build(bind: Bind) -> Rate:
    """The peak at the end of the warm-up, the minimum at the last step."""
    options = bind(CosineOptions)
    peak, minimum = options.learning_rate, options.min_lr

    def rate(step: int) -> float:
        done = progress(step, options.warmup_steps, options.max_iters)
        return minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * done))

    return rate
