"""The checkpoints of TRL in a run folder: which are complete, and which one a resume begins from."""

import os
import shutil
from pathlib import Path
from typing import Any

from lib.base import files, launch
from lib.base.errors import UserError
from lib.record import checkpoint_file, history

TRL = "trl"  # the trainer's own checkpoints, in the run's folder
_COMPLETE = "complete.json"  # in a checkpoint: written when all other files of it are there
_REMEDY = "move its folder away, and the run continues from the one before"


def complete(path: Path, tokens: int, seconds: float, ranks: int) -> None:
    """Say that a checkpoint is complete, and what a resume must know; raises UserError.

    TRL syncs nothing. So all files reach the disk here first: a power cut leaves a complete checkpoint, or one that is
    not called complete.
    """
    sizes = {}
    for file in sorted(one for one in path.rglob("*") if one.is_file()):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            sizes[str(file.relative_to(path))] = os.fstat(opened.fileno()).st_size
    about = {"step": step_of(path), "tokens": tokens, "seconds": seconds, "ranks": ranks, "bytes": sizes}
    files.write_json(path / _COMPLETE, about)


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of TRL in `folder`, oldest first."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{_COMPLETE}")]
    return sorted((path for path in found if path.name.rpartition("-")[2].isdecimal()), key=step_of)


def remove_unfinished(folder: Path) -> list[Path]:
    """Remove the checkpoints of TRL in `folder` that are not complete; returns them, oldest first."""
    found = [path for path in sorted(folder.glob("checkpoint-*")) if not (path / _COMPLETE).exists()]
    for path in found:
        shutil.rmtree(path)
    return found


def not_written(folder: Path, error: Exception) -> UserError | None:
    """What to tell the user if `error` has ended a run while TRL wrote a checkpoint in its `folder`; None if not.

    What was written of it is removed, so that a full disk has room for the last record.
    """
    free = shutil.disk_usage(folder).free
    if not (found := remove_unfinished(folder / TRL)):
        return None
    return UserError(
        f"{found[-1]}: cannot be written ({' '.join(str(error).split())[:200]}; {free:,} bytes were free there); make "
        f"room, and continue with: {launch.resume(folder)}"
    )


def after(folder: Path, step: int) -> list[Path]:
    """The complete checkpoints of TRL in the run's `folder` that are newer than `step`, oldest first."""
    return [path for path in checkpoints(folder / TRL) if step_of(path) > step]


def step_of(path: Path) -> int:
    """The step of a checkpoint of TRL."""
    return int(path.name.rpartition("-")[2])


def about(path: Path) -> dict[str, Any]:
    """What `complete` has said of a checkpoint. Raises UserError if that is damaged, or a file has another size."""
    found = history.read(path / _COMPLETE)
    for name in ("tokens", "seconds", "ranks"):
        if type(found.get(name)) not in (int, float):
            raise UserError(f"{path / _COMPLETE}: is damaged: {name} must be a number; {_REMEDY}")
    sizes = found.get("bytes")
    for name, size in sizes.items() if isinstance(sizes, dict) else ():
        there = (path / name).stat().st_size if (path / name).is_file() else None
        if there != size:
            was = "is missing" if there is None else f"has {there:,} bytes in place of {size:,}"
            raise UserError(f"{path / name}: {was}, so this checkpoint is damaged; {_REMEDY}")
    return found


def newest(folder: Path) -> Path | None:
    """The checkpoint of TRL that a resume of the run in `folder` begins from; None: it was killed before the first.

    Raises UserError if they are gone, because the run would begin anew and replace its checkpoints.
    """
    if found := checkpoints(folder / TRL):
        return found[-1]
    if not (folder / TRL).is_dir() and checkpoint_file.find(folder / "checkpoints"):
        raise UserError(
            f"{folder / TRL}: is gone, and the run continues from the checkpoints there; restore it, or start a new "
            f"run from this one's weights: INIT_FROM={folder}"
        )
    return None
