"""A linear layer with a sparse forward pass and dense gradients, for methods that keep the values of pruned weights.

Letters of shapes: B all leading dimensions, I inputs, O outputs.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.base.errors import UsageError

# Makes of a weight (O, I), and of tensors that come with it, the values that the forward pass computes with.
Used = Callable[..., Tensor]


def masked(weight: Tensor, mask: Tensor) -> Tensor:
    """W * M; `mask` is uint8 of the weight's shape."""
    return weight * mask


class MaskedLinear(nn.Linear):
    """x W'^T + b, where W' is what `used` makes of W. W gets the dense gradient of W': the straight-through estimator.

    It takes the place of an nn.Linear and shares its parameters, under the same names.
    """

    def __init__(self, linear: nn.Linear, used: Used, *given: Tensor):
        """W' is `used(W, *given)`. The pruner changes the tensors `given` in place, and saves them."""
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias, self.used = linear.weight, linear.bias, used
        self.names = [f"given{number}" for number in range(len(given))]
        for name, tensor in zip(self.names, given, strict=True):
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        return _StraightThrough.apply(x, self.weight, self.bias, self.used, *[getattr(self, n) for n in self.names])


class _StraightThrough(torch.autograd.Function):
    """Computes W' again in the backward pass, so that no sparse copy of all weights is stored between the passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, used: Used, *given: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, *given)
        ctx.has_bias, ctx.used = bias is not None, used
        return F.linear(x, used(weight, *given).to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *given = ctx.saved_tensors
        rows = grad.flatten(0, -2)  # (B, O)
        grad_x = grad @ ctx.used(weight, *given).to(grad.dtype)  # (..., I)
        grad_weight = (rows.T @ x.flatten(0, -2)).to(weight.dtype)  # (O, I)
        grad_bias = rows.sum(0).to(weight.dtype) if ctx.has_bias else None
        return grad_x, grad_weight, grad_bias, None, *[None for _ in given]


def install(model: nn.Module, used: Used, given: Mapping[str, Iterable[Tensor]]) -> None:
    """Put a MaskedLinear in place of each layer whose weight `given` names, with the tensors that come with it.

    Raises UsageError for other weights.
    """
    for name, tensors in given.items():
        path, _, leaf = name.rpartition(".")
        layer = model.get_submodule(path)
        if not isinstance(layer, nn.Linear) or leaf != "weight":
            raise UsageError(
                f"PRUNING_SCOPE: {name} is not the weight of a linear layer, and this method prunes no other weights; "
                "leave it out"
            )
        model.set_submodule(path, MaskedLinear(layer, used, *tensors))
