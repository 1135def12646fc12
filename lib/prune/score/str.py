"""STR: each tensor learns the threshold below which its weights are zero (Kusupati et al., arXiv 2002.03231).

The forward pass uses W' = sign(W) max(|W| - sigmoid(s), 0), the soft threshold of W, with one s for each tensor. With
G = dL/dW', the gradient of W is G where |W| > sigmoid(s) and 0 elsewhere. That of s is - sigmoid'(s) times the sum of
G sign(W) over the same weights. Weight decay of s, which starts far below 0, makes the tensors sparse.

As in the authors' code (github.com/RAIVNLab/STR), SGD with momentum trains s, with the decay in its gradient, at a
learning rate that follows the run's schedule. There the same optimizer trains W; here that is the one of the run.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lib.config.kconf import Options
from lib.prune.score import Criterion
from lib.prune.weight import Weight

_MOMENTUM = 0.875  # of the authors' configurations
_STATE, _BUFFER = "s", "momentum"  # scalars in `weight.memory`


@dataclasses.dataclass(frozen=True)
class StrOptions(Options):
    """How s is trained."""

    str_init: float  # s before the first step
    str_decay: float
    str_learning_rate: float  # when the run's is at LEARNING_RATE
    learning_rate: float

    def rate(self, at: float) -> float:
        """The learning rate of s when that of the run is `at`."""
        return self.str_learning_rate * at / self.learning_rate if self.learning_rate else 0.0


class SoftThreshold(Criterion):
    """Holds and trains the s of each tensor."""

    is_magnitude = True  # within a tensor

    def __init__(self, options: StrOptions):
        self.options = options

    def prepare(self, weights: Sequence[Weight]) -> None:
        """Begin with s as it is configured; called before layers need it."""
        for weight in weights:
            first = torch.full((), self.options.str_init, device=weight.mask.device)
            weight.memory |= {_STATE: first, _BUFFER: torch.zeros_like(first)}

    @torch.no_grad()
    def observe(self, weights: Sequence[Weight], healthy: Callable[[], Tensor]) -> None:
        """One step of SGD with momentum: v = 0.875 v + g + decay s, s -= rate v."""
        made = healthy()
        for weight in weights:
            s, v = weight.memory[_STATE], weight.memory[_BUFFER]
            rate = self.options.rate(weight.optimizer.param_groups[0]["lr"])
            now = _MOMENTUM * v + gradient(s, weight.value, weight.grad) + self.options.str_decay * s
            torch.where(made, now, v, out=v)
            torch.where(made, s - rate * v, s, out=s)

    def score(self, weight: Weight) -> Tensor:
        """|W| - sigmoid(s): weights whose score is above 0 are kept."""
        return weight.value.abs() - weight.memory[_STATE].sigmoid()


def state(weight: Weight) -> Tensor:
    """The s of a weight (a scalar on the device), which `observe` changes in place."""
    return weight.memory[_STATE]


def soft_threshold(w: Tensor, s: Tensor) -> Tensor:
    """sign(w) max(|w| - sigmoid(s), 0). NaN stays NaN."""
    threshold = s.sigmoid()
    return w - w.clamp(-threshold, threshold)


def gradient(s: Tensor, w: Tensor, g: Tensor) -> Tensor:
    """dL/ds, where `g` is the dense gradient of the soft threshold of w."""
    threshold = s.sigmoid()
    return (threshold * threshold - threshold) * (g * w.sign() * (w.abs() > threshold)).sum()


def build(bind: Callable[[type], Any]) -> Criterion:
    """The thresholds with their options."""
    return SoftThreshold(bind(StrOptions))
