"""Targets of fuzzing for configurations: files, command lines, environments, sweeps and programs that write them."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import kconfiglib

from lib.compare import sweep
from lib.config import command_line
from lib.config.kconf import ROOT, Schema
from scripts import config as config_program
from tests.fuzzing.promise import outcome, target

WORD = b"\xff"  # separates the words of a command line; never occurs in UTF-8


# Made once: parsing the Kconfig files takes longer than most inputs.
_schema = cache(lambda place: Schema())
_kconfig = cache(lambda: kconfiglib.Kconfig(str(ROOT / "Kconfig"), warn=False))


def settled(schema: Schema) -> None:
    """Assert that a configuration survives writing and reading, complete and minimal, also with Kconfiglib's reader."""
    for minimal in (False, True):
        schema.write(Path("once"), minimal)
        again = _schema("again")
        again.clear()
        again.load(Path("once"))
        assert again.values() == schema.values()
        again.write(Path("twice"), minimal)
        assert Path("once").read_bytes() == Path("twice").read_bytes()
        _read_alike(schema, "once")


def _read_alike(schema: Schema, path: str) -> None:
    _kconfig().load_config(path)
    differ = [name for name, symbol in schema.kconf.syms.items() if _kconfig().syms[name].str_value != symbol.str_value]
    assert not differ, differ


def _presets() -> list[bytes]:
    schema = Schema()
    schema.override(
        [("OPTIMIZER", "adamwprune", ""), ("TRACKER", "csv,trackio,accelerate:aim", ""), ("PROMPT", 'a"\\', "")]
    )
    schema.write(Path("complete"))
    return [path.read_bytes() for path in (*sorted((ROOT / "defconfigs").iterdir()), Path("complete"))]


@target(_presets)
def config(data: bytes) -> bool:
    """A .config; if accepted, Kconfiglib reads the same values, apart from spaces at the ends of lines."""
    Path("given").write_bytes(data)
    schema = _schema("given")
    schema.clear()
    if outcome(lambda: schema.load(Path("given")) or True) is None:
        return False
    settled(schema)
    lines = Path("given").read_text(encoding="utf-8").split("\n")
    Path("given").write_text("\n".join(line.rstrip() for line in lines), encoding="utf-8")
    _read_alike(schema, "given")
    return True


@target(lambda: [b"\0\0".join(pair) for pair in zip(_presets(), reversed(_presets()), strict=True)])
def fragments(data: bytes) -> bool:
    """Two files for --config."""
    first, _, second = data.partition(b"\0\0")
    Path("first").write_bytes(first)
    Path("second").write_bytes(second)
    found = outcome(command_line.resolve, "", ["--config", "first", "--config", "second"], {})
    if found:
        settled(found[0])
    return bool(found)


_LINES = (
    "SEED=5 --optimizer sgd --no-decay-lr LEARNING_RATE=1e-3",
    "--config first TRACKER=csv,trackio --seed=7 --tracker-run-name x/../y",
    "--max-iters ٣ CONFIG_SEED=1_000 --block-size 0x10 --batch-size 1e1",
    "--learning-rate nan --min-lr -0.0 --temperature inf @first -- --seed --help",
    "OUTPUT_DIR=../../x DATA_DIR=/ JSON_OUTPUT=a\nb =x SEED= NOPE=1 --nope --seed",
)


@target(
    lambda: [WORD.join(word.encode() for word in line.split(" ")) for line in _LINES] + [b"\0" * 3, b"\xed\xa0\x80=1"]
)
def arguments(data: bytes) -> bool:
    """A command line; words that begin with CONFIG_ are also set as variables of the environment."""
    Path("first").write_text("CONFIG_SEED=3\n")
    words = [word.decode(errors="surrogateescape") for word in data.split(WORD)]
    env = dict(word.split("=", 1) for word in words if re.match("CONFIG_[^=]*=", word))
    found = outcome(command_line.resolve, "", words, env)
    if not found:
        return False
    schema = found[0]
    for word in words:  # an accepted NAME=value that nothing overrides keeps its exact text
        name, _, text = word.removeprefix("CONFIG_").partition("=")
        if schema.sources.get(name) == word and schema.options[name].kind != "set":
            assert schema.options[name].text == text
    settled(schema)
    return True


def _values() -> list[bytes]:
    return [bytes([n]) + (o.text or "1").encode() for n, o in enumerate(Schema().options.values())]


@target(_values)
def value(data: bytes) -> bool:
    """A value of one option (the first byte chooses it) means the same as word, flag, variable and line of a file."""
    options = list(Schema().options.values())
    option, text = options[data[0] % len(options)] if data else options[0], data[1:].decode(errors="surrogateescape")
    ways = [{"argv": [f"{option.name}={text}"]}, {"argv": [], "env": {f"CONFIG_{option.name}": text}}]
    if not option.switch:
        ways.append({"argv": [f"{option.flag}={text}"]})
    if (line := _line(option, text)) is not None:
        Path("line").write_text(line + "\n", encoding="utf-8", newline="\n")
        ways.append({"argv": ["--config", "line"]})
    found = [outcome(command_line.resolve, "", **{"env": {}, **way}) for way in ways]
    means = [one and (one[0][option.name], one[0].options[option.name].text) for one in found]
    assert all(mean == means[0] for mean in means), (option.name, text, means)
    if found[0]:
        settled(found[0][0])
    return bool(found[0])


def _line(option: Any, text: str) -> str | None:
    """The line of a .config that sets this value; None if no line can."""
    if option.kind == "set" or re.search("[\n\r\ud800-\udfff]| $|\t$", text):
        return None
    if option.kind == "choice":
        return f"CONFIG_{option.members[text].name}=y" if text in option.members else None
    return (
        f'CONFIG_{option.name}="{kconfiglib.escape(text)}"'
        if option.kind in ("str", "float")
        else f"CONFIG_{option.name}={text}"
    )


@target(lambda: [path.read_bytes() for path in sorted((ROOT / "sweeps").iterdir()) if path.is_file()])
def sweeps(data: bytes) -> bool:
    """The file of a sweep; its runs are those that its lines describe."""
    Path("sweep").write_bytes(data[:3000])
    plan = outcome(sweep.read, Path("sweep"))
    for run in plan.runs() if plan else ():
        assert run.folder.parent == plan.folder and run.folder.name not in ("", ".", "..")
        schema = command_line.resolve("", run.words(), {})[0]
        assert schema["SEED"] == run.seed
    return plan is not None


def _programs() -> list[bytes]:
    lines = (
        "olddefconfig|checkconfig SEED=3|listnewconfig|explain seed|explain x|diffconfig given gpt2_tiny|randconfig 5"
    )
    lines += "|randconfig ٣|defconfig ../../x|defconfig gpt2_tiny SEED=4|list-defconfigs"
    return [WORD.join([_presets()[-1], *line.encode().split(b" ")]) for line in lines.split("|")]


@target(_programs)
def config_programs(data: bytes) -> bool:
    """The commands of scripts/config.py, with a .config and words; what they write is valid."""
    content, *words = data.split(WORD)
    if words[:1] == [b"savedefconfig"]:  # writes wherever it is told to
        return False
    Path(".config").write_bytes(content)
    try:
        words = [word.decode(errors="surrogateescape") for word in words]
        done = outcome(lambda: (args := config_program._parser().parse_args(words)).run(args) or True)
        if done and words[0] in ("olddefconfig", "defconfig", "randconfig"):
            Schema().load(Path(".config"))
    finally:
        Path(".config").unlink()
    return bool(done)
