"""The pruner: holds the masks of a run, chooses new ones when the plan says so, and keeps pruned weights at zero."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.base.metric import Metric
from lib.prune import mask
from lib.prune.mask import MaskOptions, count, ones
from lib.prune.schedule import Plan
from lib.prune.score import Criterion
from lib.prune.score.magnitude import magnitude
from lib.prune.weight import Weight
from lib.record.checkpoint import CheckpointError

_COUNTERS = ("changed_at", "kept_steps", "flips", "common", "joint")  # attributes that are saved in checkpoints

SPARSITY = Metric("sparsity", label="sparsity", form=".1%", optional=True, row=4, chart=3)
AVERAGE_NONZEROS = Metric("average_nonzeros", chart=8)  # weights in scope that were kept, mean over the steps so far


class Pruner:
    """Sets weights to zero for good: gradual and static pruning.

    `begin` runs before the first forward pass and evaluation. The loop calls `step` between the backward pass and the
    clipping of the gradient, and `moved` after the optimizer's update.

    `step` zeroes the gradients of pruned weights. A weight whose gradient and moments are zero does not move. So pruned
    weights stay exactly zero, and weights and moments are masked only when a mask changes.
    """

    zeroes_weights = True  # False: pruned weights keep their value under a mask
    regrows = False  # whether pruned weights may return

    def __init__(
        self, weights: Sequence[Weight], criterion: Criterion, plan: Plan, target: float, distribution: MaskOptions
    ):
        """`target` is the sparsity at the end of the plan; `distribution` says which weights are compared."""
        self.weights, self.criterion, self.plan, self.target = weights, criterion, plan, target
        self.distribution = distribution
        self.total = sum(weight.mask.numel() for weight in weights)
        self.kept = self.total
        self.changed_at, self.kept_steps = 0, 0  # kept_steps: sum over steps up to changed_at of the weights kept
        self.flips = 0
        self.common, self.joint = 0, 0  # weights pruned by both this criterion and magnitude; by at least one of them

    # ---- at every step -----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Choose the masks that are due before the first step, from the initial weights."""
        if self.plan.due(0):
            self._update(0, used=0)

    def step(self, step: int, healthy: Callable[[], Tensor]) -> None:
        """Choose masks if they are due, then mask gradients. `healthy()`: whether the optimizer will update weights."""
        self.criterion.observe(self.weights, healthy)
        if self.due(step, healthy):
            self._update(step, used=step - 1)
        self.hold()

    def moved(self, step: int) -> None:
        """Nothing is left to do: `step` chose the masks, and pruned weights are zero."""

    def due(self, step: int, healthy: Callable[[], Tensor]) -> bool:
        """Whether masks are chosen at this step. A step whose update is skipped chooses none."""
        return (self.plan.due(step) or self.behind(step)) and bool(healthy())

    def behind(self, step: int) -> bool:
        """Whether fewer weights are pruned than planned, because masks were due at a step that was skipped."""
        last = self.plan.last(step)
        return last is not None and self.kept > self.total - count(self.target * self.plan.share(last), self.total)

    @torch.no_grad()
    def hold(self) -> None:
        """Zero the gradients of pruned weights."""
        if self.kept < self.total:
            for weight in self.weights:
                weight.grad.mul_(weight.mask)

    @torch.no_grad()
    def _update(self, step: int, used: int) -> None:
        """Choose new masks at `step`; `used` is the last step that counts as made with the old masks."""
        masks = self.masks(step)
        if not self.regrows:
            self._compare(masks)
        self.kept_steps += self.kept * (used - self.changed_at)
        self.changed_at = used
        for weight, chosen in zip(self.weights, masks, strict=True):
            self.flips += ones(weight.mask ^ chosen)
            weight.mask.copy_(chosen)
            self.forget(weight)
        self.kept = sum(map(ones, masks))
        self.criterion.chosen(self.weights)

    def masks(self, step: int) -> list[Tensor]:
        """The masks from this step on. Sparsity never falls, even if an extended run has a later plan."""
        sparsity = max(self.target * self.plan.share(step), 1 - self.kept / self.total)
        return self._choose(self.criterion.score, sparsity)

    def _choose(self, score: Callable[[Weight], Tensor], sparsity: float) -> list[Tensor]:
        return mask.choose(self.weights, score, sparsity, self.distribution, monotone=not self.regrows)

    def forget(self, weight: Weight) -> None:
        """Zero pruned weights and their moments. So they stay zero, and a weight that returns has no old moments."""
        if self.zeroes_weights:
            weight.value.mul_(weight.mask)
        for value in weight.state.values():
            if isinstance(value, Tensor) and value.shape == weight.mask.shape:
                value.mul_(weight.mask)

    def _compare(self, masks: list[Tensor]) -> None:
        """Count how many weights magnitude would prune as well, among those that are not already pruned for good."""
        if self.criterion.is_magnitude:
            return
        sparsity = 1 - sum(map(ones, masks)) / self.total
        others = self._choose(lambda weight: magnitude(weight.value), sparsity)
        if self.regrows:  # each choice is made among all weights, so the last count replaces the earlier ones
            self.common = self.joint = 0
        for weight, chosen, other in zip(self.weights, masks, others, strict=True):
            before = torch.ones_like(chosen) if self.regrows else weight.mask
            gone, gone_by_magnitude = before & (chosen ^ 1), before & (other ^ 1)
            self.common += ones(gone & gone_by_magnitude)
            self.joint += ones(gone | gone_by_magnitude)

    # ---- what a run shows --------------------------------------------------------------------------------------------

    def goal(self) -> float:
        """The sparsity at the end of the plan, of a whole number of weights; infinity if no target above 0 is set.

        Soft movement has no target.
        """
        return count(self.target, self.total) / self.total or math.inf

    def sparsity(self) -> float:
        """Share of the weights in scope that are exactly zero in the model, counted from the weights."""
        return sum(self._zeros(weight) for weight in self.weights) / self.total

    def layers(self) -> dict[str, float]:
        """The sparsity of each tensor, as sparsity/<name>."""
        return {f"sparsity/{w.name.removesuffix('.weight')}": self._zeros(w) / w.mask.numel() for w in self.weights}

    def _zeros(self, weight: Weight) -> int:
        used = weight.value if self.zeroes_weights else weight.value * weight.mask
        return used.numel() - int(torch.count_nonzero(used))

    def metrics(self, step: int) -> dict[str, float]:
        """The metrics of a log line; `mask_flips` counts mask entries that changed since the last call."""
        kept_steps = self.kept_steps + self.kept * (step - self.changed_at)
        metrics = {SPARSITY: self.sparsity(), AVERAGE_NONZEROS: kept_steps / step, "mask_flips": self.flips}
        if self.regrows:  # only the latest masks are compared, so once per log line is enough
            self._compare([weight.mask for weight in self.weights])
        if self.joint:
            metrics["mask_overlap_magnitude"] = self.common / self.joint
        self.flips = 0
        return metrics

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def model_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The model's state with the weights that its forward pass uses: those under a mask are zero."""
        if self.zeroes_weights:
            return state
        return {**state, **{weight.name: weight.value * weight.mask for weight in self.weights}}

    def state_dict(self) -> dict[str, Any]:
        """Masks (one bit per weight), the criterion's memory, values under masks, and counters."""
        hidden = {} if self.zeroes_weights else {w.name: w.value[w.mask == 0] for w in self.weights}
        return {
            "masks": {w.name: torch.from_numpy(np.packbits(w.mask.cpu().numpy())) for w in self.weights},
            "shapes": {w.name: list(w.mask.shape) for w in self.weights},
            "memory": {w.name: dict(w.memory) for w in self.weights},
            "hidden": hidden,
            "counters": {name: getattr(self, name) for name in _COUNTERS},
        }

    def check(self, state: dict[str, Any]) -> None:
        """Raise CheckpointError if a saved state does not fit these weights; changes nothing.

        A saved mask may cover all rows of its parameter: an earlier version counted the vocabulary's padding.
        """
        saved = state.get("shapes") or {}
        own = {weight.name: list(weight.mask.shape) for weight in self.weights}
        whole = {weight.name: list(weight.parameter.shape) for weight in self.weights}
        used = {name: own[name] if shape == whole.get(name) else shape for name, shape in saved.items()}
        if used != own:
            raise CheckpointError(
                "the masks in the checkpoint are of other weights than PRUNING_SCOPE selects in this model: "
                f"{_difference(used, own)}"
            )
        for name, shape in saved.items():
            if state["masks"][name].numel() != (math.prod(shape) + 7) // 8:
                raise CheckpointError(f"the mask of {name} in the checkpoint has the wrong size")

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> str:
        """Load a state that `check` accepted, after the model's state; returns a note for the user, or ""."""
        padding = 0
        for weight in self.weights:
            shape, rows = state["shapes"][weight.name], len(weight.mask)
            padding += math.prod(shape) - weight.mask.numel()
            bits = np.unpackbits(state["masks"][weight.name].cpu().numpy(), count=math.prod(shape))
            weight.mask.copy_(torch.from_numpy(bits).view(shape)[:rows])
            for name, value in state["memory"][weight.name].items():
                weight.memory[name].copy_(value[:rows] if list(value.shape) == shape else value)
            if not self.zeroes_weights:  # padding rows come last, so their hidden values are the last ones too
                gone = weight.mask == 0
                weight.value[gone] = state["hidden"][weight.name][: int(gone.sum())]
        self.kept = sum(ones(weight.mask) for weight in self.weights)
        for name in _COUNTERS:
            setattr(self, name, state["counters"][name])
        if not padding:
            return ""
        return (
            f"the checkpoint's version counted the vocabulary's padding, {padding:,} elements, among the weights in "
            "scope; from here on the padding does not count"
        )


def _difference(saved: dict[str, list[int]], own: dict[str, list[int]]) -> str:
    name = next(name for name in {**saved, **own} if saved.get(name) != own.get(name))
    return f"{name} is {saved.get(name, 'absent')} in the checkpoint and {own.get(name, 'absent')} in the model"
