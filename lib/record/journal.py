"""The journal: one JSON line per event of a run, append-only; the only truth, which everything downstream reads.

A line is {"seq", "time" (unix seconds), "event", "step", "metrics", ...}. Events: `start`, `resume`, `train`, `eval`,
`system`, `alert`, `finish`. A line is written by one system call, so another process sees it whole or not at all, and
it survives the death of the trainer. NaN and infinities are the strings "NaN", "Infinity" and "-Infinity": the file is
strict JSON. A line that a disk or an editor damaged is passed over, and `damaged` says which.
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
from pathlib import Path
from typing import Any

from lib.base import files
from lib.base.errors import UserError
from lib.machine import use
from lib.record.in_force import InForce, Key, Record, key_of, lasting

SCHEMA = 1  # of the lines; written into every `start` event
FILE = "journal.jsonl"
_NO_NUMBERS = ("NaN", "Infinity", "-Infinity")
_MOST = sys.float_info.max
_PLAUSIBLE = 2**62  # no journal gets to a record of this number
_YEAR_10000 = 253402300800  # unix seconds, up to which time can be told
# Kinds of what a record may have beside what every record has, and of options in its configuration, that readers go by.
_DETAILS = {
    "config": dict, "changed": dict, "status": str, "message": str, "kind": str, "level": str, "machine": (str, dict),
    "sparsity": (int, float),
}  # fmt: skip
_OPTIONS = {"max_iters": int, "tracker": list}


class JournalError(UserError):
    """The journal cannot be written or read."""


class Displaced(JournalError):
    """The journal was removed, moved or replaced since it was opened; what is written to it goes there all the same."""


class Journal:
    """Appends events to a run's journal, from any thread; opening one cuts a last line that a crash tore."""

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
        self.seq, self.damaged = 0, []  # of the next record; numbers of the lines that are none
        self.reached: dict[str, int] = {}  # event, or alert of a kind -> the highest step before this session
        self.end: Record | None = None  # the `finish` event, unless the run went on after it
        for number, (record, _) in enumerate(_lines(folder), 1):
            if record is None:
                self.damaged.append(number)
                continue
            if record["seq"] < _PLAUSIBLE:
                self.seq = max(self.seq, record["seq"] + 1)
            key, step = key_of(record["event"], record["step"], record)
            self.reached[key] = max(step, self.reached.get(key, 0))
            self._note_end(record)
        self.found = self.seq  # what this session writes is from here on
        self.ahead: dict[Key, Record] = {}
        self.lock = threading.Lock()

    def expect(self, step: int) -> int:
        """Prepare to go on after `step`; returns how many records beyond it the steps to come will repeat.

        A step that is run again with the same result is not written again; see `write`.
        """
        known = in_force(self.path.parent)
        rows = {key: r for key, r in known.rows.items() if r["event"] in ("train", "eval")}
        alerts = {key: r for key, r in known.others.items() if r["event"] == "alert"}
        told = {key: r for key, r in alerts.items() if r.get("kind") == "finished"}  # the end of its own step
        self.ahead = told | {key: r for key, r in (rows | alerts).items() if key[1] > step}
        return len(self.ahead)

    def write(self, event: str, step: int, metrics: Mapping[str, float] | None = None, **details: Any) -> Record:
        """Append one event and return its record; a step that was recorded before with the same result is left alone.

        Raises JournalError when the line cannot be written; nothing that was written before is lost. Raises Displaced
        when it is written and nobody will find it.
        """
        encoded = {name: _encode(value) for name, value in (metrics or {}).items()}
        with self.lock:
            before = self.ahead.pop(key_of(event, step, details), None)
            if before is not None and lasting(before["metrics"]) == lasting(encoded):
                return before
            if before is not None:  # what came after it is in force no longer, so it is written if it comes again
                self.ahead = {k: r for k, r in self.ahead.items() if r["event"] == "alert" or r["seq"] < before["seq"]}
            if details.get("changed"):
                self.reached = {key: at for key, at in self.reached.items() if at <= step}
            record = self._put(event, step, encoded, details)
        self.check()
        return record

    def last_word(self, step: int, status: str) -> None:
        """Record how the session ends after `step`, and keep the journal locked: this is its last record.

        For a thread that is about to end the process. Nothing is recorded when the session has recorded nothing, or
        when its end is recorded already.
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
        self._note_end(record)
        return record

    def check(self) -> None:
        """Raise Displaced when the file is not at its path any more; takes 3 microseconds, the rest of a record 12."""
        try:
            found = _identity(self.path.stat())
        except (FileNotFoundError, NotADirectoryError):
            found = None
        except OSError as error:
            raise JournalError(f"{self.path}: cannot be seen any more: {error.strerror}") from None
        if found != self.identity:
            raise Displaced(f"{self.path}: was removed, moved or replaced by another while the run was trained")

    def place(self) -> Path | None:
        """The folder that the file is in now; None if it was removed, and where the system does not tell."""
        try:
            path = Path(f"/proc/self/fd/{self.fd}").readlink()  # Linux
            return path.parent if _identity(path.stat()) == self.identity else None
        except OSError:
            return None

    def move(self, folder: Path) -> None:
        """Go on in `folder`: in the file if it is there now, else in a copy of all lines."""
        path = folder / FILE
        if not (path.exists() and _identity(path.stat()) == self.identity):
            with self.lock:  # until its lines go there: another thread may be about to write
                with files.whole(path) as copy, os.fdopen(os.dup(self.fd), "rb") as old:
                    old.seek(0)
                    shutil.copyfileobj(old, copy)
                fd = os.open(path, os.O_RDWR | os.O_APPEND)
                os.dup2(fd, self.fd)
                os.close(fd)
        self.path, self.identity = path, _identity(os.fstat(self.fd))

    def ended(self, step: int) -> bool:
        """Whether the run was finished after `step`, and did not go on after that."""
        return bool(self.end) and (self.end.get("status"), self.end["step"]) == ("finished", step)

    def _note_end(self, record: Record) -> None:
        if record["event"] not in ("alert", "system"):  # which another thread may record after the end
            self.end = record if record["event"] == "finish" else None

    def _append(self, record: Record) -> None:
        line = json.dumps(record, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
        line = line.encode(errors="backslashreplace") + b"\n"  # a lone surrogate becomes an escape that JSON knows too
        try:
            written = os.write(self.fd, line)
            if written != len(line):  # the disk filled up inside the line: take the half line back
                os.ftruncate(self.fd, os.fstat(self.fd).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            why = files.reason(error, self.path.parent, len(line))
            raise JournalError(f"{self.path}: step {record['step']} cannot be recorded: {why}") from None

    def sync(self) -> None:
        """Return when all lines are on the disk, so that they survive a power cut too."""
        os.fsync(self.fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


def _identity(status: os.stat_result) -> tuple[int, int]:
    """Tells a file from others, whatever it is called."""
    return status.st_dev, status.st_ino


def read(folder: Path, offset: int = 0) -> Iterator[Record]:
    """Every record of a run's journal in the order written, without one that is still being written.

    `offset` (bytes) skips what was read before; damaged lines are passed over. Raises JournalError without a journal.
    """
    for record, _ in tail(folder, offset):
        yield record


def tail(folder: Path, offset: int = 0) -> Iterator[tuple[Record, int]]:
    """Like `read`, with each record's end (bytes from the start of the file): the offset to go on from."""
    for record, end in _lines(folder, offset):
        if record is not None:
            yield record, end


