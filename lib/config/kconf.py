"""Configuration: Kconfig says which options exist; this module loads, checks, binds, explains and saves their values.

Values come from, weakest first: Kconfig default < configuration files in order < environment CONFIG_X < NAME=value <
--flag. An unknown name, a bad value, a value out of range and an assignment without effect are errors that name their
place; all of them are reported at once. No value is ignored or replaced without a message.

These conventions extend plain Kconfig. A string with a range is a float. A string may be a path if its name ends in
_DIR, _FILE, _OUTPUT, _SOURCE, _FROM, _MASKS or _DATA. A string whose name ends in _TIME is a duration or empty, and one
whose name ends in _WAIT is `auto`, `all` or a duration. A bool without a prompt that other bools select is a set: one
option, written `a,b`. Its members are those bools, and a string <SET>_OTHER holds further values. A named choice is one
option; its members CHOICE_<VALUE> are the values.
"""

import functools
import os
import typing
from collections.abc import Container, Iterable, Mapping
from pathlib import Path

import kconfiglib

from lib.base import files
from lib.base.errors import UserError
from lib.config.config_file import HEADER, ConfigError, Problem, names, read_lines, unquote
from lib.config.option import Option, Value, closest, member_value, split_set

ROOT = Path(__file__).resolve().parents[2]
OTHER = ""  # marks the string <SET>_OTHER in `parts`
DEFAULT = "default"  # the source of a value that nobody assigned
_FLOAT_NOTE = "has ranges, but is not int or hex"  # kconfiglib warns about strings with a range, which are floats here

T = typing.TypeVar("T", bound="Options")


class Rename(typing.NamedTuple):
    """The present name of a renamed option."""

    name: str
    values: dict[str, str]  # old value -> present value; empty if the values are the same as before


class Options:
    """Base of the frozen dataclasses in which modules declare the options they read; a field has its option's name."""


