"""Adam (Kingma & Ba, arXiv 1412.6980, algorithm 1; torch's fused implementation), with weight decay in the gradient."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from lib.config.kconf import Options
from lib.optim import Groups


@dataclasses.dataclass(frozen=True)
class AdamOptions(Options):
    """Settings of Adam and of the rules that build on it."""

    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float


def settings(bind: Callable[[type], Any]) -> dict[str, Any]:
    """The options as keyword arguments of torch.optim.Adam and AdamW."""
    options = bind(AdamOptions)
    return {"betas": (options.adam_beta1, options.adam_beta2), "eps": options.adam_epsilon, "fused": True}


def build(groups: Groups, bind: Callable[[type], Any]) -> torch.optim.Optimizer:
    """m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;  w -= lr m_hat / (sqrt(v_hat) + eps), with g including the decay."""
    return torch.optim.Adam(groups, **settings(bind))
