"""A finished run that a sweep may count as its own: what it was made with, and whether it ended as planned."""

import functools
import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lib.base.errors import UserError
from lib.config import matters
from lib.config.kconf import ROOT, Schema, present_values
from lib.record import history, journal, provenance
from lib.record.history import History

_SHOWN = ("DEVICE", "COMPILE", "THREADS", "EVAL_TASKS")  # not compared, but of interest
_MACHINE = ("cpu", "gpus")  # entries of provenance.environment
_LONGEST = 60  # characters of a value in a sentence

Values = Mapping[str, Any]


class Refused(UserError):
    """The first reason why a run does not count."""


class Candidate:
    """A run that may count. Its first line is read now, the rest only if its options are the same."""

    def __init__(self, folder: Path, foreign: bool):
        """`foreign` runs come from another machine: they are read completely, and their checkpoints too."""
        self.folder, self.foreign = folder, foreign
        self.start: Values = {}
        try:
            with (folder / journal.FILE).open("rb") as file:
                first = journal.record(file.readline()) or {}
        except OSError:  # it has not begun
            first = {}
        if first.get("event") == "start":
            self.start = first
        self.config = present_values(self.start.get("config") or {})
        self.values = compared(self.config)

    @functools.cached_property
    def history(self) -> History:
        """What the journal says, mostly of its rare events."""
        return history.skim(self.folder)

    @functools.cached_property
    def ended(self) -> float:
        """When the run was trained last, in unix seconds; 0 if its journal does not say it."""
        try:
            return self.history.time or 0
        except (UserError, OSError):  # a check reports it
            return 0

    def check_end(self, max_iters: int) -> None:
        """Raise UserError unless the run ended as planned, and its journal and summary are whole and agree."""
        folder, known = self.folder, self.history
        if self.foreign and (lines := journal.damaged(folder)):
            raise Refused(f"lines {', '.join(map(str, lines[:9]))} of its journal are damaged")
        data = (folder / journal.FILE).read_bytes()
        last = journal.record(data[data.rfind(b"\n", 0, -1) + 1 :])
        if last is None or not data.endswith(b"\n") or data.count(b"\n") != last["seq"] + 1:
            raise Refused("its journal is not whole: lines are missing or damaged")
        status = history.state(known, folder)
        if status != "finished" or (known.step, known.end["step"]) != (max_iters, max_iters):
            raise Refused(f"is {status} after step {known.step:,} of {max_iters:,}")
        summary, end = history.summary(folder), journal.numbers(known.end)
        told = {"status": status, "steps": max_iters, **{name: end[name] for name in end.keys() & summary.keys()}}
        if evaluations := known.evaluations():
            told["final_val_loss"] = evaluations[-1].val_loss
        for name, value in sorted(told.items()):
            if not all(_same(found.get(name, value), value) for found in (summary, end)) or name not in summary:
                raise Refused(f"its summary and its journal differ in {name}")

    def made(self, schema: Schema) -> Iterator[str]:
        """How code, machine and choices differ from those of a new run with the configuration `schema`.

        Raises UserError if the code had other uncommitted changes: numbers of parts speak of commits only.
        """
        sessions = history.provenances(self.folder)
        if not sessions:
            raise Refused("its provenance.json is missing")
        for made in sessions:
            self._check_changes(made)
        yield from dict.fromkeys(word for made in sessions for word in _differences(made))
        if (use := history.machine(self.start)) and use.ranks > 1:
            yield f"{use.ranks} processes"
        for name in _SHOWN:
            if name.lower() in self.config and self.config[name.lower()] != schema[name]:
                yield f"{name}={text(self.config[name.lower()]) or 'unset'}"

    def _check_changes(self, made: Mapping[str, Any]) -> None:
        kept = made.get("uncommitted_changes") or {"file": None, "note": ""}
        if kept["note"] and not kept["file"]:
            raise Refused("its code had uncommitted changes that were not kept")
        path = self.folder / kept["file"] if kept["file"] else None
        if path and (path.parent != self.folder or hashlib.sha256(path.read_bytes()).hexdigest() != kept["sha256"]):
            raise Refused(f"{path}: is not the file of its uncommitted changes any more")
        there, here = _of_code(path.read_bytes() if path else b""), _changes()
        if differ := sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name)):
            raise Refused(f"its code and the present one have different uncommitted changes, in {text(differ[0])}")


def _differences(made: Mapping[str, Any]) -> Iterator[str]:
    """How code, machine and PyTorch of a session differ from the present ones."""
    now = _now()
    if made.get("commit") != now["commit"] or made.get("uncommitted_changes"):
        yield f"code {history.code(made)}"
    yield from (f"{name} {text(made[name])}" for name in _MACHINE if name in made and made[name] != now[name])
    there, here = (about.get("packages", {}).get("torch") for about in (made, now))
    if there != here:
        yield f"torch {text(there)}"


@functools.cache
def _changes() -> dict[str, bytes]:
    """The uncommitted changes of the present code; see `_of_code`."""
    found = provenance.uncommitted(ROOT)
    return _of_code(found.patch if found else b"")


def _of_code(patch: bytes) -> dict[str, bytes]:
    """File -> its part of a patch, of the files of Python that training may import."""
    parts = re.split(rb"^diff --git a/", patch, flags=re.MULTILINE)[1:]
    found = {part.partition(b" b/")[0].decode(errors="replace"): part for part in parts}
    return {name: part for name, part in found.items() if re.fullmatch(r"(.*/)?(gpt2|lib)/.*\.py", name)}


@functools.cache
def _now() -> dict[str, Any]:
    return {"commit": provenance.commit(ROOT), **provenance.environment()}


@functools.cache
def _free() -> frozenset[str]:
    """The options that are not compared, in lower case."""
    return frozenset(name.lower() for name in matters.names(Schema(), lambda group: not group.same_in_reuse))


def compared(config: Values) -> dict[str, Any]:
    """The options of a configuration that are compared, by name in lower case."""
    return {name: _plain(value) for name, value in config.items() if name not in _free()}


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def text(value: Any) -> str:
    """A value for a sentence. It may come from elsewhere, so it has no control characters."""
    words = {None: "unset", True: "y", False: "n"}[value] if isinstance(value, bool | None) else str(value)
    return (words if words.isprintable() else ascii(words))[:_LONGEST]


def check_code(there: Any, here: Mapping[str, int]) -> None:
    """Raise Refused if the numbers of the parts differ; `there` was recorded."""
    if there != here:
        there = there if isinstance(there, dict) else {}
        part = next(part for part in (*here, *there, "its code") if there.get(part) != here.get(part))
        was, now = (text(found.get(part, "none")) for found in (there, here))
        raise Refused(f"its code learns something else: the number of {text(part)} is {was} there and {now} here")


def _same(one: Any, other: Any) -> bool:
    numbers = isinstance(one, float) and isinstance(other, float)
    return one == other or (numbers and math.isnan(one) and math.isnan(other))
