"""The pruner of PRUNING_METHOD=given: masks that exist before the run hold from the first step to the last."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lib.base.errors import UsageError
from lib.prune.census import Units
from lib.prune.limits import MaskOptions
from lib.prune.pruner import Pruner
from lib.prune.schedule import Plan
from lib.prune.score import Criterion
from lib.prune.select import ones, where
from lib.prune.weight import Weight

Masks = Mapping[str, Tensor]  # parameter name -> uint8 of its shape: 1 kept, 0 pruned


class GivenMasks(Pruner):
    """Retraining under a mask, sparse fine-tuning and lottery tickets: masks are never chosen, so nothing is scored."""

    def __init__(self, weights: Sequence[Weight], given: Sequence[Tensor] | None, units: Sequence[Units] = ()):
        """`given` has a mask for each weight. None: a checkpoint has them, which is loaded before the first step."""
        nothing = MaskOptions(None, None, None, None, None, None, "given")
        super().__init__(weights, Criterion(), Plan(0, 0, 1, "one-shot"), 0.0, nothing, units)
        self.kept_each = [weight.mask.numel() for weight in weights]
        if given is not None:
            for weight, mask in zip(weights, given, strict=True):
                weight.mask.copy_(mask)
            self._count(given)  # not `weight.mask`, which has no values on the device "meta"

    def _count(self, masks: Sequence[Tensor]) -> None:
        self.kept_each = list(map(ones, masks))
        self.kept = sum(self.kept_each)
        self.target = 1 - self.kept / self.total

    @torch.no_grad()
    def begin(self) -> None:
        """Zero what the masks prune."""
        for weight in self.weights:
            self.forget(weight, where(weight.mask ^ 1))

    def step(self, step: int, healthy: Callable[[], Tensor]) -> None:
        """Mask gradients. Raises RuntimeError if there are no masks: the run would be dense, and look pruned."""
        if not self.target:
            raise RuntimeError("PRUNING_METHOD=given needs masks: give them to `build`, or load a checkpoint")
        self.hold()

    def shares(self) -> list[float]:
        """Of the masks as they are."""
        return [1 - kept / weight.mask.numel() for kept, weight in zip(self.kept_each, self.weights, strict=True)]

    def timetable(self, steps: int) -> dict[str, str]:
        return {"start": super().timetable(steps)["start"], "updates": "none: the masks are given"}

    def updating(self) -> str:
        return "Masks are given, so nothing is ranked."

    def load_state_dict(self, state: dict[str, Any]) -> str:
        note = super().load_state_dict(state)
        self._count([weight.mask for weight in self.weights])
        return note


def fitted(masks: Masks, weights: Sequence[Weight], names: Collection[str]) -> list[Tensor]:
    """The mask of each weight, as `masks` has it; a weight without one keeps everything.

    `names` are those of the model's parameters. A mask may also cover the padding of its parameter. Raises UsageError
    for masks of other parameters or shapes.
    """
    if other := sorted(masks.keys() - set(names)):
        raise UsageError(f"INIT_MASKS: has a mask of {other[0]!r}, which this model lacks; name masks of this model")
    if not any(weight.name in masks for weight in weights):
        raise UsageError(
            f"INIT_MASKS: has no mask of a tensor in PRUNING_SCOPE, such as {weights[0].name}; widen PRUNING_SCOPE or "
            "name other masks"
        )
    return [_fitted(masks.get(weight.name), weight) for weight in weights]


def check_given(found: Sequence[Tensor], named: str) -> None:
    """Raise UsageError if these masks prune nothing; `named` is INIT_MASKS."""
    if not all(bool(mask.all()) for mask in found):
        return
    if named == "zeros":
        raise UsageError(
            "INIT_MASKS=zeros: the weights of INIT_FROM have no zeros in PRUNING_SCOPE; name pruned weights as "
            "INIT_FROM, or name masks, as in INIT_MASKS=runs/pruned"
        )
    raise UsageError(f"INIT_MASKS={named}: prunes no weight of the tensors in PRUNING_SCOPE; name other masks")


def _fitted(mask: Tensor | None, weight: Weight) -> Tensor:
    own, whole = weight.mask.shape, weight.parameter.shape
    if mask is None:
        return torch.ones(own, dtype=torch.uint8)
    if mask.shape not in (own, whole):
        raise UsageError(
            f"INIT_MASKS: the mask of {weight.name} is {list(mask.shape)}, but the weight is {list(own)}; name masks "
            "of a model of this shape"
        )
    return mask[: own[0]]
