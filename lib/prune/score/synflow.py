"""SynFlow: a weight is worth the flow through it, in a linear network of the absolute values; it reads no data.

Tanaka et al., arXiv 2006.05467, section 6: R is the sum of the outputs of the network with |w| in place of w, for an
input of ones, and the score of a weight is S = |w dR/dw|. A dense network x -> W_n ... W_1 x has the score

    S(w_ij in W_l) = (1^T |W_n| ... |W_l+1|)_i |w_ij| (|W_l-1| ... |W_1| 1)_j.

Flow is conserved (their theorems 1 and 2): the scores of the weights that read a neuron have the same sum as those of
the weights that it reads, and the scores of the weights of any cut between input and output have the sum R. So the mean
score of a layer rises as it loses weights, and if scores are computed often enough, no layer loses all (theorem 3),
unless flow can go around it, as by a residual connection.

The model says what its linear network is, by a method `flow` (see `Flow`). GPT2.flow in gpt2/model.py has GPT-2's.

Letters of shapes: O outputs, I inputs.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lib.base.errors import UsageError
from lib.prune.score import Criterion, Losses
from lib.prune.select import PruningError
from lib.prune.weight import Weight


class Product(Protocol):
    """|W| x, or |W|^T x if `transposed`, in float64: weight (O, I), x (I,) -> (O,), or (O,) -> (I,)."""

    def __call__(self, weight: nn.Parameter, x: Tensor, transposed: bool = False) -> Tensor:
        """Multiply, and note what flows in and out."""


# R, a scalar, computed with a Product. It may be multiplied by any constant.
Flow = Callable[[Product], Tensor]


class _Product(torch.autograd.Function):
    """Computes |W| again in the backward pass, so that there is never more than one matrix in float64."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, transposed: bool) -> Tensor:
        ctx.weight, ctx.transposed = weight, transposed
        return _multiply(weight, x, transposed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _multiply(ctx.weight, grad, not ctx.transposed), None, None


def _multiply(weight: Tensor, x: Tensor, transposed: bool) -> Tensor:
    matrix = _exact(weight)
    return (matrix.T if transposed else matrix) @ x.to(matrix)


def _exact(weight: Tensor) -> Tensor:
    """|w| in float64, which devices of the type mps do not have."""
    values = weight.detach().abs()
    return (values.cpu() if values.device.type == "mps" else values).double()


def flows(flow: Flow) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """(weight, its scores S / R in float64, of its shape) for each weight that `flow` multiplies by.

    A weight that is used twice has the sum of both. Raises PruningError if R is zero, NaN or infinite.
    """
    uses: dict[nn.Parameter, list[tuple[Tensor, Tensor, bool]]] = {}

    def product(weight: nn.Parameter, x: Tensor, transposed: bool = False) -> Tensor:
        y = _Product.apply(x, weight.detach(), transposed)
        if not y.requires_grad:
            y.requires_grad_()
        uses.setdefault(weight, []).append((x.detach(), y, transposed))
        return y

    with torch.enable_grad():
        total = flow(product)
        outputs = [y for found in uses.values() for _, y, _ in found]
        grads = iter(torch.autograd.grad(total, outputs))
    total = total.item()
    if not 0 < total < float("inf"):
        raise PruningError(
            f"PRUNING_METHOD=synflow: the flow through the network is {total:g}; its weights are zero, NaN or infinite"
        )
    for weight, found in uses.items():
        strength, values = None, _exact(weight)
        for x, _, transposed in found:
            rows, columns = (x, next(grads)) if transposed else (next(grads), x)
            one = torch.outer(rows.to(values), columns.to(values))
            strength = one if strength is None else strength.add_(one)
        yield weight, values.mul_(strength).div_(total)


class SynFlow(Criterion):
    """Reads the weights only, but the score of each depends on all others."""

    silent = True

    def __init__(self) -> None:
        self.scores: dict[str, Tensor] = {}  # by tensor, of the present pass

    def attach(self, weights: Sequence[Weight], modules: Sequence[nn.Module]) -> None:
        """Raise UsageError for what is no matrix: norms scale the flow, and biases are left out of it."""
        for weight in weights:
            if weight.parameter.dim() != 2:
                raise UsageError(
                    f"PRUNING_METHOD=synflow scores matrices, and {weight.name} is none; leave it out of PRUNING_SCOPE"
                )

    def measure(self, weights: Sequence[Weight], model: nn.Module, losses: Losses) -> None:
        """Compute S N / R, with N weights in scope, so that scores are near 1."""
        named, number = {weight.parameter: weight for weight in weights}, sum(w.mask.numel() for w in weights)
        self.scores = {}
        for parameter, shares in flows(model.flow):
            if weight := named.get(parameter):
                scores = shares[: len(weight.mask)].mul_(number)
                self.scores[weight.name] = scores.to(parameter.device, torch.float32)

    def score(self, weight: Weight) -> Tensor:
        """S, times a constant."""
        return self.scores[weight.name]


def build(bind: Callable[[type], Any]) -> Criterion:
    """SynFlow has no options of its own."""
    return SynFlow()
