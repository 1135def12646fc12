"""A run's metrics as a table for other programs: a row per step, in CSV, JSON or Parquet."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

from lib.base import files
from lib.base.errors import UsageError
from lib.record import journal
from lib.record.history import History


class Table(NamedTuple):
    """A run's valid measurements, steps ascending."""

    # `step`, `time` (unix seconds, of the step's first record), then metrics of train, eval, system and tasks
    columns: list[str]
    rows: list[dict[str, Any]]  # column -> a number, or "NaN", "Infinity", "-Infinity" as in the journal


def table(history: History) -> Table:
    """The table of a run. All records of a step are one row, without the metrics that were not measured then."""
    rows: dict[int, dict[str, Any]] = {}
    columns = {origin: column for column, origin in history.columns.items()}
    for (event, step), record in history.rows.items():
        row = rows.setdefault(step, {"step": step, "time": record["time"]})
        row["time"] = min(row["time"], record["time"])
        row |= {columns[event, name]: value for name, value in record["metrics"].items()}
    return Table(["step", "time", *history.names()], [rows[step] for step in sorted(rows)])


def write(table: Table, form: str, path: Path) -> None:
    """Write a table atomically; raises UserError."""
    content = io.BytesIO()
    FORMATS[form](table, content)
    files.write(path, content.getvalue())


def to_csv(table: Table, file: IO[bytes]) -> None:
    """Writes NaN, Infinity and -Infinity by name, and an empty field where a step has no value."""
    text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
    writer = csv.DictWriter(text, table.columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.rows)
    text.detach()


def to_json(table: Table, file: IO[bytes]) -> None:
    """Writes strict JSON, an object per line. "NaN" and infinities are strings; missing values are left out."""
    lines = (json.dumps(row, allow_nan=False, ensure_ascii=False) for row in table.rows)
    file.write(("[\n" + ",\n".join(lines) + "\n]\n").encode(errors="backslashreplace"))  # an escape that JSON knows


def to_parquet(table: Table, file: IO[bytes]) -> None:
    """Writes whole numbers in 64 bits and others in double precision. A missing value is null, not NaN."""
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({_utf8(name): _array(name, table) for name in table.columns}), file)


FORMATS: dict[str, Callable[[Table, IO[bytes]], None]] = {"csv": to_csv, "json": to_json, "parquet": to_parquet}


def _utf8(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()


def _array(name: str, table: Table) -> Any:
    import pyarrow

    values = [row.get(name) for row in table.rows]
    known = [value for value in values if value is not None]
    if not all(isinstance(value, int) for value in known):
        numbers = [None if value is None else float(journal.number(value)) for value in values]
        return pyarrow.array(numbers, pyarrow.float64())
    kind = pyarrow.uint64() if max(known, default=0) >= 2**63 else pyarrow.int64()
    try:
        return pyarrow.array([None if value is None else int(value) for value in values], kind)
    except OverflowError:
        raise UsageError(
            f"{name}: has numbers of more than 64 bits, which parquet cannot hold; export csv or json"
        ) from None
