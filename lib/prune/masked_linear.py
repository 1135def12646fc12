"""A linear layer with a masked forward pass and dense gradients, for methods that keep the values of pruned weights.

Letters of shapes: B all leading dimensions, I inputs, O outputs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.base.errors import UsageError


class MaskedLinear(nn.Linear):
    """x (W * M)^T + b. W gets the dense gradient of W * M: the straight-through estimator.

    It takes the place of an nn.Linear and shares its parameters, under the same names.
    """

    def __init__(self, linear: nn.Linear, mask: Tensor):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("mask", mask, persistent=False)  # uint8 (O, I); the pruner saves it

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        return _StraightThrough.apply(x, self.weight, self.mask, self.bias)


class _StraightThrough(torch.autograd.Function):
    """Computes W * M again in the backward pass, so that no masked copy of all weights is stored between the passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, mask)
        ctx.has_bias = bias is not None
        return F.linear(x, (weight * mask).to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mask = ctx.saved_tensors
        rows = grad.flatten(0, -2)  # (B, O)
        grad_x = grad @ (weight * mask).to(grad.dtype)  # (..., I)
        grad_weight = (rows.T @ x.flatten(0, -2)).to(weight.dtype)  # (O, I)
        return grad_x, grad_weight, None, rows.sum(0).to(weight.dtype) if ctx.has_bias else None


def install(model: nn.Module, masks: dict[str, Tensor]) -> None:
    """Put a MaskedLinear in place of each layer whose weight `masks` names; raises UsageError for other weights."""
    for name, mask in masks.items():
        path, _, leaf = name.rpartition(".")
        layer = model.get_submodule(path)
        if not isinstance(layer, nn.Linear) or leaf != "weight":
            raise UsageError(
                f"PRUNING_SCOPE: {name} is not the weight of a linear layer, and this method prunes no other weights; "
                "leave it out"
            )
        model.set_submodule(path, MaskedLinear(layer, mask))
