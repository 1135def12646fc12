"""The loss at a language model's head, in chunks of rows, so that a large batch never has all its logits in memory.

The forward pass turns the logits of a chunk into their gradient, as Liger Kernel does (Hsu et al., arXiv 2410.10989,
section 3.2). So no logits are kept for the backward pass, and none are computed twice.

Letters of shapes: N tokens, C width, V vocabulary, P the vocabulary padded, R rows of a chunk.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows of a chunk. Each chunk after the first reads and writes a float32 gradient of P * C numbers, so small chunks are
# slow. On 2 CPU cores with 1024 rows, GPT-2 124M trained 1.05 x as fast as with F.cross_entropy on all logits. With 256
# rows it trained 0.93 x as fast.
_ROWS = {"cpu": 1024, "cuda": 8192}
# Gradients of logits lie in [-1, 1]. For float16 they are multiplied by _SCALE / R. A chunk's products with its inputs
# then sum to at most _SCALE times the largest input: no overflow (65504) for inputs below 64. Gradients above 1e-6 do
# not underflow.
_SCALE = 1024


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """Mean of -log softmax(x weight^T)[target] in nats: x (N, C), weight (P, C), targets (N,); a float32 scalar.

    Rows of `weight` from `vocab_size` on are padding and have probability 0. Matrix products are in autocast's dtype.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    if torch.is_grad_enabled():
        return _LinearCrossEntropy.apply(x, weight, targets, vocab_size, dtype)
    x, head, loss = x.to(dtype), weight.to(dtype), torch.zeros((), device=x.device)
    for part, target in _chunks(x, targets):
        loss = loss + F.nll_loss(_log_probabilities(part, head, vocab_size), target, reduction="sum")
    return loss / len(x)


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes both gradients together with the loss; `backward` only scales them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, dtype: torch.dtype) -> Tensor:
        rows, head = x.to(dtype), weight.to(dtype)
        loss, parts, grad_weight, scale = torch.zeros((), device=x.device), [], None, _SCALE / _rows(x)
        for part, target in _chunks(rows, targets):
            log = _log_probabilities(part, head, vocab_size)  # (R, P)
            log_target = log.gather(1, target[:, None])
            loss = loss - log_target.sum()
            # The gradient of the logits is softmax - one-hot. At the target it is p - 1, computed before p is rounded.
            errors = (log.exp_() * scale).to(dtype)
            errors.scatter_(1, target[:, None], (log_target.expm1() * scale).to(dtype))
            parts.append(errors @ head)
            grad = errors.T @ part
            grad_weight = grad if grad_weight is None else grad_weight.float() + grad
        ctx.save_for_backward(torch.cat(parts), grad_weight)
        ctx.dtypes, ctx.factor = (x.dtype, weight.dtype), 1 / (scale * len(x))
        return loss / len(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (grad_x, grad_weight), grad = ctx.saved_tensors, grad * ctx.factor
        return grad_x.to(ctx.dtypes[0]) * grad, grad_weight.to(ctx.dtypes[1]) * grad, None, None, None


def linear_distillation(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    vocab_size: int,
    teacher_x: Tensor,
    teacher_weight: Tensor,
    share: float,
    temperature: float,
) -> Tensor:
    """(1 - share) * CE + share * KL, CE and KL, in nats and float32 (3,); only the first one has a gradient.

    CE is `linear_cross_entropy`. KL is T^2 * KL(teacher || student) at the temperature T, the mean over the rows; see
    gpt2/distillation.py. The head of the teacher reads teacher_x (N, D) by teacher_weight (P, D). Of both heads, rows
    from `vocab_size` on are padding.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return _LinearDistillation.apply(
        x, weight, targets, vocab_size, teacher_x, teacher_weight, share, temperature, dtype
    )


class _LinearDistillation(torch.autograd.Function):
    """As _LinearCrossEntropy. With a share of 0 its gradients have the same bits."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        vocab_size: int,
        teacher_x: Tensor,
        teacher_weight: Tensor,
        share: float,
        temperature: float,
        dtype: torch.dtype,
    ) -> Tensor:
        rows, head = x.to(dtype), weight.to(dtype)
        teacher_rows, teacher_head = teacher_x.to(dtype), teacher_weight.to(dtype)
        # The gradients by soft targets lie in [-T, T].
        parts, grad_weight, scale = [], None, _SCALE / _rows(x) / max(1.0, share * temperature)
        entropy = divergence = torch.zeros((), device=x.device)
        chunks = zip(_chunks(rows, targets), teacher_rows.split(_rows(x)), strict=True)
        for (part, target), teacher_part in chunks:
            log = _log_probabilities(part, head, vocab_size)  # (R, P)
            log_target = log.gather(1, target[:, None])
            entropy = entropy - log_target.sum()
            apart, pull = _compared(
                _softened(log, temperature),
                _softened(_log_probabilities(teacher_part, teacher_head, vocab_size), temperature),
                vocab_size,
            )
            divergence, pull = divergence + apart, pull * (share * temperature)  # now the gradient of the logits
            at_target = log_target.expm1() * (1 - share) + pull.gather(1, target[:, None])
            # At T = 1 `pull` has this exponential too. torch.compile (2.13) spoils it if the scatter is right into it.
            errors = log.exp() * (1 - share) + pull
            errors = (errors.scatter_(1, target[:, None], at_target) * scale).to(dtype)
            parts.append(errors @ head)
            grad = errors.T @ part
            grad_weight = grad if grad_weight is None else grad_weight.float() + grad
        ctx.save_for_backward(torch.cat(parts), grad_weight)
        ctx.dtypes, ctx.factor = (x.dtype, weight.dtype), 1 / (scale * len(x))
        divergence = temperature**2 * divergence
        return torch.stack([(1 - share) * entropy + share * divergence, entropy, divergence]) / len(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (grad_x, grad_weight), grad = ctx.saved_tensors, grad[0] * ctx.factor
        own = grad_x.to(ctx.dtypes[0]) * grad, grad_weight.to(ctx.dtypes[1]) * grad
        return *own, None, None, None, None, None, None, None


def _softened(log: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) of log softmax(logits), (R, P): in a row, they differ by a constant."""
    return log if temperature == 1 else F.log_softmax(log / temperature, dim=1)


def _compared(own: Tensor, soft: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """KL(soft || own), summed over the rows, and own - soft as probabilities; logarithms of probabilities (R, P)."""
    chances = soft.exp()
    gap = (soft - own)[:, :vocab_size]  # in the padding, both are -inf
    return (gap * chances[:, :vocab_size]).sum(), own.exp() - chances


def _rows(x: Tensor) -> int:
    return min(len(x), _ROWS.get(x.device.type, _ROWS["cpu"]))


def _chunks(x: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(x.split(_rows(x)), targets.split(_rows(x)), strict=True)


def _log_probabilities(x: Tensor, head: Tensor, vocab_size: int) -> Tensor:
    """(R, C), (P, C) -> (R, P) float32."""
    logits = F.linear(x, head).float()
    if len(head) > vocab_size:
        logits[:, vocab_size:] = -math.inf
    return F.log_softmax(logits, dim=1)
