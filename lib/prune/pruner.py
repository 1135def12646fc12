"""Pruners: they hold the masks of a run, choose them when the plan says so, and keep what they prune at zero."""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.prune.mask import count, ones
from lib.prune.schedule import Plan
from lib.prune.score import Criterion
from lib.prune.score.magnitude import magnitude
from lib.prune.select import PruningError
from lib.prune.weight import Weight
from lib.record.checkpoint import CheckpointError

# (score of a weight, sparsity, whether pruned weights stay pruned) -> a uint8 mask for each weight
Chooser = Callable[[Callable[[Weight], Tensor], float, bool], list[Tensor]]
_COUNTERS = ("changed_at", "kept_steps", "flips", "common", "joint")  # of a pruner, in its checkpoints


class Pruner:
    """Zeroes weights for good: gradual and static pruning.

    `begin` comes before the first forward pass and evaluation. The loop calls `step` between the backward pass and the
    clipping of the gradient, and `moved` after the optimizer. `step` zeroes the gradients of pruned weights. With zero
    moments, a zero gradient moves no weight. So pruned weights stay exactly zero, while weights and moments need to be
    masked only when a mask changes.
    """

    zeroes_weights = True  # False: pruned weights keep their value under a mask
    regrows = False  # whether pruned weights may return

    def __init__(self, weights: Sequence[Weight], criterion: Criterion, plan: Plan, target: float, choose: Chooser):
        """`target` is the sparsity at the end of the plan."""
        self.weights, self.criterion, self.plan, self.target = weights, criterion, plan, target
        self.choose = choose
        self.total = sum(weight.mask.numel() for weight in weights)
        self.kept = self.total
        self.changed_at, self.kept_steps = 0, 0  # kept_steps: sum over steps up to changed_at of the weights kept
        self.flips = 0
        self.common, self.joint = 0, 0  # weights that both this criterion and magnitude pruned, and that either did

    # ---- at every step -----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Choose the masks that are due before the first step, of weights that have not moved."""
        if self.plan.due(0):
            self._update(0, used=0)

    def step(self, step: int, healthy: Callable[[], Tensor]) -> None:
        """Choose masks if they are due and mask the gradients; `healthy()` says whether the update will be made."""
        self.criterion.observe(self.weights, healthy)
        if self.due(step, healthy):
            self._update(step, used=step - 1)
        self.hold()

    def moved(self, step: int) -> None:
        """Nothing: masks were chosen before the weights moved, and what they prune is zero."""

    def due(self, step: int, healthy: Callable[[], Tensor]) -> bool:
        """Whether masks are to be chosen at this step; a step that is skipped chooses none."""
        return (self.plan.due(step) or self.behind(step)) and bool(healthy())

    def behind(self, step: int) -> bool:
        """Whether fewer weights are pruned than are by plan: a step when masks were due was skipped."""
        last = self.plan.last(step)
        return last is not None and self.kept > self.total - count(self.target * self.plan.share(last), self.total)

    @torch.no_grad()
    def hold(self) -> None:
        """Let pruned weights be."""
        if self.kept < self.total:
            for weight in self.weights:
                weight.grad.mul_(weight.mask)

    @torch.no_grad()
    def _update(self, step: int, used: int) -> None:
        """Choose the masks of `step`; `used` is the last step that counts as one with those so far."""
        masks = self.masks(step)
        if not self.regrows:
            self._compare(masks)
        self.kept_steps += self.kept * (used - self.changed_at)
        self.changed_at = used
        for weight, mask in zip(self.weights, masks, strict=True):
            self.flips += ones(weight.mask ^ mask)
            weight.mask.copy_(mask)
            self.forget(weight)
        self.kept = sum(map(ones, masks))
        self.criterion.chosen(self.weights)

    def masks(self, step: int) -> list[Tensor]:
        """The masks to keep from this step on; never fewer zeros than now, even if a longer run has a later plan."""
        sparsity = max(self.target * self.plan.share(step), 1 - self.kept / self.total)
        return self.choose(self.criterion.score, sparsity, not self.regrows)

    def forget(self, weight: Weight) -> None:
        """Zero what is pruned, and its moments, so that it stays and restarts from nothing should it return."""
        if self.zeroes_weights:
            weight.value.mul_(weight.mask)
        for value in weight.state.values():
            if isinstance(value, Tensor) and value.shape == weight.mask.shape:
                value.mul_(weight.mask)

    def _compare(self, masks: list[Tensor]) -> None:
        """Count how far the choice is plain magnitude's, among what is not pruned for good: what both prune."""
        if self.criterion.is_magnitude:
            return
        sparsity = 1 - sum(map(ones, masks)) / self.total
        others = self.choose(lambda weight: magnitude(weight.value), sparsity, not self.regrows)
        if self.regrows:  # masks are chosen from nothing each time
            self.common = self.joint = 0
        for weight, mask, other in zip(self.weights, masks, others, strict=True):
            before = torch.ones_like(mask) if self.regrows else weight.mask
            gone, gone_too = before & (mask ^ 1), before & (other ^ 1)
            self.common += ones(gone & gone_too)
            self.joint += ones(gone | gone_too)

    # ---- what a run shows --------------------------------------------------------------------------------------------

    def goal(self) -> float:
        """The sparsity at the end of the plan: the target, as a count of weights has it; inf if there is none to reach.

        Soft movement has none.
        """
        return count(self.target, self.total) / self.total or math.inf

    def sparsity(self) -> float:
        """Share of the weights in scope that are exactly zero in the model, counted from the weights."""
        return sum(self._zeros(weight) for weight in self.weights) / self.total

    def layers(self) -> dict[str, float]:
        """The same of each tensor: sparsity/<name>."""
        return {f"sparsity/{w.name.removesuffix('.weight')}": self._zeros(w) / w.mask.numel() for w in self.weights}

    def _zeros(self, weight: Weight) -> int:
        used = weight.value if self.zeroes_weights else weight.value * weight.mask
        return used.numel() - int(torch.count_nonzero(used))

    def metrics(self, step: int) -> dict[str, float]:
        """What a log line says of pruning; `mask_flips` counts since the last one."""
        kept_steps = self.kept_steps + self.kept * (step - self.changed_at)
        metrics = {"sparsity": self.sparsity(), "average_nonzeros": kept_steps / step, "mask_flips": self.flips}
        if self.regrows:  # masks follow the scores: here is often enough
            self._compare([weight.mask for weight in self.weights])
        if self.joint:
            metrics["mask_overlap_magnitude"] = self.common / self.joint
        self.flips = 0
        return metrics

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def model_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A model's state with the weights that it computes with: those under a mask as zero."""
        if self.zeroes_weights:
            return state
        return {**state, **{weight.name: weight.value * weight.mask for weight in self.weights}}

    def state_dict(self) -> dict[str, Any]:
        """Masks (a bit per weight), the criterion's memory, values under masks and counters."""
        hidden = {} if self.zeroes_weights else {w.name: w.value[w.mask == 0] for w in self.weights}
        return {
            "masks": {w.name: torch.from_numpy(np.packbits(w.mask.cpu().numpy())) for w in self.weights},
            "shapes": {w.name: list(w.mask.shape) for w in self.weights},
            "memory": {w.name: dict(w.memory) for w in self.weights},
            "hidden": hidden,
            "counters": {name: getattr(self, name) for name in _COUNTERS},
        }

    def check(self, state: dict[str, Any]) -> None:
        """Raise CheckpointError if a pruner's state is not of these weights; nothing is changed yet.

        A mask may be of all rows of its parameter: an earlier version counted unused ones, the vocabulary's padding.
        """
        saved = state.get("shapes") or {}
        own = {weight.name: list(weight.mask.shape) for weight in self.weights}
        whole = {weight.name: list(weight.parameter.shape) for weight in self.weights}
        used = {name: own[name] if shape == whole.get(name) else shape for name, shape in saved.items()}
        if used != own:
            raise CheckpointError(
                "the masks in the checkpoint are of other weights than PRUNING_SCOPE and the model have now: "
                f"{_difference(used, own)}"
            )
        for name, shape in saved.items():
            if state["masks"][name].numel() != (math.prod(shape) + 7) // 8:
                raise CheckpointError(f"the mask of {name} in the checkpoint does not have its size")

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> str:
        """Continue from a state that `check` accepted, after the model's own; returns what the user should know."""
        padding = 0
        for weight in self.weights:
            shape, rows = state["shapes"][weight.name], len(weight.mask)
            padding += math.prod(shape) - weight.mask.numel()
            bits = np.unpackbits(state["masks"][weight.name].cpu().numpy(), count=math.prod(shape))
            weight.mask.copy_(torch.from_numpy(bits).view(shape)[:rows])
            for name, value in state["memory"][weight.name].items():
                weight.memory[name].copy_(value[:rows] if list(value.shape) == shape else value)
            if not self.zeroes_weights:  # unused rows are the last, so their values are too
                gone = weight.mask == 0
                weight.value[gone] = state["hidden"][weight.name][: int(gone.sum())]
        self.kept = sum(ones(weight.mask) for weight in self.weights)
        for name in _COUNTERS:
            setattr(self, name, state["counters"][name])
        if not padding:
            return ""
        return (
            f"an earlier version counted the vocabulary's padding, {padding:,} numbers, among the weights in scope; "
            "from here on it does not count"
        )


