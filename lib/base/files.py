"""Files that are complete or absent, even after a kill, a full disk or a power cut; and locks of folders."""

import contextlib
import errno
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from lib.base.errors import NO_ROOM, UserError

# Errors of `flock` on a file system without locks, such as Lustre that is mounted without them. EBADF is not among
# them: NFS raises it for folders and for files that are not open for writing, and still locks other files.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
_printed: set[str] = set()  # the notes that were printed; each is printed only once


def named(text: str) -> Path:
    """A user's path with `~` expanded, because shells do not expand it in RUN=~/runs/name or --run=~/runs/name."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser raises for an unknown user


def partial(path: Path) -> Path:
    """Where a file is written before it is renamed to `path`."""
    return path.with_name(path.name + ".tmp")


def commit(file: IO[bytes], path: Path) -> None:
    """Sync the open file `partial(path)` to the disk and rename it to `path`; raises OSError."""
    file.flush()
    os.fsync(file.fileno())
    partial(path).replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name reaches the disk too
    finally:
        os.close(folder)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A context that opens a temporary file for writing. Its end renames the file to `path`; an error deletes it.

    A device or a pipe is written itself: as root, a rename would put a file in the place of /dev/null.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        with path.open("wb") as file:
            yield file
        return
    try:
        with partial(path).open("wb") as file:
            yield file
            commit(file, path)
    except BaseException:
        partial(path).unlink(missing_ok=True)
        raise


def write(path: Path, content: bytes) -> None:
    """Write a file. Raises UserError; on a full disk the message says how many bytes are needed."""
    try:
        with whole(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {reason(error, path.parent, len(content))}") from None


def write_json(path: Path, content: object) -> None:
    """Write `content` as JSON; raises UserError as `write` does."""
    # A lone surrogate, from a file name that is not UTF-8, becomes a JSON escape.
    write(path, json.dumps(content, indent=1, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")


def append(path: Path, content: bytes, after: int) -> None:
    """Write `content` after the first `after` bytes of a file; with 0, create the file.

    Bytes after these, which a killed process left, are cut off. Raises UserError if `content` cannot be written, such
    as on a full disk. The file then keeps only its first `after` bytes.
    """
    left = memoryview(content)
    try:
        with path.open("r+b" if after else "wb", buffering=0) as file:
            try:
                file.truncate(after)
                file.seek(after)
                while left:  # a disk that is nearly full takes only a part
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(after)
                raise
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {reason(error, path.parent, len(content))}") from None


def reason(error: OSError, folder: Path, size: int = 0) -> str:
    """Why a file of `size` bytes cannot be written in `folder`: the system's words, and on a full disk what is free."""
    words = error.strerror or str(error)
    if error.errno not in NO_ROOM:
        return words
    facts = [f"it takes {size:,} bytes"] if size else []
    if error.errno == errno.ENOSPC:  # a quota or a limit of the process does not show in the free space
        with contextlib.suppress(OSError):  # the folder is gone
            disk = os.statvfs(folder)
            free = f"{disk.f_bavail * disk.f_frsize:,} bytes are free there"
            facts.append("no more files fit there" if disk.f_files and not disk.f_favail else free)
    return "; ".join(filter(None, [words, " and ".join(facts), "make room"]))


@contextlib.contextmanager
def held(folder: Path, work: str) -> Iterator[None]:
    """Lock a folder (made if missing), so that only one process at a time writes there.

    Raises UserError if another process has the lock. `work` says in the message what that process is doing, such as
    "training this run".
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {reason(error, folder)}") from None
    try:
        if not locks(fd, folder):
            time.sleep(0.1)  # `is_held` takes the lock for a moment
            if not locks(fd, folder):
                raise UserError(f"{folder}: another process is {work}; wait for it or stop it")
        yield
    finally:
        os.close(fd)


def is_held(folder: Path, name: str = "lock") -> bool:
    """Whether a process holds `folder`, or the lock `name` in it. Writes nothing, so it works in other users' folders.

    On a file system without locks this is always False.
    """
    try:
        fd = os.open(folder / name, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not locks(fd, folder, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def locks(fd: int, where: Path, kind: int = fcntl.LOCK_EX, wait: bool = False) -> bool:
    """Lock an open file. Returns False if another process has the lock; with `wait`, waits for it and returns True.

    On NFS the file must be open for writing, unless `kind` is LOCK_SH.

    On a file system without locks this is always True, and a note that names `where` is printed once.
    """
    try:
        fcntl.flock(fd, kind | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        if kind == fcntl.LOCK_EX:
            _note_once(
                f"this file system has no locks ({error.strerror}); do not start a second program that prepares the "
                "same data or trains the same run, and ignore the status crashed of a run that is training",
                where,
            )
    return True


def _note_once(note: str, where: Path) -> None:
    if note not in _printed:
        _printed.add(note)
        with contextlib.suppress(OSError, ValueError):  # standard error may be closed
            print(f"note: {where}: {note}", file=sys.stderr, flush=True)
