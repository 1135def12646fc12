"""Delivery to trackers, with real processes: whatever a tracker, its process or the trainer does, rows arrive once."""

import math
import os
import re
import signal
import subprocess
import sys

import pytest

from lib import track
from lib.base import files
from lib.record import journal
from tests.tracking import (
    ROOT,
    RUN_ID,
    assert_trackio_holds,
    assert_wandb_holds,
    expected,
    got,
    same,
    state,
    sync,
    train,
    train_while_lanes_die,
    trainer,
    wait_for,
)

# ---- one tracker, well or ill ---------------------------------------------------------------------------------------


def test_rows_arrive_in_order_with_their_times_and_unusual_numbers(run):
    output = train(run, "recorder")
    assert "recorder  finished  25 rows delivered\n          recording" in output
    opened, *rows, last = got(run)
    assert opened == ["open", RUN_ID, "demo", "first", 0.001, True]
    records = [r for r in journal.read(run) if r["event"] in ("train", "eval", "finish")]
    assert [(e, s, t) for e, s, t, _ in rows] == [(r["event"], r["step"], r["time"]) for r in records]
    assert all(same(row[3], journal.numbers(record)) for row, record in zip(rows, records, strict=True))
    assert math.isnan(rows[4][3]["train_loss"])
    assert last == ["finished", "finished"]


def test_a_slow_tracker_costs_training_no_time_and_goes_on_by_itself(run):
    """Every row is in the journal while the tracker still sleeps over its first ones."""
    (run / "sleep-at-log").write_text("3")
    output = train(run, "recorder", pause=0.02, deadline=0.2)
    # On a busy machine the tracker's process may still be starting when training ends.
    assert re.search(r"^recorder  (live    |starting)  0 rows delivered, 25 pending$", output, re.MULTILINE)
    assert "still delivering in the background (process " in output
    assert f"deliver the rest with: make sync RUN={run}" in output
    wait_for(lambda: state(run, "recorder").state == "finished")
    assert len(got(run)) == 25 + 2


@pytest.mark.parametrize("where", ["open", "log", "finish"])
def test_a_raising_tracker_fails_with_one_sentence_and_sync_delivers_after_the_repair(run, where):
    (run / f"raise-at-{where}").touch()
    output = train(run, "recorder")
    assert f"ConnectionError: no route at {where}" in output
    assert (state(run, "recorder").state, state(run, "recorder").rows) == ("failed", 25 if where == "finish" else 0)
    again = sync(run)
    assert again.returncode == 1
    (run / f"raise-at-{where}").unlink()
    assert sync(run).returncode == 0
    rows = [row for row in got(run) if row[0] in ("train", "eval", "finish")]
    assert len(rows) == 25 and len({(event, step) for event, step, *_ in rows}) == 25
    assert got(run)[-1] == ["finished", "finished"]


def test_a_tracker_that_recovers_in_time_is_no_failure(run):
    """While the trainer lives, the lane tries again and again, and says so."""
    (run / "raise-at-log").touch()
    process = trainer(run, "recorder", pause=0.05, end=100)
    wait_for(lambda: state(run, "recorder").message.endswith("no route at log; trying again"))
    (run / "raise-at-log").unlink()
    output = process.communicate(timeout=60)[0]
    assert "recorder: ConnectionError: no route at log; trying again" in output
    assert "recorder  finished  121 rows delivered" in output
    assert state(run, "recorder").message == ""


def test_a_crashing_tracker_is_reported_and_nothing_else_happens(run):
    (run / "exit-at-log").touch()
    output = train(run, "recorder")
    assert f"its process ended with exit code 7, see {run}/trackers/recorder.log" in output
    assert "0 rows delivered, 25 pending" in output


def test_a_lane_that_cannot_be_started_is_no_reason_to_stop(run):
    (run / "trackers" / "recorder.log").mkdir(parents=True)
    output = train(run, "recorder,csv")
    assert "recorder: its process cannot be started: [Errno 21] Is a directory: " in output
    assert "recorder  failed    0 rows delivered, 25 pending" in output
    assert f"deliver the rest with: make sync RUN={run}" in output
    assert "csv       finished  25 rows delivered" in output


