"""A copy of token files on the machine that trains, for data folders on slow network file systems.

A copy has the name, the size and the modification time of the original, by which it is found again.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from tqdm import tqdm

from gpt2.data.local_files import DataError
from gpt2.data.shards import CHANGED
from gpt2.data.tokens import Seal, TokenFile
from lib.base import files
from lib.terminal.console import say

_LOCK = "lock"


def made(
    folder: Path, originals: Mapping[str, list[TokenFile]], known: Mapping[str, Seal], place: Path, shows: bool
) -> dict[str, list[TokenFile]]:
    """Copy the token files of a data folder into a folder of their own in `place`; returns the copies, opened.

    Each process of this machine may call it: one copies, the others wait for it. Files that are there already are not
    copied again. A file whose seal is `known` must have its sha256. `shows` whether this process tells what it does.
    Raises DataError if a file cannot be copied, or is damaged.
    """
    copies = place / f"{folder.name}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]}"
    found = [file for split in originals.values() for file in split]
    try:
        with _held(copies, shows):
            missing = [file for file in found if _state(copies / file.path.name) != file.state()]
            if missing:
                _copy(missing, known, copies, shows)
    except OSError as error:
        raise DataError(f"DATA_CACHE_DIR={place}: cannot be written: {files.reason(error, place)}") from None
    return {
        split: [TokenFile(copies / file.path.name, file.offset, file.tokens, file.dtype) for file in parts]
        for split, parts in originals.items()
    }


def _copy(missing: list[TokenFile], known: Mapping[str, Seal], copies: Path, shows: bool) -> None:
    total = sum(file.state()[0] for file in missing)
    if shows:
        say(f"copying {total / 1e9:,.2f} GB of tokens to {copies}")
    hidden = None if shows else True  # None: where the output is no terminal
    with tqdm(total=total, desc="copying", unit="B", unit_scale=True, disable=hidden, leave=False) as bar:
        for file in missing:
            seal = known.get(file.path.name)
            try:
                _copy_file(file, copies / file.path.name, bar, seal.sha256 if seal else None)
            except OSError as error:
                raise DataError(
                    f"DATA_CACHE_DIR={copies.parent}: {file.path} cannot be copied there: "
                    f"{files.reason(error, copies, total - bar.n)}; or leave DATA_CACHE_DIR out"
                ) from None


def _copy_file(file: TokenFile, copy: Path, bar: tqdm, wanted: str | None) -> None:
    """Copy a file with its modification time. Raises DataError if it has another sha256 than `wanted`, or changes."""
    digest, state = hashlib.sha256(), file.state()
    with files.whole(copy) as written:
        for piece in file.content():
            digest.update(piece)
            written.write(piece)
            bar.update(len(piece))
        if (wanted and digest.hexdigest() != wanted) or file.state() != state or written.tell() != state[0]:
            raise DataError(f"{file.path}: {CHANGED}")
        written.flush()
        os.utime(written.fileno(), ns=(state[1], state[1]))


def _state(path: Path) -> tuple[int, int] | None:
    """The size in bytes and the modification time in ns of a file; None if there is none."""
    try:
        now = path.stat()
        return now.st_size, now.st_mtime_ns
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _held(copies: Path, shows: bool) -> Iterator[None]:
    """A context in which no other process copies there; waits for one that does."""
    copies.mkdir(parents=True, exist_ok=True)
    with (copies / _LOCK).open("wb") as lock:
        if not files.locks(lock.fileno(), copies):
            if shows:
                say(f"{copies}: another process copies the data; waiting for it")
            files.locks(lock.fileno(), copies, wait=True)
        yield
