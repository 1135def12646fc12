"""Magnitude pruning: a weight is worth its absolute value (Han et al., arXiv 1506.02626, section 3)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lib.prune.score import Criterion
from lib.prune.weight import Weight


def magnitude(w: Tensor) -> Tensor:
    """|w|."""
    return w.abs()


class Magnitude(Criterion):
    """Reads the weights only."""

    is_magnitude = True

    def score(self, weight: Weight) -> Tensor:
        return magnitude(weight.value)


def build(bind: Callable[[type], Any]) -> Criterion:
    """Magnitude has no options."""
    return Magnitude()
