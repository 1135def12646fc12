"""The pruner of PRUNING_METHOD=str: a soft threshold in each tensor, which training moves."""

from typing import Any

import torch
from torch import Tensor, nn

from lib.prune import masked_linear
from lib.prune.hidden import StraightThrough
from lib.prune.outlook import ZEROING, Traffic
from lib.prune.pruner import Pruner
from lib.prune.score.str import soft_threshold, state
from lib.prune.weight import Weight


class LearnedThresholds(StraightThrough):
    """STR (Kusupati et al., arXiv 2002.03231); see lib/prune/score/str.py for its equations.

    The sparsity is a result, so no weights are compared between tensors and there is no schedule. Masks tell which
    weights the forward pass uses. They are counted after every step, because every step moves weights and thresholds.
    """

    shifts, decided_by = True, "its threshold"

    def __init__(self, *parts: Any):
        super().__init__(*parts, decay=0.0)
        self.criterion.prepare(self.weights)

    def install(self, model: nn.Module, masks: dict[str, Tensor]) -> None:
        masked_linear.install(model, soft_threshold, {weight.name: (state(weight),) for weight in self.weights})

    def used(self, weight: Weight) -> Tensor:
        return soft_threshold(weight.value, state(weight))

    def trained(self, masks: dict[str, Tensor]) -> dict[nn.Parameter, Tensor]:
        """The weights above their threshold: those below it have no gradient, unlike those of ste."""
        return Pruner.trained(self, masks)

    def gradients(self) -> float:
        """0: a weight below its threshold has no gradient."""
        return 0.0

    @torch.no_grad()
    def hold(self) -> None:
        """Zero the gradients of weights that were below their threshold in the forward pass."""
        for weight in self.weights:
            weight.grad.mul_(weight.mask)

    def masks(self, step: int) -> list[Tensor]:
        return [(self.criterion.score(weight) > 0).to(torch.uint8) for weight in self.weights]

    def timetable(self, steps: int) -> dict[str, str]:
        return {
            "sparsity": "a result of training: it is neither set nor known before",
            "decided by": "STR_DECAY: more of it, or more steps, prunes more, until the loss holds against it",
            "read more": "docs/methods.md#str",
        }

    def peak(self) -> str:
        return ""

    def traffic(self, passes: int) -> Traffic:
        """Training reads weights and gradients. New masks are written beside the old ones."""
        soft = ("soft thresholds, forward and backward", passes * 8)
        return [("training the thresholds", 8), ZEROING, ("masks", 8), soft]

    def ranking(self) -> str:
        return "compares every weight with the threshold"
