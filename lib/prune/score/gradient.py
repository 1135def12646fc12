"""Gradient pruning: the first-order estimate of how much the loss changes if a weight becomes zero.

Molchanov et al., arXiv 1611.06440, section 2.2, for single weights. With masks chosen in step 1 it is the connection
sensitivity of SNIP, arXiv 1810.02340, section 4. SNIP also divides by the sum of all scores, which changes no order.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from lib.config.kconf import Options
from lib.prune.score import Criterion, Losses
from lib.prune.weight import Weight


@dataclasses.dataclass(frozen=True)
class BatchOptions(Options):
    """What is read before the first step."""

    pruning_batches: int | None  # None: nothing


def first_order_change(w: Tensor, g: Tensor) -> Tensor:
    """|w g|."""
    return (w * g).abs_()


class Gradient(Criterion):
    """Reads the gradient of the step at which masks are chosen, or of the mean loss over some batches before step 1."""

    reads_step = by_rows = silent = True

    def __init__(self, batches: int | None = None):
        """`batches` are read by each pass before the first step."""
        self.batches = batches

    def measure(self, weights: Sequence[Weight], model: nn.Module, losses: Losses) -> None:
        """Leave the gradients where `score` finds those of a step."""
        grads = summed_gradients(weights, losses(self.batches, None))
        for weight, grad in zip(weights, grads, strict=True):
            weight.parameter.grad = grad

    def score(self, weight: Weight) -> Tensor:
        """|w g|."""
        return first_order_change(weight.value, weight.grad)

    def gate(self, weight: Weight) -> Tensor:
        """w g. Its sum over the weights that read a head is dL/dxi, if xi = 1 multiplies the output of the head.

        Michel et al. (arXiv 1905.10650) score a head by the mean of |dL/dxi| over batches; here it is one batch. A
        neuron is scored in the same way.
        """
        return weight.value * weight.grad


def summed_gradients(weights: Sequence[Weight], losses: Iterable[Tensor]) -> list[Tensor]:
    """The gradient of the sum of `losses` over all ranks, of the shape of each weight's parameter."""
    parameters = [weight.parameter for weight in weights]
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for loss in losses:
        torch._foreach_add_(total, torch.autograd.grad(loss, parameters))
    sum_over_ranks(total)
    return total


def sum_over_ranks(tensors: Iterable[Tensor]) -> None:
    """In place, and one after the other, because together they are as large as the model."""
    if distributed.is_available() and distributed.is_initialized():
        for tensor in tensors:
            distributed.all_reduce(tensor)


def build(bind: Callable[[type], Any]) -> Criterion:
    """Gradient pruning; PRUNING_BATCHES matters before the first step only."""
    return Gradient(bind(BatchOptions).pruning_batches)
