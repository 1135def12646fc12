"""How far a tracker is with a run's journal: kept in the run's folder, so that delivery goes on where it stopped."""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from lib import journal, run
from lib.errors import UserError
from lib.files import write_json
from lib.track.tracker import Alert, Row

ROWS = ("train", "eval", "system", "finish")  # what trackers are told, and alerts; the rest is for other readers
FOLDER = "trackers"

Entry = tuple[journal.Record, int, Row | Alert | None]


@dataclasses.dataclass
class Cursor:
    """The state of one tracker of one run, stored in <run>/trackers/<name>.json by the process that delivers to it.

    A step is delivered once: a record at or below the highest delivered step of its event is passed over, because a
    resumed run repeats steps. When a resume changed the configuration, trackers keep what they got first for them.
    Alerts count by their kind in the same way.
    """

    offset: int = 0  # bytes of the journal that are dealt with
    seq: int = -1  # of the last record dealt with
    delivered: dict[str, int] = dataclasses.field(default_factory=dict)  # event, or kind of alert -> highest step
    rows: int = 0  # and alerts, delivered so far
    state: str = "starting"  # importing; opening, live, finished (all delivered, tracker closed) or failed
    message: str = ""  # why it failed, one sentence
    note: str = ""  # what the tracker has to say: offline, where to look

    @classmethod
    def load(cls, folder: Path, name: str) -> "Cursor":
        """The stored state, or a new one; raises UserError when the file cannot be understood."""
        path = path_of(folder, name)
        try:
            found = cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path}: the tracker's state cannot be read: {error}") from None
        kinds = [(value, type(right)) for value, right in zip(vars(found).values(), vars(cls()).values(), strict=True)]
        kinds += [(step, int) for step in found.delivered.values()] if isinstance(found.delivered, dict) else []
        if not all(type(value) is kind for value, kind in kinds) or not 0 <= found.offset < 2**63:
            raise UserError(f"{path}: the tracker's state cannot be read: it holds values of other kinds")
        return found

    def save(self, folder: Path, name: str) -> None:
        """Store the state whole or not at all; raises UserError."""
        write_json(path_of(folder, name), dataclasses.asdict(self))

    def ahead(self, folder: Path) -> Iterator[Entry]:
        """The records that are not dealt with, each with its end in bytes and, if it is to be delivered, as what."""
        marks = dict(self.delivered)
        for record, end in journal.tail(folder, self.offset):
            item = _item(record)
            if item and item.step > marks.get(_key(item), -1):
                marks[_key(item)] = item.step
            else:
                item = None
            yield record, end, item

    def pending(self, folder: Path) -> int:
        """How many rows and alerts are still to be delivered."""
        return sum(item is not None for _, _, item in self.ahead(folder))

    def batch(self, folder: Path, limit: int) -> list[Entry]:
        """The next records, at most `limit`."""
        return list(itertools.islice(self.ahead(folder), limit))

    def advance(self, batch: list[Entry]) -> None:
        """Count a batch as dealt with."""
        for record, end, item in batch:
            self.offset, self.seq = end, record["seq"]
            if item:
                self.delivered[_key(item)] = item.step
                self.rows += 1


def _item(record: journal.Record) -> Row | Alert | None:
    event, step, moment = record["event"], record["step"], record["time"]
    if event == "alert":
        return Alert(record.get("kind", "alert"), step, moment, record.get("level", "warn"), record.get("message", ""))
    wanted = event.partition(".")[0] in ROWS and record["metrics"]
    return Row(event, step, moment, journal.numbers(record)) if wanted else None


def _key(item: Row | Alert) -> str:
    return item.event if isinstance(item, Row) else f"alert {item.kind}"


def path_of(folder: Path, name: str, kind: str = "json") -> Path:
    """Where the state of a tracker is stored, or its `log` or `lock`."""
    return Path(folder) / FOLDER / f"{run.folder_name(name.replace(':', '-'))}.{kind}"
