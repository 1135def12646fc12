"""AdamW (Loshchilov & Hutter, arXiv 1711.05101, algorithm 2; torch's fused implementation): decoupled weight decay."""

from collections.abc import Callable
from typing import Any

import torch

from lib.optim import Groups
from lib.optim.adam import settings


def build(groups: Groups, bind: Callable[[type], Any]) -> torch.optim.Optimizer:
    """Adam's update after w *= 1 - lr weight_decay."""
    return torch.optim.AdamW(groups, **settings(bind))
