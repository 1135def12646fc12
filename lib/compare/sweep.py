"""Sweeps: configurations x seeds at equal budget, read from a text file and checked before training."""

import contextlib
import dataclasses
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from lib import schedule
from lib.base import files
from lib.base.errors import UsageError, UserError
from lib.config import matters
from lib.config.config_file import MISNAMED, ConfigError, presets
from lib.config.kconf import Schema, present
from lib.config.matters import METHOD_MENUS, TUNED
from lib.config.option import closest, nearest
from lib.record import lineage, retries, run

_OURS = {
    "SEED": "the line `seeds` sets it",
    "TRACKER_RUN_NAME": "each run is named by its configuration and seed",
    "JSON_OUTPUT": "all runs would write the same file; results.json has all their results",
}
_KEYWORDS = ("defconfig", "seeds", "common")
_EXAMPLES = {"defconfig": "defconfig gpt2_tiny", "seeds": "seeds 1 2 3"}

Assignment = tuple[str, str, str]  # name, text, place


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One line of a sweep, which is trained once per seed."""

    name: str
    place: str  # file:line
    base: Path  # the preset or configuration file that it starts from
    own: tuple[Assignment, ...]  # from its line
    assignments: tuple[Assignment, ...]  # all that apply; a later one replaces an earlier one
    adopted: tuple[Assignment, ...] = ()  # what follows from the weights that INIT_FROM names

    def schema(self, *more: Assignment) -> Schema:
        """The resolved configuration; raises ConfigError with every problem."""
        schema = Schema()
        schema.load(self.base)
        schema.override([*self.assignments, *more])
        schema.override(self.adopted)
        return schema


@dataclasses.dataclass(frozen=True)
class Run:
    """One configuration with one seed."""

    configuration: Configuration
    seed: int
    parent: Path  # the sweep's folder

    @property
    def name(self) -> str:
        """The name of its folder, of its log and of its run in trackers."""
        return f"{self.configuration.name}-seed{self.seed}"

    @property
    def folder(self) -> Path:
        """The run's folder, which the trainer makes."""
        return self.parent / self.name

    @property
    def finished(self) -> bool:
        """Whether it was trained to the end."""
        return (self.folder / "summary.json").exists()

    def words(self) -> list[str]:
        """The trainer's arguments for a new run. TRACKER_GROUP is the sweep's name unless the sweep sets it."""
        given = dict(present(name, text) for name, text, _ in self.configuration.assignments)  # the last one counts
        if not self.configuration.schema()["TRACKER_GROUP"]:
            given["TRACKER_GROUP"] = self.parent.name
        # The folder of a run in place of its name: OUTPUT_DIR is another.
        given |= {name: text for name, text, _ in self.configuration.adopted if name in lineage.OPTIONS.values()}
        given |= {"SEED": str(self.seed), "OUTPUT_DIR": str(self.parent), "TRACKER_RUN_NAME": self.name}
        return ["--config", str(self.configuration.base), *(f"{name}={text}" for name, text in given.items())]

    def check(self) -> None:
        """Raise UsageError if its folder has a run of another configuration or seed."""
        if not self.folder.exists():
            return
        if not run.configuration(self.folder).exists():
            raise UserError(f"{self.folder}: the trainer ended before the run began; remove this folder")
        there, here = Schema(), self.configuration.schema(("SEED", str(self.seed), self.configuration.place))
        there.load(self.folder / ".config")
        retries.follow(here, self.folder)
        for name, is_now in here.options.items():
            was = there.options[name].text
            if matters.group(is_now).same_when_sweep_continues and was != is_now.text:
                raise UsageError(
                    f"{self.folder}: was begun with {name}={was or 'unset'}, and the sweep has "
                    f"{is_now.text or 'unset'} now; remove this folder or give the changed sweep another name"
                )

    def check_begun(self, now: Mapping[tuple[str, str], str]) -> None:
        """Raise UsageError if the run began with other weights or masks than those that are there `now`.

        `now` is the option and its value -> sha256.
        """
        if not (self.folder / "run.json").exists():
            return
        schema = self.configuration.schema()
        for part, about in lineage.origin(self.folder).items():
            name = lineage.OPTIONS[part]
            if about["sha256"] != now.get((name, schema[name]), about["sha256"]):
                raise UsageError(
                    f"{self.folder}: was begun with other content of {name}={schema[name]} than is there now, and runs "
                    "that are still to begin would not be comparable; restore it, remove this folder or give the sweep "
                    "another name"
                )


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A checked sweep: all configurations are valid, and their budgets are equal."""

    name: str
    folder: Path  # <OUTPUT_DIR>/<name>
    seeds: tuple[int, ...]
    configurations: tuple[Configuration, ...]

    def runs(self) -> list[Run]:
        """All runs, seed by seed, so that a sweep that is stopped early has complete comparisons."""
        return [Run(configuration, seed, self.folder) for seed in self.seeds for configuration in self.configurations]

    def tuned(self) -> dict[str, list[str]]:
        """Option -> its value in each configuration, of the TUNED options that differ."""
        schemas = [configuration.schema() for configuration in self.configurations]
        values = {name: [schema.options[name].text for schema in schemas] for name in TUNED}
        return {name: texts for name, texts in values.items() if len(set(texts)) > 1}


def read(
    path: Path,
    words: Iterable[str] = (),
    adopt: Callable[[Schema, Path | None], object] = lambda schema, begun: None,
) -> Sweep:
    """Read a sweep from a file and apply NAME=value words; raises ConfigError with every problem.

    `adopt` gives a schema the shape of the weights that INIT_FROM names, or that of a run that began with them.
    """
    file = _File(path)
    over = file.assignments(words, "command line")
    configurations = [
        Configuration(name, place, file.base, tuple(own), (*file.common, *own, *over))
        for name, place, own in file.configurations
    ]
    schemas = {}
    for number, one in enumerate(configurations):
        try:
            schema = one.schema()
            one = configurations[number] = _adopted(one, schema, adopt, path.name, file.seeds)
            schemas[one] = schema
            schedule.check(schema.bind)
        except UsageError as error:
            places = "" if isinstance(error, ConfigError) else f"{one.place}: "
            file.problems += [places + problem for problem in error.args]
    without = {schema.sources["EVALUATE"] for schema in schemas.values() if not schema["EVALUATE"]}
    file.problems += [
        f"{place}: EVALUATE=n: the table of a sweep compares validation losses, so all its runs must measure them"
        for place in sorted(without)
    ]
    for one in list(schemas)[1:] if not without else []:
        file.problems += _unequal(next(iter(schemas)), one, schemas)
    if file.problems:
        raise ConfigError(dict.fromkeys(file.problems))
    folder = Path(schemas[configurations[0]]["OUTPUT_DIR"]) / path.name
    if (folder / "run.json").exists():
        raise UsageError(f"{folder}: is the folder of a run; give the sweep another name")
    return Sweep(path.name, folder, tuple(file.seeds), tuple(configurations))


def _adopted(
    one: Configuration,
    schema: Schema,
    adopt: Callable[[Schema, Path | None], object],
    name: str,
    seeds: Iterable[int],
) -> Configuration:
    """The configuration with what `adopt` changes in its `schema`. `name` and `seeds` are those of the sweep."""
    runs = [Run(one, seed, Path(schema["OUTPUT_DIR"]) / name) for seed in seeds]
    begun = next((run.folder for run in runs if (run.folder / ".config").exists()), None)
    before = {name: (option.text, schema.sources.get(name)) for name, option in schema.options.items()}
    adopt(schema, begun)
    changed = [
        name for name, option in schema.options.items() if before[name] != (option.text, schema.sources.get(name))
    ]
    changed = [name for name in changed if schema.options[name].settable]
    return dataclasses.replace(one, adopted=tuple((name, schema.options[name].text, one.place) for name in changed))


def _unequal(first: Configuration, other: Configuration, schemas: Mapping[Configuration, Schema]) -> Iterator[str]:
    """A sentence for each option that must be equal in two configurations and is not."""
    for name, option in schemas[other].options.items():
        expected = schemas[first].options[name].text
        if matters.group(option).equal_in_sweep and option.text != expected:
            yield (
                f"{other.place}: {other.name} has {name}={option.text or 'unset'}, and {first.name} has "
                f"{expected or 'unset'}: a table needs equal budgets, so only options of the menus "
                f"{' and '.join(METHOD_MENUS)}, and {', '.join(TUNED)}, may differ"
            )


class _File:
    """The content of a sweep's file, and its problems."""

    def __init__(self, path: Path):
        """Read `path`. Problems go into `problems`; raises ConfigError if they leave nothing to check."""
        self.problems: list[str] = []
        self.base, self.seeds = Path(), []
        self.common: list[Assignment] = []
        self.configurations: list[tuple[str, str, list[Assignment]]] = []
        places: dict[str, str] = {}  # first word of a line -> where it stands
        misspelt: set[str] = set()  # keywords
        for place, words in self._lines(path):
            first, *rest = words
            if first != "common" and first in places:
                self.problems.append(f"{place}: a second line begins with {first}; the first is {places[first]}")
                continue
            if (meant := closest(first, _KEYWORDS)) != first and meant and any("=" not in word for word in rest):
                self.problems.append(f"{place}: there is no keyword {first!r}; did you mean {meant}?")
                misspelt.add(meant)
                continue
            places[first] = place
            if first == "defconfig":
                self.base = self._base(rest, place)
            elif first == "seeds":
                self.seeds = self._seeds(rest, place)
            elif first == "common":
                self.common += self.assignments(rest, place)
            else:
                self._configuration(first, rest, place)
        missing = [keyword for keyword in ("defconfig", "seeds") if keyword not in {*places, *misspelt}]
        self.problems += [f"{path}: lacks a line such as: {_EXAMPLES[keyword]}" for keyword in missing]
        if not self.configurations:
            self.problems.append(f"{path}: lacks configurations, which are lines such as: adam OPTIMIZER=adam")
        if missing or misspelt or not self.configurations:
            raise ConfigError(self.problems)

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

    def _base(self, words: list[str], place: str) -> Path:
        known = presets()
        name = " ".join(words).removesuffix("_defconfig")
        if name in known:
            return Path(os.path.relpath(known[name]))
        path = files.named(" ".join(words))
        with contextlib.suppress(OSError):  # too long to be a name
            if path.is_file():
                return path
        raise ConfigError([*self.problems, f"{place}: there is no preset or file {name!r}{nearest(name, known)}"])

    def _seeds(self, words: list[str], place: str) -> list[int]:
        option = Schema().options["SEED"]
        wrong = {word: problem for word in words if (problem := option.complaint(word))}
        self.problems += [f"{place}: a seed {problem}" for problem in wrong.values()]
        seeds = [int(word) for word in words if word not in wrong]
        if not words:
            self.problems.append(f"{place}: expected whole numbers, as in: {_EXAMPLES['seeds']}")
        if len(set(seeds)) < len(seeds):
            self.problems.append(f"{place}: a seed is given twice")
        return seeds

    def _configuration(self, name: str, words: list[str], place: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,60}", name, re.ASCII):
            self.problems.append(f"{place}: {name!r} cannot name folders; use up to 60 letters, digits, '.', '_', '-'")
        self.configurations.append((name, place, self.assignments(words, place)))

    def assignments(self, words: Iterable[str], place: str) -> list[Assignment]:
        """NAME=value words as assignments from `place`; other words become problems."""
        found = []
        for word in words:
            name, equals, text = word.partition("=")
            name = name.removeprefix("CONFIG_")
            if not equals:
                self.problems.append(f"{place}: expected NAME=value; got {word!r}")
            elif name in _OURS:
                self.problems.append(f"{place}: a sweep cannot assign {name}: {_OURS[name]}")
            else:
                found.append((name, text, place))
        return found