READY = """
import sys, time
from pathlib import Path
from lib import track
from lib.record import journal
from lib.track.cursor import Cursor
folder = Path(sys.argv[1])
journal.Journal(folder).write("start", 0, config={"wandb_offline": True, "learning_rate": 0.1})
for sleep, opening in (("1", 30.0), ("60", 0.2)):
    (folder / "sleep-at-open").write_text(sleep)
    lanes = track.Lanes(folder, ["recorder"])
    lanes.ready(30.0, opening)
    print(Cursor.load(folder, "recorder").state)
    lanes.close() if sleep == "1" else lanes.stop()
    lanes.wait(30)
    (folder / "trackers" / "recorder.json").unlink()
"""


def test_training_begins_when_trackers_have_or_after_a_while(run):
    """`ready` waits for a tracker to open the run, not for one that hangs."""
    done = subprocess.run([sys.executable, "-c", READY, str(run)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["live", "opening"], done.stderr


def test_what_a_live_run_has_so_far_is_delivered_and_its_end_is_not_told(run):
    book = journal.Journal(run)
    book.write("start", 0, config={"tracker": [], "wandb_offline": True, "learning_rate": 0.1})
    book.write("train", 1, {"train_loss": 2.5})
    with files.held(run, "training this run"):
        assert sync(run, "--tracker", "csv").returncode == 0
        assert (state(run, "csv").state, state(run, "csv").rows) == ("live", 1)
    assert sync(run, "--tracker", "csv").returncode == 0
    assert state(run, "csv").state == "finished"


def test_no_trackers_is_a_tracker_too(run):
    train(run, "")
    assert not (run / "trackers").exists()
    assert track.table([]) == ""


def test_a_state_that_cannot_be_read_is_one_sentence_and_not_the_trainers_problem(run):
    (run / "trackers").mkdir()
    (run / "trackers" / "recorder.json").write_text("{")
    output = train(run, "recorder")
    assert f"{run}/trackers/recorder.json: the tracker's state cannot be read: " in output


# ---- deaths ---------------------------------------------------------------------------------------------------------


def test_a_killed_trainers_last_rows_are_delivered(run):
    (run / "sleep-at-open").write_text("1")
    process = trainer(run, "recorder", end=1000, pause=0.01)
    wait_for(lambda: process.stdout.readline() == "50\n")
    process.kill()
    process.wait()
    wait_for(lambda: state(run, "recorder").state == "finished")
    assert [tuple(row[:2]) for row in got(run)[1:-1]] == list(expected(run))
    assert got(run)[-1] == ["finished", "crashed"]


def test_a_lane_ignores_sigterm_while_the_trainer_lives(run):
    process = trainer(run, "recorder", end=160, pause=0.05)
    wait_for(lambda: state(run, "recorder").state == "live")
    os.kill(int((run / "trackers" / "recorder.lock").read_text()), signal.SIGTERM)
    assert "recorder  finished  193 rows delivered" in process.communicate(timeout=120)[0]


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_lane_killed_at_any_instant_delivers_every_row_once_in_the_end(run, name):
    train_while_lanes_die(run, name, 80)
    for _ in range(2):  # the second time there is nothing to deliver
        sync(run)
        assert state(run, name).state == "finished"
        {"trackio": assert_trackio_holds, "wandb": assert_wandb_holds}[name](run)


def test_a_lane_that_forgot_its_cursor_still_delivers_nothing_twice(run):
    train(run, "trackio,wandb")
    for name in ("trackio", "wandb"):
        (run / "trackers" / f"{name}.json").unlink()
    done = sync(run)
    assert done.stdout.count("finished  25 rows delivered") == 2
    assert_trackio_holds(run)
    assert_wandb_holds(run)


def test_a_resumed_run_repeats_steps_and_trackers_do_not(run):
    train(run, "recorder,trackio,wandb", end=12)
    train(run, "recorder,trackio,wandb", first=8, end=20)
    rows = [tuple(row[:2]) for row in got(run) if row[0] in ("train", "eval", "finish")]
    assert sorted(rows) == sorted(expected(run))
    assert_trackio_holds(run)
    assert_wandb_holds(run)


def test_only_one_process_delivers_to_a_tracker_of_a_run(run):
    process = trainer(run, "recorder", end=200, pause=0.05)
    wait_for(lambda: state(run, "recorder").rows > 0)
    pid = (run / "trackers" / "recorder.lock").read_text().strip()
    done = sync(run)
    assert f"another process ({pid}) is already delivering this run to this tracker" in done.stdout
    process.kill()
    process.communicate()
    wait_for(lambda: state(run, "recorder").state == "finished")
    assert [tuple(row[:2]) for row in got(run)[1:-1]] == list(expected(run))
