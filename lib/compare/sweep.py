"""Sweeps: configurations x seeds whose results can be compared, read from a text and checked before training."""

import hashlib
import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from lib.base import files
from lib.base.errors import UsageError
from lib.compare import chains, space
from lib.compare.plan import BASE, TEXT, Assignment, Configuration, Run, Sweep
from lib.compare.points import expand
from lib.compare.reading import Adopt, Choose, Reading
from lib.compare.sweep_file import SweepFile
from lib.config.config_file import ConfigError, presets, read_lines
from lib.config.kconf import Schema

__all__ = ["Assignment", "Configuration", "Run", "Sweep", "read"]

_DEFAULT = "gpt2_tiny"  # the preset for a sweep without a file where there is no .config
# Of a sweep without a file, which goes on with other values of them, and has the same name in another folder.
_NOT_IN_NAME = ("OUTPUT_DIR", "RUN_TIME", "THREADS", "KERNELS")


def read(
    path: Path | None,
    words: Iterable[str] = (),
    adopt: Adopt = lambda schema, begun: None,
    choose: Choose | None = None,
) -> Sweep:
    """Read a sweep from a file and apply NAME=value words; raises ConfigError with every problem.

    Without a file the words describe a matrix over .config, or over the default preset if there is no .config. `adopt`
    gives a schema the shape of the weights that INIT_FROM names, or that of a run that began with them. `choose` sizes
    a configuration so that a quantity equals that of another one.
    """
    file = SweepFile(Schema(), words)
    if path is None:
        here = Path(".config")
        file.describe(here if here.is_file() else Path(os.path.relpath(presets()[_DEFAULT])))
        name = _derived(file)
    else:
        file.read(path)
        name = _name(path)
    try:
        points = expand(file)
    except ConfigError as error:
        raise ConfigError([*file.problems, *error.problems]) from None
    links = chains.resolve(points)
    problems = [*file.problems, *points.problems, *links.problems]
    if not links.order:
        raise ConfigError(dict.fromkeys(problems))
    reading = Reading(file, name, points, links, adopt, choose)
    configurations = reading.configurations()
    problems += reading.problems()
    tuning = None
    try:
        tuning = _tuning(file)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    folder = files.named(reading.texts[configurations[0].name]["OUTPUT_DIR"][0]) / name
    if (folder / "run.json").exists():
        raise UsageError(f"{folder}: is the folder of a run; give the sweep another name")
    return Sweep(
        name,
        folder,
        tuple(file.seeds),
        tuple(configurations),
        file.quantity,
        tuning,
        tuple(points.reasons),
        "" if path else _text(file),
    )


def _name(path: Path) -> str:
    """The name of the sweep in a file: the file's, or that of its folder if it was kept there."""
    kept = path.name == TEXT and (path.parent / BASE).is_file()
    return path.resolve().parent.name if kept else path.name


def _derived(file: SweepFile) -> str:
    """The name of a sweep without a file, from its words and its base. More seeds do not change it."""
    axes = file.lines[0].words
    words = [str(word) for word in (*file.common, *axes) if word.name not in _NOT_IN_NAME]
    base = [(line.name, line.raw) for line in read_lines(file.base)]
    label = "-".join(word.name.lower().replace("_", "-") for word in axes) or "seeds"
    return f"{label[:40].strip('-')}-{hashlib.sha256(repr((base, words)).encode()).hexdigest()[:6]}"


def _text(file: SweepFile) -> str:
    """The lines that repeat a sweep without a file, in the folder where its base lies beside them."""
    lines = [
        "# This sweep was begun without a file. Its base is the configuration that was there then.",
        f"defconfig {BASE}",
        f"seeds {' '.join(map(str, file.seeds))}",
        *([f"common {shlex.join(map(str, file.common))}"] if file.common else []),
        f"matrix {shlex.join(map(str, file.lines[0].words))}".strip(),
    ]
    return "\n".join(lines) + "\n"


def _tuning(file: SweepFile) -> space.Tuning | None:
    """What the line `tune` says; None without one."""
    if not file.tune:
        return None
    words, place = file.tune
    file.known.clear()
    file.known.load(file.base)
    return space.parse(words, place, file.known, file.seeds)
