"""Weight, which the parts of pruning share: a tensor, its mask, its optimizer state, and the criterion's memory."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn


@dataclasses.dataclass(eq=False)
class Weight:
    """A tensor that pruning may zero: the first rows of a parameter, as many as the mask has; the rest is padding."""

    name: str
    parameter: nn.Parameter
    mask: Tensor  # uint8: 1 kept, 0 pruned; multiplying floats by uint8 is faster than by bool
    optimizer: torch.optim.Optimizer
    memory: dict[str, Tensor] = dataclasses.field(default_factory=dict)  # the criterion's, saved in checkpoints
    rows: slice | None = None  # those of the parameter that the mask covers; None: the first, as many as the mask has

    def part(self, rows: slice) -> "Weight":
        """Some rows as a weight of their own, with views of all tensors that have the weight's shape."""
        memory = {name: value[rows] if value.shape == self.mask.shape else value for name, value in self.memory.items()}
        rows = slice(*rows.indices(len(self.mask)))
        return Weight(self.name, self.parameter, self.mask[rows], self.optimizer, memory, rows)

    @property
    def value(self) -> Tensor:
        """The weights, detached. Where a method keeps values under a mask, these dense values."""
        return self._used(self.parameter.detach())

    @property
    def grad(self) -> Tensor:
        """The gradient of this step, dense."""
        return self._used(self.parameter.grad)

    @property
    def state(self) -> dict[str, Any]:
        """The optimizer's state of this tensor (exp_avg, exp_avg_sq, step, ...) after the steps so far."""
        state = self.optimizer.state.get(self.parameter, {})  # looked up each time: loading a checkpoint replaces it
        return {name: self._used(value) for name, value in state.items()}

    def _used(self, value: Any) -> Any:
        """A view of the rows that the mask covers, if `value` has the parameter's shape; otherwise `value` itself."""
        like = isinstance(value, Tensor) and value.shape == self.parameter.shape
        return value[self.rows or slice(len(self.mask))] if like else value
