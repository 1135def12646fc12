"""Fixtures of several test files: an environment of our own, a folder to work in, programs run as a user would."""

import os
import subprocess
from pathlib import Path

import hypothesis
import pytest

from lib.config.kconf import Schema
from tests import forked
from tests.tracking import run  # noqa: F401  # a fixture for every test of a tracker

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = Schema().options

# Reproducible, and without a data base of examples in the repository; a loaded machine is no failure.
hypothesis.settings.register_profile("espalier", deadline=None, database=None, derandomize=True)
hypothesis.settings.load_profile("espalier")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    """Take out of the environment what would configure the programs under test, and what they would warn of."""
    for name in os.environ:
        if name.startswith(("CONFIG_", "KCONFIG_")) or name == "srctree" or name in OPTIONS:
            monkeypatch.delenv(name)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def program(folder):
    """Run a program of the repository in the empty folder: program("scripts/config.py", "docs", CONFIG_SEED="1")."""

    def start(path: str, *arguments: str, **env: str) -> subprocess.CompletedProcess:
        return forked.run(folder, path, *arguments, environment=os.environ | env)

    return start
