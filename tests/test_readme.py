"""The README and its pages on usage and datasets name only what exists: targets, options, flags, presets, files."""

import re
import subprocess

import pytest

from lib.config.command_line import assignments
from lib.config.kconf import Schema
from tests.training import ROOT

README = (ROOT / "README.md").read_text()
PAGES = {
    path: (ROOT / path).read_text() for path in ("README.md", "docs/usage.md", "docs/datasets.md", "docs/models.md")
}
TEXT = "\n".join(PAGES.values())
MAKE = sorted(set(re.findall(r"\bmake ([a-z][a-z0-9_-]*)((?: [A-Z_]+=[^\s`]+)*)", TEXT)))


@pytest.mark.parametrize(("target", "words"), MAKE)
def test_make_commands_exist(target, words):
    done = subprocess.run(["make", "-n", "PYTHON=python3", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    makefile = (ROOT / "Makefile").read_text()
    [line] = re.findall(r"^override OURS +:= (.*)", makefile, re.MULTILINE)
    own = {*line.split(), "PROMPT"}  # a prompt has spaces
    _, given = assignments(word for word in words.split() if word.split("=")[0] not in own and "$" not in word)
    given += [("PRUNING_DYNAMICS", "oneshot", "make oneshot")] * (target == "oneshot" and bool(given))
    Schema().override(given)


def test_flags_exist():
    flags = (
        set(re.findall(r"(?<![\w-])--([a-z][a-z0-9-]+)", TEXT))
        - {"port", "config", "resume", "help", "flag"}
        - {"tasks", "public"}
    )
    options = {name.lower().replace("_", "-") for name in Schema().options}
    assert {flag if flag in options else flag.removeprefix("no-") for flag in flags} <= options
    assert len(flags) >= 5


def test_presets_and_links_exist():
    for preset in re.findall(r"\b(\w+_defconfig)\b", TEXT.replace("mine_defconfig", "")):
        assert (ROOT / "defconfigs" / preset).exists(), preset
    links = {path: re.findall(r"\]\(([^)#:]+)\)", text) for path, text in PAGES.items()}
    assert {"docs/config.md", "docs/extending.md", "docs/images/dashboard.png"} <= set(links["README.md"])
    for path, targets in links.items():
        for target in targets:
            assert (ROOT / path).parent.joinpath(target).exists(), (path, target)


def test_the_sweep_of_ones_own_question_is_valid():
    words = [line.split() for line in re.search(r"<<END\n(.*?)\nEND\n", README, flags=re.DOTALL)[1].splitlines()]
    assert [line[0] for line in words] == ["defconfig", "seeds", "dense", "magnitude-80", "random-80"]
    assert (words[0][1], words[1][1:]) == ("mine", ["1", "2", "3"])  # the preset that the lines above have saved
    for line in words[2:]:
        Schema().override(assignments(line[1:])[1])
        assert re.search(rf"^{line[0]} +3 +2\.\d{{4}}±", README, flags=re.MULTILINE)  # the table that it prints


def test_the_errors_are_those_of_the_program(program, folder):
    lines = [""] * 31
    lines[11], lines[30] = 'CONFIG_LEARNING_RATE="banana"', "CONFIG_BATCHSIZE=8"
    (folder / ".config").write_text("\n".join([*lines, "CONFIG_OPTIMIZER_SGD=y"]))
    done = program("scripts/config.py", "checkconfig", "--", "--adam-beta1=0.8")
    assert done.stderr.count("error: ") == 3
    assert f"```\n{done.stderr}```" in README
