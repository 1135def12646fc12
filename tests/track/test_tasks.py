"""Results of tasks that come after a run's end: its trackers get them, and a second result replaces the first."""

import csv
import os

import pytest

from lib.track import lane
from lib.track.cursor import Backlog, Cursor
from lib.track.tracker import Row
from tests.record.test_tasks import task
from tests.runs import NOON, ended, trained, write


def deliver(folder, name="csv"):
    """Deliver as `make evaluate` does, after the trainer has ended; returns the state."""
    assert lane.deliver(folder, name, lambda seconds: True, lane.Pipe(os.dup(2))) == 0
    return Cursor.load(folder, name)


def lines(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [(row["event"], int(row["step"]), row["metric"], float(row["value"])) for row in csv.DictReader(file)]


def add(folder, *events):
    """Append to the journal of a run that has ended, as `make evaluate` does."""
    from lib.record.journal import Journal

    book = Journal(folder)
    for event, step, metrics, details in events:
        book.write(event, step, metrics, **details)
    book.close()


def test_a_finished_run_delivers_later_results_and_stays_finished(tmp_path):
    folder = write(tmp_path / "run", *trained(10), ended(10))
    assert deliver(folder).state == "finished"
    add(folder, task(10, 0.25), task(10, 0.5, "piqa"))
    assert Cursor.load(folder, "csv").pending(Backlog(folder).update()) == 2
    after = deliver(folder)
    assert (after.state, after.rows, after.pending(Backlog(folder).update())) == ("finished", 3, 0)
    assert lines(folder)[-4:] == [
        ("task hellaswag", 10, "hellaswag/acc", 0.25),
        ("task hellaswag", 10, "hellaswag/acc_stderr", 0.05),
        ("task piqa", 10, "piqa/acc", 0.5),
        ("task piqa", 10, "piqa/acc_stderr", 0.05),
    ]


def test_a_second_result_replaces_the_first_and_the_same_one_sends_nothing(tmp_path):
    folder = write(tmp_path / "run", *trained(10), ended(10), task(10, 0.25))
    deliver(folder)
    add(folder, task(10, 0.25))
    assert Cursor.load(folder, "csv").pending(Backlog(folder).update()) == 0
    add(folder, task(10, 0.75))
    deliver(folder)
    assert [line for line in lines(folder) if line[0] != "train"] == [
        ("task hellaswag", 10, "hellaswag/acc", 0.75),
        ("task hellaswag", 10, "hellaswag/acc_stderr", 0.05),
    ]


def test_a_tracker_gets_a_row_with_the_task_in_its_event(tmp_path):
    folder = write(tmp_path / "run", ended(10), task(10, 0.25))
    (_, row) = list(Backlog(folder).update().items(0))[-1]
    assert row == Row("task hellaswag", 10, NOON + 2, {"hellaswag/acc": 0.25, "hellaswag/acc_stderr": 0.05})


@pytest.mark.extra("tensorboard")
def test_tensorboard_has_them_by_their_names(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    folder = write(tmp_path / "run", *trained(10, 20), ended(20), task(10, 0.25))
    deliver(folder, "tensorboard")
    add(folder, task(20, 0.5))
    deliver(folder, "tensorboard")
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    assert [(one.step, float(make_ndarray(one.tensor_proto))) for one in events.Tensors("hellaswag/acc")] == [
        (10, 0.25), (20, 0.5),
    ]  # fmt: skip
