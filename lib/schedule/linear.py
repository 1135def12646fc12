"""Linear: a straight line from the peak to the minimum, as for BERT (Devlin et al., arXiv 1810.04805, appendix A.2)."""

import dataclasses

from lib.config.kconf import Options
from lib.schedule import Bind, Rate, progress


@dataclasses.dataclass(frozen=True)
class LinearOptions(Options):
    """From where to where, and when."""

    max_iters: int
    learning_rate: float
    warmup_steps: int
    min_lr: float


def build(bind: Bind) -> Rate:
    """The peak at the end of the warm-up, the minimum at the last step."""
    options = bind(LinearOptions)
    peak, minimum = options.learning_rate, options.min_lr

    def rate(step: int) -> float:
        done = progress(step, options.warmup_steps, options.max_iters)
        return minimum + (peak - minimum) * (1 - done)

    return rate
