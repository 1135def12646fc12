"""The masks in a checkpoint: one bit per weight with the shapes, and whether they fit the weights of a model."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lib.prune import bits
from lib.prune.weight import Weight
from lib.record.checkpoint import CheckpointError


def pack(weights: Sequence[Weight]) -> dict[str, Any]:
    """The part of a pruner's state that `check` and `unpack` read."""
    return {
        "masks": {weight.name: bits.pack(weight.mask) for weight in weights},
        "shapes": {weight.name: list(weight.mask.shape) for weight in weights},
    }


def unpack(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The masks in what `Pruner.state_dict` returned: parameter name -> uint8 of the weight's shape, 1 where kept.

    Without a pruner's state there are none. Raises ValueError if a mask has the wrong size, and the errors of
    dictionaries for a state that is none.
    """
    return {name: bits.unpack(state["masks"][name], shape) for name, shape in state.get("shapes", {}).items()}


def check(state: Mapping[str, Any], weights: Sequence[Weight]) -> None:
    """Raise CheckpointError if a pruner's state does not fit these weights.

    A saved mask may cover all rows of its parameter: an earlier version counted the vocabulary's padding.
    """
    saved = state.get("shapes") or {}
    own = {weight.name: list(weight.mask.shape) for weight in weights}
    whole = {weight.name: list(weight.parameter.shape) for weight in weights}
    used = {name: own[name] if shape == whole.get(name) else shape for name, shape in saved.items()}
    if used != own:
        raise CheckpointError(
            "the masks in the checkpoint are of other weights than PRUNING_SCOPE selects in this model: "
            f"{_difference(used, own)}"
        )
    for name, shape in saved.items():
        if state["masks"][name].numel() != bits.size(shape):
            raise CheckpointError(f"the mask of {name} in the checkpoint has the wrong size")


def _difference(saved: Mapping[str, list[int]], own: Mapping[str, list[int]]) -> str:
    name = next(name for name in {**saved, **own} if saved.get(name) != own.get(name))
    return f"{name} is {saved.get(name, 'absent')} in the checkpoint and {own.get(name, 'absent')} in the model"
