"""Magnitude pruning: a weight is worth its absolute value (Han et al., arXiv 1506.02626, section 3)."""

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor

from lib.config.kconf import Options
from lib.prune.score import Criterion
from lib.prune.score.wanda import Wanda
from lib.prune.weight import Weight


@dataclasses.dataclass(frozen=True)
class MagnitudeOptions(Options):
    """Whether inputs of layers are measured beside the weights."""

    pruning_distribution: str | None


def magnitude(w: Tensor) -> Tensor:
    """|w|."""
    return w.abs()


class Magnitude(Criterion):
    """Reads the weights only."""

    is_magnitude = by_rows = silent = True

    def score(self, weight: Weight) -> Tensor:
        return magnitude(weight.value)


class MagnitudeByOwl(Wanda):
    """Magnitude within each tensor. It measures inputs as Wanda does, from which OWL's shares of the blocks follow."""

    is_magnitude = True
    chosen_by = "PRUNING_DISTRIBUTION=owl"

    def score(self, weight: Weight) -> Tensor:
        return magnitude(weight.value)


def build(bind: Callable[[type], Any]) -> Criterion:
    """Magnitude, which with OWL measures inputs too."""
    return MagnitudeByOwl() if bind(MagnitudeOptions).pruning_distribution == "owl" else Magnitude()
