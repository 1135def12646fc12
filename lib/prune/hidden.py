"""Pruners that keep the values of pruned weights, hidden under a mask: the forward pass uses W * M (MaskedLinear)."""

import contextlib
from collections.abc import Callable, Sequence

from torch import Tensor

from lib.prune.mask import MaskOptions
from lib.prune.pruner import Pruner
from lib.prune.schedule import Plan
from lib.prune.score import Criterion
from lib.prune.select import PruningError
from lib.prune.weight import Weight


class StraightThrough(Pruner):
    """STE and SR-STE: the forward pass is masked, gradients and weights stay dense, and pruned weights may return.

    Masks are chosen after the optimizer's update, from the updated weights. The evaluation and the checkpoint of this
    step use them, and so does the forward pass of the next step.
    """

    zeroes_weights, regrows = False, True

    def __init__(
        self,
        weights: Sequence[Weight],
        criterion: Criterion,
        plan: Plan,
        target: float,
        distribution: MaskOptions,
        decay: float,
    ):
        """SR-STE (Zhou et al., arXiv 2102.04010, equation 4) adds `decay` times the masked weights to the gradient."""
        super().__init__(weights, criterion, plan, target, distribution)
        self.decay = decay
        self.chooses = False  # whether `moved` chooses masks in this step

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

    def forget(self, weight: Weight) -> None:
        """Keep everything, because masked weights are still trained."""


class MovementPruner(Pruner):
    """Movement pruning (Sanh et al., arXiv 2005.07683).

    Masked weights keep their value, are not trained, and may return.
    """

    zeroes_weights, regrows = False, True


class SoftMovementPruner(MovementPruner):
    """The soft form: a threshold and a penalty, which rise along the schedule, take the place of a target sparsity."""

    def step(self, step: int, healthy: Callable[[], Tensor]) -> None:
        self.criterion.advance(self.plan.share(step))
        super().step(step, healthy)

    def masks(self, step: int) -> list[Tensor]:
        return [self.criterion.mask(weight, self.plan.share(step)) for weight in self.weights]
