"""The lock of a data folder: one program at a time prepares it, and the others wait.

The lock is a file in the folder. Its holder removes it, so that a finished dataset contains only data.

`files.locks` is the only call of `flock` in this project. The library filelock, which comes with torch, cannot replace
it: its native lock is always exclusive, while `files.is_held` looks with a shared lock, for which reading suffices. On
a file system without locks, filelock raises an error or leaves a marker that outlives a killed program. `files.locks`
prints a note there and continues.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from gpt2.data.tokens import TOKEN
from lib.base import files

NAME = "lock"  # a file that is opened for writing: NFS locks neither folders nor files that are opened for reading
_WAIT_SECONDS = 0.2  # between two attempts to get the lock of another program


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make the folder and hold its lock; wait while another program holds it."""
    handle = None
    while handle is None:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another program has just removed or renamed the folder
            handle = take(folder, wait=True)
    try:
        yield
    finally:
        give_back(folder, handle)


def take(folder: Path, *, wait: bool) -> int | None:
    """Return the descriptor of the locked file; None if another program holds the lock or has just removed it."""
    with contextlib.ExitStack() as undo:
        handle = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o644)
        undo.callback(os.close, handle)
        if not files.locks(handle, folder):
            if not wait:
                return None
            _wait(handle, folder)
        if not os.path.samestat(os.fstat(handle), (folder / NAME).stat()):
            return None
        undo.pop_all()
        return handle


def give_back(folder: Path, handle: int) -> None:
    """Remove the lock file, remove the folder if it is empty then, and unlock.

    A waiting program gets the lock of a removed file, notices that, and starts again. After the folder was renamed,
    another program may have made a folder and a lock with the old names: these are left alone.
    """
    with contextlib.suppress(OSError):  # the folder holds finished shards, or it has its final name
        if os.path.samestat(os.fstat(handle), (folder / NAME).stat()):
            (folder / NAME).unlink()
            folder.rmdir()
    os.close(handle)


def _wait(handle: int, folder: Path) -> None:
    """Wait for the lock and show how many tokens its holder has prepared. A killed program releases its lock."""
    print(f"{folder}: another program is preparing this dataset; waiting for it", file=sys.stderr, flush=True)
    with tqdm(desc="prepared there", unit=" tokens", unit_scale=True, disable=None, leave=False) as bar:
        while not files.locks(handle, folder):
            time.sleep(_WAIT_SECONDS)
            with contextlib.suppress(OSError):  # a file was renamed between the two calls
                done = sum(path.stat().st_size for path in folder.glob("*.bin*")) // TOKEN.itemsize
                bar.update(max(0, done - bar.n))
