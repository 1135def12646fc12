"""Write, check, compare and explain configurations: the program behind the configuration targets of the Makefile."""

import argparse
import contextlib
import os
import random
import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import kconfiglib

from gpt2 import preflight
from lib.base import files
from lib.base.errors import UsageError, run_program
from lib.config.command_line import assignments, config_path, resolve, warn_of_unread
from lib.config.config_file import ConfigError, presets, read_lines, title
from lib.config.kconf import Schema
from lib.config.option import Option, nearest, split_set

_SUFFIX = "_defconfig"
_ONESHOT = ("PRUNING_DYNAMICS_ONESHOT", "PRUNING_METHOD_SPARSEGPT")  # make train refuses them
_DOCS = """# Options

Generated from the Kconfig files by `make docs`. To change this page, edit those files.

Set an option in `make menuconfig` or `.config`, in the environment as `CONFIG_NAME`, on the command line as
`NAME=value`, or by its flag. If it is set in several of these places, the later place in this list wins.
`make explain X=NAME` tells where a value comes from. A leading `~` of a path is your home folder; `.config` keeps the
`~`."""


def main() -> int:
    """Run the command in the arguments."""
    args = _parser().parse_args()
    args.run(args)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="The configuration is the file .config in the current folder, or the one that KCONFIG_CONFIG names.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run, name: str, *arguments: tuple[str, dict]) -> None:
        sub = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        for argument, details in arguments:
            sub.add_argument(argument, **details)
        sub.set_defaults(run=run)

    def words(first: str = "") -> tuple[str, dict]:
        return "words", {"nargs": "*", "metavar": f"{first}NAME=value", "help": "options to change"}

    file = {"help": "a .config, a defconfig, a preset's name or a run's folder"}
    command(defconfig, "defconfig", words("PRESET | "))
    command(list_defconfigs, "list-defconfigs")
    command(olddefconfig, "olddefconfig", words())
    target = {"nargs": "?", "default": "defconfig", "type": files.named, "metavar": "FILE"}
    head = {"default": "", "help": "a description for list-defconfigs"}
    command(savedefconfig, "savedefconfig", ("file", target), ("--title", head))
    command(listnewconfig, "listnewconfig")
    command(diffconfig, "diffconfig", ("a", {"metavar": "A", **file}), ("b", {"metavar": "B", **file}))
    command(explain, "explain", ("name", {"metavar": "NAME", "help": "LEARNING_RATE, learning-rate"}))
    command(checkconfig, "checkconfig", words())
    command(randconfig, "randconfig", words("SEED | "))
    command(docs, "docs")
    return parser


# ---- commands that write ---------------------------------------------------------------------------------------------


def defconfig(args: argparse.Namespace) -> None:
    """Write the configuration of a preset, with options changed by NAME=value."""
    preset, given = _split(args.words)
    preset = preset or "gpt2_tiny"
    schema = Schema()
    schema.load(_preset(preset))
    _override(schema, given)
    _replace(schema, f"preset {preset.removesuffix(_SUFFIX)}")


def olddefconfig(args: argparse.Namespace) -> None:
    """Keep valid settings, give new options their defaults, and print which settings are dropped and why."""
    path, dropped = config_path(os.environ), set()
    _, given = _split(args.words, most=0)
    schema = Schema()
    while path.exists():  # again after each drop: without the dropped lines, others may be invalid
        schema = Schema()
        try:
            schema.load(path, skip=dropped)
            break
        except ConfigError as error:
            if not error.lines - dropped:
                raise
            dropped |= error.lines
            print("\n".join(f"dropped {sentence}" for sentence in str(error).split("\n")))
    _override(schema, given)
    _replace(schema, "up to date" if path.exists() else "written with the defaults, because the file did not exist")


def savedefconfig(args: argparse.Namespace) -> None:
    """Write the options that differ from their defaults to a file, such as a new preset."""
    if not args.title.isprintable():
        raise UsageError("the title must be one line of text without control characters")
    schema = _present()
    schema.write(args.file, minimal=True, title=args.title.strip())
    print(f"{args.file}: {_count(schema)}")


def randconfig(args: argparse.Namespace) -> None:
    """Write a random valid configuration; the same seed gives the same one."""
    seed, given = _split(args.words)
    if seed and not re.fullmatch(r"\d{1,18}", seed, re.ASCII):
        raise UsageError(f"the seed must be a whole number; got {seed!r}")
    seed = int(seed) if seed else random.SystemRandom().randrange(2**32)
    schema = Schema()
    randomise(schema, random.Random(seed))
    _override(schema, given)
    _replace(schema, f"random, seed {seed}")


def randomise(schema: Schema, generator: random.Random) -> None:
    """Assign a random valid value to every option, except texts: a random name or path would be useless."""
    for option in schema.options.values():
        if option.settable and option.kind != "str":
            option.assign(_random_text(option, generator))


