"""A run that returns to an earlier step: each tracker, read back by its own reader, has exactly the valid rows."""

import contextlib
import csv
import json
import math
import os
import sqlite3
from pathlib import Path

import pytest

from lib.base import files
from lib.record import journal
from lib.track import lane
from lib.track import trackio as trackio_adapter
from lib.track.cursor import Cursor
from tests.tracking import RUN_ID, new_run, run, sync, trackio_stores, wandb_rows

__all__ = ["run"]  # a fixture

CHANGED = {"LEARNING_RATE": ["0.5", "0.1"]}
BEFORE = {("eval", 0): 9.0, ("train", 1): 8.0, ("train", 2): 7.0, ("eval", 2): 6.5, ("train", 3): math.nan}
AFTER = {("eval", 0): 9.0, ("train", 1): 8.0, ("train", 2): 5.5, ("train", 3): 4.5, ("eval", 3): 4.0}
NAMES = {"train": "train_loss", "eval": "val_loss"}
SECOND = f"{RUN_ID}_2"


@pytest.fixture
def storage(tmp_path, monkeypatch):
    """Trackio's storage for trackers in this process."""
    return trackio_stores(tmp_path / "trackio", monkeypatch)


def record(folder, *events, resume=None):
    """Record (event, step) -> value after a start, or after a resume at step 1 that `resume` is the details of."""
    with contextlib.closing(journal.Journal(folder)) as book:
        options = {"tracker": [], "wandb_offline": True, "learning_rate": 0.1 if resume else 0.5}
        book.write("resume" if book.seq else "start", 1 if book.seq else 0, config=options, **(resume or {}))
        for (event, step), value in events:
            book.write(event, step, {NAMES[event]: value})
            if value != value:
                book.write("alert", step, kind="nan", level="error", message=f"step {step}: not a number")
    return folder


def started(parent, name="goes-back"):
    return record(new_run(parent / name), *BEFORE.items())


def go_back(folder):
    new = [(key, value) for key, value in AFTER.items() if key[1] > 1]
    return record(folder, *new, resume={"changed": CHANGED, "retry": 1})


def deliver(folder, name):
    assert lane.deliver(folder, name, lambda seconds: True, lane.Pipe(os.dup(2))) == 0
    return Cursor.load(folder, name)


# ---- what each holds: (event, step) -> every value, of the run or of its second one ----------------------------------


def csv_values(folder, run_id):
    with (folder / "metrics.csv").open(newline="") as file:
        return [((line["event"], int(line["step"])), float(line["value"])) for line in csv.DictReader(file)]


def tensorboard_values(folder, run_id):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    return [
        ((event, point.step), make_ndarray(point.tensor_proto).item())
        for event, name in NAMES.items()
        for point in events.Tensors(name)
    ]


def trackio_values(folder, run_id):
    with contextlib.closing(sqlite3.connect(trackio_adapter.storage() / "demo.db")) as database:
        rows = database.execute("select step, metrics from metrics where run_id = ?", [run_id]).fetchall()
    return values([(step, json.loads(metrics)) for step, metrics in rows])


def mlflow_values(folder, run_id):
    held = mlflow_run(folder, run_id)
    found = [
        ((event, point.step), point.value)
        for event, name in NAMES.items()
        for point in mlflow_client(folder).get_metric_history(held.info.run_id, name)
    ]
    return found


def mlflow_run(folder, run_id):
    client = mlflow_client(folder)
    experiment = client.get_experiment_by_name("demo").experiment_id
    (held,) = client.search_runs([experiment], f"tags.`espalier.run_id` = '{run_id}'")
    return held


def mlflow_client(folder):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{folder.parent.resolve()}/mlflow.db")


def wandb_values(folder, run_id):
    return values(wandb_rows(folder, run_id))


def values(rows):
    events = {name: event for event, name in NAMES.items()}
    return [((events[name], step), float(value)) for step, metrics in rows for name, value in metrics.items()]


