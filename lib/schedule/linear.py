"""Linear: a straight line from the peak to the minimum, as for BERT (Devlin et al., arXiv 1810.04805, appendix A.2)."""

from lib.schedule import Bind, Rate
from lib.schedule.decay import DecayOptions, decay


def build(bind: Bind) -> Rate:
    """The peak at the end of the warm-up, the minimum at the last step."""
    options = bind(DecayOptions)
    return decay(options, options.warmup_steps, lambda done: 1 - done)
