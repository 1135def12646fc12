"""The journal: one JSON line per event of a run, append-only. Trackers and all other readers get their data from it.

A line is {"seq", "time" (unix seconds), "event", "step", "metrics", ...}. Events: `start`, `resume`, `train`, `eval`,
`system`, `task`, `alert`, `media`, `finish`. A line of media refers to a file in the run's folder. A line of a task has
`task` (its name), `n` (items), `version` and more about the measurement. The `finish` line of a run that pruned has
`mask_sample` (see mask_sample.py). One system call writes a line, so another process never sees half of it, and it
survives when the trainer is killed. NaN and infinities are the strings "NaN", "Infinity" and "-Infinity": the file is
strict JSON. Readers skip lines that a disk or an editor damaged; `damaged` returns their numbers.
"""

import errno
import json
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from lib.base import files
from lib.base.errors import UserError
from lib.base.metric import described
from lib.machine import use
from lib.record.in_force import InForce, Key, Record, ending_after, key_of, lasting

MEDIA_KINDS = ("image", "table", "text", "artifact")
MEDIA_FOLDERS = ("media", "checkpoints")  # in the run's folder: where files of media may be
SCHEMA = 1  # of the lines; written into every `start` event
FILE = "journal.jsonl"
_NOT_FINITE = ("NaN", "Infinity", "-Infinity")
_MOST = sys.float_info.max
_PLAUSIBLE = 2**62  # a larger `seq` can only be damage
_YEAR_10000 = 253402300800  # unix seconds; Python cannot format later times
# The types of optional fields of a record, and of options in its configuration, that readers rely on.
_DETAILS = {
    "config": dict, "changed": dict, "status": str, "message": str, "kind": str, "level": str, "machine": (str, dict),
    "sparsity": (int, float), "shown": dict, "parameters": dict, "flops": dict,
}  # fmt: skip
_OPTIONS = {"max_iters": int, "tracker": list}


class JournalError(UserError):
    """The journal cannot be written or read."""


class Displaced(JournalError):
    """The journal was removed, moved or replaced since it was opened. Lines are still written to the opened file."""


