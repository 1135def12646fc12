"""Shared fixtures and options: a clean environment, a working folder, running programs, which tests are run."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

import hypothesis
import pytest

from lib.base import spinning
from lib.config.kconf import Schema
from tests import forked
from tests.tracking import run  # noqa: F401  # a fixture for every test of a tracker

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = Schema().options
LATE: list[int] = []  # not empty if the test at hand has used up its time
QUICK = 0.5  # seconds of CPU that a test may take with --quick

# Before torch is imported here: the tests of several processes share the cores, and threads that spin would take them.
os.environ.setdefault(*spinning.LITTLE)

# Reproducible, without a database of examples in the repository, and without a deadline that a slow machine misses.
hypothesis.settings.register_profile("espalier", deadline=None, database=None, derandomize=True)
hypothesis.settings.load_profile("espalier")


# ---- which tests are run ---------------------------------------------------------------------------------------------


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="skip each test that starts a process, trains or is slow")
    parser.addoption("--extras", action="store_true", help="run only the tests that need an optional package")


def pytest_configure(config):
    """With --quick, what would start a process skips its test; so no list says which tests are quick."""
    if config.getoption("--quick"):
        events = {"subprocess.Popen", "os.fork", "os.posix_spawn", "espalier.train"}
        main = os.getpid()

        def watch(event: str, arguments: tuple) -> None:
            if event in events and os.getpid() == main and "PYTEST_CURRENT_TEST" in os.environ:
                pytest.skip(f"not quick: {event}")

        sys.addaudithook(watch)

        def late(number: int, frame: FrameType | None) -> None:
            while frame:  # half an import would break the tests that follow
                if frame.f_code.co_filename.startswith("<frozen importlib"):
                    return signal.setitimer(signal.ITIMER_VIRTUAL, 0.1)
                frame = frame.f_back
            LATE.append(number)
            pytest.skip(f"not quick: more than {QUICK} s of CPU")

        signal.signal(signal.SIGVTALRM, late)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """With --quick, a test has little time; so no list says which tests are slow."""
    LATE.clear()
    signal.setitimer(signal.ITIMER_VIRTUAL, QUICK if item.config.getoption("--quick") else 0)
    try:
        return (yield)
    except Exception:
        if LATE:  # the skip came inside of C code, which may turn it into another exception
            pytest.skip(f"not quick: more than {QUICK} s of CPU")
        raise
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def pytest_collection_modifyitems(config, items):
    """Tests that need an optional package are skipped by its name or, with --extras, the only ones that are run."""
    needs = {item: [name for mark in item.iter_markers("extra") for name in mark.args] for item in items}
    if config.getoption("--extras"):
        config.hook.pytest_deselected(items=[item for item in items if not needs[item]])
        items[:] = [item for item in items if needs[item]]
        return
    for item, names in needs.items():
        for name in names:
            item.add_marker(pytest.mark.skip(reason=f"needs the optional package {name}: make test-extras"))


def pytest_collection_finish(session):
    """Threads of several workers wait for each other: with two each, single tests took ten times as long."""
    if "PYTEST_XDIST_WORKER" in os.environ and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


# ---- fixtures --------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="session")
def _own_trackio(tmp_path_factory):
    """What tests record by Trackio goes neither into the user's own folder nor to a server."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("TRACKIO_")]:
            patch.delenv(name)
        patch.setenv("TRACKIO_DIR", str(tmp_path_factory.getbasetemp() / "trackio"))
        yield


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    """Remove variables that would configure the tested programs or make them print warnings."""
    for name in os.environ:
        if name.startswith(("CONFIG_", "KCONFIG_")) or name == "srctree" or name in OPTIONS:
            monkeypatch.delenv(name)
    monkeypatch.setenv(*spinning.LITTLE)  # so that no program looks for busy ones before it starts


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A new empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def program(folder):
    """Run a program of the repository in the empty folder: program("scripts/config.py", "docs", CONFIG_SEED="1")."""

    def start(path: str, *arguments: str, **env: str) -> subprocess.CompletedProcess:
        return forked.run(folder, path, *arguments, environment=os.environ | env)

    return start
