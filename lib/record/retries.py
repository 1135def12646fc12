"""Retries of a diverged run: each may lower the learning rate, and the journal records them."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from lib.config.kconf import Options, Schema
from lib.record import history, journal

_LOWERED = ("LEARNING_RATE", "MIN_LR")


@dataclasses.dataclass(frozen=True)
class RetryOptions(Options):
    """How often a run is retried, and by how much a retry lowers the learning rate."""

    retries: int
    retry_lr_factor: float


def made(folder: Path) -> int:
    """How many retries the run in `folder` has begun."""
    return sum(1 for _ in _records(folder))


def lower(schema: Schema, number: int) -> None:
    """Multiply LEARNING_RATE and MIN_LR by RETRY_LR_FACTOR for retry `number`, rounded to six digits."""
    factor = schema.bind(RetryOptions).retry_lr_factor
    names = [name for name in _LOWERED if schema.options[name].active and factor < 1]
    schema.override([(name, f"{schema[name] * factor:.6g}", f"retry {number}") for name in names])


def follow(schema: Schema, folder: Path) -> None:
    """Apply the learning rate of the last retry of the run in `folder` to `schema`, the configuration it began with.

    A value changes only if the run still has what the last retry set. Otherwise a later resume has changed it, or the
    user asks for a change now.
    """
    if not (records := list(_records(folder))):
        return
    there = Schema()
    there.load(folder / ".config")
    for name in _LOWERED:
        text = schema.options[name].text
        for number, changed in enumerate(records, 1):
            was, now = changed.get(name, ("", ""))
            text = now if was == text else text
            if text == now == there.options[name].text:
                schema.override([(name, now, f"retry {number}")])


def _records(folder: Path) -> Iterator[dict[str, list[str]]]:
    """What each retry changed: option -> [value before, value now]. Empty for a run without a journal."""
    for line in history.content(folder).splitlines():
        if b'"retry"' in line:  # to parse all lines of thousands of runs takes minutes
            record = journal.record(line)
            if record and record["event"] == "resume" and "retry" in record:
                yield record["changed"]