class Journal:
    """Appends events to a run's journal, from any thread. Opening it removes an incomplete last line."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time):
        """Open or create the journal in `folder`; raises JournalError when that is impossible."""
        self.path, self.clock = Path(folder) / FILE, clock
        try:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            why = files.reason(error, self.path.parent)
            raise JournalError(f"{self.path}: the journal cannot be opened: {why}") from None
        self.identity = _identity(os.fstat(self.fd))
        os.ftruncate(self.fd, _whole_lines(self.path))
        self.seq, self.damaged = 0, []  # `seq` of the next record; numbers of the damaged lines
        self.reached: dict[str, int] = {}  # event, or alert of a kind -> the highest step before this session
        self.end: Record | None = None  # the `finish` record, unless the run continued after it
        for number, (record, _) in enumerate(_lines(folder), 1):
            if record is None:
                self.damaged.append(number)
                continue
            if record["seq"] < _PLAUSIBLE:
                self.seq = max(self.seq, record["seq"] + 1)
            key, step = key_of(record["event"], record["step"], record)
            self.reached[key] = max(step, self.reached.get(key, 0))
            self.end = ending_after(record, self.end)
        self.found = self.seq  # this session writes records from this `seq` on
        self.ahead: dict[Key, Record] = {}
        self.lock = threading.Lock()

    def expect(self, step: int) -> int:
        """Prepare to continue after `step`; returns how many recorded events the next steps will repeat.

        A step that is repeated with the same result is not written again; see `write`.
        """
        known = in_force(self.path.parent)
        rows = {key: r for key, r in known.rows.items() if r["event"] in ("train", "eval")}
        alerts = {key: r for key, r in known.others.items() if r["event"] == "alert"}
        media = {key: r for key, r in known.others.items() if r["event"] == "media"}
        # A run that continues at its last step repeats this alert and the media of the same step.
        told = {key: r for key, r in alerts.items() if r.get("kind") == "finished"}
        beyond = told | {key: r for key, r in (rows | alerts | media).items() if key[1] > step}
        self.ahead = beyond | {key: r for key, r in media.items() if key[1] == step}
        return len(beyond)

    def write(self, event: str, step: int, metrics: Mapping[str, float] | None = None, **details: Any) -> Record:
        """Append one event and return its record. A step that was recorded before with the same result is not appended.

        Raises JournalError if the line cannot be written; earlier lines stay intact. Raises Displaced if the line is
        written, but the file is no longer at its path.
        """
        encoded = {name: encode(value) for name, value in (metrics or {}).items()}
        with self.lock:
            before = self.ahead.pop(key_of(event, step, details), None)
            # A record of an earlier version may lack metrics of this one.
            if before is not None and lasting(before["metrics"]).items() <= lasting(encoded).items():
                return before
            if before is not None:  # later records are withdrawn, so they are written again
                self.ahead = {k: r for k, r in self.ahead.items() if r["event"] == "alert" or r["seq"] < before["seq"]}
            if details.get("changed"):
                self.reached = {key: at for key, at in self.reached.items() if at <= step}
            record = self._put(event, step, encoded, details)
        self.check()
        return record

    def last_word(self, step: int, status: str) -> None:
        """Record how the session ends after `step`, and keep the journal locked, so that this is its last record.

        For a thread that is about to end the process. Records nothing if the session has recorded nothing, or if its
        end is recorded already.
        """
        self.lock.acquire()  # and never released
        if self.seq > self.found and not self.end:
            self._put("finish", step, {}, {"status": status})

    def _put(self, event: str, step: int, encoded: Mapping[str, Any], details: Mapping[str, Any]) -> Record:
        record = {
            "seq": self.seq,
            "time": self.clock(),
            "event": event,
            "step": step,
            "metrics": encoded,
            **details,
        }
        self._append(record)
        self.seq += 1
        self.end = ending_after(record, self.end)
        return record

    def check(self) -> None:
        """Raise Displaced if the file is no longer at its path. It takes 3 microseconds of `write`."""
        try:
            found = _identity(self.path.stat())
        except (FileNotFoundError, NotADirectoryError):
            found = None
        except OSError as error:
            raise JournalError(f"{self.path}: cannot be found any more: {error.strerror}") from None
        if found != self.identity:
            raise Displaced(f"{self.path}: was removed, moved or replaced by another file during training")

    def place(self) -> Path | None:
        """The folder that the file is in now; None if it was removed, or if the system is not Linux."""
        try:
            path = Path(f"/proc/self/fd/{self.fd}").readlink()  # Linux
            return path.parent if _identity(path.stat()) == self.identity else None
        except OSError:
            return None

    def move(self, folder: Path) -> None:
        """Continue in `folder`: in the same file if it was moved there, else in a copy of all lines."""
        path = folder / FILE
        if not (path.exists() and _identity(path.stat()) == self.identity):
            with self.lock:  # another thread may write a line during the copy
                with files.whole(path) as copy, os.fdopen(os.dup(self.fd), "rb") as old:
                    old.seek(0)
                    shutil.copyfileobj(old, copy)
                fd = os.open(path, os.O_RDWR | os.O_APPEND)
                os.dup2(fd, self.fd)
                os.close(fd)
        self.path, self.identity = path, _identity(os.fstat(self.fd))

    def ended(self, step: int) -> bool:
        """Whether the run finished after `step` and did not continue after that."""
        return bool(self.end) and (self.end.get("status"), self.end["step"]) == ("finished", step)

    def _append(self, event: Record) -> None:
        line = json.dumps(event, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
        line = line.encode(errors="backslashreplace") + b"\n"  # a lone surrogate becomes a JSON escape
        if event["event"] == "task" and record(line) is None:  # its name may come from a user's file
            raise JournalError(
                f"{self.path}: step {event['step']} cannot be recorded: readers would refuse this event "
                f"{event['event']!r}; its values must be printable and of the right types"
            )
        try:
            written = os.write(self.fd, line)
            if written != len(line):  # the disk became full inside the line: remove the part
                os.ftruncate(self.fd, os.fstat(self.fd).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            why = files.reason(error, self.path.parent, len(line))
            raise JournalError(f"{self.path}: step {event['step']} cannot be recorded: {why}") from None

    def sync(self) -> None:
        """Wait until all lines are on the disk, so that they survive a power cut."""
        os.fsync(self.fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


def _identity(status: os.stat_result) -> tuple[int, int]:
    """What identifies a file even if it is renamed."""
    return status.st_dev, status.st_ino


def read(folder: Path, offset: int = 0) -> Iterator[Record]:
    """Every record of a run's journal in the order written, without a line that is still being written.

    Starts at `offset` (bytes) and skips damaged lines. Raises JournalError if the journal cannot be read.
    """
    for record, _ in tail(folder, offset):
        yield record


def tail(folder: Path, offset: int = 0) -> Iterator[tuple[Record, int]]:
    """Like `read`, with each record's end (bytes from the start of the file): the offset for the next read."""
    for record, end in _lines(folder, offset):
        if record is not None:
            yield record, end


def newest(folder: Path, offset: int = 0) -> tuple[Record | None, int]:
    """The last record after `offset` (None: there is none), and its end (see `tail`). Only this one is parsed."""
    path = Path(folder) / FILE
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except OSError as error:
        raise JournalError(f"{path}: the journal cannot be read: {error.strerror}") from None
    end = data.rfind(b"\n")
    while end >= 0:
        start = data.rfind(b"\n", 0, end) + 1
        if found := record(data[start:end]):
            return found, offset + end + 1
        end = start - 1
    return None, offset


def at(folder: Path, end: int) -> Record:
    """The record that ends at `end` (see `tail`); raises JournalError if the journal has become shorter."""
    path = Path(folder) / FILE
    try:
        for found in read(folder, _whole_lines(path, end - 1)):
            return found
    except OSError as error:
        raise JournalError(f"{path}: the journal cannot be read: {error.strerror}") from None
    raise JournalError(f"{path}: the journal became shorter while it was read; restore its last lines")