def at(folder: Path, end: int) -> Record:
    """The record whose end `tail` gave; raises JournalError if the journal was cut since then."""
    path = Path(folder) / FILE
    try:
        for found in read(folder, _whole_lines(path, end - 1)):
            return found
    except OSError as error:
        raise JournalError(f"{path}: the journal cannot be read: {error.strerror}") from None
    raise JournalError(f"{path}: the journal was cut while the run was read; restore its last lines")


def damaged(folder: Path) -> list[int]:
    """The numbers (from 1) of the lines that are no records, and which readers therefore pass over."""
    return [number for number, (record, _) in enumerate(_lines(folder), 1) if record is None]


def _lines(folder: Path, offset: int = 0) -> Iterator[tuple[Record | None, int]]:
    """Every whole line as a record, None for one that is none, with its end in bytes."""
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
    """A line as a record, None if it is damaged: no JSON, or without what every record has, in the kinds it has it."""
    try:
        found = _STRICT.decode(line.decode())
        return found if _is_record(found) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _finite(text: str) -> float:
    """A number of strict JSON; raises ValueError for NaN, Infinity and 1e999."""
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
        and all(isinstance(value, int | float) or value in _NO_NUMBERS for value in found["metrics"].values())
        and all(isinstance(found[name], _DETAILS[name]) for name in found.keys() & _DETAILS.keys())
        and _is_configuration(found.get("config", {}))
        and _is_machine(found.get("machine", ""))
    )


def _is_machine(recorded: str | dict[str, Any]) -> bool:
    try:
        return bool(use.read(recorded))
    except ValueError:
        return False


def _is_configuration(config: dict[str, Any]) -> bool:
    kinds = all(type(config[name]) is _OPTIONS[name] for name in config.keys() & _OPTIONS.keys())
    return kinds and all(isinstance(name, str) for name in config.get("tracker", []))


def in_force(folder: Path) -> InForce:
    """What a run's journal says, without what was taken back."""
    known = InForce()
    for record, end in tail(folder):
        known.add(record, end)
    return known


def history(folder: Path) -> dict[Key, Record]:
    """(event, step) -> the record in force, of every `train` and `eval` event, steps ascending."""
    rows = {key: row for key, row in in_force(folder).rows.items() if key[0] in ("train", "eval")}
    return dict(sorted(rows.items(), key=lambda item: item[0][1]))


def numbers(record: Record) -> dict[str, float]:
    """The metrics of a record as numbers, NaN and infinities included."""
    return {name: number(value) for name, value in record["metrics"].items()}


def number(value: float | str) -> float:
    """A metric in a journal as a number: "NaN" as NaN, and a whole number that no double reaches as infinity."""
    if isinstance(value, str | float):
        return float(value)
    return value if -_MOST <= value <= _MOST else math.inf if value > 0 else -math.inf


def _encode(value: float) -> float | int | str:
    value = value.item() if hasattr(value, "item") else value  # numpy scalars and one-element tensors
    if isinstance(value, bool | int):
        return value
    number = float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _whole_lines(path: Path, end: int | None = None) -> int:
    """Bytes up to the end of the last whole line, of the file or of its first `end` bytes."""
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
    """The metrics of the `finish` event with which the run ended at `step`, or None if it did not."""
    known, found = InForce(), None
    for record, end in tail(folder):
        known.add(record, end)
        changed = record["event"] == "resume" and record.get("changed")
        if changed or ("finish", step) not in known.others:  # it was taken back, or never there
            found = None
        elif record["event"] == "finish" and record["step"] == step and record.get("status") == "finished":
            found = known.others["finish", step]
    return numbers(found) if found else None
