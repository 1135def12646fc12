"""Stochastic gradient descent with momentum (torch's fused one); weight decay is added to the gradient."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from lib.kconf import Options
from lib.optim import Groups


@dataclasses.dataclass(frozen=True)
class SgdOptions(Options):
    """Settings of sgd."""

    sgd_momentum: float


def build(groups: Groups, bind: Callable[[type], Any]) -> torch.optim.Optimizer:
    """v = momentum v + (g + weight_decay w);  w -= lr v."""
    options = bind(SgdOptions)
    return torch.optim.SGD(groups, momentum=options.sgd_momentum, fused=True)
