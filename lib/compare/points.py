"""The points of a sweep: each line's product of axes, without what Kconfig forbids and what would be there twice."""

import dataclasses
import itertools
import math
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from lib.compare import axes
from lib.compare.sweep_file import Line, SweepFile, Word
from lib.config.config_file import ConfigError
from lib.config.kconf import Schema

Assignment = tuple[str, str, str]  # name, text, place

SIZES = ("N_LAYER", "N_HEAD", "N_EMBD")  # MODEL_NAME decides them, unless it is custom
SHAPE = ("MODEL_NAME", *SIZES, "MLP_WIDTHS", "HEAD_COUNTS")  # of a configuration, and of those that begin from it
ONESHOT = ("PRUNING_DYNAMICS", "oneshot")
Key = tuple[object, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Point:
    """A configuration before it is checked."""

    line: Line
    name: str
    stem: str  # the name without the axes that all lines have
    shared: Mapping[str, str]  # the axes that all lines have -> its value
    used: frozenset[str]  # those of them that have an effect here
    own: tuple[Assignment, ...]  # from its line, and the axes that all lines have
    assignments: tuple[Assignment, ...]  # all that apply

    def begins(self) -> dict[str, str]:
        """The options of axes.CHAINS that name configurations -> the text after @."""
        return {name: text[1:] for name, text, _ in self.assignments if name in axes.CHAINS and text.startswith("@")}


@dataclasses.dataclass
class Points:
    """All points of a sweep, and what became of the others."""

    points: list[Point] = dataclasses.field(default_factory=list)
    dropped: list[tuple[Point, str]] = dataclasses.field(default_factory=list)  # with the reason
    # The same for people: those with one reason share a name, that of the values in the reason.
    reasons: dict[tuple[str, str], None] = dataclasses.field(default_factory=dict)
    same: list[tuple[Point, str]] = dataclasses.field(default_factory=list)  # with the name of an equal one
    problems: list[str] = dataclasses.field(default_factory=list)


def expand(file: SweepFile) -> Points:
    """The points of all lines; raises ConfigError if their base cannot be loaded."""
    found, judge = Points(), _Judge(file.known, file.base)
    products = [_Product(line, file) for line in file.lines]
    made = [product.points(judge, found) for product in products]
    # A point of a matrix that another line describes too is that of the other line: of one without axes of its own
    # before a named one with axes.
    first: dict[Key, str] = {}
    by_rank = sorted(zip(products, made, strict=True), key=lambda pair: pair[0].own + (not pair[0].line.name))
    for _, some in by_rank:
        for key, point in some:
            first.setdefault(key, point.name)
    for product, some in zip(products, made, strict=True):
        for key, point in some:
            if product.own and first[key] != point.name:
                found.same.append((point, first[key]))
                found.reasons[point.name, f"it is the same as {first[key]}"] = None
            else:
                found.points.append(point)
    _check_names(found)
    judge.check_used(products, found)
    return found


def _check_names(found: Points) -> None:
    """Names that are there twice become problems."""
    places: dict[str, str] = {}
    for point in found.points:
        if point.name in places:
            found.problems.append(
                f"{point.line.place}: makes a second configuration {point.name}; the first is that of "
                f"{places[point.name]}; give the line a name, as in: mine PRUNING_METHOD=magnitude,random"
            )
        places.setdefault(point.name, point.line.place)


class _Judge:
    """Decides which assignments have an effect in a point, and whether Kconfig forbids it."""

    def __init__(self, schema: Schema, base: Path):
        self.schema, self.base = schema, base
        self.used: set[Word] = set()  # that have an effect somewhere
        self.idle: dict[Word, str] = {}  # without effect somewhere -> what it needs
        schema.clear()
        schema.load(base)

    def verdict(self, words: Mapping[str, Word], assignments: Sequence[Assignment]) -> tuple[set[str], str, Key]:
        """The names without effect in a point, why Kconfig forbids it, and what is equal in points that are alike.

        A point with mistakes is like no other, so that its check reports them.
        """
        valid = self._assign(assignments)
        schema, idle, forbidden = self.schema, set(), ""
        for name, text in schema.wanted.items():
            option = schema.options[name]
            if option.in_force(text) or (option.settable and option.out_of_range(text)):
                continue
            if option.settable or (name, text) == ONESHOT:
                needs = option.missing(text)
                forbidden = forbidden or f"{name}={text} " + (f"needs {needs}" if needs else "is decided by others")
            elif name in words:
                idle.add(name)
        if forbidden:
            return idle, forbidden, ()
        for name, word in words.items():
            if name not in idle:
                self.used.add(word)
            elif word not in self.idle:
                self.idle[word] = schema.options[name].missing(schema.wanted[name])
        if idle:
            valid = self._assign([one for one in assignments if schema.now_called(one[0]) not in idle])
        return idle, "", tuple(o.text for o in schema.options.values()) if valid else tuple(assignments)

    def _assign(self, assignments: Iterable[Assignment]) -> bool:
        """Give the schema only the base and these values; returns whether all are valid."""
        self.schema.clear()
        self.schema.load(self.base)
        try:
            self.schema.override(assignments)
        except ConfigError:
            return False
        return True

    def check_used(self, products: Iterable["_Product"], found: Points) -> None:
        """Words without effect in all points become problems. Those of plain lines are checked with their line."""
        plain = {word for product in products if not product.axes for word in product.words.values()}
        for word, needs in self.idle.items():
            if word not in self.used | plain:
                why = f"it needs {needs}" if needs else "other options decide it"
                found.problems.append(f"{word.place}: {word} has no effect in any configuration: {why}")


class _Product:
    """The product of a line's axes."""

    def __init__(self, line: Line, file: SweepFile):
        self.line, self.options = line, file.known.options
        called = file.known.now_called
        self.words: dict[str, Word] = {}  # present name -> the word that counts, which is the last one
        for word in (*file.common, *line.words, *file.over):
            self.words[called(word.name)] = word
        mine = [called(word.name) for word in line.words]
        self.of_line = {name for name in mine if self.words[name] in line.words}
        in_order = dict.fromkeys([*(name for name in mine if name in self.of_line), *self.words])
        self.axes = [name for name in in_order if len(self.words[name].texts) > 1]
        self.own = not line.name or any(name in self.of_line for name in self.axes)  # whether it is a matrix itself
        # What its source or its kind of run decides; the words of all lines about it do not count here.
        decided = {*(SHAPE if self._chained() else ()), *(("MAX_ITERS",) if line.oneshot else ())}
        self.passed_over = decided & self.words.keys() - self.of_line

    def _chained(self) -> bool:
        return "INIT_FROM" in self.words and self.words["INIT_FROM"].texts[0].startswith("@")

    def problems(self) -> Iterator[str]:
        """What is wrong with the line as a whole."""
        counts = [len(self.words[name].texts) for name in self.axes]
        if (count := math.prod(counts)) > axes.MOST:
            sizes = " x ".join(map(str, counts))
            yield f"{self.line.place}: {sizes} is {count:,} configurations; a line makes up to {axes.MOST:,}"
        if self.line.oneshot and "MAX_ITERS" in self.of_line:
            why = "the steps of one-shot pruning are the blocks of the model; leave it out"
            yield f"{self.line.place}: {self.words['MAX_ITERS']}: {why}"
        if self.line.oneshot and not (self._chained() or "INIT_FROM" in self.words):
            yield f"{self.line.place}: oneshot prunes a finished model; name it, as in from=@dense"

    def points(self, judge: _Judge, found: Points) -> list[tuple[Key, Point]]:
        """The points that are left, each with what is equal in points that are alike; the others go into `found`."""
        if problems := list(self.problems()):
            found.problems += problems
            return []
        judged = {name: word for name, word in self.words.items() if name not in self.passed_over}
        left: dict[Key, tuple[dict[str, str], set[str]]] = {}
        dropped: list[tuple[Point, str]] = []
        for texts in itertools.product(*(self.words[name].texts for name in self.axes)):
            chosen = dict(zip(self.axes, texts, strict=True))
            idle, forbidden, key = judge.verdict(judged, self._assignments(chosen, ()))
            if not self.axes:  # its check reports what has no effect
                idle, forbidden = set(), ""
            if forbidden:
                dropped.append((self._point(chosen, set()), forbidden))
                others = {name for name in self.axes if not re.search(rf"\b{name}\b", forbidden)}
                found.reasons[self._name(chosen, others), forbidden] = None
            else:
                others = [text for name, text in chosen.items() if name in self.passed_over]
                left.setdefault((key, *others, self.line.oneshot, self.line.matched), (chosen, idle))
        found.dropped += dropped
        if not left:
            every = "the only point is" if len(dropped) == 1 else f"all {len(dropped)} points are"
            why = dict.fromkeys(reason for _, reason in dropped)
            found.problems.append(f"{self.line.place}: nothing is left: {every} forbidden, because {' and '.join(why)}")
        names = [self._name(*one) for one in left.values()]
        in_full = len(set(names)) < len(names)
        return [(key, self._point(*one, in_full)) for key, one in left.items()]

    def _assignments(self, chosen: Mapping[str, str], idle: Container[str]) -> tuple[Assignment, ...]:
        """All that apply in a point, without what has no effect."""
        taken = [(name, word) for name, word in self.words.items() if name not in (*self.passed_over, *idle)]
        found = tuple((word.name, chosen.get(name, word.texts[0]), word.place) for name, word in taken)
        return ((*ONESHOT, self.line.place), *found) if self.line.oneshot else found

    def _point(self, chosen: Mapping[str, str], idle: set[str], in_full: bool = False) -> Point:
        assignments = self._assignments(chosen, idle)
        own = {self.words[name].name for name in self.words if name in self.of_line or name in self.axes}
        shared = {name: text for name, text in chosen.items() if name not in self.of_line}
        return Point(
            self.line,
            self._name(chosen, idle, in_full),
            self._name({name: text for name, text in chosen.items() if name in self.of_line}, idle, in_full),
            shared,
            frozenset(shared.keys() - idle),
            tuple(one for one in assignments if one[0] in own),
            assignments,
        )

    def _name(self, chosen: Mapping[str, str], idle: Container[str], in_full: bool = False) -> str:
        alone = sum(self.options[name].kind in ("int", "float") for name in self.axes) == 1
        used = [(self.options[name], text) for name, text in chosen.items() if name not in idle]
        return axes.name(self.line.name, used, alone, in_full)
