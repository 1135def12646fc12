"""Constant: the peak is kept from the end of the warm-up to the last step."""

import dataclasses

from lib.config.kconf import Options
from lib.schedule import Bind, Rate


@dataclasses.dataclass(frozen=True)
class ConstantOptions(Options):
    """The rate that is kept."""

    learning_rate: float


def build(bind: Bind) -> Rate:
    """The same rate at every step."""
    peak = bind(ConstantOptions).learning_rate
    return lambda step: peak
