"""The curves of a run, thinned. Of a journal's frequent records, only those that a curve shows are parsed."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from lib.record import history, journal
from lib.record.history import History
from lib.record.in_force import Record

Curve = tuple[np.ndarray, np.ndarray]  # steps, ascending; values in float64
Row = TypeVar("Row")

MOST = 1000  # points of a curve: a figure has fewer columns of pixels
_TRAIN = re.compile(rb'"event":"train","step":(\d{1,18}),')
_MEMORY = re.compile(rb'"system/(?:process_memory|gpu\d+_memory_used)_gib":(\d+(?:\.\d+)?(?:e[+-]?\d+)?)')
_OF_TRAINING = ("train_loss", "learning_rate", "grad_norm", "sparsity", "tokens")
_GIB = 1 << 30


def read(folder: Path, known: History) -> tuple[dict[str, Curve], float | None]:
    """The curves of the run in `folder`, and its highest use of memory in bytes; `known` is what `history.skim` gave.

    The memory is that of the GPU that used most, and of the process where there is no GPU.
    """
    data = history.content(folder)
    rows = _training(data, known)
    if rows is None:  # steps were repeated or withdrawn, so every record must be parsed to know which are valid
        whole = history.load(folder).rows
        rows = thinned([whole[key] for key in sorted(whole) if key[0] == "train"])
    found = {name: curve for name in _OF_TRAINING if (curve := _curve(rows, name))}
    evaluations = sorted((row for (event, _), row in known.rows.items() if event == "eval"), key=_step)
    shown = thinned(evaluations)
    if curve := _curve(shown, "val_loss"):
        found["val_loss"] = curve
    timed = sorted((*rows, *shown), key=lambda row: (row["step"], row["seq"]))
    if timed and known.sessions:
        found["seconds"] = _seconds(timed, known.sessions, _pauses(data))
    return found, _memory(data)


def thinned(rows: Sequence[Row]) -> list[Row]:
    """Every n-th row and the last one, at most MOST in all. Runs with the same rhythm keep the same steps."""
    if len(rows) <= MOST:
        return list(rows)
    every = -(-(len(rows) - 1) // (MOST - 1))
    return [*rows[: len(rows) - 1 : every], rows[-1]]


def _training(data: bytes, known: History) -> list[Record] | None:
    """Thinned records of training; None if not all of the journal's are valid, or if another program wrote it."""
    changed = any(session.get("changed") for session in known.sessions)
    if known.in_force.taken_back or changed or data.count(b'"event":"train"') != data.count(b'"event":"train","step":'):
        return None
    found = [(int(match[1]), match.start()) for match in _TRAIN.finditer(data)]
    steps = np.array([step for step, _ in found])
    if (np.diff(steps) <= 0).any():
        return None
    records = (history.line_at(data, place)[1] for _, place in thinned(found))
    return [record for record in records if record and record["event"] == "train"]  # None: the line is damaged


def _step(record: Record) -> int:
    return record["step"]


def _curve(rows: Sequence[Record], name: str) -> Curve | None:
    """The values of a metric in records whose steps ascend; None if none has it."""
    points = [(row["step"], journal.number(row["metrics"][name])) for row in rows if name in row["metrics"]]
    if not points:
        return None
    return np.array([step for step, _ in points]), np.array([value for _, value in points], dtype=np.float64)


def _pauses(data: bytes) -> list[tuple[float, float]]:
    """For each resume, the time of the last record before it and its own."""
    found, place = [], data.find(b'"event":"resume"')
    while place >= 0:
        start = data.rfind(b"\n", 0, place)
        before = history.line_at(data, start - 1)[1] if start > 0 else None
        record = history.line_at(data, place)[1]
        if before and record and record["event"] == "resume":
            found.append((before["time"], record["time"]))
        place = data.find(b'"event":"resume"', place + 1)
    return found


def _seconds(rows: Sequence[Record], sessions: Sequence[Record], pauses: Sequence[tuple[float, float]]) -> Curve:
    """Step -> seconds of training until then, without the pauses between sessions. A clock may be set back."""
    began, last, points = sessions[0]["time"], 0.0, {}
    for row in rows:
        paused = sum(max(0.0, after - before) for before, after in pauses if after <= row["time"])
        last = max(last, row["time"] - began - paused)
        points[row["step"]] = last
    return np.array(list(points)), np.array(list(points.values()), dtype=np.float64)


def _memory(data: bytes) -> float | None:
    """The highest memory of a system record in bytes; of GPUs, if there are any."""
    found: dict[bool, float] = {}  # whether it is of a GPU -> the highest
    for match in _MEMORY.finditer(data):
        of_gpu = match[0].startswith(b'"system/gpu')
        found[of_gpu] = max(float(match[1]), found.get(of_gpu, 0.0))
    return found[max(found)] * _GIB if found else None