READERS = {
    "csv": csv_values,
    "tensorboard": tensorboard_values,
    "trackio": trackio_values,
    "mlflow": mlflow_values,
    "wandb": wandb_values,
}
REWRITTEN = ("csv", "tensorboard")
TENSORBOARD = pytest.param("tensorboard", marks=pytest.mark.extra("tensorboard"))


def assert_holds(name, folder, wanted, run_id=RUN_ID):
    def plain(items):
        return sorted((key, repr(float(value))) for key, value in items)

    assert plain(READERS[name](folder, run_id)) == plain(wanted.items())


@pytest.mark.parametrize("name", ["csv", TENSORBOARD, "trackio"])
def test_a_tracker_holds_what_is_in_force_after_the_run_went_back(storage, name, tmp_path):
    folder = started(tmp_path)
    deliver(folder, name)
    assert_holds(name, folder, BEFORE)
    go_back(folder)
    for _ in range(2):  # the second time there is nothing to deliver
        cursor = deliver(folder, name)
        assert (cursor.rows, cursor.state) == (5, "finished")
        assert_holds(name, folder, AFTER, RUN_ID if name in REWRITTEN else SECOND)
    if name in REWRITTEN:
        assert (cursor.edition, list(folder.rglob("*.tmp"))) == (1, [])
    else:
        assert cursor.note.startswith("the run goes-back~2 has all valid rows; rows of goes-back were withdrawn")
        assert_holds(name, folder, BEFORE)  # in the first run, which is left as it was


def test_wandb_gets_a_second_run_too(run):
    folder = started(run.parent)
    assert "wandb     finished" in sync(folder, "--tracker", "wandb").stdout
    assert_holds("wandb", folder, BEFORE)
    go_back(folder)
    done = sync(folder, "--tracker", "wandb")
    assert "the run goes-back~2 has all valid rows; rows of goes-back were withdrawn; offline" in done.stdout
    assert_holds("wandb", folder, AFTER, SECOND)
    assert_holds("wandb", folder, BEFORE)


def test_alerts_and_options_are_those_in_force(storage, tmp_path):
    folder = started(tmp_path)
    deliver(folder, "csv"), deliver(folder, "trackio")
    assert "step 3: not a number" in (folder / "alerts.csv").read_text()
    go_back(folder)
    deliver(folder, "csv"), deliver(folder, "trackio")
    assert (folder / "alerts.csv").read_text() == "time,kind,step,level,message\n"
    with contextlib.closing(sqlite3.connect(storage / "demo.db")) as database:
        assert database.execute("select run_name, step from alerts").fetchall() == [("goes-back", 3)]
        configs = dict(database.execute("select run_id, config from configs").fetchall())
    assert {run_id: json.loads(text)["learning_rate"] for run_id, text in configs.items()} == {RUN_ID: 0.5, SECOND: 0.1}


def test_a_step_that_comes_out_otherwise_takes_back_those_after_it(storage, tmp_path):
    """As after a kill, where the arithmetic is not bit-identical."""
    folder = started(tmp_path)
    deliver(folder, "csv"), deliver(folder, "trackio")
    record(folder, (("train", 2), 7.25))
    wanted = {("eval", 0): 9.0, ("train", 1): 8.0, ("train", 2): 7.25}
    for name, run_id in (("csv", RUN_ID), ("trackio", SECOND)):
        deliver(folder, name)
        assert_holds(name, folder, wanted, run_id)
    record(folder, (("train", 2), 7.25), (("train", 3), 6.0))  # the same again
    for name, run_id in (("csv", RUN_ID), ("trackio", SECOND)):
        deliver(folder, name)
        assert_holds(name, folder, wanted | {("train", 3): 6.0}, run_id)


def test_a_run_that_goes_back_twice_has_a_third_run(storage, tmp_path):
    folder = started(tmp_path)
    for edition in (1, 2, 3):
        assert deliver(folder, "trackio").edition == edition
        go_back(folder)
    assert_holds("trackio", folder, AFTER, f"{RUN_ID}_3")


