"""The series of steps that the rows of a training script belong to, so that the steps of each series increase."""

from itertools import count
from pathlib import Path

from lib.record import journal

EVALUATION = ("eval", "val", "test")  # metrics whose names begin with one of these belong to the event `eval`


class Series:
    """Assigns each row to an event, so that the steps of each event increase.

    Rows with metrics of an evaluation belong to `eval`, others to `train`. If that event already has this step or a
    later one, the row belongs to `train.2`, `train.3`, ...: a script may log twice in a step, or count epochs too.
    """

    def __init__(self, folder: Path):
        """Restore the state from the journal in `folder`."""
        self.last = -1  # the highest step
        self.steps: dict[str, int] = {}  # event -> its highest step
        self.rows: dict[tuple[str, ...], tuple[str, int]] = {}  # names of metrics -> last event and step
        for record in journal.read(folder):
            if record["event"].partition(".")[0] in ("train", "eval"):
                self._note(tuple(sorted(record["metrics"])), record["event"], record["step"])

    def event(self, names: tuple[str, ...], step: int) -> str:
        """The event of a row with these metrics; a repeated row gets the event that it had."""
        event, last = self.rows.get(names, ("", -1))
        if step <= last:
            return event
        base = "eval" if any(name.startswith(EVALUATION) for name in names) else "train"
        events = (base if number == 1 else f"{base}.{number}" for number in count(1))
        event = next(event for event in events if self.steps.get(event, -1) < step)
        self._note(names, event, step)
        return event

    def _note(self, names: tuple[str, ...], event: str, step: int) -> None:
        self.last = max(self.last, step)
        self.steps[event] = max(self.steps.get(event, -1), step)
        if step > self.rows.get(names, ("", -1))[1]:
            self.rows[names] = event, step
