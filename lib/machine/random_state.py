"""The random state that dropout draws from. Checkpoints keep it; a resume prints a note if it cannot restore it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def of(device: torch.device) -> dict[str, Tensor]:
    """The state of the two generators that a run uses: torch's for the CPU and for `device`."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore(state: Mapping[str, Any], device: torch.device) -> str:
    """Restore the generators from what `of` returned; returns a note for the user, or ""."""
    torch.set_rng_state(state["cpu"].cpu())
    own, note = choose(state, device.type, device.index or 0)
    if own is not None and device.type == "cuda":
        torch.cuda.set_rng_state(own.cpu(), device)
    elif own is not None and device.type == "mps":
        torch.mps.set_rng_state(own.cpu())
    return note


def choose(state: Mapping[str, Any], kind: str, index: int) -> tuple[Tensor | None, str]:
    """(the state for device `index` of a kind, ""), or (None, a note that says why the checkpoint has none).

    Earlier versions kept a list with the states of all GPUs, empty without a GPU. They kept no state of MPS.
    """
    known = state.get(kind)
    if isinstance(known, list):
        known = known[index] if index < len(known) else None
    others = [name for name, entry in state.items() if name not in ("cpu", kind) and isinstance(entry, Tensor)]
    if known is not None and not (kind == "cpu" and others):
        return known, ""
    lack = f"was made on {others[0]}" if others else f"has no state of this {kind} device"
    return None, (
        f"the random state of {kind} cannot be restored, since the checkpoint {lack}; from here on dropout differs "
        "from that of a run that was never interrupted"
    )
