"""Trackers as the user sees them: news within seconds, and a wait at the end that is as long as asked for."""

import math
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time

import pytest

from lib.record import journal
from lib.track import waiting
from lib.track.cursor import Backlog
from lib.track.waiting import Patience
from tests.tracking import ROOT, got, state, wait_for
from tests.training import arguments, start, train

# Ends a run with the tracker `recorder`: folder, TRACKER_WAIT, seconds between lines, seconds without progress.
END = """
import sys
from pathlib import Path
from lib import track
from lib.record import journal
from lib.terminal import console
from lib.track import waiting
folder, console._LINE_SECONDS, waiting._IDLE_SECONDS = Path(sys.argv[1]), float(sys.argv[3]), float(sys.argv[4])
book = journal.Journal(folder)
book.write("start", 0, config={"tracker": ["recorder"], "wandb_offline": True, "learning_rate": 0.1})
attendant = waiting.Attendant(track.Lanes(folder, ["recorder"]), console.say)
for step in range(5):
    book.write("train", step, {"train_loss": 1.5})
book.write("finish", 4, {"final_val_loss": 1.5}, status="finished")
attendant.close(waiting.patience(sys.argv[2]))
print("left", flush=True)
"""
# A plug-in whose server refuses the key, as any wrong key does.
REFUSING = """
from lib.track.tracker import Refused
class Tracker:
    def open(self, identity, config, folder):
        raise Refused("the server refuses the key; give another")
"""


# A plug-in that takes its time.
SLOW = """
import time
class Tracker:
    def open(self, identity, config, folder):
        time.sleep(60)
"""


@pytest.fixture
def plugin(run, tmp_path, monkeypatch):
    """Install a plug-in tracker of this name, with this code, for the programs that a test starts."""

    def install(name, code):
        info = tmp_path / "plugin" / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info.parent / f"{name}.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[espalier.trackers]\n{name} = {name}:Tracker\n")
        monkeypatch.setenv("PYTHONPATH", f"{info.parent}{os.pathsep}{os.environ['PYTHONPATH']}")

    return install


def end(run, wait, *, line=10.0, idle=900.0, **popen):
    """Start END; its output is in `stdout`, unless `popen` says otherwise."""
    words = [sys.executable, "-c", END, str(run), wait, str(line), str(idle)]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | popen
    return subprocess.Popen(words, cwd=ROOT, text=True, **streams)


def finish_lane(run):
    """Kill the tracker's process, which would sleep on."""
    os.kill(int((run / "trackers" / "recorder.lock").read_text()), signal.SIGKILL)


def test_the_option_says_how_long(monkeypatch):
    monkeypatch.setattr(os, "isatty", lambda file: False)  # as in a job; tests may be started in a terminal
    assert waiting.patience("0", {}) == Patience(0.0)
    assert waiting.patience("600", {}) == Patience(600.0)
    assert waiting.patience("all", {}) == Patience(math.inf)
    assert waiting.patience("auto", {}) == Patience(30.0)
    in_job = waiting.patience("auto", {"SLURM_JOB_ID": "4711"})
    assert in_job == Patience(math.inf, 900.0, ": they end with this SLURM job")
    assert in_job.words() == "until everything is delivered: they end with this SLURM job"
    assert waiting.patience("45", {"SLURM_JOB_ID": "4711"}).words() == "up to 45 s"
    assert [waiting.patience(text, {}).short() for text in ("all", "auto", "2")] == [
        Patience(5.0), Patience(5.0), Patience(2.0),
    ]  # fmt: skip


def test_no_wait_at_all_says_at_once_what_is_missing(run):
    (run / "sleep-at-open").write_text("60")
    output = end(run, "0").communicate(timeout=120)[0]
    assert "waiting" not in output and output.endswith("left\n")
    assert re.search(
        r"recorder  (starting|opening)  0 rows delivered, 6 pending\n +still delivering in the back", output
    )
    assert f"deliver the rest with: make sync RUN={run}" in output
    wait_for(lambda: state(run, "recorder").state == "opening")
    finish_lane(run)


def test_a_wait_without_limit_shows_lines_and_ends_when_all_is_delivered(run):
    (run / "sleep-at-log").write_text("2.5")
    output = end(run, "all", line=0.5).communicate(timeout=60)[0]
    first, *lines = output.splitlines()
    assert first == "waiting for the trackers until everything is delivered (Ctrl-C ends the wait)"
    assert lines[0] == "recorder: recording"  # news while the user waits
    assert 1 <= lines.count("recorder live, 0 of 6 rows") <= 5
    assert lines[-3:] == ["recorder  finished  6 rows delivered", "          recording", "left"]
    assert len(got(run)) == 6 + 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_the_wait_and_what_remains_is_said(run, number):
    (run / "sleep-at-log").write_text("60")
    process = end(run, "all")
    assert process.stdout.readline().startswith("waiting for the trackers ")
    wait_for(lambda: state(run, "recorder").state == "live")
    process.send_signal(number)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and output.endswith("left\n"), output
    assert "recorder  live      0 rows delivered, 6 pending\n" in output
    assert f"deliver the rest with: make sync RUN={run}" in output
    finish_lane(run)