def _difference(saved: dict[str, list[int]], own: dict[str, list[int]]) -> str:
    name = next(name for name in {**saved, **own} if saved.get(name) != own.get(name))
    return f"{name} is {saved.get(name, 'absent')} there and {own.get(name, 'absent')} here"


class StraightThrough(Pruner):
    """STE and SR-STE: the forward pass is masked, gradients and weights are dense, so masks follow the weights freely.

    Masks are chosen of the weights that they apply to: when these have moved, for the evaluation and the checkpoint of
    this step and for the forward pass of the next.

    SR-STE (Zhou et al., arXiv 2102.04010, equation 4) adds `decay` times the masked weights to the gradient.
    """

    zeroes_weights, regrows = False, True
    decay = 0.0
    chooses = False  # when the weights have moved

    def step(self, step: int, healthy: Callable[[], Tensor]) -> None:
        """Only see whether masks are due."""
        self.criterion.observe(self.weights, healthy)
        self.chooses = self.due(step, healthy)
        self.hold()

    def moved(self, step: int) -> None:
        """Choose the masks that are due."""
        if self.chooses:
            with contextlib.suppress(PruningError):  # of weights that are NaN, which end the run by themselves
                self._update(step, used=step)

    def hold(self) -> None:
        """Gradients stay dense; masked weights decay."""
        if self.decay:
            for weight in self.weights:
                weight.grad.add_(weight.value * (weight.mask ^ 1), alpha=self.decay)

    def forget(self, weight: Weight) -> None:
        """Nothing: what is masked goes on learning."""


class Movement(Pruner):
    """Movement pruning (Sanh et al., arXiv 2005.07683): masked weights keep their value, learn nothing, may return."""

    zeroes_weights, regrows = False, True
    penalised = False  # soft: the criterion has a threshold and a penalty instead of a target

    def step(self, step: int, healthy: Callable[[], Tensor]) -> None:
        """As every pruner's; the soft form's threshold and penalty rise first."""
        if self.penalised:
            self.criterion.progress = self.plan.share(step)
        super().step(step, healthy)

    def masks(self, step: int) -> list[Tensor]:
        """Hard: the highest scores, as many as asked for; soft: the scores above the threshold."""
        if not self.penalised:
            return super().masks(step)
        return [self.criterion.mask(weight, self.plan.share(step)) for weight in self.weights]
