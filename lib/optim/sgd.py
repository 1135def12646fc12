"""Stochastic gradient descent with momentum (torch's fused implementation); weight decay is added to the gradient."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from lib.config.kconf import Options
from lib.optim import Groups


@dataclasses.dataclass(frozen=True)
class SgdOptions(Options):
    """Settings of sgd."""

    sgd_momentum: float


def build(groups: Groups, bind: Callable[[type], Any]) -> torch.optim.Optimizer:
    """v = momentum v + (g + weight_decay w);  w -= lr v."""
    options = bind(SgdOptions)
    optimizer = torch.optim.SGD(groups, momentum=options.sgd_momentum, fused=True)
    if options.sgd_momentum:  # torch does not initialise it, and a skipped first step would not either
        for group in groups:
            for p in group["params"]:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer
