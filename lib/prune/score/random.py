"""Random pruning, the simplest baseline: a useful criterion does better."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lib.config.kconf import Options
from lib.prune.score import Criterion
from lib.prune.weight import Weight


@dataclasses.dataclass(frozen=True)
class RandomOptions(Options):
    """The seed that scores are drawn from."""

    seed: int


def uniform(seed: int, name: str, shape: torch.Size) -> Tensor:
    """Scores in [0, 1) on the CPU, from `seed` and the tensor's name only; no other random state is read or changed."""
    digest = hashlib.sha256(f"random pruning {seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(shape, generator=generator)


class Random(Criterion):
    """A weight keeps its score throughout a run, so a sparser mask prunes everything that a denser one prunes.

    Each call draws the same scores again. This costs no memory and gives the same scores on every rank and after a
    resume.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def score(self, weight: Weight) -> Tensor:
        return uniform(self.seed, weight.name, weight.value.shape).to(weight.value.device)


def build(bind: Callable[[type], Any]) -> Criterion:
    """Random pruning with the seed of the run."""
    return Random(bind(RandomOptions).seed)
