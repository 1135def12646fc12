"""Checkpoints: all that a run needs to go on as if it had never stopped, in one file, there whole or not at all."""

import re
from pathlib import Path
from typing import Any

import torch

from lib import files
from lib.errors import UserError

KEEP = 2  # newest checkpoints of a run: the last one and one to fall back on
VERSION = 2
_NAME = re.compile(r"step-(\d{9})\.pt")


class CheckpointError(UserError):
    """A checkpoint cannot be written, read or used."""


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` (tensors and plain values) as the checkpoint of `step` and drop all but the newest two.

    Raises CheckpointError when it cannot be written; the checkpoints before it are then still there.
    """
    path = folder / name(step)
    try:
        with files.whole(path) as file:
            torch.save({"version": VERSION, "step": step, **state}, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise CheckpointError(f"{path}: the checkpoint cannot be written ({_first_line(error)}); free space") from None
    for old in find(folder)[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def name(step: int) -> str:
    """The file name of the checkpoint after `step`."""
    return f"step-{step:09d}.pt"


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state in a checkpoint; nothing in the file is executed. Raises CheckpointError when it is not one of ours."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file: all mean that it is of no use
        raise CheckpointError(
            f"{path}: the checkpoint cannot be read ({_first_line(error)}); remove it to use an older one"
        ) from None
    if not isinstance(state, dict) or state.get("version") != VERSION:
        raise CheckpointError(f"{path}: this is no checkpoint of this version of Espalier")
    return state


def find(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name))


def random_state() -> dict[str, Any]:
    """The state of torch's random generators, which drive dropout."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def restore_random_state(state: dict[str, Any]) -> None:
    """Continue the random generators where `random_state` saw them."""
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
