"""How much of a run's journal a tracker has: stored in the run's folder, so that delivery can continue."""

import bisect
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lib.base.errors import UserError
from lib.base.files import write_json
from lib.record import journal, run
from lib.record.in_force import Key, Places, Record, key_of
from lib.track.tracker import Alert, Configuration, Media, Row

FOLDER = "trackers"
SHARE = ("offset", "reach", "edition", "rows", "left_out")  # what a Cursor knows about one destination
_FIRST_COME = 0  # the edition in states of earlier versions, which kept the first delivered record of a step

Item = Row | Alert | Media  # what trackers get; other records of the journal are for other readers


class Backlog(Places):
    """The places of the valid records in a run's journal; the place of a record is its end, in bytes.

    Records are not kept. Those to deliver, or to compare with a repeated step, are read from the file again.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.folder, self.end = folder, 0
        self.configs: list[tuple[int, Configuration]] = []  # place and configuration of each start and resume
        self.without_metrics: set[int] = set()  # places of rows without metrics, which trackers do not get
        self.sorted: tuple[int, list[int]] = 0, []  # the end for which they hold, and the places that trackers get

    def update(self) -> "Backlog":
        """Read the new records; raises JournalError."""
        for record, end in journal.tail(self.folder, self.end):
            self.end = end
            self.add(record, end)
            if not _is_for_trackers(record):
                self.without_metrics.add(end)
            if record["event"] in ("start", "resume") and "config" in record:
                config = record["config"]
                self.configs.append((self.end, Configuration(record.get("parameters", config), config)))
        return self

    def metrics(self, key: Key) -> dict[str, Any]:
        """The metrics of a valid record."""
        return journal.at(self.folder, self.place(key))["metrics"]

    def count(self, beyond: int) -> int:
        """The number of valid rows, alerts and media beyond a place; asked again, it costs little."""
        if self.sorted[0] != self.end:
            self.sorted = self.end, sorted(place for _, place in self if place not in self.without_metrics)
        places = self.sorted[1]
        return len(places) - bisect.bisect_right(places, beyond)

    def media(self, key: str) -> Media | None:
        """The valid media of a key of `Cursor.left_out`; None if they were withdrawn."""
        step, _, name = key.partition(" ")
        place = self.place(key_of("media", int(step), {"name": name}))
        return place and _item(journal.at(self.folder, place), self.folder)

    def items(self, beyond: int) -> Iterator[tuple[int, Item]]:
        """The valid rows, alerts and media beyond a place, each with its own place, in order."""
        for record, end in journal.tail(self.folder, beyond):
            if end > self.end:
                return
            if self.place(key_of(record["event"], record["step"], record)) == end and end not in self.without_metrics:
                yield end, _item(record, self.folder)


@dataclasses.dataclass
class Cursor:
    """The state of one tracker of one run, stored in <run>/trackers/<name>.json by the process that delivers to it.

    Single rows cannot be removed from a tracker. When the journal withdraws rows that a tracker has, the tracker is
    rewritten or gets a new run; `edition` is the number of its current run.

    The rows may go to another place than before: another machine's database, server, project. Each place has its own
    share of the journal; `elsewhere` remembers the shares of the others.
    """

    offset: int = 0  # bytes of the journal up to which everything is delivered
    reach: int = 0  # bytes of the journal up to which the tracker may have rows, the current batch included
    edition: int = 1  # number of the run at the tracker; see `identity`
    rows: int = 0  # rows, alerts and media delivered so far
    state: str = "starting"  # starting, opening, live, finished (all delivered, tracker closed) or failed
    message: str = ""  # why it failed, one sentence
    note: str = ""  # from the tracker to the user, such as the address of the run
    destination: str = ""  # where the rows go; empty: into the run's folder, or an earlier version did not record it
    elsewhere: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)  # destination -> the values of SHARE
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)  # `<step> <name>` of media -> why it failed
    sending: int = 0  # bytes of the file that is being sent now

    @classmethod
    def load(cls, folder: Path, name: str) -> "Cursor":
        """The stored state, or a new one if there is no file; raises UserError if the file is damaged."""
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
        shares = [{name: getattr(found, name) for name in SHARE}, *found.elsewhere.values()]
        if not all(type(value) is type(right) for value, right in kinds) or not all(map(_is_share, shares)):
            raise UserError(f"{path}: the tracker's state cannot be read: it has values of the wrong type")
        return found

    def save(self, folder: Path, name: str) -> None:
        """Store the state atomically; raises UserError."""
        write_json(path_of(folder, name), dataclasses.asdict(self))

    def identity(self, first: run.Identity) -> run.Identity:
        """The run's identity at the tracker; its name ends in `~2`, `~3`, ... after delivered rows were withdrawn."""
        if self.edition < 2:
            return first
        return run.Identity(f"{first.run_id}_{self.edition}", first.project, f"{first.name}~{self.edition}")

    def go_to(self, destination: str) -> str:
        """Switch to what a destination has; returns the former one if that is another, else an empty text.

        What the destination has is of use only if its run has the present edition.
        """
        before, self.destination = self.destination, destination
        if before in ("", destination):
            return ""
        self.elsewhere[before] = {name: getattr(self, name) for name in SHARE}
        known = self.elsewhere.pop(destination, {})
        self.lost()
        if known.get("edition") == self.edition:
            vars(self).update(known)
        return before

    def lost(self) -> None:
        """Count nothing as delivered: the destination no longer holds the run."""
        self.offset = self.reach = self.rows = 0
        self.left_out = {}

    def set_aside(self, item: Media, reason: str) -> None:
        """Remember media that cannot be delivered now, so that the rows after it need not wait."""
        self.left_out[f"{item.step} {item.name}"] = reason

    def aside(self) -> str:
        """What was set aside, as a sentence; empty if nothing was."""
        if not self.left_out:
            return ""
        key, reason = next(iter(self.left_out.items()))
        step, _, name = key.partition(" ")
        more = f"; and {len(self.left_out) - 1} more files" if len(self.left_out) > 1 else ""
        return f"{name} of step {step} is left out: {reason}{more}"

    def is_stale(self, backlog: Backlog) -> bool:
        """Whether the tracker may have rows that are no longer valid."""
        return any(
            first <= self.reach and (self.reach < at or self.edition == _FIRST_COME) for first, at in backlog.taken_back
        )

    def pending(self, backlog: Backlog) -> int:
        """The number of rows, alerts and media that are still to be delivered."""
        return backlog.count(0) if self.is_stale(backlog) else backlog.count(self.offset) + len(self.left_out)

    def batch(self, backlog: Backlog, limit: int) -> tuple[list[Item], int]:
        """The next rows, alerts and media, about `limit`, and the place in the journal after them.

        No record after this place, as far as the journal is read, withdraws a record before it. With any other place,
        withdrawn records that were skipped would count as delivered.
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
        """Count a batch of `rows` items as delivered."""
        self.offset, self.reach = edge, max(edge, self.reach)
        self.rows += rows

    def trust(self) -> None:
        """Accept the state of an earlier version: while nothing is withdrawn, both versions deliver the same."""
        self.edition = max(1, self.edition)

    def rewritten(self, edge: int, rows: int) -> None:
        """Count the tracker as rewritten: it has `rows` items, all that are valid up to a place."""
        self.edition, self.rows = 1, 0
        self.advance(edge, rows)

    def begin_again(self) -> None:
        """Switch to a new run at the tracker, which is empty."""
        self.lost()
        self.edition = max(1, self.edition) + 1


def _is_share(values: Any) -> bool:
    """Whether these are the values of SHARE, as far as their types and ranges tell."""
    if not isinstance(values, dict) or values.keys() != set(SHARE):
        return False
    *numbers, left_out = (values[name] for name in SHARE)
    sound = isinstance(left_out, dict) and all(re.fullmatch(r"\d{1,18} .*", key, re.DOTALL) for key in left_out)
    reasons = sound and all(isinstance(reason, str) for reason in left_out.values())
    return reasons and all(type(number) is int and 0 <= number < 2**63 for number in numbers)


def _is_for_trackers(record: Record) -> bool:
    return bool(record["metrics"]) or record["event"] in ("alert", "media")


def _item(record: Record, folder: Path) -> Item:
    event, step, moment = record["event"], record["step"], record["time"]
    if event == "alert":
        return Alert(record.get("kind", "alert"), step, moment, record.get("level", "warn"), record.get("message", ""))
    if event == "media":
        return Media(record["kind"], record["name"], step, moment, folder / record["file"])
    return Row(key_of(event, step, record)[0], step, moment, journal.numbers(record))


def path_of(folder: Path, name: str, kind: str = "json") -> Path:
    """The file with the state of a tracker, or its `log` or `lock`."""
    return Path(folder) / FOLDER / f"{run.folder_name(name.replace(':', '-'))}.{kind}"
