"""Reads configuration files, whose lines are CONFIG_NAME=value as Kconfig writes them, and reports their errors."""

import errno
import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from lib.base.errors import UsageError, UserError
from lib.config.option import Option

_PRESETS = Path(__file__).resolve().parents[2] / "defconfigs"
HEADER = "# Espalier configuration, "  # first line of a file without a title
_LINE = re.compile(r"CONFIG_(\w+)=(.*)|# CONFIG_(\w+) is not set")
MISNAMED = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)  # errors that mean a wrong file name
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


class ConfigError(UsageError):
    """All errors in a configuration.

    problems   one sentence each, beginning with its place
    lines      numbers of the lines with errors, if they are in a file
    """

    def __init__(self, problems: Iterable[str], lines: Iterable[int] = ()):
        self.problems, self.lines = list(problems), set(lines)
        super().__init__(*self.problems)


class Problem(NamedTuple):
    """An error about one option, such as "SEED", "" and "must be a whole number; got 'x'"."""

    source: str  # .config:12; or it names the option: --seed, SEED=x, environment CONFIG_SEED
    name: str
    value: str  # "=x"; empty if the sentence does not show it
    predicate: str

    def __str__(self) -> str:
        """The error as a sentence. It begins with the source and contains the option's name once."""
        if not names(self.source, self.name):
            return f"{self.source}: {self.name}{self.value} {self.predicate}"
        # The source may show the value, as in SEED=x or --no-compile.
        said = "=" in self.source or self.value in ("=y", "=n")
        return f"{self.source}{'' if said else self.value} {self.predicate}"


def names(source: str, option: str) -> bool:
    """Whether the source of a value has the option's name in it."""
    given = source.partition("=")[0].removeprefix("environment CONFIG_").removeprefix("--").removeprefix("no-")
    return given.upper().replace("-", "_") == option.upper()


def presets() -> dict[str, Path]:
    """Name -> file of the presets."""
    return dict(sorted((path.name.removesuffix("_defconfig"), path) for path in _PRESETS.glob("*_defconfig")))


def title(path: Path) -> str:
    """The first sentence of the comment that a preset begins with, or "" if it has no such comment."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        comment = list(itertools.takewhile(lambda line: line.startswith("#"), file))
    if not comment or comment[0].startswith(HEADER):
        return ""
    return re.split(r"(?<=\.) ", " ".join(line.strip("# \n") for line in comment))[0]


class Line(NamedTuple):
    """A line of a configuration file that is neither empty nor a comment."""

    number: int  # from 1
    place: str  # file:number
    name: str  # without CONFIG_; empty if the line cannot be understood
    raw: str  # what follows `=`, "n" for "is not set"; the whole line if it cannot be understood


def read_lines(path: Path) -> list[Line]:
    """The lines of a configuration file; raises ConfigError if it is missing or not text, UserError if unreadable."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # without a byte order mark
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: cannot be read as a configuration: it is not UTF-8 text"]) from None
    except (FileNotFoundError, ValueError):  # a NUL in the path is a ValueError
        raise ConfigError([f"{path}: there is no such configuration file"]) from None
    except OSError as error:
        sentence = f"{path}: cannot be read as a configuration: {error.strerror}"
        raise (ConfigError([sentence]) if error.errno in MISNAMED else UserError(sentence)) from None
    lines = []
    for number, line in enumerate(text.split("\n"), 1):
        place, line = f"{path}:{number}", line.rstrip(" \t")
        if match := _LINE.fullmatch(line):
            lines.append(Line(number, place, match[1] or match[3], match[2] if match[1] else "n"))
        elif line and not line.startswith("#"):
            lines.append(Line(number, place, "", line))
    return lines


def unquote(option: Option, raw: str) -> str:
    """The text of a value in a file. Strings, floats and sets are quoted there; raises ConfigError if they are not."""
    if option.kind not in ("str", "float", "set"):
        return raw
    name = option.other.name if option.other else option.name
    if quoted := _QUOTED.fullmatch(raw):
        return re.sub(r"\\(.)", r"\1", quoted[1])
    if '"' in raw:
        raise ConfigError([f"{name} must be one quoted text with nothing around it; got {raw[:60]!r}"])
    raise ConfigError([f'{name} must be quoted: "{raw}"'])
