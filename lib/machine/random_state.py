"""The random state that dropout draws from: a checkpoint keeps it, and a resume says where it cannot be restored."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def of(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's generators for the CPU and for `device`; a run uses no other."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore(state: Mapping[str, Any], device: torch.device) -> str:
    """Continue the generators where `of` saw them; returns what the user should know of that, or ""."""
    torch.set_rng_state(state["cpu"].cpu())
    own, note = choose(state, device.type, device.index or 0)
    if own is not None and device.type == "cuda":
        torch.cuda.set_rng_state(own.cpu(), device)
    elif own is not None and device.type == "mps":
        torch.mps.set_rng_state(own.cpu())
    return note


def choose(state: Mapping[str, Any], kind: str, index: int) -> tuple[Tensor | None, str]:
    """The state in a checkpoint for device number `index` of a kind, and why it has none.

    Earlier versions kept the states of all GPUs in a list, which was empty without one, and none of MPS.
    """
    known = state.get(kind)
    if isinstance(known, list):
        known = known[index] if index < len(known) else None
    others = [name for name, entry in state.items() if name not in ("cpu", kind) and isinstance(entry, Tensor)]
    if known is not None and not (kind == "cpu" and others):
        return known, ""
    lack = f"was made on {others[0]}" if others else f"has none of this {kind} device"
    return None, (
        f"the random state of {kind} cannot be restored, since the checkpoint {lack}; from here on dropout draws other "
        "numbers than in a run that was never interrupted"
    )
