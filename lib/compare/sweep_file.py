"""The text of a sweep: what its lines and the words of the command line say, before any option gets a value."""

import contextlib
import dataclasses
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lib.base import files
from lib.base.errors import UsageError, UserError
from lib.compare import axes
from lib.config.config_file import MISNAMED, ConfigError, presets
from lib.config.kconf import Schema
from lib.config.option import closest, nearest

QUANTITIES = ("tokens", "flops", "average-nonzeros", "final-nonzeros")  # what configurations can be matched on
COMMAND_LINE = "command line"  # the place of its words
_OURS = {
    "SEED": "the line `seeds` sets it",
    "TRACKER_RUN_NAME": "each run is named by its configuration and seed",
    "AUTO_BATCH": "its runs would have different micro-batches; give BATCH_SIZE",
    "JSON_OUTPUT": "all runs would write the same file; results.json has all their results",
}
_KEYWORDS = ("defconfig", "seeds", "common", "matrix", "match", "tune")
_SEVERAL = ("common", "matrix")  # keywords of which there may be several lines
_EXAMPLES = {"defconfig": "defconfig gpt2_tiny", "seeds": "seeds 1 2 3"}


@dataclasses.dataclass(frozen=True, eq=False)
class Word:
    """NAME=value, with one value or those of an axis."""

    name: str  # as the user wrote it, without CONFIG_
    texts: tuple[str, ...]
    place: str  # file:line

    def __str__(self) -> str:
        """The word as one would write it."""
        return f"{self.name}={','.join(self.texts)}"


@dataclasses.dataclass(frozen=True, eq=False)
class Line:
    """A line that describes configurations: one, or those of a matrix."""

    name: str  # "" of a line that begins with matrix
    place: str
    words: tuple[Word, ...]
    oneshot: bool = False
    matched: tuple[str, str] | None = None  # (quantity, configuration) that it is sized for


