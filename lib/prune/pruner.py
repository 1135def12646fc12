"""The pruner: holds the masks of a run, chooses new ones when the plan says so, and keeps pruned weights at zero."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lib.base.metric import Metric
from lib.prune import bits, mask, masked_linear, saved_masks
from lib.prune.census import Census, Units
from lib.prune.limits import MaskOptions, count
from lib.prune.masked_linear import masked
from lib.prune.outlook import Outlook
from lib.prune.scale import Scales, Score
from lib.prune.schedule import Plan
from lib.prune.score import Criterion
from lib.prune.score.magnitude import magnitude
from lib.prune.select import ones, where
from lib.prune.weight import Weight

_COUNTERS = ("changed_at", "kept_steps", "common", "joint")  # attributes that are saved in checkpoints

SPARSITY = Metric("sparsity", label="sparsity", form=".1%", optional=True, row=4, chart=3)
AVERAGE_NONZEROS = Metric("average_nonzeros", chart=8)  # weights in scope that were kept, mean over the steps so far


class Pruner(Outlook):
    """Sets weights to zero for good: gradual and static pruning.

    `begin` runs before the first forward pass and evaluation. The loop calls `step` between the backward pass and the
    clipping of the gradient, and `moved` after the optimizer's update.

    `step` zeroes the gradients of pruned weights. A weight whose gradient and moments are zero does not move. So pruned
    weights stay exactly zero, and weights and moments are masked only when a mask changes.
    """

    zeroes_weights = True  # False: pruned weights keep their value under a mask
    shifts = False  # whether the forward pass uses other values than the kept weights have, so a checkpoint has both
    regrows = False  # whether pruned weights may return

    def __init__(
        self,
        weights: Sequence[Weight],
        criterion: Criterion,
        plan: Plan,
        target: float,
        distribution: MaskOptions,
        units: Sequence[Units] = (),
    ):
        """`target` is the sparsity at the end of the plan; `distribution` says which weights are compared.

        `units` are the neurons and heads that the journal counts.
        """
        self.weights, self.criterion, self.plan, self.target = weights, criterion, plan, target
        self.distribution = distribution
        self.total = sum(weight.mask.numel() for weight in weights)
        self.kept = self.total
        self.changed_at, self.kept_steps = 0, 0  # kept_steps: sum over steps up to changed_at of the weights kept
        self.census = Census(weights, units)
        self.common, self.joint = 0, 0  # weights pruned by both this criterion and magnitude; by at least one of them
        # Of global-rms, for the criterion's scores and for magnitude's. Where weights return, all compete: no history.
        self.scales = {} if self.regrows else {"own": Scales(criterion.silent), "magnitude": Scales(silent=True)}

    # ---- what the forward pass uses ----------------------------------------------------------------------------------

    def install(self, model: nn.Module, masks: dict[str, Tensor]) -> None:
        """Make `model` compute with what `used` returns. `masks`: parameter name -> mask of the parameter's shape."""
        if not self.zeroes_weights:
            masked_linear.install(model, masked, {name: (mask,) for name, mask in masks.items()})

    def used(self, weight: Weight) -> Tensor:
        """The values that the forward pass computes with. They are evaluated, counted and saved as the model's."""
        return weight.value if self.zeroes_weights else masked(weight.value, weight.mask)

    def hidden(self, weight: Weight) -> Tensor:
        """bool of the weight's shape: which values `used` does not show, so that a checkpoint holds them as well."""
        return torch.ones_like(weight.mask, dtype=torch.bool) if self.shifts else weight.mask == 0

    def trained(self, masks: dict[str, Tensor]) -> dict[nn.Parameter, Tensor]:
        """Parameter -> the uint8 mask, changed in place, of what an optimizer may move; {}: everything.

        `masks` are those of the weights, by name and of the parameter's shape.
        """
        return {weight.parameter: masks[weight.name] for weight in self.weights}

    # ---- at every step -----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Choose the masks that are due before the first step, from the initial weights."""
        if self.starts_sparse():
            self._update(0, used=0)
            self.census.start(self.regrows)

    def starts_sparse(self) -> bool:
        """Whether the first forward pass is masked."""
        return self.plan.due(0)

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
        return last is not None and self.kept > self.kept_at(last)

    def planned(self, share: float) -> int:
        """The number of weights that are kept when this share of the target is pruned."""
        return self.total - count(self.target * share, self.total)

    def kept_at(self, step: int) -> int:
        """The number of weights that are kept by the masks that are due at `step`."""
        return self.planned(self.plan.share(step))

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
        kept = sum(map(ones, masks))
        if not self.regrows:
            self._compare(masks, kept)
        self.kept_steps += self.kept * (used - self.changed_at)
        self.changed_at, changed = used, 0
        for weight, chosen in zip(self.weights, masks, strict=True):
            flips = where(weight.mask ^ chosen)
            changed += len(flips)
            if self.scales:
                self.scales["own"].take(weight, self.criterion.score, self.criterion.by_rows, chosen, flips)
                self.scales["magnitude"].take(weight, _magnitude, True, chosen, flips)
            weight.mask.copy_(chosen)
            if self.regrows:
                grown = chosen.view(-1)[flips] == 1
                self.grew(weight, flips[grown], step)
                flips = flips[~grown]
            self.forget(weight, flips)
        self.kept = kept
        self.census.updated(changed)
        self.criterion.chosen(self.weights)

    def masks(self, step: int) -> list[Tensor]:
        """The masks from this step on. Sparsity never falls, even if an extended run has a later plan."""
        sparsity = max(self.target * self.plan.share(step), 1 - self.kept / self.total)
        return self._choose(self.criterion.score, sparsity, self.criterion.by_rows, "own")

    def _choose(self, score: Score, sparsity: float, by_rows: bool, scales: str) -> list[Tensor]:
        return mask.choose(
            self.weights, score, sparsity, self.distribution, not self.regrows, by_rows, self.scales.get(scales)
        )

    def forget(self, weight: Weight, gone: Tensor) -> None:
        """Zero weights and their moments, as they are pruned; `gone` are their flat indices.

        So they stay zero, and a weight that returns has no old moments.
        """
        if self.zeroes_weights:
            weight.value.view(-1)[gone] *= 0  # keeps the sign of a zero and a NaN, which a check then finds
        for value in weight.state.values():
            if isinstance(value, Tensor) and value.shape == weight.mask.shape:
                value.view(-1)[gone] *= 0

    def grew(self, weight: Weight, grown: Tensor, step: int) -> None:
        """Weights return at `step`; `grown` are their flat indices, and `weight.mask` is the new mask."""

    def _compare(self, masks: list[Tensor], kept: int) -> None:
        """Count how many weights magnitude would prune as well, among those that are not already pruned for good.

        The masks keep `kept` weights.
        """
        if self.criterion.is_magnitude:
            return
        others = self._by_magnitude(masks, kept)
        if self.regrows:  # each choice is made among all weights, so the last count replaces the earlier ones
            self.common = self.joint = 0
        # Magnitude keeps as many, and both keep only weights that were kept before.
        before = self.total if self.regrows else self.kept
        joint = before - sum(ones(chosen & other) for chosen, other in zip(masks, others, strict=True))
        self.joint += joint
        self.common += 2 * (before - kept) - joint

    def _by_magnitude(self, masks: list[Tensor], kept: int) -> list[Tensor]:
        """The masks that magnitude would choose in place of `masks`, which keep `kept` weights."""
        return self._choose(_magnitude, 1 - kept / self.total, True, "magnitude")

    # ---- what a run shows --------------------------------------------------------------------------------------------

    def goal(self) -> float:
        """The sparsity at the end of the plan, of a whole number of weights; infinity if no target above 0 is set."""
        return (self.total - self.planned(1.0)) / self.total or math.inf

    def gradients(self) -> float:
        """The share of the pruned weights whose own gradient every step needs, for the count of FLOPs."""
        return 0.0 if self.zeroes_weights else 1.0

    def ends(self) -> float:
        """The step at which pruning ends, if its sparsity is a result; infinity if there is a target."""
        return math.inf

    def sparsity(self) -> float:
        """Share of the weights in scope that are exactly zero in the model, counted from the weights."""
        return sum(self._zeros(weight) for weight in self.weights) / self.total

    def layers(self) -> dict[str, float]:
        """The sparsity of each tensor, as sparsity/<name>."""
        return {f"sparsity/{w.name.removesuffix('.weight')}": self._zeros(w) / w.mask.numel() for w in self.weights}

    def _zeros(self, weight: Weight) -> int:
        used = self.used(weight)
        return used.numel() - int(torch.count_nonzero(used))

    def metrics(self, step: int) -> dict[str, float]:
        """The metrics of a log line; those of changes count from the last call on."""
        kept_steps = self.kept_steps + self.kept * (step - self.changed_at)
        metrics = {SPARSITY: self.sparsity(), AVERAGE_NONZEROS: kept_steps / step, **self.census.metrics(self.regrows)}
        if self.regrows:  # only the latest masks are compared, so once per log line is enough
            self._compare([weight.mask for weight in self.weights], self.kept)
        if self.joint:
            metrics["mask_overlap_magnitude"] = self.common / self.joint
        return metrics

    def tell(self, alert: Callable[[str, str, str, int], None], step: int) -> None:
        """Alert the user, by kind, level, message and step, to layers that have collapsed."""
        self.census.tell(alert, step)

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def model_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The model's state with the weights that its forward pass uses."""
        if self.zeroes_weights:
            return state
        return {**state, **{weight.name: self.used(weight) for weight in self.weights}}

    def state_dict(self) -> dict[str, Any]:
        """Masks (one bit per weight), the criterion's memory, hidden values, and counters."""
        hidden = {} if self.zeroes_weights else {w.name: w.value[self.hidden(w)] for w in self.weights}
        return {
            **saved_masks.pack(self.weights),
            "memory": {w.name: dict(w.memory) for w in self.weights},
            "hidden": hidden,
            "scales": {kind: dict(scales.taken) for kind, scales in self.scales.items()},
            "census": self.census.state_dict(),
            "counters": {name: getattr(self, name) for name in _COUNTERS},
        }

    def check(self, state: dict[str, Any]) -> None:
        """Raise CheckpointError if a saved state does not fit these weights; changes nothing."""
        saved_masks.check(state, self.weights)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> str:
        """Load a state that `check` accepted, after the model's state; returns a note for the user, or ""."""
        padding = 0
        for weight in self.weights:
            shape, rows = state["shapes"][weight.name], len(weight.mask)
            padding += math.prod(shape) - weight.mask.numel()
            weight.mask.copy_(bits.unpack(state["masks"][weight.name], shape)[:rows])
            for name, value in state["memory"][weight.name].items():
                weight.memory[name].copy_(value[:rows] if list(value.shape) == shape else value)
            if not self.zeroes_weights:  # padding rows come last, so their hidden values are the last ones too
                hidden = self.hidden(weight)
                weight.value[hidden] = state["hidden"][weight.name][: int(hidden.sum())]
        self.kept = sum(ones(weight.mask) for weight in self.weights)
        for name in _COUNTERS:
            setattr(self, name, state["counters"][name])
        self.census.load_state_dict(state.get("census", {"flips": state["counters"].get("flips", 0)}))
        for kind, scales in self.scales.items():  # an earlier version kept none: its zeros have no history
            scales.taken = dict(state.get("scales", {}).get(kind, {}))
        if not padding:
            return ""
        return (
            f"the checkpoint's version counted the vocabulary's padding, {padding:,} elements, among the weights in "
            "scope; from here on the padding does not count"
        )


def _magnitude(weight: Weight) -> Tensor:
    return magnitude(weight.value)
