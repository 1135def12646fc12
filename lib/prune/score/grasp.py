"""GraSP: keeps the weights without which the gradient would become smaller (Wang et al., arXiv 2002.07376).

The gradient flow is g^T g, with g the gradient of the loss. To first order, setting a weight w to zero changes it by
2 (-w (H g)), with the Hessian H. GraSP's score is this -w (H g), and the *highest* are pruned: their removal lowers the
gradient least, or raises it. So the authors' code does (github.com/alecwangcq/GraSP, pruner/GraSP.py: topk, and what is
at most the threshold stays). Here the lowest scores are pruned, so the score is w (H g), as in the code of Tanaka et
al. (github.com/ganguli-lab/Synaptic-Flow, Pruners/pruners.py).

Both programs divide the logits by 200. This leaves of H mainly the part in which the second derivatives of the logits
are, and the others, with the squares of the first derivatives, shrink by another factor of 200.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lib.prune.score import Criterion, Losses
from lib.prune.score.gradient import BatchOptions, sum_over_ranks, summed_gradients
from lib.prune.weight import Weight

TEMPERATURE = 200.0  # of the logits


class GraSP(Criterion):
    """Reads gradients and Hessian of the mean loss over some batches, both of the weights in scope only."""

    silent = True

    def __init__(self, batches: int):
        """`batches` are read twice by each pass before the first step."""
        self.batches = batches
        self.scores: dict[str, Tensor] = {}  # by tensor, of the present pass

    def measure(self, weights: Sequence[Weight], model: nn.Module, losses: Losses) -> None:
        """Compute w (H g). H g is the gradient of g^T v at v = g, by backward passes through backward passes."""
        parameters = [weight.parameter for weight in weights]
        gradient = summed_gradients(weights, losses(self.batches, TEMPERATURE))
        for weight, part in zip(weights, gradient, strict=True):
            part[: len(weight.mask)].mul_(weight.mask)  # the gradient of the masked network
        product = [torch.zeros_like(parameter) for parameter in parameters]
        for loss in losses(self.batches, TEMPERATURE):
            slopes = torch.autograd.grad(loss, parameters, create_graph=True)
            dot = sum((slope * part).sum() for slope, part in zip(slopes, gradient, strict=True))
            torch._foreach_add_(product, torch.autograd.grad(dot, parameters, materialize_grads=True))
        sum_over_ranks(product)
        for weight, part in zip(weights, product, strict=True):
            self.scores[weight.name] = weight.value * part[: len(weight.mask)]

    def score(self, weight: Weight) -> Tensor:
        """w (H g)."""
        return self.scores[weight.name]


def build(bind: Callable[[type], Any]) -> Criterion:
    """GraSP over PRUNING_BATCHES."""
    return GraSP(bind(BatchOptions).pruning_batches)
