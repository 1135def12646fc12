"""What the parts of pruning hand to each other: a tensor in scope, its mask, and what optimizer and criterion know."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn


@dataclasses.dataclass(eq=False)
class Weight:
    """A tensor that pruning may zero: as many rows of a parameter as its mask has; others are unused."""

    name: str
    parameter: nn.Parameter
    mask: Tensor  # uint8: 1 kept, 0 pruned; floats times uint8 is faster than times bool
    optimizer: torch.optim.Optimizer
    memory: dict[str, Tensor] = dataclasses.field(default_factory=dict)  # the criterion's own, part of checkpoints

    @property
    def value(self) -> Tensor:
        """The weights, without their history; where a method keeps dense values under a mask, those."""
        return self._used(self.parameter.detach())

    @property
    def grad(self) -> Tensor:
        """The gradient of this step, dense."""
        return self._used(self.parameter.grad)

    @property
    def state(self) -> dict[str, Any]:
        """What the optimizer keeps for it: exp_avg, exp_avg_sq, step, ... after the steps made so far."""
        state = self.optimizer.state.get(self.parameter, {})  # looked up anew: loading a checkpoint replaces it
        return {name: self._used(value) for name, value in state.items()}

    def _used(self, value: Any) -> Any:
        """The rows of `value`, a view, that the mask is of, if it has a number for each of the parameter."""
        like = isinstance(value, Tensor) and value.shape == self.parameter.shape
        return value[: len(self.mask)] if like else value
