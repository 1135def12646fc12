"""Wanda: a weight is worth its magnitude times the norm of its input (Sun et al., arXiv 2306.11695).

Letters of shapes: B all leading dimensions, I inputs, O outputs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from lib.base.errors import UsageError
from lib.prune.score import Criterion
from lib.prune.weight import Weight

INPUTS = "input_square_sum"  # (I,) float32: ||X_j||^2 over the tokens seen in training since masks were last chosen


def wanda(w: Tensor, input_square_sum: Tensor) -> Tensor:
    """|W_ij| ||X_j||_2 (section 3 of the paper): (O, I) weights, (I,) squared norms of the inputs over all tokens."""
    return w.abs().mul_(input_square_sum.sqrt())


class Wanda(Criterion):
    """Measures inputs in training only, not in evaluation, and not in a step that is skipped.

    All layers see the same number of tokens, so dividing by this number would change no order.
    """

    reads_step = by_rows = silent = True
    chosen_by = "PRUNING_METHOD=wanda"  # the option with which a run asks for it

    def __init__(self):
        self.pending: list[Tensor] = []  # for each weight, the sum over the micro-batches of the current step

    def attach(self, weights: Sequence[Weight], modules: Sequence[nn.Module]) -> None:
        """Register hooks on the layers; raises UsageError for a weight that is not the matrix of a linear layer."""
        for weight, module in zip(weights, modules, strict=True):
            if not isinstance(module, nn.Linear) or module.weight is not weight.parameter:
                raise UsageError(
                    f"{self.chosen_by} measures the inputs of linear layers, and {weight.name} is not the weight of "
                    "one; leave it out of PRUNING_SCOPE"
                )
        for weight, module in zip(weights, modules, strict=True):
            weight.memory[INPUTS] = torch.zeros(module.in_features, device=weight.parameter.device)
            self.pending.append(torch.zeros_like(weight.memory[INPUTS]))
            module.register_forward_pre_hook(_adder(self.pending[-1]))

    @torch.no_grad()
    def observe(self, weights: Sequence[Weight], healthy: Callable[[], Tensor]) -> None:
        """Add the sums of this step, over all ranks, to the memory."""
        ok = healthy()
        _sum_over_ranks(self.pending)
        for weight, pending in zip(weights, self.pending, strict=True):
            seen = weight.memory[INPUTS]
            torch.where(ok, seen + pending, seen, out=seen)
            pending.zero_()

    def score(self, weight: Weight) -> Tensor:
        return wanda(weight.value, weight.memory[INPUTS])

    def chosen(self, weights: Sequence[Weight]) -> None:
        """Measure from zero again: new masks in earlier layers change the inputs."""
        for weight in weights:
            weight.memory[INPUTS].zero_()


def _adder(total: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A hook that adds the sum of squares of each input feature to `total`."""

    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:
            x = inputs[0].detach()  # (..., I), any float type
            total.add_(x.float().square().flatten(0, -2).sum(0))

    return add


def _sum_over_ranks(tensors: list[Tensor]) -> None:
    """In place: ranks see different tokens, but all must choose the same masks."""
    if distributed.is_available() and distributed.is_initialized():
        joint = torch.cat(tensors)
        distributed.all_reduce(joint)
        torch._foreach_copy_(tensors, joint.split([tensor.numel() for tensor in tensors]))


def build(bind: Callable[[type], Any]) -> Criterion:
    """Wanda has no options."""
    return Wanda()
