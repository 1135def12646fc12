"""What differs between two runs: configuration, code, versions, machine and result; and which result is better."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lib.config import matters
from lib.config.kconf import Schema
from lib.config.matters import TUNED
from lib.record import history, journal, lineage
from lib.record.history import History
from lib.record.lineage import Ancestors

_MACHINE = ("host", "platform", "cpu", "processors", "cores", "memory_bytes", "gpus", "gpu_driver")

Pair = tuple[Any, Any]


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two runs."""

    folder: Path
    history: History
    options: dict[str, str]  # an option's present name -> its value as text, of the newest session
    made: dict[str, Any]  # the newest session's provenance
    ancestors: Ancestors  # what was trained before the run; {} for a run from random weights
    began: dict[str, str]  # those of lineage.OPTIONS that the run has -> the sha256 of what it began with

    @classmethod
    def load(cls, folder: Path) -> "Side":
        """Read the folder of a run; raises UserError if it is not a run or is damaged."""
        made = history.provenances(folder)
        options = {name: value for name, (value, _) in history.options(folder).items()}
        known = history.load(folder)
        origin = lineage.origin(folder)
        ancestors = lineage.merged(*(part["ancestors"] for part in origin.values()))
        began = {lineage.OPTIONS[part]: about["sha256"] for part, about in origin.items()}
        return cls(folder, known, options, made[-1] if made else {}, ancestors, began)

    def results(self) -> dict[str, float | None]:
        """The run's results by name; None for a result that it does not have."""
        final = journal.numbers(self.history.end) if self.history.end else {}
        mean = history.summary(self.folder).get("tokens_per_second")
        return {
            "final val loss": final.get("final_val_loss"),
            "best val loss": self.history.best(),
            "sparsity": self.history.last("sparsity"),
            "steps": self.history.step,
            "tokens": self.history.last("tokens"),
            "total tokens": self.total_tokens(),
            "seconds": self.history.seconds(),
            "tokens/s": mean or self.history.last("tokens_per_second"),
        }

    def lengths(self) -> list[tuple[int, int]]:
        """The step from which each MAX_ITERS held, and its value; one pair unless a resume changed it."""
        found: list[tuple[int, int]] = []
        for session in self.history.sessions:
            steps = (session.get("config") or {}).get("max_iters")
            while found and found[-1][0] >= session["step"]:  # it acted on no step that counts
                found.pop()
            if steps is not None and (not found or found[-1][1] != steps):
                found.append((session["step"], steps))
        return found

    def total_tokens(self) -> float | None:
        """The tokens of the run and of what it began from; None if they are not known."""
        if self.ancestors:
            return lineage.total_tokens(self.folder, self.history.step)
        return self.history.last("tokens")


