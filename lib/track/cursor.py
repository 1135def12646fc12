"""How far a tracker is with a run's journal: kept in the run's folder, so that delivery goes on where it stopped."""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from lib import journal
from lib.errors import UserError
from lib.files import write_json
from lib.track.tracker import Row

EVENTS = ("train", "eval", "finish")  # what trackers are told; the rest of the journal is for other readers
FOLDER = "trackers"


@dataclasses.dataclass
class Cursor:
    """The state of one tracker of one run, stored in <run>/trackers/<name>.json by the process that delivers to it.

    A step is delivered once: a record at or below the highest delivered step of its event is passed over, because a
    resumed run repeats steps. When a resume changed the configuration, trackers keep what they got first for them.
    """

    offset: int = 0  # bytes of the journal that are dealt with
    seq: int = -1  # of the last record dealt with
    delivered: dict[str, int] = dataclasses.field(default_factory=dict)  # event -> highest step
    rows: int = 0  # delivered so far
    state: str = "starting"  # starting, live, finished (all delivered, tracker closed) or failed
    message: str = ""  # why it failed, one sentence
    note: str = ""  # what the tracker has to say: offline, where to look

    @classmethod
    def load(cls, folder: Path, name: str) -> "Cursor":
        """The stored state, or a new one; raises UserError when the file cannot be understood."""
        path = path_of(folder, name)
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path}: the tracker's state cannot be read: {error}") from None

    def save(self, folder: Path, name: str) -> None:
        """Store the state whole or not at all; raises UserError."""
        write_json(path_of(folder, name), dataclasses.asdict(self))

    def ahead(self, folder: Path) -> Iterator[tuple[journal.Record, int, Row | None]]:
        """The records that are not dealt with, each with its end in bytes and, when it is to be delivered, its row."""
        marks = dict(self.delivered)
        for record, end in journal.tail(folder, self.offset):
            event, step = record["event"], record["step"]
            row = None
            if event in EVENTS and record["metrics"] and step > marks.get(event, -1):
                marks[event] = step
                row = Row(event, step, record["time"], journal.numbers(record))
            yield record, end, row

    def pending(self, folder: Path) -> int:
        """How many rows are still to be delivered."""
        return sum(row is not None for _, _, row in self.ahead(folder))

    def batch(self, folder: Path, limit: int) -> list[tuple[journal.Record, int, Row | None]]:
        """The next records, at most `limit`."""
        return list(itertools.islice(self.ahead(folder), limit))

    def advance(self, batch: list[tuple[journal.Record, int, Row | None]]) -> None:
        """Count a batch as dealt with."""
        for record, end, row in batch:
            self.offset, self.seq = end, record["seq"]
            if row:
                self.delivered[row.event] = row.step
                self.rows += 1


def path_of(folder: Path, name: str) -> Path:
    """Where the state of a tracker is stored."""
    return Path(folder) / FOLDER / f"{name}.json"
