"""Checkpoints: one file, written atomically, has everything that a run needs to continue exactly."""

import dataclasses
import hashlib
import json
import math
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import torch
from torch import Tensor

from lib.base import files
from lib.base.errors import NO_ROOM
from lib.config.kconf import Options
from lib.machine.device import is_out_of_memory
from lib.record.checkpoint_file import CheckpointError, Sealer, find, name, steps, verify

_KINDS = {"run_id": "run", "shapes": "model"}  # header entries that must match -> their names in errors
_MARGIN_BYTES, _MARGIN_PER_TENSOR = 100_000, 1000  # upper bounds of what a file has besides its tensors

Place = tuple[Any, ...]  # the keys and indices of a tensor in a state, or what identifies its memory


@dataclasses.dataclass(frozen=True)
class Keeping(Options):
    """Which checkpoints of a run are kept."""

    checkpoint_keep: int  # how many of the newest
    checkpoint_best: bool | None  # whether the one of state["best"]["step"] is kept too; None: nothing is evaluated
    checkpoint_at: str  # steps whose checkpoints are kept for good, as in 200,1000

    def and_earlier(self, values: Iterable[object]) -> "Keeping":
        """What keeps also the steps that these `values` of CHECKPOINT_AT name, those of earlier sessions."""
        texts = [value for value in (*values, self.checkpoint_at) if isinstance(value, str) and value.strip()]
        return dataclasses.replace(self, checkpoint_at=",".join(dict.fromkeys(texts)))

    def obsolete(self, found: list[Path], best: int) -> list[Path]:
        """The checkpoints among `found`, oldest first, that are no longer kept."""
        kept = {name(best)} if self.checkpoint_best else set()
        kept |= {name(step) for step in steps(self.checkpoint_at)}
        return [path for path in found[: -self.checkpoint_keep] if path.name not in kept]


def save(
    folder: Path,
    step: int,
    state: dict[str, Any],
    keeping: Keeping,
    about: Mapping[str, Any],
    sync: Callable[[], object] = lambda: None,
) -> Path:
    """Write `state` (tensors and plain values) as the checkpoint of `step`; remove checkpoints that are no longer kept.

    `about` holds what the header says about the run. `sync` is called before the file gets its name. Raises
    CheckpointError if the checkpoint cannot be written; earlier checkpoints stay.
    """
    path, sealer = folder / name(step), None
    try:
        require_room(path, size(state))
        with files.whole(path) as file:
            sealer = Sealer(file)
            torch.save({"step": step, **state}, sealer)
            sealer.seal({"step": step, "torch": torch.__version__, **about, **contents(state)})
            sync()
        for old in keeping.obsolete(find(folder), state.get("best", {}).get("step", 0)):
            old.unlink(missing_ok=True)
    except (OSError, RuntimeError, MemoryError) as error:
        cause = (sealer and sealer.error) or error  # torch.save replaces the error of the file by its own
        advice = "; make room" if getattr(cause, "errno", None) in NO_ROOM else ""
        raise CheckpointError(
            f"{path}: the checkpoint of {size(state) / 1e6:,.1f} MB cannot be written ({_first_line(cause)}){advice}"
        ) from None
    return path


def size(state: Any) -> int:
    """An upper bound of the bytes that a checkpoint of `state` takes on the disk."""
    tensors = list(_tensors(state))
    storages = [(tensor.device, tensor.untyped_storage()) for tensor in tensors]
    # Tensors that share memory are in the file once.
    memory = {(device, storage.data_ptr()): storage.nbytes() for device, storage in storages}
    return _MARGIN_BYTES + _MARGIN_PER_TENSOR * len(tensors) + sum(memory.values())


def require_room(path: Path, needed: int) -> float:
    """The free bytes on the disk of `path`; raises CheckpointError if they are fewer than `needed`."""
    disk = shutil.disk_usage(path.parent)
    if not disk.total:  # some file systems do not report their size
        return math.inf
    if disk.free < needed:
        facts = f"the checkpoint takes {needed / 1e6:,.1f} MB, and {disk.free / 1e6:,.1f} MB are free there"
        raise CheckpointError(f"{path}: {facts}; make room")
    return disk.free


def contents(state: dict[str, Any]) -> dict[str, Any]:
    """What the header says about a state: plain values, the size of its parts, and a digest of the model's shapes."""
    sections = {}
    for key, value in state.items():
        if tensors := list(_tensors(value)):
            numbers = sum(t.numel() for t in tensors)
            sections[key] = {"tensors": len(tensors), "numbers": numbers, "bytes": sum(t.nbytes for t in tensors)}
    plain = {k: v for k, v in state.items() if isinstance(v, str | int) or (isinstance(v, float) and math.isfinite(v))}
    best = {key: value for key, value in state.get("best", {}).items() if math.isfinite(value)}
    return {"values": plain, "best": best, "sections": sections, "shapes": shapes(state.get("model", {}))}


