"""Random pruning, the baseline of baselines: a criterion that is not better than this one knows nothing."""

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
    """What the scores are drawn from."""

    seed: int


def uniform(seed: int, name: str, shape: torch.Size) -> Tensor:
    """Scores in [0, 1) on the CPU, made of `seed` and the tensor's name alone; no other random state is touched."""
    digest = hashlib.sha256(f"random pruning {seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(shape, generator=generator)


class Random(Criterion):
    """A weight has the same score throughout a run, so a sparser mask prunes all that a denser one does.

    Scores are drawn anew at each call: that costs no memory and is the same on every rank and after a resume.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def score(self, weight: Weight) -> Tensor:
        """Uniform in [0, 1)."""
        return uniform(self.seed, weight.name, weight.value.shape).to(weight.value.device)


def build(bind: Callable[[type], Any]) -> Criterion:
    """Seeded like the run."""
    return Random(bind(RandomOptions).seed)
