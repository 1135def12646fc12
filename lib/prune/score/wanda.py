"""Wanda: a weight matters as much as it is large and its input active (Sun et al., arXiv 2306.11695).

Letters of shapes: B all leading dimensions, I inputs, O outputs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from lib.base.errors import UsageError
from lib.prune.score import Criterion
from lib.prune.weight import Weight

_SUM = "input_square_sum"  # (I,) float32: ||X_j||^2 over the tokens seen in training since masks were last chosen


def wanda(w: Tensor, input_square_sum: Tensor) -> Tensor:
    """|W_ij| ||X_j||_2, section 3 there: (O, I) weights, (I,) squared norms of the inputs over all tokens."""
    return w.abs().mul_(input_square_sum.sqrt())


class Wanda(Criterion):
    """Counts the inputs of training alone, not of evaluation, and none of a step that is skipped.

    All tensors have seen equally many tokens, so their number changes no order.
    """

    reads_step = True

    def __init__(self):
        self.pending: list[Tensor] = []  # of each weight, the sum over the present step's micro-batches

    def attach(self, weights: Sequence[Weight], modules: Sequence[nn.Module]) -> None:
        """Listen to the layers; raises UsageError for a weight that is not the matrix of a linear layer."""
        for weight, module in zip(weights, modules, strict=True):
            if not isinstance(module, nn.Linear) or module.weight is not weight.parameter:
                raise UsageError(
                    f"PRUNING_METHOD=wanda measures the inputs of linear layers, and {weight.name} is not the weight "
                    "of one; leave it out of PRUNING_SCOPE"
                )
        for weight, module in zip(weights, modules, strict=True):
            weight.memory[_SUM] = torch.zeros(module.in_features, device=weight.parameter.device)
            self.pending.append(torch.zeros_like(weight.memory[_SUM]))
            module.register_forward_pre_hook(_adder(self.pending[-1]))

    @torch.no_grad()
    def observe(self, weights: Sequence[Weight], healthy: Callable[[], Tensor]) -> None:
        """Take over what the step's inputs added, on all ranks."""
        ok = healthy()
        _sum_over_ranks(self.pending)
        for weight, pending in zip(weights, self.pending, strict=True):
            seen = weight.memory[_SUM]
            torch.where(ok, seen + pending, seen, out=seen)
            pending.zero_()

    def score(self, weight: Weight) -> Tensor:
        """|W_ij| ||X_j||_2."""
        return wanda(weight.value, weight.memory[_SUM])

    def chosen(self, weights: Sequence[Weight]) -> None:
        """Begin to count anew: the layers before this one have changed."""
        for weight in weights:
            weight.memory[_SUM].zero_()


def _adder(total: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A hook that adds to `total` the sum of squares of each input feature."""

    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:
            x = inputs[0].detach()  # (..., I), any float type
            total.add_(x.float().square().flatten(0, -2).sum(0))

    return add


def _sum_over_ranks(tensors: list[Tensor]) -> None:
    """Every rank has seen its own tokens; masks must be the same on all."""
    if distributed.is_available() and distributed.is_initialized():
        joint = torch.cat(tensors)
        distributed.all_reduce(joint)
        torch._foreach_copy_(tensors, joint.split([tensor.numel() for tensor in tensors]))


def build(bind: Callable[[type], Any]) -> Criterion:
    """Wanda has no options."""
    return Wanda()
