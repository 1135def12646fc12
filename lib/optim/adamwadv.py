"""AdamW with AMSGrad (Reddi et al., arXiv 1904.09237, algorithm 2; torch's fused implementation)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from lib.config.kconf import Options
from lib.optim import Groups
from lib.optim.adam import settings


@dataclasses.dataclass(frozen=True)
class AdamwadvOptions(Options):
    """Settings of adamwadv beside Adam's. The cosine schedule and gradient clipping are options of every optimizer."""

    adamwadv_amsgrad: bool


def build(groups: Groups, bind: Callable[[type], Any]) -> torch.optim.Optimizer:
    """AdamW that divides by the largest second moment so far instead of the current one."""
    return torch.optim.AdamW(groups, amsgrad=bind(AdamwadvOptions).adamwadv_amsgrad, **settings(bind))
