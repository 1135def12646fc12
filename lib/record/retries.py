"""Retries of a run that diverged: each may lower the learning rate, and the journal says which there were."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from lib.config.kconf import Options, Schema
from lib.record import journal

_LOWERED = ("LEARNING_RATE", "MIN_LR")


@dataclasses.dataclass(frozen=True)
class RetryOptions(Options):
    """How often, and how."""

    retries: int
    retry_lr_factor: float


def made(folder: Path) -> int:
    """How many retries the run in `folder` has begun."""
    return sum(1 for _ in _records(folder))


def lower(schema: Schema, number: int) -> None:
    """Give retry `number` its learning rate and minimum, to six digits; a factor of 1 leaves them as they are."""
    factor = schema.bind(RetryOptions).retry_lr_factor
    names = [name for name in _LOWERED if schema.options[name].active and factor < 1]
    schema.override([(name, f"{schema[name] * factor:.6g}", f"retry {number}") for name in names])


def follow(schema: Schema, folder: Path) -> None:
    """Give a configuration that says how the run in `folder` was begun the learning rate that retries left it with.

    One that they did not leave it with stays: the run's was changed otherwise, or is to be.
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
    """What each retry changed: option -> [value before, value now]; nothing before the run began."""
    if (folder / journal.FILE).exists():
        for record in journal.read(folder):
            if record["event"] == "resume" and "retry" in record:
                yield record["changed"]
