"""Configuration: Kconfig says which options exist; this module loads, checks, binds, explains and saves their values.

Values come from, weakest first: Kconfig default < configuration files in order < environment CONFIG_X < NAME=value <
--flag. An unknown name, a bad value, a value out of range and an assignment without effect are errors that name their
place; all of them are reported at once. Nothing is dropped or replaced in silence.

Two conventions on top of plain Kconfig: a string with a range is a float, and a promptless bool that its members select
is a set (one option, written `a,b`). A named choice CHOICE with members CHOICE_<VALUE> is one option with a value.
"""

import os
import re
import typing
from collections.abc import Iterable
from pathlib import Path

import kconfiglib

from lib.errors import UsageError
from lib.option import Option, Value, in_words, member_value, nearest, split_set

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = "default"  # the source of a value that nobody assigned
_FLOAT_NOTE = "has ranges, but is not int or hex"  # how kconfiglib greets a float
_LINE = re.compile(r"CONFIG_(\w+)=(.*)|# CONFIG_(\w+) is not set")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')

T = typing.TypeVar("T", bound="Options")


class ConfigError(UsageError):
    """Everything that is wrong with a configuration, one sentence per line."""

    def __init__(self, problems: Iterable[str]):
        super().__init__("\n".join(problems))


class Options:
    """Base of the frozen dataclasses in which modules declare the options they read, a field per option, same name."""


