"""Movement pruning: keeps the weights that training moves away from zero (Sanh et al., arXiv 2005.07683).

The forward pass uses W' = W * M. W gets the dense gradient g = dL/dW', as if the mask were the identity
(straight-through). The gradient of a score S is then dL/dS = g W (section 4 of the paper).
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

_LEAST_KEPT = 0.005  # share of each tensor that soft movement always keeps, as in the published code
_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # of the scores' Adam, as published


@dataclasses.dataclass(frozen=True)
class MovementOptions(Options):
    """Hard or soft."""

    pruning_movement: str


@dataclasses.dataclass(frozen=True)
class SoftMovementOptions(Options):
    """Threshold and penalty of the soft form at the end of the schedule."""

    movement_threshold: float  # for sigmoid(S)
    movement_penalty: float
    movement_learning_rate: float


class HardMovement(Criterion):
    """Hard: keeps as many weights as the target allows, those with the highest S (table 1: top v).

    S = - sum over steps of g W (section 4). The paper multiplies it by a learning rate, which changes no order and is
    1 here. The published code instead trains S with AdamW, whose steps have about the same size for every gradient.
    """

    reads_step = by_rows = True

    def attach(self, weights: Sequence[Weight], modules: Sequence[nn.Module]) -> None:
        """Scores start at 0: 4 bytes per weight."""
        for weight in weights:
            weight.memory["movement"] = torch.zeros_like(weight.value)

    @torch.no_grad()
    def observe(self, weights: Sequence[Weight], healthy: Callable[[], Tensor]) -> None:
        """S -= g W."""
        if healthy():  # waits for the device, which choosing masks does anyway; torch.where takes 3 times as long
            for weight in weights:
                weight.memory["movement"].addcmul_(weight.grad, weight.value, value=-1)

    def score(self, weight: Weight) -> Tensor:
        return weight.memory["movement"]


class SoftMovement(Criterion):
    """Soft: keeps the weights with sigmoid(S) > tau, while a penalty on sigmoid(S) pushes all S down.

    tau and the penalty rise together from 0 along the schedule. Adam trains S with the gradient dL/dS above, as if the
    threshold were the identity. The penalty is the mean over tensors of each tensor's mean of sigmoid(S), as in
    `regularization` in the published masked_run_glue.py. So the weights of a small tensor are pushed harder.
    """

    reads_step = by_rows = True

    def __init__(self, threshold: float, penalty: float, learning_rate: float):
        """`threshold` and `penalty` are those at the end of the schedule."""
        self.threshold, self.penalty, self.learning_rate = threshold, penalty, learning_rate
        self.progress = 0.0  # on the schedule, from 0 to 1

    def attach(self, weights: Sequence[Weight], modules: Sequence[nn.Module]) -> None:
        """Scores start at 0, where the sigmoid is 0.5: 12 bytes per weight with Adam's moments."""
        for weight in weights:
            weight.memory |= {name: torch.zeros_like(weight.value) for name in ("movement", "exp_avg", "exp_avg_sq")}
            weight.memory["step"] = torch.zeros((), device=weight.value.device)

    def advance(self, progress: float) -> None:
        """Go to this position on the schedule, in [0, 1]; called before `observe`."""
        self.progress = progress

    @torch.no_grad()
    def observe(self, weights: Sequence[Weight], healthy: Callable[[], Tensor]) -> None:
        """One step of Adam with the gradient of loss and penalty."""
        skip = 1 - healthy().float()
        for weight in weights:
            memory, slope = weight.memory, self.progress * self.penalty / (weight.value.numel() * len(weights))
            grad = score_gradient(memory["movement"], weight.value, weight.grad, slope)
            adam(
                [memory["movement"]], [grad], [memory["exp_avg"]], [memory["exp_avg_sq"]], [], [memory["step"]],
                fused=True, found_inf=skip, amsgrad=False, beta1=_BETAS[0], beta2=_BETAS[1], lr=self.learning_rate,
                weight_decay=0.0, eps=_EPSILON, maximize=False,
            )  # fmt: skip

    def score(self, weight: Weight) -> Tensor:
        return weight.memory["movement"]

    def mask(self, weight: Weight, share: float) -> Tensor:
        """The uint8 mask of the weight at the position `share` of the schedule, in [0, 1]."""
        return soft_mask(weight.memory["movement"], share * self.threshold, weight.name)


def score_gradient(s: Tensor, w: Tensor, g: Tensor, slope: float) -> Tensor:
    """dL/dS = g W + slope sigmoid'(S)."""
    p = s.sigmoid()
    return p.addcmul_(p, p, value=-1).mul_(slope).addcmul_(g, w)


def soft_mask(s: Tensor, threshold: float, name: str) -> Tensor:
    """1 where sigmoid(S) > threshold, and at the highest 0.5 % at least; ties are broken by index as in all masks."""
    kept = s.sigmoid() > threshold
    least = math.ceil(_LEAST_KEPT * s.numel())
    if torch.count_nonzero(kept) >= least:
        return kept.to(torch.uint8)
    return select.prune([select.of(select.keys(s, name))], s.numel() - least)[0].view(s.shape)


def build(bind: Callable[[type], Any]) -> Criterion:
    """Hard or soft, by PRUNING_MOVEMENT."""
    if bind(MovementOptions).pruning_movement == "hard":
        return HardMovement()
    options = bind(SoftMovementOptions)
    return SoftMovement(options.movement_threshold, options.movement_penalty, options.movement_learning_rate)