class SweepFile:
    """The content of a sweep, and its problems."""

    def __init__(self, schema: Schema, words: Iterable[str]):
        """A sweep with only the words of the command line; `schema` knows the options."""
        self.known = schema
        self.problems: list[str] = []
        self.base, self.seeds = Path(), []
        self.common: list[Word] = []
        self.lines: list[Line] = []
        self.quantity = QUANTITIES[0]
        self.tune: tuple[list[str], str] | None = None  # the words after `tune`, and their place
        self._seeded = ""  # the place that gave the seeds
        # make passes words in an order of its own, on which names should not depend.
        order = {name: number for number, name in enumerate(schema.options)}
        over = self._words(words, COMMAND_LINE)
        over.sort(key=lambda word: order.get(schema.now_called(word.name), -1))
        self.over = self._take_seeds(over)  # they come last, so they replace what the lines say

    def read(self, path: Path) -> None:
        """Add the lines of a file. Problems go into `problems`; raises ConfigError if they leave nothing to check."""
        places: dict[str, str] = {}  # first word of a line -> where it stands
        misspelt: set[str] = set()  # keywords
        for place, words in self._lines(path):
            first, *rest = words
            if first not in _SEVERAL and first in places:
                self.problems.append(f"{place}: a second line begins with {first}; the first is {places[first]}")
                continue
            no_line = any("=" not in word and word != "oneshot" for word in rest)
            if (meant := closest(first, _KEYWORDS)) != first and meant and no_line:
                self.problems.append(f"{place}: there is no keyword {first!r}; did you mean {meant}?")
                misspelt.add(meant)
                continue
            places[first] = place
            self._add(first, rest, place, path.parent)
        missing = [keyword for keyword in ("defconfig", "seeds") if keyword not in {*places, *misspelt}]
        if self._seeded:
            missing = [keyword for keyword in missing if keyword != "seeds"]
        self.problems += [f"{path}: lacks a line such as: {_EXAMPLES[keyword]}" for keyword in missing]
        if not self.lines:
            self.problems.append(f"{path}: lacks configurations, which are lines such as: adam OPTIMIZER=adam")
        if missing or misspelt or not self.lines:
            raise ConfigError(self.problems)

    def describe(self, base: Path) -> None:
        """Without a file: the words describe a matrix over the configuration `base`, and SEED is the seed."""
        words, self.over, self.base = self.over, [], base
        self.common = [word for word in words if len(word.texts) == 1]
        self.lines.append(Line("", COMMAND_LINE, tuple(word for word in words if len(word.texts) > 1)))
        if not self._seeded:
            self.known.load(base)
            self.seeds = [self.known["SEED"]]

    def _add(self, first: str, rest: list[str], place: str, folder: Path) -> None:
        """Take a line of the file in `folder`."""
        if first == "defconfig":
            self.base = self._base(rest, place, folder)
        elif first == "seeds":
            self._seed(self._several(rest, place), place)
        elif first == "common":
            self.common += self._without_seed(self._words(rest, place))
        elif first == "match":
            self._quantity(rest, place)
        elif first == "tune":
            self.tune = (rest, place)
        else:
            self._line("" if first == "matrix" else first, rest, place)

    def _lines(self, path: Path) -> Iterator[tuple[str, list[str]]]:
        """(file:line, words) of the lines that are neither empty nor a comment."""
        try:
            text = path.read_text(encoding="utf-8-sig")  # also removes a byte order mark
        except (OSError, ValueError) as error:  # a NUL in the path is a ValueError too
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            sentence = f"{path}: cannot be read as a sweep: {reason}"
            usage = isinstance(error, ValueError) or error.errno in MISNAMED
            raise (ConfigError([sentence]) if usage else UserError(sentence)) from None
        for number, line in enumerate(text.split("\n"), 1):
            try:
                words = shlex.split(line, comments=True)
            except ValueError as error:
                self.problems.append(f"{path}:{number}: cannot be understood: {str(error).lower()}")
                continue
            if words:
                yield f"{path}:{number}", words

    def _base(self, words: list[str], place: str, folder: Path) -> Path:
        known = presets()
        name = " ".join(words).removesuffix("_defconfig")
        if name in known:
            return Path(os.path.relpath(known[name]))
        path = files.named(" ".join(words))
        for one in (path, folder / path):  # the second: a sweep that was kept names the file beside it
            with contextlib.suppress(OSError):  # too long to be a name
                if one.is_file():
                    return one
        raise ConfigError([*self.problems, f"{place}: there is no preset or file {name!r}{nearest(name, known)}"])

    def _several(self, words: list[str], place: str) -> list[str]:
        """The seeds of a line: `1 2 3`, `1,2,3` or `1..3`."""
        if not words:
            self.problems.append(f"{place}: expected whole numbers, as in: {_EXAMPLES['seeds']}")
        found = []
        for word in words:
            try:
                found += axes.values(self.known.options["SEED"], word)
            except UsageError as error:
                self.problems.append(f"{place}: SEED={word} {error}")
        return found

    def _seed(self, texts: Iterable[str], place: str) -> None:
        option = self.known.options["SEED"]
        wrong = {text: problem for text in texts if (problem := option.complaint(text))}
        self.problems += [f"{place}: a seed {problem}" for problem in wrong.values()]
        seeds = [int(text) for text in texts if text not in wrong]
        if len(set(seeds)) < len(seeds):
            self.problems.append(f"{place}: a seed is given twice")
        if self._seeded == COMMAND_LINE:
            return
        if self._seeded and seeds != self.seeds:
            self.problems.append(f"{place}: {self._seeded} gives other seeds; all configurations have the same")
        self.seeds, self._seeded = seeds, place

    def _take_seeds(self, words: Sequence[Word]) -> list[Word]:
        """Use SEED as the seeds of the sweep; returns the other words."""
        if given := [word for word in words if word.name == "SEED"]:
            self._seed(given[-1].texts, given[-1].place)  # the last one counts, as of every option
        return [word for word in words if word.name != "SEED"]

    def _quantity(self, words: list[str], place: str) -> None:
        name = " ".join(words)
        if name not in QUANTITIES:
            known = f"{', '.join(QUANTITIES[:-1])} or {QUANTITIES[-1]}"
            self.problems.append(f"{place}: match takes {known}; got {name!r}{nearest(name, QUANTITIES)}")
        else:
            self.quantity = name

    def _line(self, name: str, words: list[str], place: str) -> None:
        """A named line, or (without a name) one that begins with matrix."""
        if name and not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,60}", name, re.ASCII):
            self.problems.append(f"{place}: {name!r} cannot name folders; use up to 60 letters, digits, '.', '_', '-'")
        given, matched = [], None
        for word in words:
            key, equals, text = word.partition("=")
            if key == "match" and equals:
                if matched:
                    self.problems.append(f"{place}: match= is there twice; leave one out")
                matched = self._matched(text, place)
            elif word != "oneshot":
                given.append(word)
        found = self._words(given, place)
        found = self._without_seed(found) if name else self._take_seeds(found)
        self.lines.append(Line(name, place, tuple(found), "oneshot" in words, matched))

    def _matched(self, text: str, place: str) -> tuple[str, str] | None:
        quantity, _, name = text.partition(":")
        if quantity in QUANTITIES and name:
            return quantity, name.removeprefix("@")
        near = nearest(quantity, QUANTITIES) if quantity not in QUANTITIES else ""
        example = "write match=QUANTITY:NAME, as in match=average-nonzeros:magnitude-80"
        self.problems.append(f"{place}: match={text} cannot be understood; {example}{near}")
        return None

    def _without_seed(self, words: list[Word]) -> list[Word]:
        """The words without SEED, which is a problem here."""
        for word in words:
            if word.name == "SEED":
                self.problems.append(f"{word.place}: a sweep cannot assign SEED: {_OURS['SEED']}")
        return [word for word in words if word.name != "SEED"]

    def _words(self, words: Iterable[str], place: str) -> list[Word]:
        """NAME=value words; other words become problems. `from` is short for INIT_FROM."""
        found = []
        for word in words:
            name, equals, text = word.partition("=")
            name = "INIT_FROM" if name == "from" else name.removeprefix("CONFIG_")
            if not equals:
                self.problems.append(f"{place}: expected NAME=value; got {word!r}")
            elif name in _OURS and name != "SEED":
                self.problems.append(f"{place}: a sweep cannot assign {name}: {_OURS[name]}")
            else:
                try:
                    texts = axes.values(self.known.options.get(self.known.now_called(name)), text)
                except UsageError as error:
                    self.problems.append(f"{place}: {name}={text} {error}")
                    continue
                found.append(Word(name, texts, place))
        return found
