"""Real faults: disks that fill up or are read-only, databases that are locked, processes that are killed."""

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from lib.record import journal
from lib.track.cursor import path_of
from tests import training
from tests.disk import disk, fill
from tests.tracking import assert_trackio_holds, same, sync, train, trainer, wait_for
from tests.training import arguments, losses, records

__all__ = ["disk"]  # fixtures


def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path, disk):
    """When there is room again, the run continues and has every step once, like an uninterrupted one."""
    options = {"max_iters": 600, "checkpoint_interval": 0, "eval_interval": 0, "output_dir": disk("size=16m")}
    options |= {"n_layer": 1, "n_embd": 16, "gradient_accumulation": 1}
    process = training.start(tmp_path, *arguments(**options))
    run = tmp_path / "disk" / "run"
    while not (run / "journal.jsonl").exists() or len(list(journal.read(run))) < 5:
        time.sleep(0.01)
    fill(tmp_path / "disk")
    output = process.communicate(timeout=60)[0]
    before = list(journal.read(run))
    last = before[-1]["step"]
    assert (process.returncode, 2 < last < 600) == (1, True)
    wanted = f"error: {run}/journal.jsonl: step {last + 1} cannot be recorded: No space left on device; it takes "
    assert wanted in output and "Traceback" not in output
    disk("size=32m")
    training.train(tmp_path, "--resume", str(run))
    assert list(journal.read(run))[: len(before)] == before
    assert journal.damaged(run) == []
    assert [record["step"] for record in records(run, "train")] == list(range(1, 601))
    training.train(tmp_path, *arguments(**options | {"output_dir": "elsewhere"}))
    assert losses(run) == losses(tmp_path / "elsewhere" / "run")


# ---- trackers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_trackers_disk_is_its_own_trouble_and_is_made_up_for(run, disk, monkeypatch, fault):
    """The other tracker has everything, the end says what is pending, and `sync` delivers it once there is room."""
    folder = disk("size=4m")
    monkeypatch.setenv("TRACKIO_DIR", str(folder))
    fill(folder) if fault == "full" else disk("ro")
    output = train(run, "trackio,csv")
    assert "csv       finished  25 rows delivered" in output
    assert "trackio   failed    0 rows delivered, 25 pending" in output
    assert f"deliver the rest with: make sync RUN={run}" in output
    (folder / "filler").unlink(missing_ok=True) if fault == "full" else disk("rw")
    done = sync(run)
    assert (done.returncode, "trackio   finished  25 rows delivered" in done.stdout) == (0, True), done.stdout
    assert_trackio_holds(run)


# SQLite tells of a lock after 1 s, not after Trackio's 30 s.
IMPATIENT = """
import sqlite3
connect = sqlite3.connect
sqlite3.connect = lambda *words, **named: connect(*words, **named | {"timeout": 1})
"""


def test_a_locked_database_is_waited_for(run):
    """The tracker's log tells of the lock. When the lock is gone the rows go in, without any `sync`."""
    with Path(os.environ["PYTHONPATH"].split(os.pathsep)[0], "sitecustomize.py").open("a") as site:
        site.write(IMPATIENT)
    train(run, "trackio", end=5)
    other = sqlite3.connect(Path(os.environ["TRACKIO_DIR"]) / "demo.db")
    other.execute("begin exclusive")
    process = trainer(run, "trackio,csv", first=5, deadline=60)
    log = path_of(run, "trackio", "log")
    wait_for(lambda: "database is locked" in log.read_text(), seconds=60)
    other.rollback()
    other.close()
    output = process.communicate(timeout=90)[0]
    assert "trackio   finished  26 rows delivered" in output
    assert "csv       finished  26 rows delivered" in output
    assert_trackio_holds(run)


# ---- kills -----------------------------------------------------------------------------------------------------------

KILLS, STEPS = 20, 800
TRACKERS = ("trackio", "wandb", "tensorboard")


@pytest.mark.extra("tensorboard")
def test_a_run_killed_at_twenty_instants_is_whole_in_its_journal_and_in_every_tracker(tmp_path, monkeypatch):
    """`kill -9` of the trainer, every second time of the trackers' processes too; then the same run continues."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "storage"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    run, chance, kills = tmp_path / "runs" / "run", random.Random(5), 0
    words = arguments(
        tracker=",".join(TRACKERS), max_iters=STEPS, checkpoint_interval=20, log_interval=5, eval_interval=50,
        sample_at_eval=True, sample_tokens=3, tracker_artifacts="last", system_metrics_interval=0.5,
        pruning_method="magnitude", pruning_interval=100,
    )  # fmt: skip
    while kills < KILLS:
        process = _start(tmp_path, words if not (run / ".config").exists() else ["--resume", str(run)])
        if kills % 4 < 2:
            time.sleep(chance.uniform(0.0, 2.0))  # while it starts
        else:
            _wait_for_growth(run, chance.randrange(5_000), process)
        process.kill()
        if kills % 2:
            _kill_lanes(run)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it ended before the last kill"
        kills += 1
    process = _start(tmp_path, ["--resume", str(run)])
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert [record["step"] for record in records(run, "train")] == list(range(5, STEPS + 1, 5))
    assert [record["step"] for record in records(run, "eval")] == list(range(0, STEPS + 1, 50))
    kept = [(record["name"], record["step"]) for record in records(run, "media") if record["kind"] != "image"]
    assert kept == [("sample", step) for step in range(0, STEPS + 1, 50)] + [("last-checkpoint", STEPS)]
    assert journal.damaged(run) == []
    for _ in range(2):  # the second time there is nothing to deliver
        done = sync(run)  # wandb cannot upload here
        assert done.stdout.count("  finished  ") == len(TRACKERS), done.stdout
        _assert_every_tracker_holds(run, tmp_path / "storage")


def _wait_for_growth(run, size, process):
    """Return once the journal has grown by `size` bytes, or the process has ended."""
    path = run / "journal.jsonl"
    before, deadline = path.stat().st_size if path.exists() else 0, time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.stat().st_size >= before + size:
            return
        time.sleep(0.005)


def _start(folder, words):
    (folder / "corpus.txt").write_text(training.TEXT)
    command = [sys.executable, str(training.ROOT / "gpt2" / "train.py"), *words]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _kill_lanes(run):
    for name in TRACKERS:
        lock = path_of(run, name, "lock")
        if lock.exists() and (pid := lock.read_text().strip()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def _assert_every_tracker_holds(run, storage):
    """Each backend's own reader finds every value of the journal once, by event, step and metric, and every file."""
    import test_tracking

    wanted: dict[tuple[str, int, str], float] = {}
    for record in journal.read(run):
        if record["event"] in ("train", "eval", "system", "finish"):
            for metric, value in journal.numbers(record).items():
                assert (record["event"], record["step"], metric) not in wanted
                wanted[record["event"], record["step"], metric] = value
    assert any(event == "system" for event, *_ in wanted)
    for name in TRACKERS:
        found = test_tracking.READERS[name](run, storage)
        assert Counter(row[:3] for row in found.rows) == Counter(wanted.keys()), name
        assert test_tracking.compare_files(test_tracking.journal_files(run, name), found.files) == [], name
        for event, step, metric, value in found.rows:
            assert same({"": value}, {"": found.number(wanted[event, step, metric])}), (name, event, step, metric)
