"""Which rows and files a tracker of Accelerate has accepted, because its library cannot tell."""

import hashlib
from pathlib import Path

from lib.track.cursor import path_of


def list_of(folder: Path, name: str, server: str, again: str) -> tuple["Sent", bool]:
    """The list of what a server has, and whether it is the run's first.

    An earlier version had one list, `.sent`, and did not record whose it is. It belongs to the server that the run
    goes to when this version first delivers, and a line of it then says so. Other servers have `.<8 digits>.sent`.
    """
    path = path_of(folder, f"accelerate:{name}", "sent")
    if not server or (path.exists() and Sent(path).may_be_of(server)):
        return Sent(path, again), True
    return Sent(path_of(folder, f"accelerate:{name}", f"{_digits(server)}.sent"), again), False


def _digits(server: str) -> str:
    return hashlib.md5(server.encode()).hexdigest()[:8]


class Sent:
    """The list of sent rows: a file with one line per row, written unbuffered, so that it survives a kill.

    Lines of a second run at this tracker begin with the suffix of its name, `~2`.
    """

    def __init__(self, path: Path, again: str = ""):
        self.prefix = f"{again} " if again else ""
        self.file = path.open("ab+", buffering=0)
        self.file.seek(0)
        data = self.file.read()
        complete = data.rfind(b"\n") + 1
        self.file.truncate(complete)  # a full disk may have left an incomplete last line
        self.keys = dict.fromkeys(data[:complete].decode().splitlines())  # in the order of the file
        self.unwritten = b""  # the rest of a line that a full disk did not take

    def __contains__(self, key: str) -> bool:
        return self.prefix + key in self.keys

    def add(self, key: str) -> None:
        """Record a sent row. After an OSError, the next call writes the rest of the line first."""
        self._write(self.prefix + key)

    def may_be_of(self, server: str) -> bool:
        """Whether the list belongs to no other server."""
        return {key for key in self.keys if key.startswith("server ")} <= {f"server {_digits(server)}"}

    def own(self, server: str) -> None:
        """Record that the list belongs to this server."""
        if (line := f"server {_digits(server)}") not in self.keys:
            self._write(line)

    def has_rows(self) -> bool:
        """Whether anything but the configuration was sent."""
        return any(self._is_own(key) for key in self.keys if key != f"{self.prefix}configuration")

    def forget(self) -> None:
        """Count nothing as sent; the lines of other runs at this tracker stay."""
        others = [key for key in self.keys if not self._is_own(key)]
        self.keys, self.unwritten = {}, b""
        self.file.truncate(0)
        for key in others:
            self._write(key)

    def _is_own(self, key: str) -> bool:
        return key.startswith(self.prefix) if self.prefix else not key.startswith("~")

    def _write(self, line: str) -> None:
        self.keys[line] = None
        self.unwritten += f"{line}\n".encode()
        while self.unwritten:  # a disk that becomes full takes only a part of a line
            self.unwritten = self.unwritten[self.file.write(self.unwritten) :]
