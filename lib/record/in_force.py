"""Which records of a journal are in force: each step once, without what a resume or a retry took back."""

from collections.abc import Iterator, Mapping
from typing import Any

SERIES = ("train", "eval", "system")  # events that are measurements, also as `train.2`: one in force per step
VOLATILE = frozenset({"tokens_per_second", "mfu"})  # depend on the clock: not repeated when a step is run again

Record = dict[str, Any]
Key = tuple[str, int]  # what a step has one of: an event, or an alert of a kind
_ALERT = "alert "


class Places:
    """A journal, taken in record by record: where the records in force are. Every reader folds it by these rules.

    - A resume or retry with other options (`changed`) takes back what was recorded beyond its step.
    - A step that a resumed run repeats with another result takes back what earlier sessions recorded for it and after
      it: those steps will be other ones too. With the same result, the earlier record stays.
    - Within a session the first record of a step stays. So does the first `system` record: it is a sample of the
      machine, and another one says nothing of the run.
    - Other options take back alerts beyond their step. A step with another result does not: the user has been told.
      When only alerts are taken back, a tracker keeps those that it has.
    - A run that is made longer keeps the final metrics of its earlier ends, each at its step.

    A run may have millions of records, so this holds only the step and the place of each.
    """

    def __init__(self):
        self.places: dict[str, dict[int, int]] = {}  # event, or alert of a kind -> step -> place in the journal
        self.taken_back: list[tuple[int, int]] = []  # place of the first record that was, and of what took it back
        self.session = -1  # place of the newest `start` or `resume`

    def add(self, record: Record, place: int) -> bool:
        """Take in the next record, whose `place` is beyond all before; whether it takes back others."""
        event, step = record["event"], record["step"]
        if event in ("start", "resume"):
            self.session = place
            return bool(record.get("changed")) and self._take_back(place, [key for key, _ in self if key[1] > step])
        measured = series(event)
        if not (measured or event == "alert" or (event == "finish" and record["metrics"])):
            return False
        key = key_of(event, step, record)
        if (first := self.place(key)) is not None:
            if first > self.session or measured == "system" or self._repeats(key, record):
                return False
            old = [key for key, at in self if first <= at < self.session and not _is_alert(key)]
            self._take_back(place, old)
        self.put(key, record, place)
        return first is not None

    def __iter__(self) -> Iterator[tuple[Key, int]]:
        """What is in force, and where it is."""
        return (((name, step), place) for name, steps in self.places.items() for step, place in steps.items())

    def place(self, key: Key) -> int | None:
        """Where the record in force is; None if there is none."""
        return self.places.get(key[0], {}).get(key[1])

    def put(self, key: Key, record: Record, place: int) -> None:
        """Have this record in force."""
        self.places.setdefault(key[0], {})[key[1]] = place

    def remove(self, key: Key) -> None:
        """Have the record in force no longer."""
        del self.places[key[0]][key[1]]

    def metrics(self, key: Key) -> dict[str, Any]:
        """The metrics of a record in force."""
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
    """Places and the records there, for readers that need all of a run's records."""

    def __init__(self):
        super().__init__()
        self.rows: dict[Key, Record] = {}  # of SERIES, in the order of the journal
        self.others: dict[Key, Record] = {}  # `finish` with metrics, and alerts, in that order too

    def put(self, key: Key, record: Record, place: int) -> None:
        """Have this record in force."""
        super().put(key, record, place)
        self._kept(key)[key] = record

    def remove(self, key: Key) -> None:
        """Have the record in force no longer."""
        super().remove(key)
        del self._kept(key)[key]

    def metrics(self, key: Key) -> dict[str, Any]:
        """The metrics of a record in force."""
        return self._kept(key)[key]["metrics"]

    def _kept(self, key: Key) -> dict[Key, Record]:
        return self.rows if series(key[0]) else self.others


def key_of(event: str, step: int, details: Mapping[str, Any]) -> Key:
    """What a step has one of."""
    return f"{_ALERT}{details.get('kind')}" if event == "alert" else event, step


def _is_alert(key: Key) -> bool:
    return key[0].startswith(_ALERT)


def series(event: str) -> str | None:
    """Which of SERIES an event belongs to, or None."""
    base = event.partition(".")[0]
    return base if base in SERIES else None


def lasting(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that do not depend on the clock."""
    return {name: value for name, value in metrics.items() if name not in VOLATILE}
