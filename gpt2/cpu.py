"""What only a CPU needs: three layers of the model, with kernels that are faster on a CPU than torch's own.

They compute the same as torch's layers, up to rounding. On other devices they call torch's.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ONEDNN = torch.backends.mkldnn.is_available()
_LONGEST = 256  # tokens of a context: above it torch's attention is faster
_MOST_SCORES = 1 << 24  # 64 MB of float32 that the backward pass needs
_GELU = 2 * math.sqrt(2 / math.pi)

# torch.compile takes oneDNN's own operator only with constant weights. So this wraps it in an operator that it accepts.
torch.library.define("espalier::linear", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor")


@torch.library.impl("espalier::linear", "CPU")
def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@torch.library.register_fake("espalier::linear")
def _shape(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


class Linear(nn.Linear):
    """nn.Linear. When it is compiled for a CPU, oneDNN computes its float32 products in place of MKL.

    On 2 cores of an AMD EPYC, oneDNN multiplies 4096 x 384 by 384 x 1536 at 201 GFLOP/s, MKL at 144. For the weights'
    gradient MKL is faster (166 to 153), so MKL computes that. Training speeds up by 1.16 x (6 layers of width 384)
    and 1.05 x (4 of width 128). Without torch.compile, the call costs more than small layers gain.
    """

    def forward(self, x: Tensor) -> Tensor:  # (..., I) -> (..., O)
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


class CausalAttention(nn.Module):
    """softmax(q k^T / sqrt(D)) v, in which position t sees positions 0..t. It has no parameters.

    On a CPU in 16 bits with a short context, separate operations are faster than torch's fused attention. With 4 layers
    of width 128 at T 64, they save a quarter of a training step. At T 1024 they are slower. The separate
    operations round the scores to 16 bits. In bfloat16 their result is off by 0.4 to 1 %, torch's attention by 0.2 %.

    Letters of shapes: B batch, H heads, T time, D width of a head.
    """

    def __init__(self, block_size: int):
        super().__init__()
        short = block_size <= _LONGEST
        mask = torch.full((block_size, block_size), -math.inf).triu(1) if short else None  # float32 of 0 and -inf
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:  # (B, H, T, D) each -> (B, H, T, D)
        if self.mask is None or not _is_faster_in_parts(q):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        T = q.shape[2]
        return _in_parts(q, k, v, self.mask[:T, :T], dropout)


def _is_faster_in_parts(q: Tensor) -> bool:
    B, H, T, _ = q.shape
    return q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16) and B * H * T * T <= _MOST_SCORES


def _in_parts(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + mask  # (B, H, T, T) float32
    return F.dropout(torch.softmax(scores, dim=-1).to(v.dtype), dropout) @ v


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in its tanh form, x/2 (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3).

    (1 + tanh(u)) / 2 equals sigmoid(2 u), for which torch.compile writes faster code on a CPU.
    """
    if torch.compiler.is_compiling():
        return x * torch.sigmoid(x * (_GELU + _GELU * 0.044715 * x * x))
    return F.gelu(x, approximate="tanh")
