"""The file format of checkpoints: reads the header and verifies the checksum without PyTorch.

A file begins with the output of torch.save, which any PyTorch reads. Two lines follow: a header in JSON, and the
SHA-256 of everything before that last line. `tail -n 2` shows them.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from lib.base.errors import UsageError, UserError

FORMAT = 3
_NAME = re.compile(r"step-(\d{9})\.pt")
_SEAL = re.compile(rb"sha256 ([0-9a-f]{64}) (\d{8}) espalier checkpoint\n")
_SEAL_BYTES = len(f"sha256 {'0' * 64} {0:08d} espalier checkpoint\n")
_MOST_HEADER_BYTES = 60_000  # torch.load looks for the end of its part in the last 64 KiB
_CHUNK_BYTES = 1 << 20

Header = dict[str, Any]


class CheckpointError(UserError):
    """A checkpoint cannot be written, read or used."""


def is_name(name: str) -> bool:
    """Whether a file of this name is a checkpoint."""
    return bool(_NAME.fullmatch(name))


def may_be_run(path: Path) -> bool:
    """Whether a path may be a run or a checkpoint. Other files, and an export in a run's folder, are what they are."""
    if path.is_file():
        return is_name(path.name)
    return not (path / "config.json").is_file() or (path / "run.json").exists()


def name(step: int) -> str:
    """The file name of the checkpoint after `step`."""
    return f"step-{step:09d}.pt"


def step(path: Path) -> int:
    """The step of a checkpoint, from the name of its file."""
    return int(path.stem.removeprefix("step-"))


def find(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name))


def chosen(folder: Path, which: str) -> Path:
    """The checkpoint of the run in `folder` that `which` names: `newest`, `best`, a file name or a step.

    Raises UsageError if there is no such checkpoint.
    """
    found = {step(path): path for path in find(folder / "checkpoints")}
    if not found:
        if _is_oneshot(folder):
            raise UsageError(
                f"{folder}: a one-shot run saves its model only when all blocks are pruned; wait for it, or prune "
                "again with make oneshot"
            )
        raise UsageError(f"{folder}: this run has no checkpoint yet; continue with make resume RUN={folder}")
    last = found[max(found)]
    if which == "newest":
        return last
    wanted = header(last)["best"].get("step", 0) if which == "best" else which.removeprefix("step-").removesuffix(".pt")
    path = found.get(int(wanted)) if re.fullmatch(r"\d{1,9}", str(wanted)) else None
    if path is None:
        raise UsageError(
            f"{folder}: there is no checkpoint {which!r}; choose newest, best (if CHECKPOINT_BEST kept it), or one of "
            f"{', '.join(path.stem for path in found.values())}"
        )
    return path


def _is_oneshot(folder: Path) -> bool:
    config = folder / ".config"
    return config.exists() and b"\nCONFIG_PRUNING_DYNAMICS_ONESHOT=y\n" in config.read_bytes()


def steps(text: str) -> frozenset[int]:
    """The steps in a value of CHECKPOINT_AT, as in 200,1000; raises UsageError."""
    words = [word.strip() for word in text.split(",")] if text.strip() else []
    for word in words:
        if not re.fullmatch(r"\d{1,9}", word, re.ASCII) or not int(word):
            raise UsageError(f"CHECKPOINT_AT={text}: must be steps from 1 on, as in 200,1000; got {word!r}")
    return frozenset(map(int, words))


class Sealer:
    """A file that computes the SHA-256 of what is written; `seal` appends it.

    `error` is the error of a failed write, because torch.save raises another error in its place.
    """

    def __init__(self, file: IO[bytes]):
        self.file, self.digest, self.bytes = file, hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write `data` and update the digest."""
        self.digest.update(data)
        self.bytes += len(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Flush the file, as torch.save asks."""
        self.file.flush()

    def seal(self, header: Mapping[str, Any]) -> None:
        """Append the header and the digest of everything before it."""
        about = {"format": FORMAT, "bytes": self.bytes, "written": time.strftime("%Y-%m-%d %H:%M:%S%z"), **header}
        line = b"\n" + json.dumps(about, allow_nan=False).encode() + b"\n"
        if len(line) > _MOST_HEADER_BYTES:
            raise ValueError(f"the header of a checkpoint has {len(line)} bytes, more than {_MOST_HEADER_BYTES}")
        self.write(line)
        self.write(f"sha256 {self.digest.hexdigest()} {len(line):08d} espalier checkpoint\n".encode())


def header(path: Path) -> Header:
    """The header of the file at `path`, without a check of the checksum; raises CheckpointError if it has none."""
    try:
        with path.open("rb") as file:
            return _read(file, path)[0]
    except OSError as error:
        raise CheckpointError(f"{path}: the checkpoint cannot be read: {error.strerror}") from None


def verify(file: IO[bytes], path: Path) -> Header:
    """The header of an open checkpoint, after a check of its checksum.

    `path` is for messages. Raises CheckpointError for a file that is cut off, damaged, or of another format.
    """
    try:
        found, digest = _read(file, path)
        computed, rest = hashlib.sha256(), file.seek(0, os.SEEK_END) - _SEAL_BYTES
        file.seek(0)
        while rest and (chunk := file.read(min(rest, _CHUNK_BYTES))):
            computed.update(chunk)
            rest -= len(chunk)
    except OSError as error:
        raise CheckpointError(f"{path}: the checkpoint cannot be read: {error.strerror}") from None
    if computed.hexdigest() != digest:
        raise CheckpointError(f"{path}: the checkpoint is damaged: its content does not match its checksum")
    return found


def _is_header(found: object) -> bool:
    """Whether a JSON value has all fields of a header, with the right types."""
    if not isinstance(found, dict) or not isinstance(found.get("step"), int):
        return False
    if not all(isinstance(found.get(key), dict) for key in ("best", "values", "sections")):
        return False
    parts = found["sections"].values()
    sizes = [part.get(key) for part in parts if isinstance(part, dict) for key in ("tensors", "numbers", "bytes")]
    numbers = [found["best"].get("step", 0), *sizes]
    return len(sizes) == 3 * len(parts) and all(isinstance(number, int) for number in numbers)


def _read(file: IO[bytes], path: Path) -> tuple[Header, str]:
    """The header and the digest at the end of a file; raises OSError, and CheckpointError if they are missing."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _SEAL_BYTES))
    seal = _SEAL.fullmatch(file.read())
    if not seal or int(seal[2]) + _SEAL_BYTES > size:
        raise CheckpointError(
            f"{path}: the checkpoint is cut off or damaged at its end, or from another version of Espalier"
        )
    file.seek(size - _SEAL_BYTES - int(seal[2]))
    try:
        found = json.loads(file.read(int(seal[2])))
    except (ValueError, RecursionError):
        found = None
    if not _is_header(found):
        raise CheckpointError(f"{path}: the checkpoint is damaged: its header is not valid")
    if found.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: the checkpoint has format {str(found.get('format'))[:20]}, and this Espalier reads {FORMAT}; use "
            "the version that wrote it"
        )
    return found, seal[1].decode()