class Schema:
    """The options that a tree of Kconfig files declares, with the values assigned so far and where each came from."""

    def __init__(self, kconfig: Path = ROOT / "Kconfig"):
        """Parse `kconfig`; raises ConfigError with file and line when it has a mistake."""
        self.root = Path(kconfig).parent
        # Kconfiglib reads the path of a sourced file as a glob pattern. It would not find the file if the path of
        # the repository has [ or ] in it.
        kconfiglib.iglob = lambda path: [path] if Path(path).exists() else []
        try:
            self.kconf = kconfiglib.Kconfig(str(kconfig), warn_to_stderr=False)
        except (kconfiglib.KconfigError, OSError) as error:
            raise ConfigError([" ".join(str(error).split())]) from None
        self.kconf.config_prefix = "CONFIG_"  # the environment could set another one
        if mistakes := [w for w in self.kconf.warnings if _FLOAT_NOTE not in w]:
            raise ConfigError(mistakes)
        self.kconf.warn = False
        self.options = {option.name: option for option in self._find_options()}
        self.parts = {
            symbol.name: (option, value) for option in self.options.values() for value, symbol in option.members.items()
        }
        self.parts |= {o.other.name: (o, OTHER) for o in self.options.values() if o.other}
        self.wanted: dict[str, str] = {}  # option -> text last assigned
        self.sources: dict[str, str] = {}  # option -> place of that assignment
        self.given: set[str] = set()  # options that `override` assigned: those of flags, words and the environment
        self.broken: set[str] = set()  # options with an error; errors that follow from them are not reported
        self.arguments: list[str] = []  # of the program beside the options, in the spelling of options: RUN, TASKS
        self.warnings: list[str] = []
        self.renames = _read_renames(self.root / "Kconfig.renames")

    def _find_options(self) -> Iterable[Option]:
        symbols, sets = self.kconf.unique_defined_syms, {}
        for symbol in symbols:
            for target, _ in symbol.selects:
                sets.setdefault(target, []).append(symbol)
        for node in self.kconf.node_iter(unique_syms=True):
            item = node.item
            if isinstance(item, kconfiglib.Choice):
                yield Option(item, {member_value(s, item): s for s in item.syms}, "choice")
            elif item in sets:
                other = self.kconf.syms.get(f"{item.name}_OTHER")
                yield Option(item, {member_value(s, item): s for s in sets[item]}, "set", other)
            elif isinstance(item, kconfiglib.Symbol) and node.prompt and not item.choice and not item.selects:
                if item.name.endswith("_OTHER") and self.kconf.syms.get(item.name.removesuffix("_OTHER")) in sets:
                    continue
                yield Option(item, {}, _kind(item))

    # ---- assigning -------------------------------------------------------------------------------------------------

    def clear(self) -> None:
        """Forget every assignment."""
        self.kconf.unset_values()
        self.wanted.clear()
        self.sources.clear()
        self.given.clear()
        self.broken.clear()

    def forget(self, name: str) -> None:
        """Forget the assignment of an option, so that it has its default again."""
        option = self.options[name]
        for item in filter(None, (option.item, *option.members.values(), option.other)):
            item.unset_value()
        self.wanted.pop(name, None)
        self.sources.pop(name, None)
        self.given.discard(name)

    def load(self, path: Path, skip: Container[int] = (), ranges: bool = True) -> None:
        """Assign the values of a file or fragment over the present ones; raises ConfigError with every problem in it.

        The lines whose numbers are in `skip` are left out. Without `ranges` a value may be out of its range, because
        a later assignment may replace it; `override` checks all ranges.
        """
        lines = [line for line in read_lines(path) if line.number not in skip]
        problems, echoes, first = [], [], {}
        texts: dict[str, str] = {}
        for line in lines:
            name = line.name
            try:
                name, raw = self._renamed(name, line.raw, line.place, in_file=True)
                option, text = self._read(name, raw, texts)
            except ConfigError as error:
                problems.append((line.place, f"{line.place}: {error}"))
                self.broken.add(self._meant(name))
                continue
            if option is None:
                echoes.append((line._replace(raw=raw), self.kconf.syms[name]))
                continue
            key = option.name if option.kind == "choice" else name
            if first.setdefault(key, line) is not line:
                problem = f"{line.place}: {name} is assigned for the second time; the first was {first[key].place}"
                problems.append((line.place, problem))
                continue
            texts[option.name], self.sources[option.name] = text, line.place
        problems += [(problem.source, str(problem)) for problem in self._assign(texts, ranges)]
        for line, symbol in echoes:
            if line.raw.strip('"') != symbol.str_value:
                problem = f"{line.place}: {symbol.name}={line.raw} has no effect: it follows from other options"
                problems.append((line.place, problem))
        if problems:
            numbers = {line.place: line.number for line in lines}
            problems.sort(key=lambda problem: numbers.get(problem[0], 0))
            blamed = {numbers[place] for place, _ in problems if place in numbers}
            raise ConfigError([sentence for _, sentence in problems], blamed)
        self._unpin()

    def _read(self, name: str, raw: str, texts: Mapping[str, str]) -> tuple[Option | None, str]:
        """The option that a line assigns and its text so far; None if other options decide its value."""
        if not name:
            raise ConfigError([f"cannot be understood; expected CONFIG_NAME=value; got {raw[:60]!r}"])
        option, member = self.parts.get(name, (self.options.get(name), None))
        if member is None and (option is None or option.members):
            if option and option.kind == "choice":
                raise ConfigError([f"{name} is a choice; write CONFIG_{name}_<VALUE>=y"])
            if name not in self.kconf.syms or not self.kconf.syms[name].nodes:
                raise ConfigError([f"unknown option {name}{self._near(name)}"])
            return None, ""
        if member is None:
            return option, unquote(option, raw)
        before = split_set(texts.get(option.name, option.text))
        if member == OTHER:
            members = [value for value in before if value in option.members]
            return option, ",".join([*members, *split_set(unquote(option, raw))]) or "none"
        if raw not in ("y", "n"):
            raise ConfigError([f"{name} must be y or n; got {raw!r}"])
        if option.kind == "choice":
            return (option, member) if raw == "y" else (None, "")
        chosen = [value for value in before if value not in (member, "none")]
        return option, ",".join(chosen + [member] * (raw == "y")) or "none"

    def override(self, assignments: Iterable[tuple[str, str, str]], beside: str = "") -> None:
        """Assign (name, text, source) triples over the present values; raises ConfigError with every problem.

        `beside` names a loaded file that the user should not have to edit: errors then advise to assign the option too.
        """
        problems, texts = [], {}
        for name, text, source in assignments:
            try:
                name, text = self._renamed(name, text, source)
            except ConfigError as error:
                self.broken.add(self._meant(name))
                problems += [f"{source}: {problem}" for problem in error.problems]
                continue
            if name in self.options:
                texts[name], self.sources[name] = text, source  # the last one counts
                self.given.add(name)
                continue
            self.broken.add(self._meant(name))
            if name in self.parts:
                option, value = self.parts[name]
                predicate = f"is a value of {option.name}; write {option.name}={value or 'name'}"
                problems.append(str(Problem(source, name, "", predicate)))
            else:
                known = names(source, name)
                problems.append(f"{source}: unknown option{'' if known else f' {name}'}{self._near(name)}")
        found = self._assign(texts, beside=beside)
        before, own = ([p for p in found if (p.name in texts) is given] for given in (False, True))
        if problems := [*before, *problems, *own]:
            raise ConfigError(map(str, problems))

    def _assign(self, texts: Mapping[str, str], ranges: bool = True, beside: str = "") -> list[Problem]:
        """Assign name -> text; returns all problems except those that follow from other problems."""
        problems, idle = {}, {}
        for name, text in texts.items():
            text = self.options[name].written(text)
            if predicate := self.options[name].malformed(text):
                problems[name] = ("", predicate)
            else:
                self.options[name].assign(text)
                self.wanted[name] = text
        for name, option in self.options.items():
            text = self.wanted.get(name, option.text)
            if name in problems:
                continue
            if ranges and option.settable and (predicate := option.out_of_range(text)):
                advice = f"; to replace it, give another value beside {beside}, as in {name}=..."
                problems[name] = ("", predicate + advice * bool(beside and name not in texts))
            # An option that other options make inactive is a problem only if it is assigned now.
            elif not option.in_force(text) and (option.settable or name in texts):
                needs = option.missing(text)
                why = f"it needs {needs}" if needs else "other options decide it"
                idle[name] = (f"={text}", f"has no effect: {why}")
        self.broken |= problems.keys()
        causes = self.broken | idle.keys()
        problems |= {name: told for name, told in idle.items() if not causes & self._grounds(name)}
        return [Problem(self.sources.get(name, DEFAULT), name, *told) for name, told in problems.items()]

    def _grounds(self, name: str) -> set[str]:
        """The other options that decide whether this one is active."""
        found, ahead = set(), [name]
        while ahead:
            option = self.options[ahead.pop()]
            conditions = [item.direct_dep for item in (option.item, *option.members.values())]
            if option.node.prompt:
                conditions.append(option.node.prompt[1])
            items = {one.name for condition in conditions for one in kconfiglib.expr_items(condition)}
            new = {self.parts[one][0].name if one in self.parts else one for one in items} & self.options.keys() - found
            ahead += new
            found |= new
        return found - {name}

    def _meant(self, name: str) -> str:
        """The option of a name: itself, the owner of this member, or the option with the most similar name."""
        name = name if name in self.options or name in self.parts else self._closest(name)
        return self.parts[name][0].name if name in self.parts else name

    def _closest(self, name: str) -> str:
        return closest(name.upper(), [*self.options, *self.parts, *self.arguments])

    def _unpin(self) -> None:
        for name, option in self.options.items():
            if option.unpin():
                self.sources.pop(name, None)
                self.wanted.pop(name, None)

    def option_of(self, name: str) -> Option | None:
        """The option that a line of a file with this name assigns; None if there is none."""
        name = self.now_called(name)
        return self.parts[name][0] if name in self.parts else self.options.get(name)

    def now_called(self, name: str) -> str:
        """The present name of an option that may have been renamed."""
        return self.renames[name].name if name in self.renames else name

    def _renamed(self, name: str, text: str, source: str, in_file: bool = False) -> tuple[str, str]:
        """The present name and value of an assignment; raises ConfigError for a value that the old option did not have.

        A file assigns a value of a choice as CHOICE_<VALUE>=y.
        """
        if name not in self.renames:
            return name, text
        new, values = self.renames[name]
        if not values:
            self.warnings.append(f"{source}: {name} is now called {new}")
            return new, text
        value = values.get(text if in_file else text.lower())
        if value is None:
            raise ConfigError([f"{name} must be {' or '.join(values)}; got {text!r}"])
        self.warnings.append(f"{source}: {name} is now called {new}; its value is read as {value}")
        option = self.options[new]
        return (option.members[value].name, "y") if in_file and option.kind == "choice" else (new, value)

    def _near(self, name: str) -> str:
        near = self._closest(name)
        if near in self.arguments:
            return f"; did you mean --{near.lower()} ({near}=... with make)?"
        return f"; did you mean {near}?" if near else ""

    def differing(self) -> list[Option]:
        """The options whose values differ from their defaults."""
        return [option for option in self.options.values() if option.active and not option.unpin()]

    def summary(self) -> str:
        """The options that differ from the defaults, in one line."""
        changed = [f"{option.name}={option.text}" for option in self.differing()]
        return (", ".join(changed[:4]) or "nothing") + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")

    # ---- reading ---------------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Value:
        return self.options[name].value

    def bind(self, cls: type[T]) -> T:
        """The values of the options that dataclass `cls` declares."""
        return cls(**{name: self.options[name.upper()].value for name in typing.get_type_hints(cls)})

    def values(self) -> dict[str, Value]:
        """Name in lower case -> value, of every active option."""
        return {name.lower(): option.value for name, option in self.options.items() if option.active}

    def provenance(self) -> dict[str, dict[str, str]]:
        """Name -> its value as text and the source of the value, of every active option."""
        return {
            name: {"value": o.text, "source": self.sources.get(name, DEFAULT)}
            for name, o in self.options.items()
            if o.active
        }

    def place(self, option: Option) -> str:
        """file:line of the option's definition, relative to the repository."""
        file = Path(self.kconf.srctree, option.node.filename)  # the environment may set kconfiglib's srctree
        return f"{os.path.relpath(file, self.root)}:{option.node.linenr}"

    def content(self, minimal: bool = False, title: str = "") -> bytes:
        """What `write` saves."""
        title = f"# {title}" if title else HEADER + ("what differs from the defaults" if minimal else "complete")
        # kconfiglib's public functions write in place. These are private, so pyproject.toml pins its version.
        render = self.kconf._min_config_contents if minimal else self.kconf._config_contents
        return render(f"{title}\n").encode()

    def write(self, path: Path, minimal: bool = False, keep_old: bool = False, title: str = "") -> None:
        """Save the configuration atomically: every option, or (`minimal`) those that differ from their defaults.

        The file begins with a comment, the `title`. With `keep_old`, an old file with other content is kept as
        <path>.old.
        """
        content = self.content(minimal, title)
        try:
            old = path.read_bytes() if keep_old and path.exists() else content
        except OSError as error:
            raise UserError(f"{path}: cannot be read, so not kept as {path.name}.old: {error.strerror}") from None
        if old != content:
            files.write(Path(f"{path}.old"), old)
        files.write(path, content)


