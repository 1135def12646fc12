"""Movement pruning: weights that training moves away from zero stay (Sanh et al., arXiv 2005.07683).

Both forms compute with W' = W * M in the forward pass and receive the dense gradient g = dL/dW' through the mask, as if
the mask were the identity (straight-through). A score S then has the gradient dL/dS = g W (section 4 there).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from lib.config.kconf import Options
from lib.prune import select
from lib.prune.score import Criterion
from lib.prune.weight import Weight

_LEAST_KEPT = 0.005  # share of each tensor that soft movement keeps in any case, as the published code does
_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # of the scores' Adam, as published


@dataclasses.dataclass(frozen=True)
class MovementOptions(Options):
    """Which form."""

    pruning_movement: str


@dataclasses.dataclass(frozen=True)
class SoftMovementOptions(Options):
    """Where the soft form ends."""

    movement_threshold: float  # of sigmoid(S)
    movement_penalty: float
    movement_learning_rate: float


class Movement(Criterion):
    """Hard: the highest S stay, as many as asked for (table 1: top v).

    S = - sum over steps of g W (section 4). The learning rate that multiplies it there changes no order, so it is 1.
    The published code lets AdamW learn S instead, whose steps are of about the same size whatever the gradient.
    """

    reads_step = True

    def attach(self, weights: Sequence[Weight], modules: Sequence[nn.Module]) -> None:
        """Scores begin at 0: 4 bytes per weight."""
        for weight in weights:
            weight.memory["movement"] = torch.zeros_like(weight.value)

    @torch.no_grad()
    def observe(self, weights: Sequence[Weight], healthy: Callable[[], Tensor]) -> None:
        """S -= g W."""
        if healthy():  # waits for the device, as choosing masks at every step does too; torch.where takes 3 x as long
            for weight in weights:
                weight.memory["movement"].addcmul_(weight.grad, weight.value, value=-1)

    def score(self, weight: Weight) -> Tensor:
        """S."""
        return weight.memory["movement"]


class SoftMovement(Criterion):
    """Soft: the weights with sigmoid(S) > tau stay, while a penalty on the mean of sigmoid(S) pushes all S down.

    tau and the penalty rise together from 0 along the schedule. S is learned by Adam, through the
    threshold as if it were the identity. The published code's penalty is the mean of the matrices' means; here all
    weights count alike.
    """

    reads_step = True

    def __init__(self, threshold: float, penalty: float, learning_rate: float):
        """Final threshold, final penalty."""
        self.threshold, self.penalty, self.learning_rate = threshold, penalty, learning_rate
        self.progress = 0.0  # position on the schedule, in [0, 1]; the pruner moves it before it calls `observe`
        self.total = 0  # weights in scope

    def attach(self, weights: Sequence[Weight], modules: Sequence[nn.Module]) -> None:
        """Scores begin at 0, where the sigmoid is 0.5: 12 bytes per weight with Adam's moments."""
        for weight in weights:
            self.total += weight.value.numel()
            weight.memory |= {name: torch.zeros_like(weight.value) for name in ("movement", "exp_avg", "exp_avg_sq")}
            weight.memory["step"] = torch.zeros((), device=weight.value.device)

    @torch.no_grad()
    def observe(self, weights: Sequence[Weight], healthy: Callable[[], Tensor]) -> None:
        """A step of Adam with the gradient of the loss plus the penalty."""
        skip = 1 - healthy().float()
        slope = self.progress * self.penalty / self.total
        for weight in weights:
            memory = weight.memory
            grad = score_gradient(memory["movement"], weight.value, weight.grad, slope)
            adam(
                [memory["movement"]], [grad], [memory["exp_avg"]], [memory["exp_avg_sq"]], [], [memory["step"]],
                fused=True, found_inf=skip, amsgrad=False, beta1=_BETAS[0], beta2=_BETAS[1], lr=self.learning_rate,
                weight_decay=0.0, eps=_EPSILON, maximize=False,
            )  # fmt: skip

    def score(self, weight: Weight) -> Tensor:
        """S."""
        return weight.memory["movement"]

    def mask(self, weight: Weight, share: float) -> Tensor:
        """uint8 of the weight's shape: what stays at the position `share` of the schedule, in [0, 1]."""
        return soft_mask(weight.memory["movement"], share * self.threshold, weight.name)


def score_gradient(s: Tensor, w: Tensor, g: Tensor, slope: float) -> Tensor:
    """dL/dS = g W + slope sigmoid'(S)."""
    p = s.sigmoid()
    return p.addcmul_(p, p, value=-1).mul_(slope).addcmul_(g, w)


def soft_mask(s: Tensor, threshold: float, name: str) -> Tensor:
    """sigmoid(S) > threshold, or the highest half percent where these are fewer; ties go as in all masks."""
    kept = s.sigmoid() > threshold
    least = math.ceil(_LEAST_KEPT * s.numel())
    if torch.count_nonzero(kept) >= least:
        return kept.to(torch.uint8)
    keys = select.keys(s, name)
    return select.apply(select.smallest([lambda: keys], s.numel() - least), keys)[0]


def build(bind: Callable[[type], Any]) -> Criterion:
    """Hard or soft, by PRUNING_MOVEMENT."""
    if bind(MovementOptions).pruning_movement == "hard":
        return Movement()
    options = bind(SoftMovementOptions)
    return SoftMovement(options.movement_threshold, options.movement_penalty, options.movement_learning_rate)
