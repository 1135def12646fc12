"""Linear layers that, compiled for a CPU, multiply float32 by oneDNN, where torch takes MKL.

Measured on 2 cores of an AMD EPYC: oneDNN multiplies 4096 x 384 by 384 x 1536 at 201 GFLOP/s, MKL at 144; for the
gradient of the weights MKL is the faster one (166 to 153). Training of 6 layers of width 384 got 1.16 x, of 4 layers of
width 128 1.05 x as fast. Without torch.compile calling it costs small layers what it brings. In other arithmetic, and
on a GPU, torch does it well.
"""

from typing import Any

import torch
from torch import Tensor, nn

_ONEDNN = torch.backends.mkldnn.is_available()

# An operator of its own, since torch.compile takes oneDNN's with constant weights alone.
torch.library.define("espalier::linear", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor")


@torch.library.impl("espalier::linear", "CPU")
def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@torch.library.register_fake("espalier::linear")
def _shape(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


class Linear(nn.Linear):
    """nn.Linear, but for who multiplies."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        if torch.compiler.is_compiling() and _ONEDNN and x.device.type == "cpu" and _is_float32(x):
            return _OneDNN.apply(x, self.weight, self.bias)
        return super().forward(x)


def _is_float32(x: Tensor) -> bool:
    return x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


class _OneDNN(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.ops.espalier.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        return torch.ops.espalier.linear(grad, weight.T, None), rows.T @ x.flatten(0, -2), rows.sum(0)
