"""Pruners that keep the values of pruned weights, hidden under a mask (see MaskedLinear)."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lib.base.errors import UsageError
from lib.prune import masked_linear, select
from lib.prune.outlook import Traffic
from lib.prune.pruner import Pruner
from lib.prune.score.magnitude import magnitude
from lib.prune.select import PruningError
from lib.prune.weight import Weight


class StraightThrough(Pruner):
    """STE and SR-STE: the forward pass is masked, gradients and weights stay dense, and pruned weights may return.

    Masks are chosen after the optimizer's update, from the updated weights. The evaluation and the checkpoint of this
    step use them, and so does the forward pass of the next step.
    """

    zeroes_weights, regrows, late = False, True, True

    def __init__(self, *parts: Any, decay: float):
        """`parts` are those of Pruner.

        SR-STE (Zhou et al., arXiv 2102.04010, equation 4) adds `decay` times the masked weights to the gradient.
        """
        super().__init__(*parts)
        self.decay = decay
        self.chooses = False  # whether `moved` chooses masks in this step

    def trained(self, masks: dict[str, Tensor]) -> dict[nn.Parameter, Tensor]:
        return {}

    def step(self, step: int, healthy: Callable[[], Tensor]) -> None:
        """Only find out whether masks are due; `moved` chooses them."""
        self.criterion.observe(self.weights, healthy)
        self.chooses = self.due(step, healthy)
        self.hold()

    def moved(self, step: int) -> None:
        """Choose the masks that are due."""
        if self.chooses:
            with contextlib.suppress(PruningError):  # weights are NaN, so the loss is NaN too and ends the run
                self._update(step, used=step)

    def hold(self) -> None:
        """Leave gradients dense, and let masked weights decay."""
        if self.decay:
            for weight in self.weights:
                weight.grad.add_(weight.value * (weight.mask ^ 1), alpha=self.decay)

    def forget(self, weight: Weight, gone: Tensor) -> None:
        """Keep everything, because masked weights are still trained."""

    def holding(self) -> Traffic:
        """Decay reads and writes a gradient, and reads a mask and a weight."""
        return [("decay of masked weights", 13)] if self.decay else []


class Smooth(StraightThrough):
    """S-STE (Hu et al., arXiv 2409.09099): STE for n:m whose forward pass is a continuous function of the weights.

    It uses beta S(W), where S is `soft_threshold`. A weight that S leaves out or lets in is zero at that moment. Each
    tensor has its own beta, which stays: it minimises |W - beta S(W)|^2 for the first weights, as in the authors'
    init_scale.
    """

    shifts = True

    def __init__(self, *parts: Any):
        """`parts` are those of Pruner, with the distribution n:m and the criterion magnitude, as S compares."""
        super().__init__(*parts, decay=0.0)
        self.beta = {weight.name: torch.ones((), device=weight.mask.device) for weight in self.weights}
        self.m = self.distribution.pruning_m

    def begin(self) -> None:
        """Choose the first masks, and beta. Raises UsageError for a tensor of which S leaves nothing."""
        super().begin()
        for weight in self.weights:
            self.beta[weight.name].fill_(_beta(weight, self.m))

    def install(self, model: nn.Module, masks: dict[str, Tensor]) -> None:
        given = {name: (mask, self.beta[name]) for name, mask in masks.items()}
        masked_linear.install(model, functools.partial(smooth, m=self.m), given)

    def used(self, weight: Weight) -> Tensor:
        return smooth(weight.value, weight.mask, self.beta[weight.name], self.m)

    def masking(self, passes: int) -> Traffic:
        """What the operations of `soft_threshold` and the scale read and write."""
        return [("smooth weights, forward and backward", passes * (60 + 8 / self.m))]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"beta": dict(self.beta)}

    def load_state_dict(self, state: dict[str, Any]) -> str:
        for name, beta in self.beta.items():
            beta.copy_(state["beta"][name])
        return super().load_state_dict(state)


def smooth(weight: Tensor, mask: Tensor, beta: Tensor, m: int) -> Tensor:
    """beta S(W); beta has no dimensions."""
    return soft_threshold(weight, mask, m).mul_(beta)


def soft_threshold(weight: Tensor, mask: Tensor, m: int) -> Tensor:
    """sign(w) max(|w| - t, 0), where t is the largest magnitude that `mask` prunes in w's group of m neighbours.

    `mask` keeps the n largest of each group in a row, so t is the (m - n)th smallest magnitude. This is the projection
    of S-STE, for 2:4 the authors' soft_threshold24_triton. It is continuous in w, and NaN stays NaN.
    """
    groups, kept = weight.reshape(-1, m), mask.reshape(-1, m)
    threshold = groups.abs().mul_(kept ^ 1).amax(1, keepdim=True)
    return (groups - threshold.copysign(groups)).mul_(kept).view(weight.shape)  # clamp takes twice as long on a CPU


def _beta(weight: Weight, m: int) -> float:
    """W · S(W) / |S(W)|^2, summed in float64."""
    soft = soft_threshold(weight.value, weight.mask, m).flatten().cpu().double()
    squares = float(torch.dot(soft, soft))
    if squares == 0:
        raise UsageError(
            f"PRUNING_DYNAMICS=s-ste: in every group of {weight.name} the weights that would stay are as large as one "
            "that would go, so nothing of it is left; leave it out of PRUNING_SCOPE or choose another dynamics"
        )
    return float(torch.dot(weight.value.flatten().cpu().double(), soft)) / squares


class MovementPruner(Pruner):
    """Movement pruning (Sanh et al., arXiv 2005.07683).

    Masked weights keep their value, are not trained, and may return.
    """

    zeroes_weights, regrows = False, True


class SoftMovementPruner(MovementPruner):
    """The soft form: a threshold and a penalty, which rise along the schedule, take the place of a target sparsity."""

    decided_by = "its scores"

    def step(self, step: int, healthy: Callable[[], Tensor]) -> None:
        self.criterion.advance(self.plan.share(step))
        super().step(step, healthy)

    def behind(self, step: int) -> bool:
        """Whether the last masks that were due were due at a step that was skipped."""
        last = self.plan.last(step)
        return last is not None and self.changed_at < last - 1

    def ends(self) -> float:
        return self.plan.end

    def masks(self, step: int) -> list[Tensor]:
        return [self.criterion.mask(weight, self.plan.share(step)) for weight in self.weights]

    def _by_magnitude(self, masks: list[Tensor], kept: int) -> list[Tensor]:
        """As many of each tensor, because a criterion is compared here, and not the shares that tensors lose.

        Magnitude without a distribution would take most of the residual projections: see docs/pruning.md.
        """
        return [_lowest(weight, mask) for weight, mask in zip(self.weights, masks, strict=True)]

    def timetable(self, steps: int) -> dict[str, str]:
        words = "all weights with scores above the threshold; the plot shows how the threshold rises"
        return super().timetable(steps) | {"non-zeros": words}

    def height(self, step: int) -> float:
        return self.plan.share(step)

    def peak(self) -> str:
        return "threshold"

    def ranking(self) -> str:
        return "compares every score with the threshold"


def _lowest(weight: Weight, like: Tensor) -> Tensor:
    """The mask that prunes as many weights as `like`, those with the lowest magnitudes."""
    source = select.of(select.keys(magnitude(weight.value), weight.name))
    return select.prune([source], like.numel() - select.ones(like))[0].view(like.shape)
