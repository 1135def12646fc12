"""What a run's folder says about the run: its state, its measurements, and what it was made with."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lib.base import files
from lib.base.errors import UsageError, UserError
from lib.base.metric import Metric, described
from lib.config.config_file import read_lines
from lib.config.kconf import present
from lib.machine import use
from lib.machine.use import Use
from lib.record import best, journal, run
from lib.record.in_force import SERIES, InForce, Key, Record, key_of, series

_FREQUENT = (b'"event":"train"', b'"event":"train.', b'"event":"system')
# All other events. Without parsing the frequent ones, 100 runs of 5,000 lines take 0.15 s instead of 4 s.
_RARE = re.compile(rb'"event":"(?!train|system)')


@dataclasses.dataclass
class History:
    """The content of a journal, added record by record."""

    in_force: InForce = dataclasses.field(default_factory=InForce)
    sessions: list[Record] = dataclasses.field(default_factory=list)  # `start` and every `resume`
    alerts: list[Record] = dataclasses.field(default_factory=list)
    shown: dict[str, Metric] = dataclasses.field(default_factory=dict)  # metrics that the journal describes
    time: float | None = None  # of the last record except tasks, unix seconds
    spans: list[tuple[float, float]] = dataclasses.field(default_factory=list)  # first and last record of each session
    count: int = 0  # of records
    # Column -> (event, metric), in the order of first use. If another event has a column with the metric's name, the
    # column is called, for example, train.2/loss, as in TensorBoard. Every table has the columns `step` and `time`.
    columns: dict[str, tuple[str, str]] = dataclasses.field(
        default_factory=lambda: {"step": ("", ""), "time": ("", "")}
    )

    def add(self, record: Record) -> None:
        """Take in the next record."""
        event = record["event"]
        if series(event) != "task":  # a task may be measured days after the end
            self.time = record["time"]
        self.count += 1
        self.shown |= described(record)
        self.in_force.add(record, self.count)
        if event in ("start", "resume"):
            self.sessions.append(record)
            self.spans.append((self.time, self.time))
        elif series(event):
            event, _ = key_of(event, record["step"], record)
            for name in record["metrics"]:
                column = name
                while self.columns.setdefault(column, (event, name)) != (event, name):
                    column = f"{event}/{column}"
        elif event == "alert":
            self.alerts.append(record)
        if self.spans:
            self.spans[-1] = (self.spans[-1][0], self.time)

    @property
    def end(self) -> Record | None:
        """The `finish` record, unless the run continued after it."""
        return self.in_force.ending

    @property
    def step(self) -> int:
        """The highest recorded step that is valid."""
        return self.in_force.step

    @property
    def rows(self) -> dict[Key, Record]:
        """(event, step) -> the valid measurement."""
        return self.in_force.rows

    @property
    def config(self) -> dict[str, Any]:
        """The options of the newest session, by name in lower case."""
        return (self.sessions[-1].get("config") or {}) if self.sessions else {}

    @property
    def steps(self) -> int | None:
        """The number of steps that are planned."""
        return self.config.get("max_iters")

    @property
    def data(self) -> tuple[str, ...]:
        """The starts of the fingerprints of the tokens that were trained on; empty if an earlier version kept none."""
        found = {one["data"][:12] for one in self.sessions if isinstance(one.get("data"), str)}
        return tuple(sorted(found - {""}))

    def seconds(self) -> float | None:
        """How long the run took, over all its sessions; None before it began."""
        if self.end and "total_time_seconds" in self.end["metrics"]:
            return journal.numbers(self.end)["total_time_seconds"]
        # A clock may be set back, so a session with a negative time counts as 0.
        return sum(max(0.0, last - first) for first, last in self.spans) if self.spans else None

    def names(self) -> list[str]:
        """The columns that have values, those of `train` first."""
        there = {(event, name) for (event, _), row in self.rows.items() for name in row["metrics"]}
        names = [name for name, origin in self.columns.items() if origin in there]
        return sorted(names, key=lambda name: SERIES.index(series(self.columns[name][0])))

    def values(self, name: str) -> dict[int, float]:
        """Step -> value of a column, steps ascending."""
        event, metric = self.columns.get(name, ("", ""))
        rows = {step: row["metrics"] for (of, step), row in self.rows.items() if of == event}
        values = {step: metrics[metric] for step, metrics in sorted(rows.items()) if metric in metrics}
        return {step: journal.number(value) for step, value in values.items()}

    def last(self, name: str) -> float | None:
        """The newest value of a column, or None."""
        return next(reversed(self.values(name).values()), None)

    def tasks(self) -> list[Record]:
        """The valid results of tasks, by task and step."""
        return [row for (of, _), row in sorted(self.rows.items(), key=lambda item: item[0]) if series(of) == "task"]

    def evaluations(self) -> list[best.Evaluation]:
        """The valid evaluations, steps ascending."""
        return best.evaluations(self.rows.values())

    def best(self) -> float | None:
        """The best valid validation loss (see `lib.record.best`), or None."""
        found = best.best(self.evaluations())
        return found and found.val_loss


def load(folder: Path) -> History:
    """The complete history of the run in `folder`, empty before it began; raises UserError if it is not a run."""
    return _of(journal.read(folder) if _begun(folder) else ())


def skim(folder: Path) -> History:
    """Like `load` but much faster: of each frequent event (`train`, `system`) it reads only the last record."""
    if not _begun(folder):
        return History()
    data = content(folder)
    landmarks = _landmarks(data)
    if _repeats(data, landmarks):
        return load(folder)
    history = _of(record for _, record in landmarks)
    told = all("sparsity" in row for row in history.rows.values() if "val_loss" in row["metrics"])
    return load(folder) if history.last("sparsity") and not told else history  # see best.evaluations


def _of(records: Iterable[Record]) -> History:
    history = History()
    for record in records:
        history.add(record)
    return history


def _begun(folder: Path) -> bool:
    run.Identity.load(folder)
    return (folder / journal.FILE).exists()


def content(folder: Path) -> bytes:
    """The complete lines of a journal; empty before the run began."""
    path = folder / journal.FILE
    if not path.exists():
        return b""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise journal.JournalError(f"{path}: the journal cannot be read: {error.strerror}") from None
    return data[: data.rfind(b"\n") + 1]  # without a line that is still being written


def _landmarks(data: bytes) -> list[tuple[int, Record]]:
    """The records of rare events and the last record of each frequent event, in order, each with its place."""
    found = dict(line_at(data, match.start()) for match in _RARE.finditer(data))
    for event in _FREQUENT:
        place, record = data.rfind(event), None
        while place >= 0 and not (record and series(record["event"])):  # the last that is not damaged
            start, record = line_at(data, place)
            found[start], place = record, data.rfind(event, 0, start)
    return [(place, record) for place, record in sorted(found.items(), key=lambda item: item[0]) if record]


def _repeats(data: bytes, landmarks: list[tuple[int, Record]]) -> bool:
    """Whether a resumed run repeated training steps. That may withdraw evaluations, which landmarks cannot show."""
    resumes = [at for at, record in landmarks if record["event"] == "resume" and not record.get("changed")]
    for place in resumes:
        around = data.rfind(_FREQUENT[0], 0, place), data.find(_FREQUENT[0], place)
        before, after = (line_at(data, at)[1] if at >= 0 else None for at in around)
        if before and after and after["step"] <= before["step"]:
            return True
    return False


def line_at(data: bytes, place: int) -> tuple[int, Record | None]:
    """The start of the line around a place, and its record (None if the line is damaged)."""
    start = data.rfind(b"\n", 0, place) + 1
    return start, journal.record(data[start : data.find(b"\n", place)])


def state(history: History, folder: Path) -> str:
    """`running`, `finished`, `interrupted`, `diverged`, `failed`, `crashed`, `starting` or `damaged`.

    A run is `crashed` if its trainer ended without a `finish` record, `starting` while it has no journal, and `damaged`
    if its journal has no start.
    """
    path = folder / journal.FILE
    if not history.sessions and path.exists() and path.stat().st_size:
        return "damaged"
    if history.end:
        return history.end.get("status", "finished")
    if files.is_held(folder):
        return "running" if history.sessions else "starting"
    return "crashed"


def find(output_dir: Path) -> list[Path]:
    """The folders of the runs in an output folder and in its sweeps; raises UsageError when there are none."""
    if found := run.folders(output_dir):
        return found
    raise UsageError(f"{output_dir}: there is no run in this folder yet; start one with make train")


def machine(session: Record) -> Use | None:
    """How a session used the machine; None if its record does not have it."""
    return use.read(session["machine"]) if "machine" in session else None


# ---- what a run was made with ----------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a run; raises UserError if the file does not hold one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: is damaged: it must hold a JSON object")
    return found


def summary(folder: Path) -> dict[str, Any]:
    """The summary of a finished run, empty for others; raises UserError if the file is damaged."""
    path = folder / "summary.json"
    found = read(path) if path.exists() else {}
    if wrong := [name for name in found.keys() - {"run", "status"} if type(found[name]) not in (int, float)]:
        raise UserError(f"{path}: is damaged: {wrong[0]} must be a number")
    return {name: value if isinstance(value, str) else journal.number(value) for name, value in found.items()}


def provenances(folder: Path) -> list[dict[str, Any]]:
    """The provenance of each session, oldest first; raises UserError if a file is damaged."""
    paths = folder.glob("provenance*.json")
    number = re.compile(r"\d+")
    return [provenance(path) for path in sorted(paths, key=lambda path: int((number.findall(path.stem) or ["-1"])[-1]))]


def places(folder: Path, output_dir: str, trained: str) -> list[Path]:
    """The folders that the relative paths of the run in `folder`, such as DATA_DIR, can start from, likeliest first.

    The first is the folder in which the run was `trained`. The second is the folder from which OUTPUT_DIR leads to the
    run: it differs from the first if that was moved or copied together with the run. Missing folders are left out.
    """
    parent, output = Path(os.path.abspath(folder)).parent, Path(os.path.normpath(output_dir))  # noqa: PTH100
    count, found = len(parent.parts) - len(output.parts), [trained]
    if not output.is_absolute() and parent.parts[count:] == output.parts:
        found.append(Path(*parent.parts[:count]))
    return [Path(place) for place in found if os.path.isdir(place)]  # noqa: PTH112  # Path raises for too long a name


def provenance(path: Path) -> dict[str, Any]:
    """The provenance of a session; raises UserError if a value that readers use has another type."""
    found = read(path)
    options, packages = found.get("options", {}), found.get("packages", {})
    changes = found.get("uncommitted_changes")
    try:
        texts = [found.get("commit") or "", *(found.get(name, "") for name in ("commit_unknown", "folder"))]
        texts += packages.values()
        texts += [entry[name] for entry in options.values() for name in ("value", "source")]
        if changes and not isinstance(changes, str):  # earlier versions kept the changes here
            texts += [changes["file"] or "", changes["sha256"], changes["note"]]
    except (AttributeError, KeyError, TypeError):
        texts = [None]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{path}: is damaged: it lacks what a run writes there")
    return found


def options(folder: Path) -> dict[str, tuple[str, str]]:
    """Option -> its value in the newest session as text, and the source that first set this value."""
    found: dict[str, tuple[str, str]] = {}
    for made in provenances(folder):
        now = {}
        for recorded, entry in made.get("options", {}).items():
            name, value = present(recorded, entry["value"])
            now[name] = value, entry["source"]
        # A resume reads the run's own .config, so a value that stays keeps its earlier source.
        found = {name: found[name] if found.get(name, (None,))[0] == new[0] else new for name, new in now.items()}
    return found


def differing(folder: Path) -> dict[str, tuple[str, str]]:
    """Those of `options` that differ from the defaults."""
    known, path = options(folder), folder / "defconfig"
    if not path.exists():
        return {}
    # A choice or a set has a line per value, CONFIG_<OPTION>_<VALUE>. The present Kconfig may lack the run's options.
    names = [present(line.name, "")[0] for line in read_lines(path)]
    owners = (max((one for one in known if f"{name}_".startswith(f"{one}_")), key=len, default=name) for name in names)
    return {name: known.get(name, ("", "")) for name in owners}


def code(made: dict[str, Any]) -> str:
    """`6382a36f01 with uncommitted changes b24a20`: the name of a session's code in lists and tables."""
    name, changes = (made.get("commit") or "unknown")[:10], made.get("uncommitted_changes")
    if not changes:
        return name
    if isinstance(changes, str):  # earlier versions kept the changes here
        return f"{name} with uncommitted changes {hashlib.sha256(changes.encode()).hexdigest()[:6]}"
    return f"{name} with uncommitted changes {changes['sha256'][:6] if changes['file'] else 'that were not kept'}"
