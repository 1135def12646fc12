"""RUN_TIME: a run stops when this time is over, as after a signal."""

import dataclasses
import math
from collections.abc import Callable

from gpt2.training import Training
from lib.base import durations
from lib.config.kconf import Options


@dataclasses.dataclass(frozen=True)
class LimitOptions(Options):
    """How long a run may take, and after which step it is done."""

    run_time: str  # empty: no limit
    max_iters: int


class Limit:
    """Whether the time of a run is over. One that has made all its steps has met no limit."""

    def __init__(self, options: LimitOptions, training: Training, seconds: Callable[[], float]):
        """`seconds` is the time of all sessions up to now."""
        self.options, self.training, self.seconds = options, training, seconds
        self.most = durations.seconds(options.run_time) if options.run_time else math.inf

    def over(self) -> bool:
        """Whether the run has to stop now."""
        return self.seconds() >= self.most and self.training.step < self.options.max_iters