class Schema:
    """The options that a tree of Kconfig files declares, with the values assigned so far and where each came from."""

    def __init__(self, kconfig: Path = ROOT / "Kconfig"):
        """Parse `kconfig`; raises ConfigError with file and line when it has a mistake."""
        self.root = Path(kconfig).parent
        try:
            self.kconf = kconfiglib.Kconfig(str(kconfig), warn_to_stderr=False)
        except (kconfiglib.KconfigError, OSError) as error:
            raise ConfigError([" ".join(str(error).split())]) from None
        self.kconf.config_prefix = "CONFIG_"  # kconfiglib takes another one from the environment
        if mistakes := [w for w in self.kconf.warnings if _FLOAT_NOTE not in w]:
            raise ConfigError(mistakes)
        self.kconf.warn = False
        self.options = {option.name: option for option in self._find_options()}
        self.parts = {
            symbol.name: (option, value) for option in self.options.values() for value, symbol in option.members.items()
        }
        self.sources: dict[str, str] = {}
        self.warnings: list[str] = []
        self.renames = _read_renames(self.root / "Kconfig.renames")

    def _find_options(self) -> Iterable[Option]:
        symbols, sets = self.kconf.unique_defined_syms, {}
        for symbol in symbols:
            for target, _ in symbol.selects:
                sets.setdefault(target, []).append(symbol)
        kinds = {kconfiglib.BOOL: "bool", kconfiglib.INT: "int", kconfiglib.STRING: "str"}
        for node in self.kconf.node_iter(unique_syms=True):
            item = node.item
            if isinstance(item, kconfiglib.Choice):
                yield Option(item, {member_value(s, item): s for s in item.syms}, "choice")
            elif item in sets:
                yield Option(item, {member_value(s, item): s for s in sets[item]}, "set")
            elif isinstance(item, kconfiglib.Symbol) and node.prompt and not item.choice and not item.selects:
                yield Option(
                    item, {}, "float" if item.orig_type == kconfiglib.STRING and item.ranges else kinds[item.orig_type]
                )

    # ---- assigning -------------------------------------------------------------------------------------------------

    def load(self, path: Path) -> None:
        """Assign what a file or fragment says on top of what is there; raises ConfigError with every problem in it."""
        lines, problems = _read_lines(path)
        assigned: dict[str, tuple[str, str]] = {}
        derived: list[tuple[kconfiglib.Symbol, str, str]] = []
        for name, raw, source in lines:
            name = self._renamed(name, source)
            option, member = self.parts.get(name, (self.options.get(name), None))
            symbol = self.kconf.syms.get(name)
            if option is None or (option.kind == "set" and member is None):
                if symbol is None or not symbol.nodes:
                    problems.append(f"{source}: unknown option {name}{self._near(name)}")
                else:
                    derived.append((symbol, raw, source))
                continue
            text, problem = (raw, None) if member or raw == "n" else _unquote(option, name, raw)
            if member:
                problem = None if raw in ("y", "n") else f"{name} must be y or n; got {raw!r}"
                if option.kind == "set" and not problem:
                    before = split_set(assigned[option.name][0]) if option.name in assigned else list(option.value)
                    text = (
                        ",".join([m for m in before if m not in (member, "none")] + [member] * (raw == "y")) or "none"
                    )
                elif raw == "n":
                    continue
                else:
                    text = member
            if option.name in assigned and option.kind != "set" and not problem:
                problem = f"{name} is assigned for the second time; the first was {assigned[option.name][1]}"
            if problem:
                problems.append(f"{source}: {problem}")
            else:
                assigned[option.name] = text, source
        problems += self._assign([(name, text, source) for name, (text, source) in assigned.items()])
        problems += [
            f"{source}: {s.name}={raw} has no effect: it follows from other options"
            for s, raw, source in derived
            if raw.strip('"') != s.str_value
        ]
        if problems:
            raise ConfigError(problems)
        self._unpin()

    def override(self, assignments: Iterable[tuple[str, str, str]]) -> None:
        """Assign (name, text, source) triples on top of what is there; raises ConfigError with every problem."""
        problems, known = [], {}
        for name, text, source in assignments:
            name = self._renamed(name, source)
            if name in self.options:
                known[name] = (name, text, source)  # the strongest comes last
            elif name in self.parts:
                option, value = self.parts[name]
                problems.append(f"{source}: {name} is a value of {option.name}; write {option.name}={value}")
            else:
                problems.append(f"{source}: unknown option {name}{self._near(name)}")
        problems += self._assign(known.values())
        problems += [
            p for name in self.options if name not in known and (p := self._problem(name))
        ]  # ranges may have moved
        if problems:
            raise ConfigError(problems)

    def _assign(self, assignments: Iterable[tuple[str, str, str]]) -> list[str]:
        problems, wanted = [], []
        for name, text, source in assignments:
            option = self.options[name]
            # Ranges can depend on options assigned further down: only the form is judged here, the range below.
            if (problem := option.complaint(text)) and "between" not in problem:
                problems.append(f"{source}: {name} {problem}")
                continue
            option.assign(text)
            self.sources[name] = source
            wanted.append((option, text))
        return problems + [p for option, text in wanted if (p := self._problem(option.name, text))]

    def _problem(self, name: str, text: str | None = None) -> str | None:
        """One sentence if `text`, assigned to `name`, is not in force, or if the value in force is not allowed."""
        option, source = self.options[name], self.sources.get(name, DEFAULT)
        if text is not None and not option.settable and not (option.active and option.text == text):
            return f"{source}: {name}={text} has no effect: it needs {option.needs}"
        if not option.active:
            return None
        if text is not None and option.kind == "choice" and option.value != text:
            needs = in_words(option.members[text].direct_dep)
            return f"{source}: {name}={text} has no effect: it needs {needs}"
        text = option.text if text is None else text
        problem = option.complaint(text)
        return f"{source}: {name} {problem}" if problem else None

    def _unpin(self) -> None:
        for name, option in self.options.items():
            if option.unpin():
                self.sources.pop(name, None)

    def _renamed(self, name: str, source: str) -> str:
        if name not in self.renames:
            return name
        self.warnings.append(f"{source}: {name} is now called {self.renames[name]}")
        return self.renames[name]

    def _near(self, name: str) -> str:
        return nearest(name, self.options)

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
        """Name -> its value as text and where that came from, of every active option."""
        return {
            name: {"value": o.text, "source": self.sources.get(name, DEFAULT)}
            for name, o in self.options.items()
            if o.active
        }

    def place(self, option: Option) -> str:
        """file:line of the option's definition, relative to the repository."""
        return f"{os.path.relpath(option.node.filename, self.root)}:{option.node.linenr}"

    def write(self, path: Path, minimal: bool = False) -> None:
        """Save the configuration atomically: every option, or (`minimal`) those that differ from their defaults."""
        header = f"# Espalier configuration, {'what differs from the defaults' if minimal else 'complete'}\n"
        partial = f"{path}.tmp"
        try:
            if minimal:
                self.kconf.write_min_config(partial, header=header)
            else:
                self.kconf.write_config(partial, header=header, save_old=False)
            Path(partial).replace(path)
        except OSError as error:
            raise ConfigError([f"{path}: cannot be written: {error.strerror}"]) from None


def _unquote(option: Option, name: str, raw: str) -> tuple[str, str | None]:
    """The text of a value in a file, where strings (and so floats) are quoted, and a problem with its form."""
    quoted = _QUOTED.fullmatch(raw.strip())
    if option.kind in ("str", "float"):
        if not quoted:
            return raw, f'{name} must be quoted: CONFIG_{name}="{raw.strip()}"'
        return re.sub(r"\\(.)", r"\1", quoted[1]), None
    return raw.strip(), None


def _read_lines(path: Path) -> tuple[list[tuple[str, str, str]], list[str]]:
    """(name, raw value, file:line) of every assignment in a configuration file, and a problem for every other line."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError([f"{path}: there is no such configuration file"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read as a configuration: {error}"]) from None
    lines, problems = [], []
    for number, line in enumerate(text.split("\n"), 1):
        line, source = line.rstrip("\r"), f"{path}:{number}"
        if match := _LINE.fullmatch(line):
            lines.append((match[1], match[2], source) if match[1] else (match[3], "n", source))
        elif line.strip() and not line.startswith("#"):
            problems.append(f"{source}: cannot be understood; expected CONFIG_NAME=value; got {line[:60]!r}")
    return lines, problems


def _read_renames(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    return dict(
        line.split()
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.strip() and not line.startswith("#")
    )
