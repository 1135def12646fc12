"""CSV: one line per metric in <run>/metrics.csv, for spreadsheets and data frames; needs no package."""

import csv
import io
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lib.base import files
from lib.base.errors import UserError
from lib.record.run import Identity
from lib.track.tracker import Alert, Media, Row

_ONE_LINE = {ord("\n"): "\\n", ord("\r"): "\\r"}  # so that each record is exactly one line


class Tracker:
    """Appends lines; times are ISO 8601 in UTC, and numbers are written without loss of precision.

    NaN and infinities are nan, inf and -inf, and integers keep all their digits. Identity and configuration are already
    in the run's folder, in run.json and .config.
    """

    def open(self, identity: Identity, config: dict[str, Any], folder: Path) -> str:
        """Read the existing files; raises UserError if this tracker did not write them."""
        self.metrics = Table(folder / "metrics.csv", ("time", "event", "step", "metric", "value"))
        self.alerts = Table(folder / "alerts.csv", ("time", "kind", "step", "level", "message"))
        self.files, self.folder = Table(folder / "media.csv", ("time", "kind", "step", "name", "file"), 3), folder
        return f"writing {self.metrics.path}"

    def holds(self) -> bool:
        """Whether the metrics are there, at least their header; the user may have deleted them."""
        return self.metrics.path.exists()

    def log(self, rows: list[Row]) -> None:
        """Append the rows that are not in the file."""
        self.metrics.append(_metrics(rows))

    def alert(self, alerts: list[Alert]) -> None:
        """Append alerts to a separate file, which a run without alerts does not have."""
        self.metrics.create()
        self.alerts.append(_alerts(alerts))

    def media(self, items: list[Media]) -> None:
        """List the files, by their paths in the run's folder, in a separate file; they stay where they are."""
        self.metrics.create()
        self.files.append(
            [[_time(m.time), m.kind, str(m.step), m.name, str(m.path.relative_to(self.folder))] for m in items]
        )

    def rewrite(self, rows: list[Row], alerts: list[Alert]) -> None:
        """Replace each file by one with these rows or alerts, atomically; that of media is empty until they come."""
        self.metrics.create()
        self.metrics.replace(_metrics(rows))
        self.alerts.replace(_alerts(alerts))
        self.files.replace([])

    def finish(self, status: str) -> None:
        """Do nothing: the status of the run is in its journal."""


class Table:
    """A CSV file in which the fields after the first identify a line's record; no record is stored twice.

    After a kill the last record may be incomplete; its missing lines are added when the record is delivered again.
    """

    def __init__(self, path: Path, header: tuple[str, ...], keys: int = 2):
        """Read the file; the next `append` removes an incomplete last line. Raises UserError if the header differs.

        keys    the number of fields, after the first, that identify a record
        """
        self.path, self.header, self.keys = path, _line(header), keys
        self.stored: set[tuple[str, ...]] = set()
        self.last: set[bytes] = set()  # lines of the last record, which may be incomplete
        self.size = 0  # bytes of complete lines
        if not path.exists():
            return
        with path.open("rb") as file:
            if not self.header.startswith(file.readline()):
                raise UserError(f"{path}: the tracker csv did not write this file; move it away")
            file.seek(0)
            self._read(file)

    def _read(self, lines: Iterable[bytes]) -> None:
        last = None
        for line in lines:
            if not line.endswith(b"\n"):
                break
            self.size += len(line)
            if (key := self._key(line)) != last:
                last, self.last = key, set()
            self.last.add(line)
            self.stored.add(key)
        self.stored.discard(last)

    def _key(self, line: bytes) -> tuple[str, ...]:
        return tuple(next(csv.reader([line.decode(errors="replace")]))[1 : 1 + self.keys])

    def replace(self, records: list[list[str]]) -> None:
        """Replace the content by these records; if the disk is full, the old content stays."""
        if not (records or self.path.exists()):
            return
        lines = [_line(record) for record in records]
        data = b"".join([self.header, *lines])
        files.write(self.path, data)
        self.stored, self.last, self.size = set(map(self._key, lines)), set(), len(data)

    def create(self) -> None:
        """Write the header if there is no file: `holds` asks for the file, also in a run without metrics."""
        if not self.size:
            files.append(self.path, self.header, after=0)
            self.size = len(self.header)

    def append(self, records: list[list[str]]) -> None:
        """Add the lines that are missing; the first one creates the file."""
        new = [(key, line) for line in map(_line, records) if (key := self._key(line)) not in self.stored]
        data = b"".join(line for _, line in new if line not in self.last)
        if data:
            data = data if self.size else self.header + data
            files.append(self.path, data, after=self.size)
            self.size += len(data)
        self.stored |= {key for key, _ in new}


def _metrics(rows: list[Row]) -> list[list[str]]:
    return [
        [_time(row.time), row.event, str(row.step), name, repr(+value)]  # +: True and False as 1 and 0
        for row in rows
        for name, value in row.metrics.items()
    ]


def _alerts(alerts: list[Alert]) -> list[list[str]]:
    return [[_time(a.time), a.kind, str(a.step), a.level, a.message] for a in alerts]


def _line(fields: Iterable[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([field.translate(_ONE_LINE) for field in fields])
    return text.getvalue().encode(errors="backslashreplace")


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")
