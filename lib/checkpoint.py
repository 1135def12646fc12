"""Checkpoints: all that a run needs to go on as if it had never stopped, in one file, there whole or not at all."""

import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from lib import files
from lib.device import is_out_of_memory
from lib.errors import UserError

KEEP = 2  # newest checkpoints of a run: the last one and one to fall back on
VERSION = 2
_NAME = re.compile(r"step-(\d{9})\.pt")

Place = tuple[Any, ...]  # keys and indices that lead to a tensor of a state, or what tells its memory


class CheckpointError(UserError):
    """A checkpoint cannot be written, read or used."""


def save(folder: Path, step: int, state: dict[str, Any], sync: Callable[[], object] = lambda: None) -> Path:
    """Write `state` (tensors and plain values) as the checkpoint of `step` and drop all but the newest two.

    `sync` is called before the file gets its name. Raises CheckpointError when it cannot be written; the checkpoints
    before it are then still there.
    """
    path = folder / name(step)
    try:
        with files.whole(path) as file:
            torch.save({"version": VERSION, "step": step, **state}, file)
            sync()
        for old in find(folder)[:-KEEP]:
            old.unlink()
    except (OSError, RuntimeError, MemoryError) as error:  # torch reports a full disk as RuntimeError
        raise CheckpointError(f"{path}: the checkpoint cannot be written ({_first_line(error)}); free space") from None
    return path


class Writer:
    """Saves the checkpoints of a run while it goes on: training waits for a copy of the state, a thread writes that.

    The copy takes as much host memory as the state, and keeps it for the next one: copying the 1.5 GB of GPT-2 124M
    takes 0.10 s into the tensors of the copy before, and 0.46 s into new ones, as the system clears their pages. Of
    what is on a CUDA device the copy is in pinned memory; that is not measured yet. Where memory is too short for the
    copy, `save` says so once and writes the state itself, for which training waits.

    Used as a context; leaving it waits for what is being written.
    """

    def __init__(self, folder: Path, sync: Callable[[], object], say: Callable[[str], object]):
        """`sync` is called before a checkpoint in `folder` gets its name, `say` with sentences for the user."""
        self.folder, self.sync, self.say = folder, sync, say
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.pending: Future[None] | None = None
        self.copies: dict[Place, Tensor] = {}  # of the tensors of the last state, by their place in it
        self.warned = False

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Begin to save `state` (see `checkpoint.save`), which may change as soon as this returns.

        Waits for the checkpoint before it. If that could not be written, it says so and writes this one before it
        returns; raises CheckpointError if that fails too.
        """
        try:
            self.wait()
        except CheckpointError as error:
            self.pending = None
            self.say(f"alert: {error}")
            save(self.folder, step, state, self.sync)
            return
        if copy := self._copy(state):
            self.pending = self.thread.submit(self._write, step, *copy)
        else:
            save(self.folder, step, state, self.sync)

    def wait(self) -> None:
        """Return when nothing is being written; raises CheckpointError if the last one could not be."""
        if self.pending:
            self.pending.result()

    def _copy(self, state: dict[str, Any]) -> tuple[dict[str, Any], torch.cuda.Event | None] | None:
        """A copy of `state` in host memory, or None, said once, where that is too short.

        With it what tells when a CUDA device has made the copy: what it is asked to do later it does later, so that
        training need not wait for it.
        """
        before, self.copies = self.copies, {}
        aliases: dict[Place, Tensor] = {}
        try:
            with torch.no_grad():
                copy = self._copied(state, (), before, aliases)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.copies = {}
            if not self.warned:
                self.say(f"note: no memory to copy the state ({_first_line(error)}); training waits for checkpoints")
            self.warned = True
            return None
        on_cuda = any(device.type == "cuda" for device, *_ in aliases)
        return copy, torch.cuda.current_stream().record_event() if on_cuda else None

    def _copied(self, value: Any, path: Place, before: dict[Place, Tensor], aliases: dict[Place, Tensor]) -> Any:
        """`value`, at `path` of the state, with copies in place of all tensors: into those in `before` where they fit.

        `aliases` has the copies by where their originals are in memory: tensors that are one have one copy.
        """
        if isinstance(value, dict):
            return {key: self._copied(entry, (*path, key), before, aliases) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            entries = enumerate(value)
            return type(value)(self._copied(entry, (*path, place), before, aliases) for place, entry in entries)
        if not isinstance(value, Tensor):
            return value
        memory = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if memory not in aliases:
            copy = before.get(path)
            if copy is None or (copy.dtype, copy.shape, copy.stride()) != memory[2:]:
                copy = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
            self.copies[path] = aliases[memory] = copy.copy_(value, non_blocking=value.is_cuda)
        return aliases[memory]

    def _write(self, step: int, copy: dict[str, Any], copied: torch.cuda.Event | None) -> None:
        if copied:
            copied.synchronize()
        save(self.folder, step, copy, self.sync)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        try:
            self.wait()
        except Exception as failed:
            if error is None:
                raise
            if error is not failed:  # it is what ends the program
                self.say(f"alert: {failed}")
        finally:
            self.thread.shutdown()


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
