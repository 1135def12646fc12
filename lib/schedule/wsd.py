"""WSD: warm-up, a stable phase at the peak, and a decay in the last part of the run (Hu et al., arXiv 2404.06395).

The shapes of the decay are those of Haegele et al. (arXiv 2405.18392, section 3), who find that 10 to 20 % of the steps
are enough for it.
"""

import dataclasses
import math

from lib.schedule import Bind, Rate
from lib.schedule.decay import DecayOptions, decay


@dataclasses.dataclass(frozen=True)
class WsdOptions(DecayOptions):
    """When the decay begins, and how it falls."""

    lr_decay_share: float  # of all steps of the run, warm-up included
    lr_decay_shape: str


def build(bind: Bind) -> Rate:
    """The peak up to the first step of the decay, the minimum at the last step."""
    options = bind(WsdOptions)
    linear = options.lr_decay_shape == "linear"
    first = max(options.warmup_steps, decay_start(options))
    falling = decay(options, first, lambda done: 1 - (done if linear else math.sqrt(done)))
    return lambda step: options.learning_rate if step <= first else falling(step)


def decay_start(options: WsdOptions) -> int:
    """The last step at the peak, if the warm-up ends before it."""
    return options.max_iters - round(options.lr_decay_share * options.max_iters)


def warnings(bind: Bind) -> list[str]:
    """A warning if the warm-up ends so late that no stable phase is left."""
    options = bind(WsdOptions)
    if options.warmup_steps <= decay_start(options):
        return []
    return [
        f"WARMUP_STEPS={options.warmup_steps} ends after step {decay_start(options)}, where the decay of "
        f"LR_DECAY_SHARE={options.lr_decay_share:g} would begin: there is no stable phase, and the decay is shorter"
    ]