def _random_text(option: Option, generator: random.Random) -> str:
    if option.kind == "bool":
        return generator.choice("yn")
    if option.kind == "choice":
        return generator.choice([value for value, symbol in option.members.items() if symbol.visibility])
    if option.kind == "set":
        return ",".join(value for value in option.members if generator.random() < 0.5) or "none"
    low, high = option.range or ("-1000000", "1000000")
    if option.kind == "int":
        return str(generator.randint(int(low), int(high)))
    return repr(generator.uniform(max(float(low), -1e9), min(float(high), 1e9)))


# ---- commands that only print ----------------------------------------------------------------------------------------


def list_defconfigs(args: argparse.Namespace) -> None:
    """List the presets."""
    width = max(map(len, presets()), default=0)
    for name, path in presets().items():
        print(f"{name:{width}}  {title(path) or _untitled(path)}")


def _untitled(path: Path) -> str:
    """A title for a preset that was saved without one."""
    schema = Schema()
    try:
        schema.load(path)
    except ConfigError as error:
        return f"cannot be used: {error.problems[0]}"
    return schema.summary()


def listnewconfig(args: argparse.Namespace) -> None:
    """List the options that the configuration does not mention, with the values that they have by default."""
    schema, path = _present(), config_path(os.environ)
    names = {schema.now_called(line.name) for line in read_lines(path)}
    mentioned = {schema.parts[name][0].name if name in schema.parts else name for name in names}
    new = [option for option in schema.options.values() if option.settable and option.name not in mentioned]
    print("\n".join(f"{option.name}={option.text}" for option in new) or f"{path} mentions every option")


def diffconfig(args: argparse.Namespace) -> None:
    """List the options whose values differ between two configurations."""
    a, b = _read(args.a), _read(args.b)
    rows = [(name, a.options[name], b.options[name]) for name in a.options if a[name] != b[name]]
    width = max((len(name) for name, _, _ in rows), default=0)
    for name, old, new in rows:
        print(f"{name:{width}}  {_shown(old)} -> {_shown(new)}")
    if not rows:
        print(f"no option differs between {args.a} and {args.b}")


def explain(args: argparse.Namespace) -> None:
    """Explain an option: its meaning, its value and where it comes from, what it needs, and how to set it."""
    try:
        schema, trouble = resolve("", [])[0], ""
    except ConfigError:
        schema, trouble = Schema(), "unknown, because the configuration has problems; make checkconfig lists them"
    option = _find(schema, args.name)
    facts = {
        "value": trouble or (_shown(option) if option.active else "none: it has no effect in this configuration"),
        "source": "" if trouble or not option.active else schema.sources.get(option.name, "default"),
        "type": option.kind,
        "values": option.restrict(),
        "default": option.default,
        "needs": option.needs,
        "menu": " / ".join(option.menu),
        "defined": schema.place(option),
    }
    print(f"{option.name}: {option.prompt}\n")
    print("\n".join(f"  {name:8} {fact}" for name, fact in facts.items() if fact))
    print("\n" + _indented(option.help))
    for value, (prompt, more) in option.meanings.items():
        if more:
            print(f"\n  {value}: {prompt}\n{_indented(more, 4)}")
    print("\n  Set it by any of these; the last one wins:")
    print("\n".join(f"    {form}" for form in _forms(option)))


def checkconfig(args: argparse.Namespace) -> None:
    """Check the configuration as training would read it, with the environment and NAME=value."""
    schema, _ = resolve("", args.words)
    schema.warnings += preflight.new(schema)
    _say_warnings(schema)
    verdict, path = "OK, but not for make train" if preflight.untrainable(schema) else "OK", config_path(os.environ)
    where = path if path.exists() else f"{path} does not exist, so the defaults are valid"
    print(f"{verdict}: {where}: {_count(schema)}")


def docs(args: argparse.Namespace) -> None:
    """Print the reference of all options, docs/config.md."""
    menu = None
    print(_DOCS)
    for option in Schema().options.values():
        if option.menu != menu:
            menu = option.menu
            print(f"\n## {' / '.join(menu)}")
        print("\n" + _documented(option))


def _documented(option: Option) -> str:
    """The section of docs/config.md on one option."""
    flag = option.flag + (f" / --no-{option.flag[2:]}" if option.switch else "")
    facts = [f"`{flag}`", f"{option.kind}: `{option.restrict()}`", f"default: `{option.default}`"]
    if option.needs:
        facts.append(f"needs `{option.needs}`")
    lines = [f"### {option.name}", "", f"{option.prompt}. " + " · ".join(facts), "", _plain(option.help)]
    for number, (value, (prompt, more)) in enumerate(option.meanings.items()):
        lines += [""] * (number == 0) + [f"- `{value}`: {prompt}" + (f".\n{_indented(_plain(more))}" if more else "")]
    return "\n".join(lines)


def _plain(text: str) -> str:
    return re.sub(r"([<*_])", r"\\\1", text)  # these would be markup in Markdown


