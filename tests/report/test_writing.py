"""The folder of a report: what killed writers left behind goes away, and nothing else does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lib.base import files
from lib.base.errors import UserError
from lib.report import page, study, writing
from tests.report.made import sweep

KILLED = """
import os, signal, sys
from pathlib import Path
from lib.report import study, writing
made = study.of_sweep(Path(sys.argv[1]))
writing._fill = lambda *given: os.kill(os.getpid(), signal.SIGKILL)
writing.write(Path(sys.argv[1]) / "report", made)
"""


@pytest.fixture
def made(tmp_path):
    return study.of_sweep(sweep(tmp_path / "few", {"dense": {1: 3.0}, "again": {1: 3.1}}))


@pytest.fixture
def quick(monkeypatch):
    """No figures, which take seconds."""
    monkeypatch.setattr(writing.figures, "draw", lambda *given: [])


def left(folder, name, *contents):
    """What a killed writer leaves."""
    place = folder / name
    place.mkdir()
    (place / "lock").touch()
    for content in contents:
        (place / content).mkdir()
        (place / content / "index.html").write_text(page.GENERATOR)
    return place


def hidden(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_what_a_killed_writer_left_is_removed(tmp_path, made, quick):
    done = subprocess.run([sys.executable, "-c", KILLED, "few"], cwd=tmp_path, env=os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
    })  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert len(hidden(tmp_path / "few")) == 1
    left(tmp_path / "few", ".report-other", "new", "earlier")
    writing.write(tmp_path / "few/report", made)
    assert hidden(tmp_path / "few") == []
    assert sorted(path.name for path in (tmp_path / "few/report").iterdir()) == [
        "figures", "index.html", "report.md", "results.csv", "verdicts.csv",
    ]  # fmt: skip


def test_what_another_writer_or_the_user_has_stays(tmp_path, made, quick):
    working = left(tmp_path, ".report-working", "new")
    (tmp_path / ".report-mine").mkdir()
    left(tmp_path, ".reports-x")
    with files.held(working, "writing this report"):
        writing.write(tmp_path / "report", made)
    assert hidden(tmp_path) == [".report-mine", ".report-working", ".reports-x"]
    assert (working / "new/index.html").exists()


def test_without_locks_all_stays(tmp_path, made, quick, monkeypatch):
    left(tmp_path, ".report-other", "new")
    monkeypatch.setattr(files, "is_held", lambda folder, name="lock": False)
    writing.write(tmp_path / "report", made)
    assert hidden(tmp_path) == [".report-other"]


def test_a_report_that_a_killed_writer_had_moved_away_comes_back(tmp_path, made, monkeypatch):
    left(tmp_path, ".report-killed", "new", "earlier")

    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "_fill", full)
    with pytest.raises(UserError, match="report: the report cannot be written: "):
        writing.write(tmp_path / "report", made)
    assert (tmp_path / "report/index.html").read_text() == page.GENERATOR
    assert hidden(tmp_path) == []
