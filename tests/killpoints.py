"""Kills its own process at a chosen change of a file: before the n-th change of a kind, or half-way through it.

The state after a change is the state before the next one, so "before", "half-way" and the end cover every case. A
change is a system call on a file under the current folder. Python's file objects buffer what they write, as in any run;
the change is made when the buffer is written. An update of the masks, which is in memory, counts as a change too.
"""

import builtins
import contextlib
import dataclasses
import io
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

LOG = "points.log"  # in the current folder: a line per point reached; the last line is the point of the kill


@dataclasses.dataclass(frozen=True)
class Point:
    """The `number`-th change (from 1) with a label, such as "write checkpoints/step-#.pt.tmp", in a process."""

    label: str
    number: int
    half: bool = False  # kill after half of the change

    def __str__(self) -> str:
        return f"{'half-way through' if self.half else 'before'} {self.label} number {self.number}"


def reached(folder: Path) -> list[str]:
    """The labels of the points that the last armed process in `folder` reached, in order."""
    return (folder / LOG).read_text().splitlines()


class Points:
    """Counts the points of this process, in the order in which its threads come to them, and kills it at one."""

    def __init__(self, target: Point | None):
        self.target, self.home, self.counts, self.lock = target, Path.cwd(), Counter(), threading.Lock()
        self.write = os.write  # the original, which is not watched
        self.log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)

    def reach(self, what: str, file: object = None, half: Callable[[], object] | None = None) -> None:
        """Called before the change `what` of `file` (a path or a descriptor); `half` makes its first half."""
        label = self.label(what, file)
        if label is None:
            return
        with self.lock:
            self.counts[label] += 1
            self.write(self.log, f"{label}\n".encode())
            if self.target and (label, self.counts[label]) == (self.target.label, self.target.number):
                if self.target.half and half:
                    with contextlib.suppress(ValueError):  # half a change may notice that it is incomplete
                        half()
                os.kill(os.getpid(), signal.SIGKILL)

    def label(self, what: str, file: object) -> str | None:
        """`what` and the path within the run or the data, with digits as #; None for files outside the folder."""
        if file is None:
            return what
        path = Path(f"/proc/self/fd/{file}").readlink() if isinstance(file, int) else Path(os.fsdecode(file))
        path = Path(os.path.normpath(self.home / path))
        if not path.is_relative_to(self.home) or path.name.startswith("pipe:"):
            return None
        name = re.sub(r"^runs/[^/]+", "run", str(path.relative_to(self.home)))
        return f"{what} {re.sub(r'[0-9]+', '#', name.removeprefix('run/'))}"


def arm(target: Point | None) -> None:
    """Watch this process from now on, and kill it at `target`."""
    points = Points(target)
    _arm_calls(points)
    _arm_files(points)
    _arm_masks(points)


def _arm_calls(points: Points) -> None:
    """Watch the functions of `os` that change files."""

    def watch(name: str, place: Callable[..., object], what: str) -> None:
        original = getattr(os, name)

        def watched(*args, **kwargs):
            points.reach(what, place(*args, **kwargs))
            return original(*args, **kwargs)

        setattr(os, name, watched)

    for name in ("mkdir", "rmdir", "unlink", "remove"):
        # Calls with dir_fd come from shutil.rmtree, in folders elsewhere.
        watch(
            name, lambda path, *args, dir_fd=None: path if dir_fd is None else "/", {"remove": "unlink"}.get(name, name)
        )
    for name in ("rename", "replace", "link", "symlink"):
        watch(name, lambda source, target, **kwargs: target, {"replace": "rename"}.get(name, name))
    for name in ("fsync", "ftruncate"):
        watch(name, lambda fd, *args: fd, name)
    opened, written = os.open, os.write

    def watched_open(path, flags, *args, **kwargs):
        if flags & os.O_CREAT and not Path(path).exists():
            points.reach("create", path)
        return opened(path, flags, *args, **kwargs)

    def watched_write(fd, data):
        points.reach("write", fd, lambda: written(fd, data[: len(data) // 2]))
        return written(fd, data)

    os.open, os.write = watched_open, watched_write


def _arm_files(points: Points) -> None:
    """Watch `open`: a file opened for writing gets a watched raw file below its buffer."""
    original = io.open

    class Raw(io.FileIO):
        def write(self, data):
            points.reach("write", self.fileno(), lambda: super(Raw, self).write(bytes(data)[: len(data) // 2]))
            return super().write(data)

        def truncate(self, size=None):
            points.reach("ftruncate", self.fileno())
            return super().truncate(size)

    def watched(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        if not set(mode) & set("wax+") or isinstance(file, int):
            return original(file, mode, buffering, encoding, errors, newline, closefd, opener)
        if "w" in mode or not Path(file).exists():
            points.reach("create", file)
        raw = Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)

    io.open = builtins.open = watched


def _arm_masks(points: Points) -> None:
    from lib.prune.pruner import Pruner

    original = Pruner._update

    def half(pruner: Pruner, step: int, used: int) -> None:
        pruner.weights = pruner.weights[: len(pruner.weights) // 2]
        original(pruner, step, used)

    def watched(pruner: Pruner, step: int, used: int) -> None:
        points.reach("update of the masks", half=lambda: half(pruner, step, used))
        original(pruner, step, used)

    Pruner._update = watched
