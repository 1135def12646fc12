"""What figures have in common: the finished runs of each configuration, its method, and how it looks."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lib.report import fairness
from lib.report.figures_canvas import COLOURS, short
from lib.report.outcome import Group, Outcome
from lib.report.study import Study

MOST = 8  # configurations, and methods, that stand out in a panel; the rest is grey
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ((0, ()), (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (2.5, 1)), (0, (7, 2)))
_HUGE = 1e6  # nats: such a loss would flatten all others, so it counts as diverged
_SPARSE = 1e-3  # what has fewer zeros is a dense baseline


@dataclasses.dataclass(frozen=True)
class Look:
    """How a configuration is drawn."""

    colour: str
    marker: str
    dash: tuple[int, tuple[float, ...]]


@dataclasses.dataclass(frozen=True)
class Shown:
    """A configuration with its finished runs whose loss is finite."""

    name: str
    method: str  # the name without its sparsity; configurations of one method have one colour
    runs: tuple[Outcome, ...]
    look: Look
    other: bool  # whether its budget or evaluation is not that of the reference, so that they must not be ranked
    evaluation: frozenset[str]  # what its losses were measured on, in words
    diverged: bool  # whether a run of it diverged: the others show only the seeds that went well

    @property
    def loss(self) -> float:
        """Mean over the seeds."""
        return float(np.mean([one.val_loss for one in self.runs]))

    @property
    def member(self) -> str:
        """What distinguishes it from others of its method; empty if it is the method's only name."""
        rest = self.name.removeprefix(self.method).strip(" -_")
        return short(rest if rest and self.name.startswith(self.method) else self.name)

    @property
    def quiet(self) -> bool:
        """Whether its method is one of too many to have a colour and a label."""
        return self.look.colour == COLOURS["quiet"][0]

    @property
    def dense(self) -> bool:
        """Whether it has no zeros: a baseline."""
        return (self.mean("sparsity") or 0.0) < _SPARSE

    def mean(self, field: str) -> float | None:
        """The mean of a field over the runs; None if a run does not have it."""
        values = [getattr(one, field) for one in self.runs]
        if not values or any(value is None or not math.isfinite(value) for value in values):
            return None
        return float(np.mean(values))

    def interval(self) -> float | None:
        """Half the width of the 95 % interval of the mean loss, by the t distribution; None with one seed."""
        if len(self.runs) < 2:
            return None
        from scipy.special import stdtrit

        losses = [one.val_loss for one in self.runs]
        return float(stdtrit(len(losses) - 1, 0.975) * np.std(losses, ddof=1) / math.sqrt(len(losses)))


@dataclasses.dataclass(frozen=True)
class Cast:
    """Everything that figures show of a study."""

    shown: tuple[Shown, ...]
    reference: Shown | None
    missing: str  # a sentence on runs that no figure shows, or empty

    @property
    def methods(self) -> dict[str, list[Shown]]:
        """Method -> its configurations, without the reference's."""
        found: dict[str, list[Shown]] = {}
        for one in self.shown:
            if one is not self.reference:
                found.setdefault(one.method, []).append(one)
        return found

    def base(self, among: Sequence[Shown]) -> Shown | None:
        """The reference; if no run of it is shown, the first of these that may be ranked with it, or else the first."""
        return self.reference or min(among, key=lambda one: one.other, default=None)

    def foremost(self, among: Sequence[Shown]) -> list[Shown]:
        """The configurations that stand out, in the study's order: the reference and those with the lowest losses."""
        best = sorted(among, key=lambda one: (one is not self.reference, one.loss))[:MOST]
        return [one for one in among if one in best]


def cast(study: Study) -> Cast:
    """The configurations of a study as figures show them."""
    first = next((block.groups for block in study.blocks if study.reference in [g.name for g in block.groups]), ())
    ranked = {group.name for group in first} or {group.name for group in study.groups}
    names = {group.name: method(group) for group in study.groups}
    looks = _looks(study.groups, names, study.reference)
    measured = fairness.evaluations(study.groups)
    shown = tuple(
        Shown(
            group.name, names[group.name], runs, looks[group.name], other=group.name not in ranked,
            evaluation=frozenset(measured[group.name].values()), diverged=any(map(_diverged, group.outcomes)),
        )
        for group in study.groups
        if (runs := tuple(one for one in group.outcomes if one.finished and _finite(one.val_loss)))
    )  # fmt: skip
    reference = next((one for one in shown if one.name == study.reference), None)
    return Cast(shown, reference, _missing(study.groups))


