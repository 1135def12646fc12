"""The pruner of a run without pruning, so that the loop need not ask whether there is one."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lib.prune.pruner import AVERAGE_NONZEROS, SPARSITY


class NoPruning:
    """Keeps all weights, and counts how many are zero."""

    def __init__(self, weights: Iterable[Tensor]):
        """`weights` are the tensors whose sparsity is reported."""
        self.weights = list(weights)
        self.total = sum(weight.numel() for weight in self.weights)

    def step(self, step: int, healthy: Callable[[], Tensor]) -> None:
        pass

    def moved(self, step: int) -> None:
        pass

    def goal(self) -> float:
        """Infinity: there is no target sparsity to reach."""
        return math.inf

    def ends(self) -> float:
        """Infinity: there is no pruning that ends."""
        return math.inf

    def sparsity(self) -> float:
        """Share of the weights that are exactly zero, counted from the weights."""
        zeros = sum(weight.numel() - torch.count_nonzero(weight) for weight in self.weights)
        return float(zeros) / self.total

    def metrics(self, step: int) -> dict[str, float]:
        return {SPARSITY: self.sparsity(), AVERAGE_NONZEROS: self.total}

    def tell(self, alert: Callable[[str, str, str, int], None], step: int) -> None:
        pass

    def layers(self) -> dict[str, float]:
        return {}

    def model_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return state

    def state_dict(self) -> dict[str, Any]:
        return {}

    def check(self, state: dict[str, Any]) -> None:
        """Accepts every state, since none is read."""

    def load_state_dict(self, state: dict[str, Any]) -> str:
        """Reads nothing; returns no note."""
        return ""
