"""make tracker-doctor: what it finds of real trackers, and of plug-ins that misbehave."""

import os
import re
import sys
import textwrap

import pytest

from lib.track.tracker import Finding
from scripts import tracker_doctor

EXAMINE = """
    import os, time
    from lib.track.tracker import Finding
    class Tracker:
        pass
    def examine(config):
        print("noise of a library")
        {body}
"""


@pytest.fixture
def plugin(tmp_path):
    """Install a tracker whose `examine` is the text; returns the environment that has it."""

    def install(body):
        (tmp_path / "site").mkdir()
        (tmp_path / "site/odd_tracker.py").write_text(textwrap.dedent(EXAMINE).format(body=body))
        info = tmp_path / "site/espalier_odd-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: espalier-odd\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text("[espalier.trackers]\nodd = odd_tracker:Tracker\n")
        return {"PYTHONPATH": str(tmp_path / "site")}

    return install


def rows(output):
    """(tracker, what, mark) -> found, of the plain table."""
    return {tuple(cells[:3]): cells[3] for line in output.splitlines() if len(cells := re.split(r" {2,}", line)) == 4}


def test_installed_trackers_are_examined(program, folder):
    done = program("scripts/tracker_doctor.py", "trackio,wandb", WANDB_API_KEY="s3cret" * 7)
    found = rows(done.stdout)
    assert found["trackio", "package", "ok"].startswith("trackio 0.")
    assert found["wandb", "package", "ok"].startswith("wandb 0.")
    assert re.fullmatch(rf"{folder}/runs: writable, [\d,.]+ GB free", found["espalier", "runs", "ok"])
    assert found["espalier", "Python", "ok"].endswith(sys.executable)
    assert "s3cret" not in done.stdout + done.stderr
    assert "\033" not in done.stdout
    assert [path for path in folder.iterdir() if path.name.startswith(".tracker-doctor")] == []


def test_a_plugin_has_the_options_of_the_configuration(program, folder, plugin):
    (folder / ".config").write_text('CONFIG_TRACKER_GROUP="mine"\n')
    body = "return [Finding(\"group\", f\"{config['tracker_group']} of {config['tracker']}\", True)]"
    done = program("scripts/tracker_doctor.py", "odd", **plugin(body))
    assert (done.returncode, done.stderr) == (0, "")
    assert rows(done.stdout)["odd", "package", "ok"] == "espalier-odd 1.5, a plug-in"
    assert rows(done.stdout)["odd", "group", "ok"] == "mine of ('odd',)"
    assert done.stdout.splitlines()[-1] == "no problems found: make train TRACKER=odd"
    assert "noise" not in done.stdout


@pytest.mark.parametrize(
    "body, what, found",
    [
        ('raise ConnectionError("no\\nroute")', "examination", "failed: ConnectionError: no route"),
        ("os._exit(7)", "examination", "its process ended with exit code 7"),
        ('return [Finding("key", "absent; run: odd login", False)]', "key", "absent; run: odd login"),
        ("return [1]", "examination", "failed: AttributeError: 'int' object has no attribute 'what'"),
    ],
)
def test_a_tracker_that_cannot_be_used_is_a_row_and_exit_code_1(program, plugin, body, what, found):
    done = program("scripts/tracker_doctor.py", "odd", **plugin(body))
    assert (done.returncode, done.stderr) == (1, "")
    assert rows(done.stdout)["odd", what, "BAD"] == found
    assert done.stdout.splitlines()[-1] == f"to do: odd: {what}: {found}"


def test_a_tracker_that_hangs_is_a_row(plugin, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, plugin("time.sleep(600)")["PYTHONPATH"]])
    monkeypatch.setattr(tracker_doctor, "_SECONDS", 1)
    assert tracker_doctor.examine({"odd": {}}) == {"odd": [Finding("examination", "no answer within 1 s", False)]}


def test_an_unknown_tracker_and_a_bad_configuration_are_one_sentence(program, folder):
    done = program("scripts/tracker_doctor.py", "trackoi")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: tracker-doctor: TRACKER takes none, .*; got 'trackoi'; did you .*\n", done.stderr)
    (folder / ".config").write_text("CONFIG_SEEED=1\n")
    assert program("scripts/tracker_doctor.py").stderr.startswith("error: .config:1: unknown option SEEED")


def test_what_to_do_is_the_last_line():
    bad = [Finding("package", "not installed; run: pip install wandb", False)]
    assert tracker_doctor.absent(bad[0])
    assert tracker_doctor.advice(["csv", "trackio"], {}) == "no problems found: make train TRACKER=csv,trackio"
    assert tracker_doctor.advice(["csv"], {"wandb": bad}) == (
        "to do: wandb: package: not installed; run: pip install wandb; meanwhile: make train TRACKER=csv"
    )
    assert tracker_doctor.advice([], {}) == "no tracker is installed; train without: make train TRACKER=none"
    disk = [Finding("runs", "/runs: cannot be written: Read-only file system", False)]
    assert tracker_doctor.advice(["csv"], {"espalier": disk}) == (
        "to do: espalier: runs: /runs: cannot be written: Read-only file system"
    )


def test_a_folder_that_cannot_be_written_is_found(tmp_path):
    (tmp_path / "file").touch()
    assert tracker_doctor.folder(tmp_path / "new/runs").good
    found = tracker_doctor.folder(tmp_path / "file/runs")
    assert (found.good, found.found) == (False, f"{tmp_path}/file: cannot be written: Not a directory")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_below_one_that_may_not_be_entered_is_found(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    user = os.geteuid()
    if user == 0:  # who may enter everything
        os.seteuid(65534)
    try:
        found = tracker_doctor.folder(tmp_path / "closed/in/runs")
    finally:
        os.seteuid(user)
    assert not found.good and found.found.endswith(": cannot be written: Permission denied")


def test_a_terminal_gets_a_table(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setitem(os.environ, "COLUMNS", "60")
    tracker_doctor.show({"csv": [Finding("file", "/a/long/path/[bold]" * 5, True), Finding("disk", "full", False)]})
    table = re.sub(r"\033\[[\d;]*m", "", capsys.readouterr().out)
    assert max(map(len, table.splitlines())) <= 60
    assert re.sub(r"\s+", "", table).count("/a/long/path/[bold]") == 5
    assert re.search(r"disk +BAD +full", table)
