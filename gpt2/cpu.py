"""What only a CPU needs: parts of the model with other kernels than torch's, each where it is faster on this machine.

They compute the same as torch's layers, up to rounding. On other devices they call torch's. gpt2/kernels.py chooses.
"""

import math
from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNELS = ("onednn", "attention")  # that can be chosen in place of torch's: see Linear and CausalAttention
_MOST_SCORES = 1 << 24  # of attention in parts: 64 MB of float32 that the backward pass needs
_GELU = 2 * math.sqrt(2 / math.pi)

# torch.compile takes oneDNN's own operator only with constant weights. So this wraps it in an operator that it accepts.
torch.library.define("espalier::linear", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor")


@torch.library.impl("espalier::linear", "CPU")
def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@torch.library.register_fake("espalier::linear")
def _shape(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, weight = ctx.saved_tensors
    rows = grad.flatten(0, -2)
    return torch.ops.espalier.linear(grad, weight.T, None), rows.T @ x.flatten(0, -2), rows.sum(0)


# torch.compile keeps what it traced for the next start only if the gradient belongs to the operator.
torch.library.register_autograd("espalier::linear", _gradients, setup_context=_keep)


class Linear(nn.Linear):
    """nn.Linear. With the kernel `onednn`, oneDNN computes its float32 products in place of MKL.

    MKL always computes the gradient of the weights. Rates of 4096 x 384 by 384 x 1536 on 2 cores, in GFLOP/s:

        processor                                      oneDNN   MKL   the weights' gradient: oneDNN   MKL
        AMD EPYC (AVX-512 with bfloat16), November 2026   201   144                             153   166
        Intel Xeon (AVX-512), November 2026               290   299                             157   290
    """

    onednn = False

    def forward(self, x: Tensor) -> Tensor:  # (..., I) -> (..., O)
        if self.onednn and _is_float32(x):
            return torch.ops.espalier.linear(x, self.weight, self.bias)
        return super().forward(x)


def _is_float32(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


class CausalAttention(nn.Module):
    """softmax(q k^T / sqrt(D)) v, in which position t sees positions 0..t. It has no parameters.

    With the kernel `attention`, separate operations compute it on a CPU if there are not too many scores. In 16 bits
    on an AMD EPYC at T 64, they save a quarter of a training step; on an Intel Xeon in float32 they cost 6 %. The
    separate operations round the scores to the type of q. In bfloat16 their result is off by 0.4 to 1 %, torch's
    attention by 0.2 %.

    Letters of shapes: B batch, H heads, T time, D width of a head.
    """

    in_parts = False

    def forward(self, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:  # (B, H, T, D) each -> (B, H, T, D)
        if self.in_parts and q.device.type == "cpu" and scores_fit(q):
            return _in_parts(q, k, v, dropout)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)


def scores_fit(q: Tensor) -> bool:
    """Whether there are few enough scores to keep them for the backward pass; q (B, H, T, D)."""
    B, H, T, _ = q.shape
    return B * H * T * T <= _MOST_SCORES


def _in_parts(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    T = q.shape[2]
    later = torch.full((T, T), -math.inf, device=q.device).triu(1)  # float32 of 0 and -inf
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + later  # (B, H, T, T) float32
    return F.dropout(torch.softmax(scores, dim=-1).to(v.dtype), dropout) @ v


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in its tanh form, x/2 (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3).

    (1 + tanh(u)) / 2 equals sigmoid(2 u), for which torch.compile writes faster code on a CPU: a step of 4 layers of
    width 128 takes 25.6 in place of 28.3 ms on an Intel Xeon. Without torch.compile, passes over pieces that stay in
    the caches are no faster than torch's one pass.
    """
    if torch.compiler.is_compiling():
        return x * torch.sigmoid(x * (_GELU + _GELU * 0.044715 * x * x))
    return F.gelu(x, approximate="tanh")


def use(model: nn.Module, kernels: Collection[str]) -> None:
    """Let the layers of `model` use these of KERNELS, and torch's for the rest."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.onednn = "onednn" in kernels
        elif isinstance(module, CausalAttention):
            module.in_parts = "attention" in kernels
