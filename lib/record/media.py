"""Media: files of a run that trackers show or keep, such as samples and pictures. The journal refers to them."""

import os
import re
import shutil
from pathlib import Path

from lib.base import files
from lib.base.errors import UserError
from lib.record import checkpoint_file
from lib.record.journal import MEDIA_FOLDERS, Journal, Record
from lib.record.run import folder_name

FOLDER = MEDIA_FOLDERS[0]
_SUFFIXES = {"image": ".png", "table": ".json", "text": ".txt"}


def write(folder: Path, book: Journal, kind: str, name: str, step: int, content: bytes) -> Record:
    """Keep an image (PNG), table (JSON) or text (UTF-8) of a step in the run's folder, and record it.

    The same name and step write the same file. Raises UserError if the disk is full.
    """
    path = place(folder, book, name, step, _SUFFIXES[kind])
    files.write(path, content)
    return _record(folder, book, kind, name, step, path)


def keep(folder: Path, book: Journal, name: str, step: int, path: Path) -> Record:
    """Record a file of any kind as an artifact.

    A checkpoint of the run stays where it is. Another file is copied into the run's folder, so that a tracker gets what
    it holds now. Raises UserError if it cannot be read, or if the disk is full.
    """
    if path.parent != folder / MEDIA_FOLDERS[1]:
        path = _kept(path, place(folder, book, name, step, path.suffix))
    return _record(folder, book, "artifact", name, step, path)


def size(path: Path, folder: Path) -> int:
    """Bytes of a file of media that may be sent; raises UserError for another one.

    A received run must not make trackers send other files of the user. Only the folder of checkpoints may be a link,
    to another disk, and only for files with names of checkpoints.
    """
    try:
        checkpoints = path.parent == folder / MEDIA_FOLDERS[1] and checkpoint_file.is_name(path.name)
        inside = path.resolve().is_relative_to(folder.resolve()) or (checkpoints and not path.is_symlink())
        if not (inside and path.is_file()):
            raise UserError(f"{path}: is not a file in the run's folder")
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def place(folder: Path, book: Journal, name: str, step: int, suffix: str) -> Path:
    """Where a file of this name and step is to be written, in a folder that exists then."""
    book.check()  # the folder may be gone
    try:
        (folder / FOLDER).mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder / FOLDER}: cannot be made: {files.reason(error, folder)}") from None
    suffix = suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,12}", suffix) else ""
    return folder / FOLDER / f"{folder_name(name)}-{step:08d}{suffix}"


def _kept(path: Path, there: Path) -> Path:
    """A copy of a file at `there`. A hard link would change with the file when a script writes it again in place."""
    try:
        with path.open("rb") as source, files.whole(there) as copy:
            shutil.copyfileobj(source, copy)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be copied into the run's folder: {files.reason(error, there.parent)}"
        ) from None
    return there


def _record(folder: Path, book: Journal, kind: str, name: str, step: int, path: Path) -> Record:
    file = path.relative_to(folder).as_posix()
    name = name.encode(errors="replace").decode()  # a file name that is not UTF-8 has characters that nobody accepts
    return book.write("media", step, kind=kind, name=name, file=file, bytes=path.stat().st_size)
