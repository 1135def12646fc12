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
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lib.errors import UserError

SCHEMA = 1  # of the lines; written into every `start` event
FILE = "journal.jsonl"
_NO_NUMBERS = ("NaN", "Infinity", "-Infinity")
VOLATILE = frozenset({"tokens_per_second", "mfu"})  # depend on the clock: not repeated when a step is run again

Record = dict[str, Any]


class JournalError(UserError):
    """The journal cannot be written or read."""


class Journal:
    """Appends events to a run's journal, from any thread; opening one cuts a last line that a crash tore."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time):
        """Open or create the journal in `folder`; raises JournalError when that is impossible."""
        self.path, self.clock = Path(folder) / FILE, clock
        try:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise JournalError(f"{self.path}: the journal cannot be opened: {error.strerror}") from None
        os.ftruncate(self.fd, _whole_lines(self.path))
        self.seq, self.damaged = 0, []  # of the next record; numbers of the lines that are none
        self.reached: dict[str, int] = {}  # event, or alert of a kind -> the highest step it was opened with
        for number, (record, _) in enumerate(_lines(folder), 1):
            if record is None:
                self.damaged.append(number)
                continue
            self.seq = max(self.seq, record["seq"] + 1)
            key, step = _key(record["event"], record["step"], record)
            self.reached[key] = max(step, self.reached.get(key, 0))
        self.ahead: dict[tuple[str, int], Record] = {}
        self.lock = threading.Lock()

    def expect(self, step: int) -> int:
        """Prepare to go on after `step`; returns how many records beyond it the steps to come will repeat.

        A step that is run again with the same result is not written again; see `write`.
        """
        self.ahead = {key: r for key, r in history(self.path.parent).items() if key[1] > step}
        told = (r for r in read(self.path.parent) if r["event"] == "alert" and r["step"] > step)
        self.ahead |= {_key(r["event"], r["step"], r): r for r in told}
        return len(self.ahead)

    def write(self, event: str, step: int, metrics: Mapping[str, float] | None = None, **details: Any) -> Record:
        """Append one event and return its record; a step that was recorded before with the same result is left alone.

        Raises JournalError when the line cannot be written; nothing that was written before is lost.
        """
        encoded = {name: _encode(value) for name, value in (metrics or {}).items()}
        with self.lock:
            before = self.ahead.pop(_key(event, step, details), None)
            if before is not None and lasting(before["metrics"]) == lasting(encoded):
                return before
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
        return record

    def _append(self, record: Record) -> None:
        line = json.dumps(record, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
        try:
            written = os.write(self.fd, line)
            if written != len(line):  # the disk filled up inside the line: take the half line back
                os.ftruncate(self.fd, os.fstat(self.fd).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise JournalError(
                f"{self.path}: step {record['step']} cannot be recorded: {error.strerror}; free space"
            ) from None

    def sync(self) -> None:
        """Return when all lines are on the disk, so that they survive a power cut too."""
        os.fsync(self.fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


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
    """A line as a record, None if it is damaged: no JSON, or without what every record has."""
    try:
        found = json.loads(line)
        good = all(isinstance(value, int | float) or value in _NO_NUMBERS for value in found["metrics"].values())
        good = good and isinstance(found["event"], str) and found["event"]
        return found if good and found["seq"] + found["step"] >= 0 and found["time"] >= 0 else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def history(folder: Path) -> dict[tuple[str, int], Record]:
    """(event, step) -> the record in force, of every `train` and `eval` event: each step once, whatever was resumed.

    When a run was resumed with a changed configuration, what it had recorded beyond that step is no longer its history.
    """
    rows: dict[tuple[str, int], Record] = {}
    for record in read(folder):
        if record["event"] == "resume" and record.get("changed"):
            rows = {key: row for key, row in rows.items() if key[1] <= record["step"]}
        if record["event"] in ("train", "eval"):
            rows[record["event"], record["step"]] = record
    return dict(sorted(rows.items(), key=lambda item: item[0][1]))


def numbers(record: Record) -> dict[str, float]:
    """The metrics of a record as numbers, NaN and infinities included."""
    return {name: float(value) if isinstance(value, str) else value for name, value in record["metrics"].items()}


def _key(event: str, step: int, details: Mapping[str, Any]) -> tuple[str, int]:
    """What a step has one of: an event, or an alert of a kind."""
    return f"alert {details.get('kind')}" if event == "alert" else event, step


def _encode(value: float) -> float | int | str:
    value = value.item() if hasattr(value, "item") else value  # numpy scalars and one-element tensors
    if isinstance(value, bool | int):
        return value
    number = float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def lasting(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that do not depend on the clock."""
    return {name: value for name, value in metrics.items() if name not in VOLATILE}


def _whole_lines(path: Path) -> int:
    """Bytes of the file up to the end of its last whole line."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
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
    found = None
    for record in read(folder):
        if record["event"] == "finish" and record.get("status") == "finished" and record["step"] == step:
            found = numbers(record)
        elif record["event"] == "resume" and record.get("changed"):
            found = None
    return found
