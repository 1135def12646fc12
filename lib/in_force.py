"""Which records of a journal are in force: each step once, without what a resume or a retry took back."""

from collections.abc import Mapping
from typing import Any

SERIES = ("train", "eval", "system")  # events that are measurements, also as `train.2`: one in force per step
VOLATILE = frozenset({"tokens_per_second", "mfu"})  # depend on the clock: not repeated when a step is run again

Record = dict[str, Any]
Key = tuple[str, int]  # what a step has one of: an event, or an alert of a kind
_ALERT = "alert "


class InForce:
    """A journal, taken in record by record; everything that reads one folds it by these rules.

    - A resume or retry with other options (`changed`) takes back what was recorded beyond its step.
    - A step that a resumed run repeats with another result takes back what earlier sessions recorded for it and after
      it: those steps will be other ones too. With the same result, the earlier record stays.
    - Within a session the first record of a step stays. So does the first `system` record: it is a sample of the
      machine, and another one says nothing of the run.
    - Alerts are taken back by other options alone. Where nothing else was, trackers keep them: the user has been told.
    """

    def __init__(self):
        self.rows: dict[Key, Record] = {}  # of SERIES, in the order of the journal
        self.others: dict[Key, Record] = {}  # `finish` with metrics, and alerts, in that order too
        self.places: dict[Key, int] = {}  # where each is in the journal
        self.taken_back: list[tuple[int, int]] = []  # place of the first record that was, and of what took it back
        self.session = -1  # place of the newest `start` or `resume`

    def add(self, record: Record, place: int) -> bool:
        """Take in the next record, whose `place` is beyond all before; whether it takes back others."""
        event, step = record["event"], record["step"]
        if event in ("start", "resume"):
            self.session = place
            return bool(record.get("changed")) and self._take_back(place, [key for key in self.places if key[1] > step])
        measured = series(event) is not None
        if not (measured or event == "alert" or (event == "finish" and record["metrics"])):
            return False
        key, kept = key_of(event, step, record), self.rows if measured else self.others
        if before := kept.get(key):
            first = self.places[key]
            if first > self.session or alike(before, record):
                return False
            old = [key for key, at in self.places.items() if first <= at < self.session and not _is_alert(key)]
            self._take_back(place, old)
        kept[key], self.places[key] = record, place
        return before is not None

    def _take_back(self, place: int, gone: list[Key]) -> bool:
        if measured := [self.places[key] for key in gone if not _is_alert(key)]:
            self.taken_back.append((min(measured), place))
        for key in gone:
            (self.others if key in self.others else self.rows).pop(key)
            del self.places[key]
        return bool(gone)


def key_of(event: str, step: int, details: Mapping[str, Any]) -> Key:
    """What a step has one of."""
    return f"{_ALERT}{details.get('kind')}" if event == "alert" else event, step


def _is_alert(key: Key) -> bool:
    return key[0].startswith(_ALERT)


def series(event: str) -> str | None:
    """Which of SERIES an event belongs to, or None."""
    base = event.partition(".")[0]
    return base if base in SERIES else None


def alike(one: Record, other: Record) -> bool:
    """Whether two records of one step say the same of the run."""
    return series(one["event"]) == "system" or lasting(one["metrics"]) == lasting(other["metrics"])


def lasting(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that do not depend on the clock."""
    return {name: value for name, value in metrics.items() if name not in VOLATILE}
