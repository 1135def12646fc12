"""Chains: which configuration of a sweep begins from which other one, and in which order they must be decided."""

import dataclasses
import graphlib
import itertools
import re
from collections.abc import Mapping

from lib.base.errors import UsageError
from lib.compare.points import Point, Points
from lib.config.option import nearest

_CHECKPOINT = re.compile(r"newest|best|\d{1,9}", re.ASCII)

Begins = tuple[tuple[str, tuple[str, str]], ...]  # see plan.Configuration


@dataclasses.dataclass
class Chains:
    """What the points of a sweep need of each other, by their names."""

    begins: dict[str, Begins] = dataclasses.field(default_factory=dict)
    matched: dict[str, str] = dataclasses.field(default_factory=dict)  # name -> what it is sized for
    order: list[str] = dataclasses.field(default_factory=list)  # all names; what a point needs comes before it
    problems: list[str] = dataclasses.field(default_factory=list)

    def needed(self, name: str) -> list[str]:
        """The names that a point needs itself."""
        own = [self.matched[name]] if name in self.matched else []
        return [*own, *(other for _, (other, _) in self.begins[name])]

    def steps(self, name: str, last: Mapping[str, int]) -> dict[str, int]:
        """The names of all points on the way to the end of this one, itself too -> the steps that they train for it.

        `last` has the steps of each point, 0 for one-shot pruning. Raises UsageError if nobody can know them.
        """
        found = {name: last[name]}
        for option, (other, checkpoint) in self.begins[name]:
            if checkpoint == "@best":
                raise UsageError(f"{option}=@{other}@best: its step is not known before training; name one to match it")
            steps = self.steps(other, last)
            if checkpoint[1:].isdigit():
                steps[other] = min(int(checkpoint[1:]), last[other])
            for one, count in steps.items():
                found[one] = max(count, found.get(one, 0))
        return found

    def checkpoints(self, name: str) -> list[str]:
        """The checkpoints of a point that others begin from, such as 200 and best."""
        links = (link for begins in self.begins.values() for _, link in begins)
        return sorted({checkpoint[1:] for other, checkpoint in links if other == name and checkpoint})


class _Missing(Exception):
    """A name does not name a configuration; the text says why. `dropped`: because Kconfig forbids it."""

    def __init__(self, why: str, dropped: bool = False):
        super().__init__(why)
        self.dropped = dropped


def resolve(points: Points) -> Chains:
    """The chains of the points. A point of a matrix that needs one that was dropped is dropped too."""
    before, lines = -1, dict.fromkeys(point.line for point in points.points)
    while before != len(points.dropped):
        before, found = len(points.dropped), Chains()
        for point in list(points.points):
            try:
                _link(point, points, found)
            except _Missing as error:
                if error.dropped and point.name != point.line.name:
                    points.points.remove(point)
                    points.dropped.append((point, str(error)))
                    points.reasons[point.name, str(error)] = None
                else:
                    found.problems.append(f"{point.line.place}: {error}")
                    found.begins[point.name] = ()
    left = {point.line for point in points.points}
    for line in (line for line in lines if line not in left):
        why = dict.fromkeys(reason for point, reason in points.dropped if point.line is line)
        found.problems.append(f"{line.place}: nothing is left: {' and '.join(why)}")
    try:
        graph = {name: found.needed(name) for name in found.begins}
        order = graphlib.TopologicalSorter(graph).static_order()
        found.order = [name for name in order if name in graph]
    except graphlib.CycleError as error:
        circle = error.args[1][:0:-1]  # its first is its last too
        names = [point.name for point in points.points]
        start = circle.index(min(circle, key=names.index))
        circle = [*circle[start:], *circle[: start + 1]]
        place = points.points[names.index(circle[0])].line.place
        steps = ", ".join(f"{one} needs {other}" for one, other in itertools.pairwise(circle))
        found.problems.append(f"{place}: the chain is a circle: {steps}; let one of them begin from something else")
    return found


def _link(point: Point, points: Points, found: Chains) -> None:
    begins = []
    for option, text in point.begins().items():
        target, _, checkpoint = text.partition("@")
        if checkpoint and not _CHECKPOINT.fullmatch(checkpoint):
            raise _Missing(f"@{text}: the checkpoint of @{target} is a step, best or newest; got {checkpoint!r}")
        begins.append((option, (_find(target, point, points).name, checkpoint and f"@{checkpoint}")))
    if point.line.matched:
        found.matched[point.name] = _find(point.line.matched[1], point, points).name
    found.begins[point.name] = tuple(begins)


def _find(target: str, point: Point, points: Points) -> Point:
    """The point that `point` means by a name: that of this name, or the one with the same axes of all lines."""
    known = {one.name: one for one in points.points}
    if target in known:
        return known[target]
    equal = [(one, known[name]) for one, name in points.same if name in known]
    if twin := next((twin for one, twin in equal if one.name == target), None):
        return twin
    there = [*((one, one) for one in points.points), *equal]
    alike = [(one, twin) for one, twin in there if one.stem == target]
    fit = [twin for one, twin in alike if _fits(one, point)]
    if not fit:
        for one, why in points.dropped:
            if one.name == target or (one.stem == target and _fits(one, point)):
                raise _Missing(f"it needs {one.name}, which cannot be: {why}", dropped=True)
    if not alike:
        fit = [twin for one, twin in there if one.line.name == target]
    if len(fit) == 1:
        return fit[0]
    if several := fit or [twin for _, twin in alike]:
        names = ", ".join(one.name for one in several)
        if len(several) == 1:
            raise _Missing(f"@{target} is only {names}, whose axes have other values than {point.name}; name @{names}")
        raise _Missing(f"@{target} is {len(several)} configurations; name one of {names}")
    raise _Missing(f"there is no configuration {target!r}{nearest(target, known)}")


def _fits(one: Point, point: Point) -> bool:
    """Whether `one` has the values of `point` of the axes of all lines. Those without effect in it say nothing."""
    idle = point.shared.keys() - point.used
    return all(point.shared.get(name) == one.shared[name] for name in one.used - idle)
