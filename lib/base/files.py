"""Files that are there whole or not at all, whatever interrupts the writing: a kill, a full disk, a power cut."""

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

# What `flock` answers on a file system without locks, such as a Lustre that is mounted without them. It is not EBADF,
# which NFS answers for a folder and for a file that is not open for writing: it has locks for other files.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
_said: set[str] = set()  # notes, each once


def named(text: str) -> Path:
    """The path that a user named. `~` is a home, which shells leave alone in RUN=~/runs/name and --run=~/runs/name."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser raises for a home that nobody has


def partial(path: Path) -> Path:
    """Where a file is written before it gets its name."""
    return path.with_name(path.name + ".tmp")


def commit(file: IO[bytes], path: Path) -> None:
    """Give the open `partial(path)` its name, once its content is on the disk; raises OSError."""
    file.flush()
    os.fsync(file.fileno())
    partial(path).replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name is on the disk too
    finally:
        os.close(folder)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write; it gets its name at the end, and when anything is raised before that, nothing is left of it."""
    try:
        with partial(path).open("wb") as file:
            yield file
            commit(file, path)
    except BaseException:
        partial(path).unlink(missing_ok=True)
        raise


def write(path: Path, content: bytes) -> None:
    """Write a file; raises UserError, which says how much room that takes where there is too little."""
    try:
        with whole(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {reason(error, path.parent, len(content))}") from None


def write_json(path: Path, content: object) -> None:
    """Write `content` as JSON; raises UserError when that is impossible."""
    # A name that is no text (a lone surrogate) becomes an escape that JSON knows too.
    write(path, json.dumps(content, indent=1, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")


def append(path: Path, content: bytes, after: int) -> None:
    """Put `content` after the first `after` bytes of a file, in place of what a kill left there; 0 makes the file.

    Raises UserError when it does not fit, and then nothing is left of it.
    """
    left = memoryview(content)
    try:
        with path.open("r+b" if after else "wb", buffering=0) as file:
            try:
                file.truncate(after)
                file.seek(after)
                while left:  # a disk that fills up takes a part, and refuses the rest
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(after)
                raise
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {reason(error, path.parent, len(content))}") from None


def reason(error: OSError, folder: Path, size: int = 0) -> str:
    """Why a file cannot be written in `folder`: the system's words, and for lack of room what its `size` bytes need."""
    words = error.strerror or str(error)
    if error.errno not in NO_ROOM:
        return words
    facts = [f"it takes {size:,} bytes"] if size else []
    if error.errno == errno.ENOSPC:  # the others are limits of a user or a process, which may be lower
        with contextlib.suppress(OSError):  # the folder is gone
            disk = os.statvfs(folder)
            free = f"{disk.f_bavail * disk.f_frsize:,} bytes are free there"
            facts.append("no more files fit there" if disk.f_files and not disk.f_favail else free)
    return "; ".join(filter(None, [words, " and ".join(facts), "make room"]))


@contextlib.contextmanager
def held(folder: Path, work: str) -> Iterator[None]:
    """Hold a folder (made if missing), so that one process at a time writes there; raises UserError if another does.

    `work` says what that one is doing, for the message.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {reason(error, folder)}") from None
    try:
        if not locks(fd, folder):
            time.sleep(0.1)  # `is_held` holds a lock for the instant in which it looks
            if not locks(fd, folder):
                raise UserError(f"{folder}: another process is {work}; wait for it or stop it")
        yield
    finally:
        os.close(fd)


def is_held(folder: Path, name: str = "lock") -> bool:
    """Whether a process holds `folder`, or another lock in it; asks without writing, so of anybody's folder.

    A file system without locks cannot tell, and then this is False.
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
    """Lock an open file; whether nobody else had it. With `wait` that is always so in the end.

    NFS locks only what is open for writing, unless `kind` is LOCK_SH.

    On a file system without locks nobody ever has it. A note, which names `where`, says once that nothing is locked.
    """
    try:
        fcntl.flock(fd, kind | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        if kind == fcntl.LOCK_EX:
            _say_once(
                f"this file system has no locks ({error.strerror}); start no second program that prepares the same "
                "data or trains the same run, and do not mind that a run is called crashed while it trains",
                where,
            )
    return True


def _say_once(note: str, where: Path) -> None:
    if note not in _said:
        _said.add(note)
        with contextlib.suppress(OSError, ValueError):  # nobody reads it
            print(f"note: {where}: {note}", file=sys.stderr, flush=True)