def method(group: Group) -> str:
    """The name of a configuration without its sparsity: `state-hybrid` of `state-hybrid-0.8` and of `state-hybrid-80`.

    A last number that is no sparsity is taken off the name of a configuration without a target, as in small-dense-80.
    """
    targets = {one.options.get("TARGET_SPARSITY") for one in group.outcomes} - {None, ""}
    values = [float(text) for text in targets if re.fullmatch(r"\d*\.?\d+", text)]
    left = re.sub(r"(^| )target_sparsity=\S+", "", group.name).strip()
    if left and left != group.name:  # a name that `naming` gave
        return left
    words = re.split(r"([ _/-])", group.name)
    for place in range(len(words) - 1, 0, -1):
        if _number(words[place], values):
            left = "".join(words[: place - 1] + words[place + 1 :])
            return left or group.name
    return group.name


def _number(word: str, targets: Sequence[float]) -> bool:
    """Whether a word is one of these sparsities, as a share or in percent; any number, if there are none."""
    if not re.fullmatch(r"\d+(\.\d+)?%?", word):
        return False
    value = float(word.rstrip("%"))
    return not targets or any(math.isclose(value, one) or math.isclose(value, 100 * one) for one in targets)


def _finite(loss: float | None) -> bool:
    return loss is not None and 0 < loss < _HUGE


def _looks(groups: Sequence[Group], names: Mapping[str, str], reference: str) -> dict[str, Look]:
    """Configuration -> its look. The reference is black. The eight best methods have a colour, others are grey."""
    best: dict[str, float] = {}
    for group in groups:
        losses = [loss for loss in group.losses.values() if _finite(loss)]
        if group.name != reference:
            best[names[group.name]] = min([best.get(names[group.name], math.inf), *losses])
    foremost = sorted(best, key=best.__getitem__)[:MOST]
    methods = [method for method in best if method in foremost] + [method for method in best if method not in foremost]
    seen: dict[str, int] = {}
    found = {}
    for group in groups:
        if group.name == reference:
            found[group.name] = Look(COLOURS["ink"][0], "h", DASHES[0])
            continue
        own = names[group.name]
        rank, member = methods.index(own), seen.get(own, 0)
        seen[own] = member + 1
        colour = COLOURS[f"series{rank}" if rank < MOST else "quiet"][0]
        found[group.name] = Look(colour, _MARKERS[rank % len(_MARKERS)], DASHES[member % len(DASHES)])
    return found


def _missing(groups: Sequence[Group]) -> str:
    """Which runs no figure shows, and why."""
    lost = _named(groups, _diverged)
    short_of = _named(groups, lambda one: not one.finished and one.state != "diverged")
    parts = [f"Diverged, so not drawn: {lost}." if lost else "", f"Not finished: {short_of}." if short_of else ""]
    return " ".join(part for part in parts if part)


def _diverged(one: Outcome) -> bool:
    return one.state == "diverged" or (one.finished and one.val_loss is not None and not _finite(one.val_loss))


def _named(groups: Sequence[Group], wanted: Callable[[Outcome], bool]) -> str:
    """`magnitude-80 (seeds 2 and 3), state-80 (seed 1)`."""
    found = []
    for group in groups:
        seeds = [str(one.seed) for one in group.outcomes if wanted(one)]
        if seeds:
            words = f"seeds {', '.join(seeds[:-1])} and {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"
            found.append(f"{short(group.name)} ({words})")
    return _listed(found)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def left_out(why: str, found: Sequence[Shown]) -> str:
    """The sentence that names configurations that do not count, and why; empty if there are none."""
    return f"{why}: {_listed([short(one.name) for one in found])}." if found else ""


def sentences(*parts: str) -> str:
    """A caption of these sentences; empty ones are left out."""
    return " ".join(part for part in parts if part)


def grey(number: int) -> str:
    """The sentence on configurations that do not stand out; empty if there are none."""
    return (
        f"{number:,} configuration{'s' * (number != 1)} with higher losses {'are' if number > 1 else 'is'} grey."
        if number
        else ""
    )


def seeds(cast: Cast) -> int:
    """The largest number of seeds of a configuration."""
    return max((len(one.runs) for one in cast.shown), default=0)


def scaled(most: float, units: Sequence[tuple[float, str]]) -> tuple[float, str]:
    """The largest unit of which there are at least two, or else the first: its size and its name."""
    return next(((size, name) for size, name in reversed(units) if most >= 2 * size), units[0])


COUNTS = ((1.0, ""), (1e3, "thousand"), (1e6, "million"), (1e9, "billion"), (1e12, "trillion"))
TIMES = ((1.0, "seconds"), (60.0, "minutes"), (3600.0, "hours"))
BYTES = ((2.0**20, "MiB"), (2.0**30, "GiB"))
