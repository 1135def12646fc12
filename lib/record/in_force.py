"""What the rows of a journal mean together: which records are valid, how far the run is, and whether it has ended."""

from collections.abc import Iterator, Mapping
from typing import Any

# Events that are measurements: one valid record per step, and per task. `train.2` is a further series of `train`.
SERIES = ("train", "eval", "system", "task")
VOLATILE = frozenset({"tokens_per_second", "mfu"})  # metrics that depend on the clock, so a repeated step has others

Record = dict[str, Any]
# Event and step; the event is `alert <kind>` for an alert, `media <name>` for media, and `task <name>` for a task. Each
# key has at most one valid record.
Key = tuple[str, int]
_ALERT, _MEDIA, _TASK = "alert ", "media ", "task "
BESIDE = ("alert", "system", "task")  # recorded beside training, so these events may follow the end of a run


class Places:
    """Folds a journal record by record. Every reader uses these rules.

    - A resume or retry with other options (`changed`) withdraws what was recorded beyond its step.
    - A resumed run may repeat a step with another result. The new result withdraws what earlier sessions recorded for
      this step and later, because the later steps will differ too. If the result is the same, the earlier record stays
      valid.
    - Within a session the first record of a step stays valid. So does the first `system` record of a step: it is a
      sample of the machine, and a second sample says nothing about the run.
    - A resume or retry with other options also withdraws alerts beyond its step. A step with another result withdraws
      no alerts, because the user has seen them. When only alerts are withdrawn, a tracker keeps the alerts that it has.
    - Media show the state of the run at their step, so they are withdrawn with the measurements. A repeated record of
      media never withdraws anything, because a picture of the same numbers may have other bytes.
    - A task that is measured again at a step replaces its earlier result, and withdraws nothing else. A task measures
      the weights of its step, at any time later. So it is withdrawn with the measurements of its own and later steps.
    - A run that is made longer keeps the final metrics of its earlier ends, each at its step.
    - Any record that is not in BESIDE continues a run that had ended; see `ending_after`.

    A run may have millions of records, so this class holds only the step and the place of each.
    """

    def __init__(self):
        self.places: dict[str, dict[int, int]] = {}  # event, or alert of a kind -> step -> place in the journal
        # For each withdrawal: the places of the first withdrawn record and of the record that withdrew it.
        self.taken_back: list[tuple[int, int]] = []
        self.session = -1  # place of the newest `start` or `resume`
        self.ending: Record | None = None  # the `finish` record, unless the run continued after it
        self.step = 0  # the highest recorded step that is valid

    def add(self, record: Record, place: int) -> None:
        """Take in the next record. Its `place` is larger than those of all earlier records."""
        changed = record["event"] == "resume" and record.get("changed")
        if self._fold(record, place) or changed:
            self.step = record["step"]
        self.ending = ending_after(record, self.ending)
        if record["step"] > self.step and record["event"] not in BESIDE:
            self.step = record["step"]

    def _fold(self, record: Record, place: int) -> bool:
        """Add the record if it is valid; returns whether it withdraws other records."""
        event, step = record["event"], record["step"]
        if event in ("start", "resume"):
            self.session = place
            return bool(record.get("changed")) and self._take_back(place, [key for key, _ in self if key[1] > step])
        measured = series(event)
        if not (measured or event in ("alert", "media") or (event == "finish" and record["metrics"])):
            return False
        key = key_of(event, step, record)
        if (first := self.place(key)) is not None:
            stays = measured == "system" or event == "media" or (measured != "task" and first > self.session)
            if stays or self._repeats(key, record):
                return False
            self._take_back(place, [key] if measured == "task" else list(self._since(first, step)))
        self.put(key, record, place)
        return first is not None and measured != "task"

    def _since(self, first: int, step: int) -> Iterator[Key]:
        """What earlier sessions recorded since the place `first`, without alerts and without tasks of earlier steps."""
        for key, at in self:
            if first <= at < self.session and not _is_alert(key) and (not key[0].startswith(_TASK) or key[1] >= step):
                yield key

    def __iter__(self) -> Iterator[tuple[Key, int]]:
        """The keys of the valid records, and their places."""
        return (((name, step), place) for name, steps in self.places.items() for step, place in steps.items())

    def place(self, key: Key) -> int | None:
        """The place of the valid record of a key, or None."""
        return self.places.get(key[0], {}).get(key[1])

    def put(self, key: Key, record: Record, place: int) -> None:
        """Make this record the valid one of its key."""
        self.places.setdefault(key[0], {})[key[1]] = place

    def remove(self, key: Key) -> None:
        """Withdraw the valid record of a key."""
        del self.places[key[0]][key[1]]

    def metrics(self, key: Key) -> dict[str, Any]:
        """The metrics of the valid record of a key."""
        raise NotImplementedError

    def _repeats(self, key: Key, record: Record) -> bool:
        return lasting(self.metrics(key)) == lasting(record["metrics"])

    def _take_back(self, place: int, gone: list[Key]) -> bool:
        if measured := [self.place(key) for key in gone if not _is_alert(key)]:
            self.taken_back.append((min(measured), place))
        for key in gone:
            self.remove(key)
        return bool(gone)


class InForce(Places):
    """Also holds the valid records themselves, for readers that need all of them."""

    def __init__(self):
        super().__init__()
        self.rows: dict[Key, Record] = {}  # measurements (SERIES), in the order of the journal
        self.others: dict[Key, Record] = {}  # alerts, media, and `finish` records with metrics, in the journal's order

    def put(self, key: Key, record: Record, place: int) -> None:
        """Make this record the valid one of its key."""
        super().put(key, record, place)
        self._kept(key)[key] = record

    def remove(self, key: Key) -> None:
        """Withdraw the valid record of a key."""
        super().remove(key)
        del self._kept(key)[key]

    def metrics(self, key: Key) -> dict[str, Any]:
        """The metrics of the valid record of a key."""
        return self._kept(key)[key]["metrics"]

    def _kept(self, key: Key) -> dict[Key, Record]:
        return self.rows if series(key[0]) else self.others


def key_of(event: str, step: int, details: Mapping[str, Any]) -> Key:
    """The key of an event at a step; `details` has the kind of an alert, the name of media, and that of a task."""
    if event == "alert":
        event = f"{_ALERT}{details.get('kind')}"
    elif event == "media":
        event = f"{_MEDIA}{details.get('name')}"
    elif event == "task":
        event = f"{_TASK}{details.get('task')}"
    return event, step


def _is_alert(key: Key) -> bool:
    return key[0].startswith(_ALERT)


def ending_after(record: Record, ending: Record | None) -> Record | None:
    """The current `finish` record after `record`, or None if the run continues; `ending` is that before `record`."""
    if record["event"] in BESIDE:
        return ending
    return record if record["event"] == "finish" else None


def series(event: str) -> str | None:
    """Which of SERIES an event, or the event of a key, belongs to; None if to none."""
    base = "task" if event.startswith(_TASK) else event.partition(".")[0]
    return base if base in SERIES else None


def lasting(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that do not depend on the clock."""
    return {name: value for name, value in metrics.items() if name not in VOLATILE}
