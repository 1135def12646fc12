"""The inputs of a block on the calibration windows, and what one-shot pruning measures of them.

Letters of shapes: N windows, T time, C width, S tokens of a batch, I inputs of a layer.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gpt2.model import GPT2, Block
from lib.base.errors import UserError

_TOKENS = 4096  # of a batch: its activations take about 100 MB for GPT-2, and each product is large enough to be fast


class Statistic(NamedTuple):
    """A sum over all tokens, for each layer."""

    dimensions: int  # its shape is I, this many times
    add: Callable[[Tensor, Tensor], object]  # adds what the inputs (S, I) of a batch give to the sum


def _add_squares(total: Tensor, x: Tensor) -> None:
    total.add_(x.square().sum(0))


SQUARES = Statistic(1, _add_squares)  # ||X_j||^2


class _Seen(Exception):
    """The last layer that is measured has its input, so the rest of the block need not be computed."""


class Inputs:
    """The hidden states in front of one block, (N, T, C) in float32; `advance` goes to the next block."""

    def __init__(self, model: GPT2, windows: Tensor, asked: Callable[[], bool]):
        """`windows` (N, T) are token ids on the model's device; `asked` tells whether to stop."""
        self.asked = asked
        self.states = model.wte(windows).add_(model.wpe.weight[: windows.shape[1]])
        self.batches = self.states.split(max(1, _TOKENS // windows.shape[1]))

    def measure(self, block: Block, layers: Mapping[str, nn.Linear], statistic: Statistic) -> dict[str, Tensor]:
        """Parameter name -> the sum of each of these `layers` of the block, which are in the order of the forward pass.

        Raises UserError if an input is NaN or infinite, and KeyboardInterrupt if asked to stop.
        """
        totals = {
            name: torch.zeros((layer.in_features,) * statistic.dimensions, device=self.states.device)
            for name, layer in layers.items()
        }
        last = list(layers)[-1]
        hooks = [
            layer.register_forward_pre_hook(_adder(totals[name], statistic, stop=name == last))
            for name, layer in layers.items()
        ]
        try:
            for batch in self.batches:
                self._check()
                try:
                    block(batch)
                except _Seen:
                    pass
        finally:
            for hook in hooks:
                hook.remove()
        for name, total in totals.items():
            if not bool(torch.isfinite(total).all()):
                raise UserError(
                    f"{name.removesuffix('.weight')}: its inputs on the calibration windows are NaN or infinite, or so "
                    "large that their squares are; prune another checkpoint"
                )
        return totals

    def advance(self, block: Block) -> None:
        """Replace the hidden states by those behind `block`; raises KeyboardInterrupt if asked to stop."""
        for batch in self.batches:
            self._check()
            batch.copy_(block(batch))

    def _check(self) -> None:
        if self.asked():
            raise KeyboardInterrupt


def _adder(total: Tensor, statistic: Statistic, stop: bool) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        statistic.add(total, inputs[0].flatten(0, -2))
        if stop:
            raise _Seen

    return add
