"""Results of tasks as rows of a table: from the events `task` of a journal, or from results that no journal has."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from lib.record.in_force import Record
from lib.record.journal import numbers

_ERROR = "_stderr"
# What `make evaluate` measures of every run, without tasks and texts.
OF_THE_MODEL = ("validation", "size", "speed")


class Score(NamedTuple):
    """A value that was measured."""

    metric: str  # such as hellaswag/acc
    value: float
    stderr: float | None
    n: int
    of: int | None  # how many items there are, where EVAL_LIMIT left some out
    version: str  # of the task; "" if it has none
    step: int
    checkpoint: str  # "" for weights that are not a run's


def scores(records: Iterable[Record]) -> Iterator[Score]:
    """The values of these `task` records, in their order."""
    for record in records:
        values = numbers(record)
        for name, value in values.items():
            if name.endswith(_ERROR) and name.removesuffix(_ERROR) in values:
                continue
            error, version = values.get(f"{name}{_ERROR}"), record.get("version")
            checkpoint = str(record.get("checkpoint") or "").removesuffix(".pt")
            left = record.get("of") if isinstance(record.get("of"), int) else None
            text = "" if version is None else str(version)
            yield Score(name, value, error, record["n"], left, text, record["step"], checkpoint)


def newest(records: Iterable[Record]) -> dict[str, Score]:
    """Metric -> its value at the highest step at which it was measured."""
    return {score.metric: score for score in sorted(scores(records), key=lambda score: score.step)}


_WITHOUT_ITEMS = ("size/", "speed/")  # their n counts tensors and rounds

TITLES = ("", "value", "± stderr", "n", "version", "step", "checkpoint")


def cells(score: Score, number: Any) -> tuple[str, ...]:
    """The texts of a row under TITLES; `number` formats a value."""
    items = f"{score.n:,}" if score.of is None else f"{score.n:,} of {score.of:,}"
    items = "-" if score.metric.startswith(_WITHOUT_ITEMS) else items
    error = "-" if score.stderr is None else number(score.stderr)
    return (
        score.metric,
        number(score.value),
        error,
        items,
        score.version or "-",
        f"{score.step:,}",
        score.checkpoint or "-",
    )


def limited(records: Iterable[Record]) -> list[str]:
    """The tasks of which EVAL_LIMIT left items out."""
    return sorted({record["task"] for record in records if record.get("of") is not None})
