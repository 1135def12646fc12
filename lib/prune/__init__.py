"""Pruning: for now the null pruner, which leaves every weight alone, and the count that every run reports."""

from collections.abc import Iterable

import torch


class NoPruning:
    """A pruner that prunes nothing; the loop calls it like any other."""

    def __init__(self, weights: Iterable[torch.Tensor]):
        """`weights` are the matrices in scope: those of the transformer's blocks."""
        self.weights = list(weights)

    def step(self, step: int) -> None:
        """Called after every optimizer step; keeps all weights."""

    def sparsity(self) -> float:
        """Share of the weights in scope that are exactly zero, counted from the weights."""
        zeros = sum(weight.numel() - torch.count_nonzero(weight) for weight in self.weights)
        return float(zeros) / sum(weight.numel() for weight in self.weights)