def shapes(model: Mapping[str, Tensor]) -> str:
    """A digest of the names and shapes of a model's tensors: other models have other digests."""
    text = json.dumps([(key, list(value.shape)) for key, value in sorted(model.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested dictionaries, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _tensors(entry)


class Writer:
    """Saves checkpoints while training continues. Training waits only for a copy of the state, which a thread writes.

    The copy takes as much host memory as the state, and the next copy uses the same memory. Copying the 1.5 GB of
    GPT-2 124M takes 0.10 s into used tensors and 0.46 s into new ones, because the system clears their pages. Copies
    from a CUDA device go to pinned memory, which has not been measured yet. If memory does not suffice for the copy,
    `save` prints one note and writes the state directly, and training waits for it.

    The writer is a context manager, whose end waits for the checkpoint that is being written.
    """

    def __init__(
        self,
        folder: Path,
        keeping: Keeping,
        about: Mapping[str, Any],
        sync: Callable[[], object],
        say: Callable[[str], object],
    ):
        """Save in `folder`. `say` shows a sentence to the user; the other arguments are those of `checkpoint.save`."""
        self.folder, self.keeping, self.about, self.sync, self.say = folder, keeping, about, sync, say
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.pending: Future[None] | None = None
        self.copies: dict[Place, Tensor] = {}  # host copies of the last state, by place
        self.warned = False

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Begin to save `state` (see `checkpoint.save`), which may change as soon as this returns.

        Waits for the previous checkpoint. If the previous one failed, shows why and writes this one before returning.
        Raises CheckpointError if this one fails too.
        """
        try:
            self.wait()
        except CheckpointError as error:
            self.pending = None
            self.say(f"alert: {error}")
            self._write(step, state)
            return
        if copy := self._copy(state):
            self.pending = self.thread.submit(self._write, step, *copy)
        else:
            self._write(step, state)

    def wait(self) -> None:
        """Wait until nothing is being written; raises CheckpointError if the last checkpoint could not be written."""
        if self.pending:
            self.pending.result()

    def _copy(self, state: dict[str, Any]) -> tuple[dict[str, Any], torch.cuda.Event | None] | None:
        """A copy of `state` in host memory. With too little memory it is None, and the first time a note is printed.

        The second value is the event at which a CUDA device has made the copy. The device runs later work after it, so
        training need not wait.
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
        """A copy of `value`, which is at `path` of the state. It uses the tensors of `before` again where they fit.

        `aliases` maps the memory of a tensor to its copy, so tensors that share memory share a copy.
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

    def _write(self, step: int, state: dict[str, Any], copied: torch.cuda.Event | None = None) -> None:
        if copied:
            copied.synchronize()
        save(self.folder, step, state, self.keeping, self.about, self.sync)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        try:
            self.wait()
        except Exception as failed:
            if error is None:
                raise
            if error is not failed:  # otherwise this very error ends the program
                self.say(f"alert: {failed}")
        finally:
            self.thread.shutdown()


def load(
    path: Path, device: torch.device | str = "cpu", expected: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """The state in a checkpoint, after a check of its checksum. No code in the file is executed.

    The header must have the `expected` values of `run_id` and of the model's `shapes`. Raises CheckpointError if the
    file is damaged, is of another run or model, or has NaN or infinite weights.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise CheckpointError(f"{path}: the checkpoint cannot be read: {error.strerror}") from None
    with file:
        header = verify(file, path)
        for key, value in expected.items():
            if header.get(key) != value:
                theirs = f"{header.get('run')!r}, {header.get('model')!r}"
                raise CheckpointError(f"{path}: the checkpoint is of another {_KINDS[key]}: {theirs}")
        file.seek(0)
        try:
            state = torch.load(file, map_location=device, weights_only=True)
            finite = not isinstance(state, dict) or is_finite(state.get("model", {}).values())
        except Exception as error:  # torch raises many kinds of errors for a malformed file
            if is_out_of_memory(error):
                raise
            raise CheckpointError(f"{path}: the checkpoint cannot be read ({_first_line(error)})") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: this is not a checkpoint of a run")
    if not finite:
        raise CheckpointError(f"{path}: weights in the checkpoint are NaN or infinite")
    return state


def is_finite(weights: Iterable[Tensor]) -> bool:
    """Whether all weights are finite. Waits for the device once if they are."""
    # A finite norm means finite weights. Squares of large weights overflow, so an infinite norm needs a closer look.
    # Each log line calls this. For 60 small tensors it takes 0.13 ms on a CPU core, for 1.2e8 weights 0.1 s.
    some = [weight.detach() for weight in weights if weight.is_floating_point() and weight.numel()]
    if not some or bool(torch.stack(torch._foreach_norm(some)).isfinite().all()):
        return True
    return all(bool(weight.isfinite().all()) for weight in some)


def load_newest(
    folder: Path, device: torch.device | str = "cpu", expected: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """The state in the newest checkpoint of the run in `folder`; see `load`.

    Raises CheckpointError if there is none, or if the newest one cannot be loaded. The message then names the newest
    one that can be loaded, and the user decides whether to go back to it.
    """
    found = find(folder / "checkpoints")
    if not found:  # rank 0 has found one, so this process looks at another disk
        raise CheckpointError(
            f"{folder}: has no checkpoint here, though rank 0 sees one; put OUTPUT_DIR where all machines see it"
        )
    try:
        return load(found[-1], device, expected)
    except CheckpointError as error:
        before = next((path for path in reversed(found[:-1]) if _can_be_loaded(path, expected)), None)
        useless = found[found.index(before) + 1 :] if before else found
        aside = shlex.quote(str(folder / "damaged"))
        move = f"mkdir -p {aside} && mv {shlex.join(map(str, useless))} {aside}"
        again = f"make resume RUN={shlex.quote(str(folder))}"
        course = (
            f"to continue from {before.name}, which is intact" if before else "no checkpoint is intact; to start again"
        )
        raise CheckpointError(f"{error}; {course}: {move} && {again}") from None


def _can_be_loaded(path: Path, expected: Mapping[str, str]) -> bool:
    try:
        load(path, "cpu", expected)
    except CheckpointError:
        return False
    return True


def _first_line(error: BaseException) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return reason.splitlines()[0][:200]