def options(a: Side, b: Side) -> dict[str, Pair]:
    """Option -> its two values, of the options that differ; `-` stands for a run without the option."""
    names = dict.fromkeys([*a.options, *b.options])
    pairs = {name: (a.options.get(name, "-"), b.options.get(name, "-")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def code(a: Side, b: Side) -> dict[str, Pair]:
    """The commits with their uncommitted changes; empty if both runs certainly used the same code."""
    one, other = history.code(a.made), history.code(b.made)
    known = bool(a.made.get("commit")) and not one.endswith("not kept")
    return {} if one == other and known else {"commit": (one, other)}


def versions(a: Side, b: Side) -> dict[str, Pair]:
    """Python and the packages whose versions differ."""
    one, other = ({"python": s.made.get("python"), **s.made.get("packages", {})} for s in (a, b))
    return _pairs(one, other)


def machine(a: Side, b: Side) -> dict[str, Pair]:
    """What differs between the machines and in how the runs used them."""
    return _pairs(_machine(a), _machine(b))


def _machine(side: Side) -> dict[str, Any]:
    if not side.history.sessions:
        return {}
    use = history.machine(side.history.sessions[-1])
    return {name: side.made.get(name) for name in _MACHINE} | {"used": use and use.words(reasons=False)}


def _pairs(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Pair]:
    return {name: (a.get(name), b.get(name)) for name in {**a, **b} if a.get(name) != b.get(name)}


def common_loss(a: Side, b: Side) -> tuple[str, float, float] | None:
    """Where both runs have a validation loss, and the two losses; None if there is no such place.

    This is the last step at which both have one. It is the end of each if they began from other runs and have different
    numbers of steps.
    """
    one, other = (side.history.values("val_loss") for side in (a, b))
    if (a.ancestors or b.ancestors) and a.history.step != b.history.step:
        ends = one.get(a.history.step), other.get(b.history.step)
        return None if None in ends else ("at the end", *ends)
    step = max(one.keys() & other.keys(), default=None)
    return None if step is None else (f"at step {step}", one[step], other[step])


def unequal(a: Side, b: Side) -> Iterator[str]:
    """Reasons why the two runs did not have equal budgets, a few words each; see lib/config/matters.py.

    If a run began from other runs, the tokens of all of them count in place of its own steps.
    """
    yield from _lengths(a, b)
    yield from _data(a, b)
    known, chained = Schema().options, bool(a.ancestors or b.ancestors)
    ended = all(side.options.get("MAX_ITERS") == str(side.history.step) for side in (a, b))
    for name, (one, other) in options(a, b).items():
        if name == "MAX_ITERS" and chained and ended:  # a schedule that was stopped in its middle is no whole one
            continue
        if name not in known or matters.group(known[name]).equal_in_comparison:
            yield f"{name} is {one} and {other}"
    if chained:
        if a.history.step != b.history.step and not ended:
            yield f"one is at step {a.history.step:,} and one at step {b.history.step:,}, not both at their last"
        one, other = (lineage.chain(side.folder, side.history.step) for side in (a, b))
        if lineage.cost(one) != lineage.cost(other):
            yield f"with the runs before, {lineage.words(one)} and {lineage.words(other)} tokens were trained"
        return
    one, other = (side.history.last("tokens") for side in (a, b))
    if one != other:
        yield f"{_tokens(one)} and {_tokens(other)} tokens were trained"


def _lengths(a: Side, b: Side) -> Iterator[str]:
    """A reason for each run whose MAX_ITERS was changed by a resume: its schedules were not those of either number.

    Two runs with the same changes at the same steps had the same schedules.
    """
    changes = [side.lengths() for side in (a, b)]
    if changes[0] == changes[1]:
        return
    for name, each in zip("AB", changes, strict=True):
        if len(each) > 1:
            numbers = ", then ".join(f"{steps} from step {step:,}" if step else f"{steps}" for step, steps in each)
            yield f"{name} was resumed with another MAX_ITERS ({numbers}), so its schedules had another length"


def _data(a: Side, b: Side) -> Iterator[str]:
    """A reason if the runs had other tokens, which the options do not tell. Earlier versions did not record which."""
    one, other = a.history.data, b.history.data
    is_same_part = a.options.get("EVALUATE", "y") == b.options.get("EVALUATE", "y")  # with n, of training only
    if is_same_part and one and other and one != other:
        yield f"the data differs: A has sha256 {' and '.join(one)}, and B has {' and '.join(other)}"


def _tokens(number: float | None) -> str:
    return "no" if number is None else f"{number:,.0f}"


def notes(a: Side, b: Side) -> Iterator[str]:
    """Notes for a fair reading of the comparison."""
    differ = options(a, b)
    if tuned := [name for name in TUNED if name in differ]:
        yield f"Not the same: {' and '.join(tuned)}. A fair comparison tunes both equally well."
    if "SEED" in differ:
        yield "The seeds differ, and so do data order and initial weights: part of the difference is random."
    if "EVAL_INTERVAL" in differ and not _unevaluated(a, b):
        yield "EVAL_INTERVAL differs, so the best losses come from different steps and cannot be compared."
    for name in a.began.keys() & b.began.keys() - differ.keys():
        if a.began[name] != b.began[name]:
            files = f"sha256 {a.began[name][:12]} and {b.began[name][:12]}"
            yield f"Both have {name}={a.options.get(name, '')}, but what it names had changed between them ({files})."
    commits = code(a, b).get("commit", ("", ""))
    if commits[0] != commits[1] or versions(a, b):
        yield "Code or versions differ, which by itself can change losses."
    elif commits[0]:
        yield "It is not known whether both used the same code. Different code by itself can change losses."
    if machine(a, b) or differ.keys() & {"DEVICE", "COMPILE", "THREADS"}:
        yield "The machine or its use differs, so the times cannot be compared."


def _unevaluated(a: Side, b: Side) -> list[str]:
    return [name for name, side in (("A", a), ("B", b)) if side.options.get("EVALUATE") == "n"]


def refusal(a: Side, b: Side, reasons: Sequence[str]) -> str:
    """Why neither run is ranked; "" if they can be. `reasons` say why budgets are not equal."""
    if without := _unevaluated(a, b):
        return f"{' and '.join(without)} did not measure the validation loss (EVALUATE=n), so neither is ranked."
    if reasons:
        return f"The budgets differ, so neither is ranked: {'; '.join(reasons)}."
    found = common_loss(a, b)
    if found is None:
        return "They have no validation loss at the same step, so neither is ranked."
    where, *losses = found
    if not all(map(math.isfinite, losses)):
        return f"{where.capitalize()} a validation loss is NaN or infinite, so neither is ranked."
    return ""


def verdict(a: Side, b: Side, reasons: Sequence[str]) -> str:
    """Which run has the lower validation loss, or the refusal."""
    if why := refusal(a, b, reasons):
        return why
    where, one, other = common_loss(a, b)
    if one == other:
        return f"Equal budgets, and the same validation loss {where}."
    better, by = ("A", other - one) if one < other else ("B", one - other)
    return f"Equal budgets: {where} {better} has the lower validation loss, by {by:.4f} nats per token."
