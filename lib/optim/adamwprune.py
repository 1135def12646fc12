"""AdamWPrune: an Adam-like optimizer whose moments also say which weights to prune.

It returns its base optimizer unchanged. PRUNING_METHOD=state reads exp_avg and exp_avg_sq from `optimizer.state`.
"""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import torch

from lib.config.kconf import Options
from lib.optim import Groups


@dataclasses.dataclass(frozen=True)
class AdamwpruneOptions(Options):
    """The base of adamwprune."""

    adamwprune_base_optimizer_name: str


def build(groups: Groups, bind: Callable[[type], Any]) -> torch.optim.Optimizer:
    """The base optimizer, with the base's own options."""
    base = importlib.import_module(f"lib.optim.{bind(AdamwpruneOptions).adamwprune_base_optimizer_name}")
    return base.build(groups, bind)
