"""Magnitude pruning: a small weight does little (Han et al., arXiv 1506.02626, section 3)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lib.prune.score import Criterion
from lib.prune.weight import Weight


def magnitude(w: Tensor) -> Tensor:
    """|w|."""
    return w.abs()


class Magnitude(Criterion):
    """What a weight is worth is how large it is."""

    is_magnitude = True

    def score(self, weight: Weight) -> Tensor:
        """|w|."""
        return magnitude(weight.value)


def build(bind: Callable[[type], Any]) -> Criterion:
    """Magnitude has no options."""
    return Magnitude()