def test_in_a_job_the_wait_ends_when_nothing_moves_and_says_that_the_trackers_end_too(run):
    (run / "sleep-at-log").write_text("60")
    environment = {**os.environ, "SLURM_JOB_ID": "4711"}
    output = end(run, "auto", idle=1.0, env=environment).communicate(timeout=60)[0]
    assert "waiting for the trackers until everything is delivered: they end with this SLURM job " in output
    assert "nothing has arrived at the trackers for 1.0 s, so the wait ends\n" in output
    assert re.search(r"still delivering in the background \(process \d+\), until this SLURM job ends\n", output)
    finish_lane(run)


def test_a_terminal_shows_a_bar_for_each_tracker(run):
    (run / "sleep-at-log").write_text("2.5")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, 80))
    process = end(run, "all", stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while chunk := read(ours):
        seen += chunk
    process.wait(10)
    os.close(ours)
    text = seen.decode()
    assert re.search(r"recorder  live +0%\|[^|]*\| 0 of 6 rows \[00:0\d\]", text)
    assert "recorder  finished  6 rows delivered\r\n" in text
    assert text.endswith("left\r\n")


def read(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other end is closed
        return b""


def test_a_refused_key_is_said_while_nothing_is_recorded(plugin, tmp_path):
    """With LOG_INTERVAL=1000 and slow steps, the next record may be minutes away."""
    plugin("refusing", REFUSING)
    rare = {"log_interval": 10000, "eval_interval": 10000, "checkpoint_interval": 10000, "max_iters": 100000}
    process = start(tmp_path, *arguments(tracker="refusing", **rare))
    for line in process.stdout:
        if "the server refuses the key; give another" in line:
            break
    assert line.strip() == "refusing: the server refuses the key; give another; trying again"
    wait_for(lambda: [r["event"] for r in journal.read(tmp_path / "runs" / "run")] == ["start", "eval"])
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert time.monotonic() - began < 20
    assert process.returncode == 130
    assert "refusing  failed    0 rows delivered, 1 pending\n          the server refuses the key; give an" in output
    assert "deliver the rest with: make sync RUN=runs/run" in output


def test_a_run_waits_as_its_option_says(plugin, tmp_path):
    plugin("slow", SLOW)
    output = train(tmp_path, *arguments(tracker="slow", tracker_wait="1", max_iters=1, warmup_steps=0))
    assert "waiting for the trackers up to 1 s" not in output  # the first second is not worth a word
    assert re.search(r"slow +opening +0 rows delivered, \d pending\n +still delivering in the background", output)
    os.kill(int((tmp_path / "runs/run/trackers/slow.lock").read_text()), signal.SIGKILL)


def test_a_second_look_at_what_is_pending_costs_nothing(tmp_path):
    """While the end of a run waits, it looks twice a second; each record is read and sorted once."""
    book = journal.Journal(tmp_path)
    book.write("start", 0, config={})
    for step in range(1000):
        book.write("train", step, {"train_loss": 1.5})
    backlog = Backlog(tmp_path).update()
    third = sorted(place for _, place in backlog)[299]
    assert (backlog.count(0), backlog.count(third), backlog.count(backlog.end)) == (1000, 700, 0)
    known = backlog.sorted
    assert backlog.update().count(third) == 700 and backlog.sorted is known
    book.write("train", 1000, {"train_loss": 1.5})
    assert backlog.update().count(third) == 701


@pytest.mark.extra("accelerate")
def test_a_script_of_ones_own_waits_as_it_says(run, capsys):
    from lib.track.espalier_tracker import EspalierTracker

    (run.parent / "script").mkdir()
    assert EspalierTracker("script", wait_seconds=7).patience == Patience(7.0)
    tracker = EspalierTracker("script", trackers=("csv",), output_dir=str(run.parent / "script"), tracker_wait="0")
    tracker.start()
    tracker.log({"loss": 1.0})
    tracker.finish()
    output = capsys.readouterr().out
    assert "waiting" not in output
    assert "deliver the rest with: make sync RUN=" in output
    wait_for(lambda: state(tracker.folder, "csv").state == "finished")
