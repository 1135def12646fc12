"""Nothing that is given to make is run by a shell, or by make itself."""

import re

import pytest

from tests.scripts.test_makefile import clone, make
from tests.training import ROOT

__all__ = ["clone"]  # a fixture

HOSTILE = "1; touch pwned $(touch pwned) $(shell touch pwned) `touch pwned` \" ' | touch pwned\ntouch pwned\n $5 %"
TARGETS = {
    "train": ["LEARNING_RATE", "PROMPT", "TRACKER"], "defconfig": ["SEED"], "olddefconfig": ["SEED"],
    "checkconfig": ["SEED"], "savedefconfig": ["DEFCONFIG", "TITLE"], "diffconfig": ["A", "B"], "explain": ["X"],
    "randconfig": ["RAND_SEED", "SEED"], "prune-report": ["SEED"], "resume": ["RUN", "SEED"],
    "sweep": ["SWEEP", "JOBS", "SEED", "ENGINE", "GPUS_PER_RUN", "PARTITION", "NPROC"],
    "job": ["JOB", "FLAVOR", "RUN", "SWEEP", "SEED", "NPROC", "JOBS", "CHECKPOINT", "ENGINE", "BASELINE", "ARGS"],
    "data": ["DATA_DIR"], "sample": ["RUN", "PROMPT", "CHECKPOINT"],
    "runs": ["OUTPUT_DIR"], "show": ["RUN"], "compare": ["A", "B"], "tail": ["RUN"], "export": ["RUN", "FORMAT", "OUT"],
    "reproduce": ["RUN"], "dashboard": ["RUN", "PORT", "HOST"], "sync": ["RUN", "TRACKER"],
    "tracker-doctor": ["TRACKER"],
    "bench": ["REF"], "bench-check": ["REF"], "checkpoint-info": ["RUN", "CHECKPOINT"], "torture": ["MINUTES"],
    "fuzz": ["MINUTES"], "report": ["SWEEP", "RUNS", "BY", "REFERENCE", "MARGIN", "OUT", "OUTPUT_DIR"],
}  # fmt: skip


@pytest.fixture
def echo(clone):
    """make with a Python that only shows its arguments: echo("train", "SEED=1"), and the folder where it runs."""
    python = clone / "python"
    python.write_text("#!/bin/sh\nfor word; do printf '<%s>' \"$word\"; done; echo\n")
    python.chmod(0o755)

    def start(*words, code=0, **environment):
        output = make(clone, *words, "PYTHON=./python", code=code, **environment)
        assert list(clone.glob("*pwned*")) == []
        return output

    return start


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_given_to_make_reaches_the_program_as_it_is(echo, target):
    output = echo(target, *(f"{name}={HOSTILE}" for name in TARGETS[target]))
    assert output.count(HOSTILE) == len(TARGETS[target])


@pytest.mark.parametrize(("target", "words"), [("train", ""), ("resume", "<--resume><latest>")])
def test_several_processes_are_started_by_one_program(echo, target, words):
    output = echo(target, f"NPROC={HOSTILE}", "SEED=1")
    assert output.endswith(f"<scripts/processes.py><{HOSTILE}>{words}<SEED=1>\n")
    output = echo(target, *(f"{name}={HOSTILE}" for name in ("ENGINE", "PARTITION", "SBATCH", "DETACH", "DRY_RUN")))
    given = "".join(f"<--{name}={HOSTILE}>" for name in ("engine", "partition", "sbatch"))
    assert output.endswith(f"<scripts/processes.py>{given}<--detach><--dry-run><1>{words}\n")


def test_the_words_that_make_adds_are_words(echo):
    assert "<show><$(shell><touch><pwned)><;><touch><pwned><`touch><pwned`>" in echo(
        "show", "ARGS=$(shell touch pwned) ; touch pwned `touch pwned`"
    )


STEMS = ["x;touch pwned", "$(touch pwned)", "`touch pwned`", "';touch pwned;'", '";touch pwned;"', "a\ntouch pwned\n"]


@pytest.mark.parametrize("stem", STEMS)
def test_the_name_of_a_preset_is_one_word(echo, stem):
    assert f"<defconfig><{stem}>" in echo(f"{stem}_defconfig")


@pytest.mark.parametrize("name", ['a";touch${IFS}pwned;"', "a$$b", "`touch${IFS}pwned`", "é"])
def test_a_variable_has_a_plain_name(echo, name):
    assert "a name may have only letters, digits and _" in echo("train", f"{name}=1", code=2)


def test_what_make_computes_itself_cannot_be_given(echo):
    given = dict.fromkeys(
        ("OVERRIDES", "UNSET", "CONFIG_PY", "SYSTEM_PYTHON", "VENV", "OURS", "GIVEN"), "; touch pwned"
    )
    assert "<gpt2/train.py>" in echo("train", *(f"{name}={value}" for name, value in given.items()))
    assert "<gpt2/train.py>\n" in echo("train", KCONFIG_CONFIG="a:;touch pwned", **given)


PYTHONS = ["./python; touch pwned", "$(shell touch pwned)", "`touch pwned`", '"; touch pwned; "']


@pytest.mark.parametrize("python", PYTHONS)
def test_python_is_one_program(clone, python):
    assert f"PYTHON={python}: there is no such program" in make(clone, "train", f"PYTHON={python}", code=2)
    assert list(clone.glob("*pwned*")) == []


def test_recipes_expand_nothing_that_is_given():
    asked = r"\$\(if \$\((\w+|filter \w+,\$\(GIVEN\))\),"  # whether something is given
    asked += r"|\$\(foreach v,\$\(filter [A-Z_ ]+,\$\(GIVEN\)\),"  # names, which are plain
    text = re.sub(asked, "", (ROOT / "Makefile").read_text())
    recipes = re.findall(r"^\t@.*|^\t\t.*|^override TRAINER(?:.*\\\n)*.*", text, re.MULTILINE)
    expanded = {name for line in recipes for name in re.findall(r"(?<!\$)\$\(([\w*]+)\)", line)}
    names = {"ALONE", "UNSET"}  # these have only names in them, which are plain
    assert expanded == names | {"OVERRIDES", "CONFIG_PY", "SYSTEM_PYTHON", "MAKEFILE_LIST", "TRAINER"}
    stems = [line for line in recipes if re.search(r"(?<!\$)\$\*", line)]
    assert [re.search(r"(\w+) \$\*", line)[1] for line in stems] == ["check"]  # the name of a level
