"""Cosine: half a period of a cosine from the peak to the minimum (Loshchilov and Hutter, arXiv 1608.03983, eq. 5)."""

import math

from lib.schedule import Bind, Rate
from lib.schedule.decay import DecayOptions, decay


def build(bind: Bind) -> Rate:
    """The peak at the end of the warm-up, the minimum at the last step."""
    options = bind(DecayOptions)
    return decay(options, options.warmup_steps, lambda done: 0.5 * (1 + math.cos(math.pi * done)))