@pytest.mark.parametrize("name", ["csv", TENSORBOARD])
def test_files_are_written_anew_where_nobody_knows_what_they_hold(tmp_path, name):
    folder = started(tmp_path)
    deliver(folder, name)
    (folder / "trackers" / f"{name}.json").unlink()
    go_back(folder)
    deliver(folder, name)
    assert_holds(name, folder, AFTER)


def test_a_tracker_that_was_never_told_of_what_was_taken_back_has_one_run(storage, tmp_path):
    folder = go_back(started(tmp_path))
    assert deliver(folder, "trackio").edition == 1
    assert_holds("trackio", folder, AFTER)


@pytest.mark.extra("mlflow")
def test_mlflow_gets_a_second_run_and_learns_that_the_first_goes_on_no_more(tmp_path):
    folder = started(tmp_path)
    with files.held(folder, "training this run"):
        assert deliver(folder, "mlflow").state == "live"
    assert mlflow_run(folder, RUN_ID).info.status == "RUNNING"
    go_back(folder)
    deliver(folder, "mlflow")
    assert_holds("mlflow", folder, AFTER, SECOND)
    assert_holds("mlflow", folder, BEFORE)
    before, after = (mlflow_run(folder, run_id) for run_id in (RUN_ID, SECOND))
    assert (before.info.status, before.data.params["learning_rate"]) == ("KILLED", "0.5")
    assert (after.info.run_name, after.data.params["learning_rate"]) == ("goes-back~2", "0.1")


class Killed(BaseException):
    """What no tracker catches."""


@pytest.mark.parametrize("name", ["csv", TENSORBOARD, "trackio"])
def test_a_kill_while_a_tracker_begins_again_is_made_up_for(storage, tmp_path, monkeypatch, name):
    """At each change of a file, one after the other, and before each transaction of the database."""
    store, fsync, unlink = trackio_adapter.Tracker.store, os.fsync, Path.unlink
    instant, died = 0, True
    while died:
        folder = started(tmp_path, f"killed-{instant}")
        (folder / "run.json").write_text((folder / "run.json").read_text().replace(RUN_ID, f"{instant:012d}"))
        deliver(folder, name)
        go_back(folder)
        with monkeypatch.context() as patch:
            left = iter(range(instant))
            for owner, attribute, action in ((os, "fsync", fsync), (Path, "unlink", unlink)):
                patch.setattr(owner, attribute, dying(action, left))
            patch.setattr(trackio_adapter.Tracker, "store", dying(store, left))
            try:
                deliver(folder, name)
                died = False
            except Killed:
                pass
        run_id = f"{instant:012d}"
        for _ in range(2):
            deliver(folder, name)
            assert_holds(name, folder, AFTER, run_id if name in REWRITTEN else f"{run_id}_2")
        instant += 1
    assert instant > 6


def dying(action, left):
    """`action`, which is the death of the process as soon as nothing is left."""

    def wrapped(*args, **kwargs):
        if next(left, None) is None:
            raise Killed
        return action(*args, **kwargs)

    return wrapped


def test_a_full_disk_leaves_what_a_csv_file_had(tmp_path, monkeypatch):
    folder = started(tmp_path)
    deliver(folder, "csv")
    before = (folder / "metrics.csv").read_bytes()
    go_back(folder)
    monkeypatch.setattr(lane, "WAITS", ())

    def full(path, content):
        raise files.UserError(f"{path}: cannot be written: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lib.track.csv.files.write", full)
        with contextlib.suppress(files.UserError):
            lane.deliver(folder, "csv", lambda seconds: True, lane.Pipe(os.dup(2)))
    assert (folder / "metrics.csv").read_bytes() == before
    deliver(folder, "csv")
    assert_holds("csv", folder, AFTER)