def _kind(symbol: kconfiglib.Symbol) -> str:
    kinds = {kconfiglib.BOOL: "bool", kconfiglib.INT: "int", kconfiglib.STRING: "float" if symbol.ranges else "str"}
    if symbol.orig_type not in kinds:
        place = f"{symbol.nodes[0].filename}:{symbol.nodes[0].linenr}"
        raise ConfigError([f"{place}: {symbol.name} must be a bool, an int or a string"])
    return kinds[symbol.orig_type]


def present(name: str, text: str) -> tuple[str, str]:
    """The present name and value of an option that an earlier version recorded."""
    new, values = _renames().get(name, Rename(name, {}))
    return new, values.get(text, text)


def present_values(config: Mapping[str, Value]) -> dict[str, Value]:
    """A configuration that a journal has, with options that were renamed since under their present names."""
    found = {}
    for name, value in config.items():
        new, now = present(name.upper(), {True: "y", False: "n"}[value] if isinstance(value, bool) else str(value))
        found[new.lower()] = value if new == name.upper() else now
    return found


@functools.cache
def _renames() -> dict[str, Rename]:
    return _read_renames(ROOT / "Kconfig.renames")


def _read_renames(path: Path) -> dict[str, Rename]:
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    found = (line.split() for line in lines if line.strip() and not line.startswith("#"))
    return {old: Rename(new, dict(pair.split("=") for pair in values)) for old, new, *values in found}