def _indented(text: str, width: int = 2) -> str:
    return "\n".join(f"{' ' * width}{line}".rstrip() for line in text.splitlines())


# ---- what they share -------------------------------------------------------------------------------------------------


def _split(words: list[str], most: int = 1) -> tuple[str, list[tuple[str, str, str]]]:
    """The word that is not NAME=value, if any, and the assignments; ConfigError if more than `most` are not."""
    plain = [word for word in words if "=" not in word]
    problems, given = assignments(word for word in words if "=" in word)
    problems += [f"expected NAME=value; got {word!r}" for word in plain[most:]]
    if problems:
        raise ConfigError(problems)
    return "".join(plain), given


def _present() -> Schema:
    """The current configuration; raises ConfigError if its file does not exist."""
    schema, path = Schema(), config_path(os.environ)
    if not path.exists():
        raise ConfigError([f"{path}: the file does not exist; write it with make menuconfig or make defconfig"])
    schema.load(path)
    _say_warnings(schema)
    return schema


def _read(name: str) -> Schema:
    """The configuration in a file, a run's folder or a preset."""
    if not name:  # make's A or B was not given
        raise UsageError("name two configurations, such as: make diffconfig A=gpt2_tiny B=.config")
    path = files.named(name)
    if name in presets() and not path.exists():
        path = _preset(name)
    else:
        with contextlib.suppress(OSError):  # reading the file reports the error
            path = path / ".config" if path.is_dir() else path
    schema = Schema()
    schema.load(path)
    _say_warnings(schema)
    return schema


def _preset(name: str) -> Path:
    name, known = name.removesuffix(_SUFFIX), presets()
    if name not in known:
        raise UsageError(f"there is no preset {name}{nearest(name, known) or '; make list-defconfigs lists them'}")
    return known[name]


def _replace(schema: Schema, what: str) -> None:
    """Save `schema` as the current configuration and print a note."""
    path = config_path(os.environ)
    schema.write(path, keep_old=True)
    print(f"{path}: {what}; {_count(schema)}")


def _override(schema: Schema, given: list[tuple[str, str, str]]) -> None:
    """Assign the given values, and print the notes about them."""
    schema.override(given)
    warn_of_unread(schema, [name for name, _, _ in given])
    _say_warnings(schema)


def _count(schema: Schema) -> str:
    number = len(schema.differing())
    return f"{number} option{' differs' if number == 1 else 's differ'} from the defaults"


def _say_warnings(schema: Schema) -> None:
    for warning in schema.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _shown(option: Option) -> str:
    return (option.text or '""') if option.active else "-"


def _find(schema: Schema, wanted: str) -> Option:
    """The option that a user names in any spelling, or by one of its values."""
    if not wanted:  # make's X was not given
        raise UsageError("name an option, such as: make explain X=LEARNING_RATE")
    name = wanted.lstrip("-").replace("-", "_").upper().removeprefix("CONFIG_")
    name = schema.now_called(name)
    if name in schema.parts:
        return schema.parts[name][0]
    if name not in schema.options:
        hint = nearest(name, [*schema.options, *schema.parts]) or "; docs/config.md lists all"
        raise UsageError(f"unknown option {wanted}{hint}")
    return schema.options[name]


def _forms(option: Option) -> Iterable[str]:
    """The ways to set the option, each shown with its current value, or with its default if it is not active."""
    text = option.text
    if option.kind == "set" and not option.value:
        text = next(iter(option.members))
    elif not option.active:
        text = next(iter(option.members), "") or option.item.defaults[0][0].str_value
    if option.members:
        yield ", ".join(f"CONFIG_{option.members[value].name}=y" for value in split_set(text)) + " in .config"
    elif option.kind in ("str", "float"):
        yield f'CONFIG_{option.name}="{kconfiglib.escape(text)}" in .config'
    else:
        yield f"CONFIG_{option.name}={text} in .config"
    yield f"CONFIG_{option.name}={shlex.quote(text)} in the environment"
    target, program = "train", "gpt2/train.py"
    if _only_oneshot(option.item.direct_dep):
        target, program = "oneshot", "scripts/oneshot.py"
    elif option.menu[0] == "Fine-tuning":
        target, program = "finetune", "scripts/finetune.py"
    yield f"make {target} {option.name}={shlex.quote(text)}"
    if not option.switch:
        yield f"python {program} {option.flag} {shlex.quote(text)}"
    elif text in ("y", "n"):
        yield f"python {program} {option.flag if text == 'y' else f'--no-{option.flag[2:]}'}"


def _only_oneshot(condition: object) -> bool:
    """Whether a condition holds in one-shot pruning only."""
    terms = [term for term in kconfiglib.split_expr(condition, kconfiglib.AND) if isinstance(term, kconfiglib.Symbol)]
    # Constants have no nodes.
    return any(term.name in _ONESHOT or _only_oneshot(term.direct_dep) for term in terms if term.nodes)


if __name__ == "__main__":
    run_program(main, only_prints=True)