def damaged(folder: Path) -> list[int]:
    """The numbers (from 1) of damaged lines, which readers skip."""
    return [number for number, (record, _) in enumerate(_lines(folder), 1) if record is None]


def _lines(folder: Path, offset: int = 0) -> Iterator[tuple[Record | None, int]]:
    """Every complete line as a record (None if it is damaged), with its end in bytes."""
    path = Path(folder) / FILE
    try:
        file = path.open("rb")
    except OSError as error:
        raise JournalError(f"{path}: the journal cannot be read: {error.strerror}") from None
    with file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield record(line), offset


def record(line: bytes) -> Record | None:
    """A line as a record. None if it is damaged: not strict JSON, or a field is missing or of the wrong type."""
    try:
        found = _STRICT.decode(line.decode())
        return found if _is_record(found) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _finite(text: str) -> float:
    """A number in strict JSON; raises ValueError for NaN, Infinity and 1e999."""
    if math.isfinite(value := float(text)):
        return value
    raise ValueError(text)


_STRICT = json.JSONDecoder(parse_constant=_finite, parse_float=_finite)


def _is_record(found: Any) -> bool:
    return (
        isinstance(found["event"], str)
        and found["event"] != ""
        and all(type(found[name]) is int and 0 <= found[name] < 2**63 for name in ("seq", "step"))
        and isinstance(found["time"], int | float)
        and 0 <= found["time"] < _YEAR_10000
        and all(isinstance(value, int | float) or value in _NOT_FINITE for value in found["metrics"].values())
        and all(isinstance(found[name], _DETAILS[name]) for name in found.keys() & _DETAILS.keys())
        and _is_configuration(found.get("config", {}))
        and _is_machine(found.get("machine", ""))
        and described(found) is not None  # raises for what cannot be shown
        and (found["event"] != "media" or _is_media(found))
        and (found["event"] != "task" or _is_task(found))
    )


def _is_media(found: dict[str, Any]) -> bool:
    """Whether media refer to a file of the run. A received journal must not make trackers upload any other file."""
    path = PurePosixPath(found["file"])
    inside = path.parts[:1] in [(name,) for name in MEDIA_FOLDERS] and ".." not in path.parts and "\0" not in str(path)
    return inside and found["kind"] in MEDIA_KINDS and isinstance(found["name"], str)


def _is_task(found: dict[str, Any]) -> bool:
    """Whether a result names its task and says how many items it has."""
    return isinstance(found["task"], str) and found["task"].isprintable() and type(found["n"]) is int


def _is_machine(recorded: str | dict[str, Any]) -> bool:
    try:
        return bool(use.read(recorded))
    except ValueError:
        return False


def _is_configuration(config: dict[str, Any]) -> bool:
    kinds = all(type(config[name]) is _OPTIONS[name] for name in config.keys() & _OPTIONS.keys())
    return kinds and all(isinstance(name, str) for name in config.get("tracker", []))


def in_force(folder: Path) -> InForce:
    """The valid records of a run's journal."""
    known = InForce()
    for record, end in tail(folder):
        known.add(record, end)
    return known


def history(folder: Path) -> dict[Key, Record]:
    """(event, step) -> the valid record, of every `train` and `eval` event, steps ascending."""
    rows = {key: row for key, row in in_force(folder).rows.items() if key[0] in ("train", "eval")}
    return dict(sorted(rows.items(), key=lambda item: item[0][1]))


def numbers(record: Record) -> dict[str, float]:
    """The metrics of a record as numbers, NaN and infinities included."""
    return {name: number(value) for name, value in record["metrics"].items()}


def number(value: float | str) -> float:
    """A metric of a journal as a number. A whole number that is too large for a double becomes infinity."""
    if isinstance(value, str | float):
        return float(value)
    return value if -_MOST <= value <= _MOST else math.inf if value > 0 else -math.inf


def encode(value: float) -> float | int | str:
    """A number as a journal has it: NaN and infinities as strings."""
    value = value.item() if hasattr(value, "item") else value  # numpy scalars and one-element tensors
    if isinstance(value, bool | int):
        return value
    number = float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _whole_lines(path: Path, end: int | None = None) -> int:
    """Bytes up to the end of the last complete line in the file, or in its first `end` bytes."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END) if end is None else end
        while end:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0


def final(folder: Path, step: int) -> dict[str, float] | None:
    """The metrics of the `finish` record with which the run ended at `step`; None if it did not end there."""
    known, found = InForce(), None
    for record, end in tail(folder):
        known.add(record, end)
        changed = record["event"] == "resume" and record.get("changed")
        if changed or ("finish", step) not in known.others:  # withdrawn, or never recorded
            found = None
        elif record["event"] == "finish" and record["step"] == step and record.get("status") == "finished":
            found = known.others["finish", step]
    return numbers(found) if found else None
