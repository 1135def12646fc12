"""What a measurement of a model found: the values of one task, as the journal's event `task` has them."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lib.record import scores
from lib.record.in_force import Record
from lib.record.journal import encode
from lib.terminal import view


@dataclasses.dataclass(frozen=True)
class Result:
    """The values of one task, with their standard errors where they are known."""

    name: str  # of the task, such as hellaswag
    metrics: dict[str, float]  # "<name>/<metric>" and "<name>/<metric>_stderr"
    n: int  # items (documents, windows) that were measured
    version: str | float | None = None  # of the task's definition
    # More fields of the event, such as `of`: how many items there are, if some were left out. `notes` are sentences to
    # print; they are not recorded.
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    def fields(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of the event beside its metrics. `about` is what holds of all results, unless `details` differ."""
        details = {name: value for name, value in self.details.items() if name != "notes" and value is not None}
        return {"task": self.name, "n": self.n, "version": self.version, **about, **details}

    def record(self, step: int, about: Mapping[str, Any]) -> Record:
        """What a journal would hold, for weights that have none."""
        metrics, fields = {name: encode(value) for name, value in self.metrics.items()}, self.fields(about)
        return {"seq": 0, "time": time.time(), "event": "task", "step": step, "metrics": metrics, **fields}


def show(records: Iterable[Record], results: Iterable[Result], say: Callable[[str], object]) -> None:
    """Print a table of results, their notes, and a note if EVAL_LIMIT left items out."""
    records = list(records)
    rows = [scores.cells(score, view.number) for score in scores.scores(records)]
    view.out("", view.grid(rows, scores.TITLES, right=len(scores.TITLES) - 1), "")
    for note in dict.fromkeys(note for result in results for note in result.details.get("notes", [])):
        say(f"note: {note}")
    if names := scores.limited(records):
        say(
            f"note: EVAL_LIMIT left out items of {', '.join(names)}, so these values are not comparable with others; "
            "EVAL_LIMIT=0 measures all"
        )
