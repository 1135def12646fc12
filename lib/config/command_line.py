"""The command line, derived from Kconfig: flags override NAME=value words, which override the environment."""

import argparse
import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from lib.base import files, launch, redact
from lib.base.errors import printable
from lib.config.config_file import ConfigError, read_lines
from lib.config.kconf import ROOT, Schema
from lib.config.option import Option, nearest


def resolve(
    description: str,
    argv: list[str],
    env: Mapping[str, str] = os.environ,
    *,
    kconfig: Path = ROOT / "Kconfig",
    arguments: Callable[[argparse.ArgumentParser], None] | None = None,
    base: Callable[[argparse.Namespace], Path | None] | None = None,
    left_out: Callable[[Option], bool] = lambda option: False,
) -> tuple[Schema, argparse.Namespace]:
    """Resolve a configuration from files, environment and arguments; raises ConfigError with every problem.

    `arguments` adds a program's own arguments; `base` names the file to start from in place of .config. Options that
    are `left_out` are not taken from that file.
    """
    schema = Schema(kconfig)
    parser = _parser(schema, description)
    if arguments:
        known = {action.dest for action in parser._actions}
        arguments(parser)
        schema.arguments = [action.dest.upper() for action in parser._actions if action.dest not in known]
    args, rest = parser.parse_known_args(argv)
    problems, given = assignments(rest, [flag for action in parser._actions for flag in action.option_strings])
    own = base(args) if base else None
    paths = config_files(args.config, env) if own is None else [own, *map(files.named, args.config or [])]
    given.sort(key=lambda word: word[0] not in schema.renames)  # beside an old name, the present one counts
    given = [*_environment(schema, env), *given, *_flags(schema, args)]
    stages = [partial(_load, schema, path, left_out if path == own else lambda option: False) for path in paths]
    stages.append(lambda: schema.override(given, beside="the run" if own else ""))
    for stage in stages:
        try:
            stage()
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    warn_of_unread(schema, (name for name, _, _ in given), env)
    return schema, args


def _load(schema: Schema, path: Path, left_out: Callable[[Option], bool]) -> None:
    """Assign the values of a file, without the options that are `left_out`."""
    known = [(line.number, schema.option_of(line.name)) for line in read_lines(path)]
    schema.load(path, skip={number for number, option in known if option and left_out(option)}, ranges=False)


# Variables that the libraries of trackers document. They are read where the option of that name is empty.
_OF_LIBRARIES = ("MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID", "WANDB_ENTITY")


def warn_of_unread(schema: Schema, given: Iterable[str], env: Mapping[str, str] = os.environ) -> None:
    """Warn about environment variables with the name of an option, as in `SEED=3 make train`: they are not read.

    Does not warn about options that are also `given` in a valid way: make exports the variables of its command line.
    """
    for name in sorted(schema.options.keys() & env.keys() - {*given, *_OF_LIBRARIES}):
        option, text = schema.options[name], env[name]
        if text and option.written(text) != option.text:
            plain = text if re.fullmatch(r"[\w.,:/-]{1,40}", text, re.ASCII) else "..."
            schema.warnings.append(
                f"environment {name} is not read; say make train {name}={plain}, or set CONFIG_{name}={plain}"
            )


def config_path(env: Mapping[str, str]) -> Path:
    """The file that holds the configuration: $KCONFIG_CONFIG, else .config."""
    return Path(env.get("KCONFIG_CONFIG") or ".config")


def unconfigured(env: Mapping[str, str]) -> dict[str, str]:
    """The environment without CONFIG_* and a launcher's variables, for a program that this one starts."""
    return {n: value for n, value in launch.without(env).items() if not n.startswith(("CONFIG_", "KCONFIG_CONFIG"))}


def config_files(named: list[str] | None, env: Mapping[str, str]) -> list[Path]:
    """The files to load: those named, else $KCONFIG_CONFIG, else .config if it exists."""
    if named:
        return [files.named(name) for name in named]
    path = config_path(env)
    return [path] if env.get("KCONFIG_CONFIG") or path.exists() else []


class _Parser(argparse.ArgumentParser):
    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> object:
        # For --flag=--, argparse before Python 3.13 returns a list.
        if action.nargs is None and arg_strings == ["--"]:
            return self._get_value(action, "--")
        return super()._get_values(action, arg_strings)


def _parser(schema: Schema, description: str) -> argparse.ArgumentParser:
    parser = _Parser(
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [--flag value ...] [NAME=value ...]",
        epilog="Each source of values overrides those before it: defaults, --config files (else .config),\n"
        "environment CONFIG_NAME, NAME=value, --flag.",
    )
    parser.add_argument(
        "--config",
        action="append",
        metavar="FILE",
        help="configuration file or fragment in place of .config; repeat it to merge files, where the last value wins",
    )
    groups: dict[tuple[str, ...], argparse._ArgumentGroup] = {}
    for name, option in schema.options.items():
        if option.menu not in groups:
            groups[option.menu] = parser.add_argument_group(" / ".join(option.menu))
        first = " ".join(option.help.split("\n\n")[0].split())
        text = f"{option.prompt}. {first}" + (f" [{option.text}]" if option.text else "")
        how = (
            {"action": argparse.BooleanOptionalAction}
            if option.switch
            else {"metavar": option.restrict().replace(" ", "")}
        )
        groups[option.menu].add_argument(option.flag, dest=name, default=None, help=text.replace("%", "%%"), **how)
    for name, rename in schema.renames.items():
        how = {"action": argparse.BooleanOptionalAction} if {"y", "n"} <= rename.values.keys() else {}
        flag = "--" + name.lower().replace("_", "-")
        parser.add_argument(flag, dest=name, default=None, help=argparse.SUPPRESS, **how)
    return parser


def assignments(words: Iterable[str], flags: Iterable[str] = ()) -> tuple[list[str], list[tuple[str, str, str]]]:
    """Split words into problems and NAME=value assignments, as (name, text, source); hints propose one of `flags`."""
    problems, given, skip = [], [], False
    for word in words:
        name, equals, text = word.partition("=")
        if word.startswith("-"):
            problems.append(f"unknown flag {name}{nearest(name, flags)}")
        elif equals:
            given.append((name.removeprefix("CONFIG_"), text, redact.without([word])[0]))
        elif not skip:
            problems.append(f"expected --flag or NAME=value; got {word!r}")
        skip = word.startswith("-") and not equals  # the next word was meant as its value
    return problems, given


def _flags(schema: Schema, args: argparse.Namespace) -> Iterable[tuple[str, str, str]]:
    """(name, text, source) of the flags that were given."""
    for name in [*schema.renames, *schema.options]:  # beside an old name, the present one counts
        value, flag = getattr(args, name), name.lower().replace("_", "-")
        if isinstance(value, bool):
            yield (name, "y", f"--{flag}") if value else (name, "n", f"--no-{flag}")
        elif value is not None:
            yield name, value, f"--{flag}"


def _environment(schema: Schema, env: Mapping[str, str]) -> Iterable[tuple[str, str, str]]:
    """CONFIG_<option> variables. Warns about misspelt options; others, such as CONFIG_SITE, are not Espalier's."""
    for key in sorted(k for k in env if k.startswith("CONFIG_") and k != "CONFIG_"):
        name = key.removeprefix("CONFIG_")
        if name in schema.options or name in schema.parts or name in schema.renames:
            yield name, env[key], f"environment {key}"
        elif near := nearest(name, schema.options):
            schema.warnings.append(f"environment {printable(key)} is not an option and has no effect{near}")
