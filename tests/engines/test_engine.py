"""Engines by their names: which there are, what they refuse, and what they lack."""

import sys
from pathlib import Path

import pytest

from lib.base.errors import UsageError
from lib.config import extras
from lib.engines import engine, local

WISHES = engine.Wishes(Path("runs/few"), Path("data"), gpus=False)


def refused(name, **wishes):
    with pytest.raises(UsageError) as caught:
        engine.build(name, WISHES._replace(**wishes), print)
    return str(caught.value)


def test_the_engine_of_this_machine_divides_its_cores(monkeypatch):
    monkeypatch.setattr(engine, "cores", lambda: 8)
    found = engine.build("local", WISHES._replace(jobs=3), print)
    assert isinstance(found, local.Engine)
    assert (found.jobs, found.threads) == (3, 2)
    alone = engine.build("local", WISHES, print)
    assert (alone.jobs, alone.threads) == (1, 0)  # one run has as many as its configuration says


def test_an_engine_that_does_not_exist_is_refused():
    assert refused("slrum") == "ENGINE=slrum: there is no such engine; use local, ray or slurm"


@pytest.mark.parametrize("word", ["partition", "sbatch", "detach"])
def test_words_of_slurm_are_for_slurm(word):
    told = f"{word.upper()}: ENGINE=local has no such thing; give ENGINE=slurm, or leave {word.upper()} out"
    assert refused("local", **{word: "gpu"}) == told


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_engine_that_is_not_installed_says_how_to_install_it(name, package, monkeypatch):
    monkeypatch.setattr(extras, "missing", lambda extra: [package])
    told = refused(name)
    assert told.startswith(f"ENGINE={name} needs {package}; run: {sys.executable} -m pip install '{package}")
