"""Pruning: `build` makes the pruner that the options describe, from four parts that know nothing of each other.

score: what a weight is worth; mask: which weights are pruned; schedule: when, and how many; scope: in which tensors.
`lib.prune.feasible` says what cannot be, and importing it imports no PyTorch.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lib.prune import schedule

__all__ = ["build", "schedule"]

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lib.prune.given import Masks
    from lib.prune.pruners import AnyPruner
    from lib.prune.score import Losses


def build(
    model: "nn.Module",
    optimizer: "torch.optim.Optimizer",
    bind: Callable[[type], Any],
    masks: "Masks | None" = None,
    losses: "Losses | None" = None,
) -> "AnyPruner":
    """The pruner that the options describe; `bind` returns the options that a dataclass declares.

    `masks` are those of PRUNING_METHOD=given, and `losses` what masks that are chosen in passes are computed from.
    Without them a checkpoint must be loaded before the first step.

    Masks that are due before the first step are chosen here. On the device "meta" no masks are chosen, because there
    are no values to compare. Methods that keep the values of pruned weights replace the linear layers of `model` by
    masked layers.

    A model may have `used_rows()`: parameter -> number of rows in use. The rows after them are padding, which is
    neither counted nor pruned. It may have `units()`: its neurons and heads (lib.prune.census.Units), and `groups()`:
    the same with all their weights, for PRUNING_STRUCTURE (lib.prune.kinds.Group). PRUNING_METHOD=synflow needs
    `flow`: see lib.prune.score.synflow.

    Raises UsageError for an impossible combination, before any weight changes.
    """
    from lib.prune import pruners  # here, because it imports PyTorch

    return pruners.build(model, optimizer, bind, masks, losses)
