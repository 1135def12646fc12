"""How far a tracker is with a run's journal: kept in the run's folder, so that delivery goes on where it stopped."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lib.base.errors import UserError
from lib.base.files import write_json
from lib.record import journal, run
from lib.record.in_force import Key, Places, Record, key_of
from lib.track.tracker import Alert, Row

FOLDER = "trackers"
_FIRST_COME = 0  # the edition of a state by earlier code, which kept what it had delivered first for a step

Item = Row | Alert  # what trackers are told; the other records are for other readers


class Backlog(Places):
    """What of a run's journal is in force, read as far as it is written; places are ends of records, in bytes.

    It holds no records: those that are handed over, or compared with a repeated step, are read again.
    """

    def __init__(self, folder: Path):
        """Nothing is read yet."""
        super().__init__()
        self.folder, self.end = folder, 0
        self.configs: list[tuple[int, dict[str, Any]]] = []  # place and resolved options of each start and resume
        self.untold: set[int] = set()  # places of rows without metrics, which trackers are not told

    def update(self) -> "Backlog":
        """Read what is new; raises JournalError."""
        for record, end in journal.tail(self.folder, self.end):
            self.end = end
            self.add(record, end)
            if not _is_told(record):
                self.untold.add(end)
            if record["event"] in ("start", "resume") and "config" in record:
                self.configs.append((self.end, record["config"]))
        return self

    def metrics(self, key: Key) -> dict[str, Any]:
        """The metrics of a record in force."""
        return journal.at(self.folder, self.place(key))["metrics"]

    def count(self, beyond: int) -> int:
        """How many rows and alerts in force were recorded beyond a place."""
        return sum(place > beyond and place not in self.untold for _, place in self)

    def items(self, beyond: int) -> Iterator[tuple[int, Item]]:
        """Rows and alerts in force that were recorded beyond a place, each with its own place, in order."""
        for record, end in journal.tail(self.folder, beyond):
            if end > self.end:
                return
            if self.place(key_of(record["event"], record["step"], record)) == end and end not in self.untold:
                yield end, _item(record)


@dataclasses.dataclass
class Cursor:
    """The state of one tracker of one run, stored in <run>/trackers/<name>.json by the process that delivers to it.

    What a tracker was handed never leaves it. When the journal takes some of that back, the tracker is rewritten or
    gets a second run, and `edition` says which one it has.
    """

    offset: int = 0  # bytes of the journal that are dealt with
    reach: int = 0  # bytes of the journal up to which the tracker may have rows: those it is being handed
    edition: int = 1  # of the run there; see `identity`
    rows: int = 0  # and alerts, delivered so far
    state: str = "starting"  # importing; opening, live, finished (all delivered, tracker closed) or failed
    message: str = ""  # why it failed, one sentence
    note: str = ""  # what the tracker has to say: offline, where to look

    @classmethod
    def load(cls, folder: Path, name: str) -> "Cursor":
        """The stored state, or a new one; raises UserError when the file cannot be understood."""
        path = path_of(folder, name)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if "edition" not in values:
                values = {key: value for key, value in values.items() if key not in ("seq", "delivered")}
                values |= {"edition": _FIRST_COME, "reach": values.get("offset", 0)}
            found = cls(**values)
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path}: the tracker's state cannot be read: {error}") from None
        kinds = zip(vars(found).values(), vars(cls()).values(), strict=True)
        numbers = (found.offset, found.reach, found.edition, found.rows)
        if not all(type(value) is type(right) for value, right in kinds) or not all(0 <= n < 2**63 for n in numbers):
            raise UserError(f"{path}: the tracker's state cannot be read: it holds values of other kinds")
        return found

    def save(self, folder: Path, name: str) -> None:
        """Store the state whole or not at all; raises UserError."""
        write_json(path_of(folder, name), dataclasses.asdict(self))

    def identity(self, first: run.Identity) -> run.Identity:
        """What the tracker's run is called: like the run, and `<name>~2` when that had rows that were taken back."""
        if self.edition < 2:
            return first
        return run.Identity(f"{first.run_id}_{self.edition}", first.project, f"{first.name}~{self.edition}")

    def is_stale(self, backlog: Backlog) -> bool:
        """Whether the tracker may have something that is in force no longer."""
        return any(
            first <= self.reach and (self.reach < at or self.edition == _FIRST_COME) for first, at in backlog.taken_back
        )

    def pending(self, backlog: Backlog) -> int:
        """How many rows and alerts are still to be delivered."""
        return backlog.count(0 if self.is_stale(backlog) else self.offset)

    def batch(self, backlog: Backlog, limit: int) -> tuple[list[Item], int]:
        """The next rows and alerts, about `limit`, and the place up to which the journal is dealt with then.

        No record up to there is taken back by one beyond, as far as the journal is read: or those that were never
        handed over would count as handed over.
        """
        found, edge = [], 0
        for place, item in backlog.items(self.offset):
            if len(found) >= limit and place > edge:
                return found, edge
            found.append(item)
            if len(found) == limit:
                edge = place
                for first, at in backlog.taken_back:
                    edge = at if first <= edge < at else edge
        return found, backlog.end

    def advance(self, edge: int, rows: int) -> None:
        """Count a batch of so many rows and alerts as delivered."""
        self.offset, self.reach = edge, max(edge, self.reach)
        self.rows += rows

    def trust(self) -> None:
        """Take what was delivered by earlier code for what this would have delivered, since nothing was taken back."""
        self.edition = max(1, self.edition)

    def rewritten(self, edge: int, rows: int) -> None:
        """Count the tracker as having so many rows and alerts, all that are in force up to a place."""
        self.edition, self.rows = 1, 0
        self.advance(edge, rows)

    def begin_again(self) -> None:
        """Go on with another run of the tracker, which has nothing yet."""
        self.offset = self.reach = self.rows = 0
        self.edition = max(1, self.edition) + 1


def _is_told(record: Record) -> bool:
    return bool(record["metrics"]) or record["event"] == "alert"


def _item(record: Record) -> Item:
    event, step, moment = record["event"], record["step"], record["time"]
    if event == "alert":
        return Alert(record.get("kind", "alert"), step, moment, record.get("level", "warn"), record.get("message", ""))
    return Row(event, step, moment, journal.numbers(record))


def path_of(folder: Path, name: str, kind: str = "json") -> Path:
    """Where the state of a tracker is stored, or its `log` or `lock`."""
    return Path(folder) / FOLDER / f"{run.folder_name(name.replace(':', '-'))}.{kind}"
