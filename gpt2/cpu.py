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
_MOST_SCORES = 1 << 24  # of attention in parts: 64 MB of float32 a layer that the backward pass needs
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
    """softmax(q k^T / sqrt(D)) v, in which position t sees positions 0..t, for H heads. It has no parameters.

    With the kernel `attention`, training computes it by separate products on a CPU, without dropout and if there are
    not too many scores. Milliseconds of forward and backward on an Intel Xeon with AMX, 2 cores, November 2026:

        B x H x T x D       bfloat16: torch   in parts   float32: torch   in parts
        12 x 4 x 64 x 32                4.9        1.3              1.1        1.3
        16 x 6 x 256 x 64              36.6       23.5             35.8       41.0

    The products round the scores to the type of q. In bfloat16 the result is off by 0.3 %, torch's by 0.2 %.

    Letters of shapes: B batch, H heads, T time, D width of a head.
    """

    in_parts = False

    def forward(self, qkv: Tensor, heads: int, dropout: float) -> Tensor:  # (B, T, 3 H D) -> (B, T, H D)
        B, T, width = qkv.shape
        if self.in_parts and self.training and not dropout and qkv.device.type == "cpu" and scores_fit(B, heads, T):
            return torch.ops.espalier.attention(qkv, heads)[0]
        q, k, v = qkv.view(B, T, 3, heads, -1).permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)  # (B, H, T, D)
        return y.transpose(1, 2).reshape(B, T, width // 3)


def scores_fit(B: int, H: int, T: int) -> bool:
    """Whether there are few enough scores to keep them for the backward pass."""
    return B * H * T * T <= _MOST_SCORES


# The parts are one operator for torch.compile, which writes slower code for them, and needs no formula of the gradient.
torch.library.define("espalier::attention", "(Tensor qkv, int heads) -> (Tensor, Tensor, Tensor)")
torch.library.define("espalier::attention_backward", "(Tensor grad, Tensor qkv, Tensor p) -> Tensor")


@torch.library.impl("espalier::attention", "CPU")
def _attend(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    B, T, width = qkv.shape
    D = width // 3 // heads
    # Contiguous once, and not once for each product.
    parts = qkv.view(B, T, 3, heads, D).permute(2, 0, 3, 1, 4).reshape(3, B * heads, T, D)
    q, k, v = parts
    later = q.new_full((T, T), -math.inf).triu(1)
    with torch.autocast("cpu", enabled=False):  # it would make the softmax float32
        p = torch.softmax(torch.baddbmm(later, q, k.mT, alpha=D**-0.5), dim=-1)  # (B H, T, T)
        y = torch.bmm(p, v)
    return y.view(B, heads, T, D).transpose(1, 2).reshape(B, T, heads * D), parts, p


@torch.library.register_fake("espalier::attention")
def _attend_shapes(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    B, T, width = qkv.shape
    D = width // 3 // heads
    return (
        qkv.new_empty(B, T, heads * D),
        qkv.new_empty(3, B * heads, T, D),
        qkv.new_empty(B * heads, T, T),
    )


@torch.library.impl("espalier::attention_backward", "CPU")
def _attend_backward(grad: Tensor, qkv: Tensor, p: Tensor) -> Tensor:
    (B, T, width), (q, k, v), D = grad.shape, qkv, qkv.shape[-1]
    grad = grad.view(B, T, -1, D).transpose(1, 2).reshape(-1, T, D)
    slopes = torch.empty_like(qkv)  # dq, dk and dv
    with torch.autocast("cpu", enabled=False):
        of_scores = torch._softmax_backward_data(torch.bmm(grad, v.mT), p, -1, p.dtype)
        for slope, left, right in ((slopes[0], of_scores, k), (slopes[1], of_scores.mT, q)):
            torch.baddbmm(slope, left, right, beta=0, alpha=D**-0.5, out=slope)
        torch.bmm(p.mT, grad, out=slopes[2])
    return slopes.view(3, B, -1, T, D).permute(1, 3, 0, 2, 4).reshape(B, T, 3 * width)


@torch.library.register_fake("espalier::attention_backward")
def _attend_backward_shape(grad: Tensor, qkv: Tensor, p: Tensor) -> Tensor:
    return grad.new_empty(*grad.shape[:-1], 3 * grad.shape[-1])


def _keep_attended(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.set_materialize_grads(False)  # those of what is kept, which nothing else reads


def _attend_gradients(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor, None]:
    return torch.ops.espalier.attention_backward(grad, *ctx.saved_tensors), None


torch.library.register_autograd("espalier::attention", _attend_gradients, setup_context=_keep_attended)


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
