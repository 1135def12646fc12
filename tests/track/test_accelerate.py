"""Accelerate, both ways: its trackers fed from our journal, and our journal fed by scripts that train with it."""

import contextlib
import json
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("accelerate", reason="needs the optional package accelerate: make test-extras")

from accelerate import Accelerator, tracking
from accelerate.state import AcceleratorState

from lib import track
from lib.base.errors import UsageError, UserError
from lib.record import journal
from lib.record.run import Identity, project_name
from lib.track import accelerate as bridge
from lib.track import lane
from lib.track.accelerate_media import SHOW
from lib.track.accelerate_sent import Sent
from lib.track.espalier_tracker import EspalierTracker, Series, flattened, plain
from tests.disk import disk, fill
from tests.tracking import ROOT, expected, recorded, run, state, sync, trainer, wait_for

__all__ = ["disk", "run"]  # fixtures
pytestmark = pytest.mark.extra("accelerate")

# A training script as Accelerate's users write them: folder of runs, first step, end, resume or not, kill or not.
SCRIPT = """
import os, signal, sys
import numpy, torch
from accelerate import Accelerator
from lib.espalier_tracker import EspalierTracker
runs, first, end, resume, kill = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "resume", sys.argv[5:]
tracker = EspalierTracker("a run/of mine", project="demo", output_dir=runs, resume=resume, tracker_group="one")
accelerator = Accelerator(cpu=True, log_with=[tracker])
model, optimizer = accelerator.prepare(model := torch.nn.Linear(4, 1), torch.optim.SGD(model.parameters(), 0.1))
accelerator.init_trackers("ignored", config={"lr": 0.1, "tracker": "theirs", "path": os.path, "nan": float("nan")})
for step in range(first, end):
    loss = model(torch.ones(2, 4)).square().mean()
    accelerator.backward(loss)
    optimizer.step()
    accelerator.log({"loss": loss, "lr": numpy.float32(0.5), "seen": numpy.int64(2**60 + step)}, step=step)
    if step % 5 == 0:
        accelerator.log({"eval_loss": torch.tensor([float("nan")]), "grad": {"norm": 2.0}, "text": "so so"}, step=step)
        accelerator.log({"epoch_loss": 1.0 + step}, step=step // 5)
if kill:
    os.kill(os.getpid(), signal.SIGKILL)
accelerator.end_training()
"""


def script(tmp_path, *words, launcher=()):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(path), str(tmp_path / "runs"), *map(str, words)]
    return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)


def tracked(folder, again=""):
    """(step, metrics) of every row that Trackio's database holds of a run, or of that with which it went on."""
    run_id = json.loads((folder / "run.json").read_text())["run_id"] + again
    database = sqlite3.connect(Path(os.environ["TRACKIO_DIR"]) / "demo.db")
    rows = database.execute("select step, metrics from metrics where run_id = ?", (run_id,)).fetchall()
    database.close()
    return [(step, json.loads(metrics)) for step, metrics in rows]


# ---- their trackers on our journal -----------------------------------------------------------------------------------


def scalars(folder, again=""):
    """Every (tag, step, value) in the event files, by TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / f"accelerate-tensorboard{again}"), size_guidance={"scalars": 0})
    events.Reload()
    return [(tag, point.step, point.value) for tag in events.Tags()["scalars"] for point in events.Scalars(tag)]


def assert_tensorboard_holds(folder, again=""):
    wanted = {(tag, s): value for (_, s), metrics in expected(folder).items() for tag, value in metrics.items()}
    found = scalars(folder, again)
    assert Counter((tag, step) for tag, step, _ in found) == Counter(wanted.keys())
    assert all(value == pytest.approx(wanted[tag, step], rel=1e-6, nan_ok=True) for tag, step, value in found)


def test_a_tracker_of_accelerate_gets_every_row_once(run):
    process = trainer(run, "accelerate:tensorboard", end=80, pause=0.05, deadline=0)
    wait_for(lambda: state(run, "accelerate:tensorboard").rows > 0)
    os.kill(int((run / "trackers" / "accelerate-tensorboard.lock").read_text()), signal.SIGKILL)
    process.communicate(timeout=120)
    sent = run / "trackers" / "accelerate-tensorboard.sent"
    sent.write_bytes(sent.read_bytes() + b"train 9")  # torn
    assert sync(run).returncode == 0
    assert_tensorboard_holds(run)
    (run / "trackers" / "accelerate-tensorboard.json").unlink()
    assert "finished  97 rows delivered" in sync(run).stdout
    assert_tensorboard_holds(run)
    assert sent.read_text().splitlines()[:3] == ["configuration", "train 0", "eval 0"]


def deliver(folder):
    return lane.deliver(folder, "accelerate:tensorboard", lambda seconds: True, lane.Pipe(os.dup(2)))


def test_a_run_that_goes_back_is_another_run_there(run):
    folder = recorded(run.parent / "second", *(("train", step, {"train_loss": 1.0 * step}, {}) for step in (1, 2)))
    assert deliver(folder) == 0
    with contextlib.closing(journal.Journal(folder)) as book:
        book.write("resume", 1, config={"tracker": []}, changed={"SEED": ["1", "2"]})
        book.write("train", 2, {"train_loss": 7.0})
    assert deliver(folder) == 0
    assert state(folder, "accelerate:tensorboard").note.startswith("the run second~2 has all valid rows")
    assert_tensorboard_holds(folder, "~2")
    sent = (folder / "trackers" / "accelerate-tensorboard.sent").read_text().splitlines()
    assert sent == ["configuration", "train 1", "train 2", "~2 configuration", "~2 train 1", "~2 train 2"]
    for again in ("~2", ""):  # what was deleted of one run does not touch the other
        (folder / "trackers" / "accelerate-tensorboard.sent").write_text("\n".join([*sent, ""]))
        kept = Sent(folder / "trackers" / "accelerate-tensorboard.sent", again)
        kept.forget()
        assert kept.has_rows() is False
        found = (folder / "trackers" / "accelerate-tensorboard.sent").read_text().splitlines()
        assert found == [line for line in sent if line.startswith("~2 ") is not bool(again)]
    assert ("train_loss", 2, 7.0) in scalars(folder, "~2") and ("train_loss", 2, 2.0) in scalars(folder)


def test_a_note_that_a_full_disk_tears_goes_on_where_it_ended(disk):
    path = disk("size=8k") / "sent"
    path.write_bytes(b"train 1\n" * 511 + b"tra 1\n")  # 4094 bytes: two are left of the first page
    fill(path.parent)
    sent = Sent(path)
    with pytest.raises(OSError, match="No space left"):
        sent.add("train 2")
    assert path.read_bytes().endswith(b"tra 1\ntr") and "train 2" in sent
    (path.parent / "filler").unlink()
    sent.add("train 3")
    assert path.read_bytes().endswith(b"tra 1\ntrain 2\ntrain 3\n")


def test_what_accelerate_does_not_have_or_what_is_not_installed_is_a_sentence(monkeypatch):
    assert all(hasattr(tracking, library.tracker) for library in bridge._LIBRARIES.values())
    assert set(bridge.ARGUMENT) == set(bridge._LIBRARIES) == set(SHOW)
    choice = "write accelerate: and one of aim, clearml, comet_ml, dvclive, swanlab, tensorboard"
    for name in ("accelerate", "accelerate:comet"):
        with pytest.raises(UsageError, match=f"^tracker {name} does not exist; {choice}$"):
            track.names([name])
    monkeypatch.setitem(bridge.ARGUMENT, "aim", "no_such_library")
    with pytest.raises(UsageError, match=r"package no_such_library is not installed; run: .+ -m pip install no_such_l"):
        track.names(["accelerate:aim"])


# ---- our tracker in their scripts ------------------------------------------------------------------------------------


def test_a_killed_script_that_is_resumed_is_one_run_with_every_row_once(run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    done = script(tmp_path / "elsewhere", 0, 8, "new", "kill")
    assert done.returncode == -signal.SIGKILL, done.stderr
    (folder,) = (tmp_path / "elsewhere" / "runs").iterdir()
    assert folder.name == "a-run-of-mine-c5d910"
    # Until the lane of the killed script, which goes on without it, has ended, another is refused.
    wait_for(lambda: sync(folder).returncode == 0, seconds=90)
    done = script(tmp_path / "elsewhere", 6, 12, "resume")  # from an earlier checkpoint
    assert done.returncode == 0, done.stderr
    assert "trackio   finished  18 rows delivered" in done.stdout
    records = list(journal.read(folder))
    assert [r["event"] for r in records if r["event"] in ("start", "resume", "finish")] == ["start", "resume", "finish"]
    assert records[0]["config"] == {
        "lr": 0.1,
        "config.tracker": "theirs",
        "path": str(os.path),
        "nan": "nan",
        "tracker": ["trackio"],
        "tracker_group": "one",
        "tracker_project": "demo",
    }
    assert "the run a run/of mine~2 has all valid rows; rows of a run/of mine were withdrawn" in done.stdout
    assert sorted(step for step, metrics in tracked(folder) if "loss" in metrics) == list(range(8))
    rows = tracked(folder, "_2")  # the weights of the second script are others
    assert sorted(step for step, metrics in rows if "loss" in metrics) == list(range(12))
    assert sorted(step for step, metrics in rows if "eval_loss" in metrics) == [0, 5, 10]
    assert sorted((step, metrics["epoch_loss"]) for step, metrics in rows if "epoch_loss" in metrics) == [
        (0, 1.0),
        (1, 6.0),
        (2, 11.0),
    ]
    assert next(m for s, m in rows if s == 3 and "seen" in m)["seen"] == 2**60 + 3
    evaluation = next(r for r in records if r["event"] == "eval")
    assert evaluation["metrics"] == {"eval_loss": "NaN", "grad/norm": 2.0}
    assert evaluation["others"] == {"text": "so so"}


def test_two_processes_are_one_run(run, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    done = script(tmp_path, 0, 6, "new", launcher=[*launcher, "--standalone"])
    assert done.returncode == 0, done.stderr
    folders = [path.parent for path in (tmp_path / "runs").glob("*/run.json") if path.parent != run]
    assert len(folders) == 1
    assert sorted(step for step, metrics in tracked(folders[0]) if "loss" in metrics) == list(range(6))
    assert done.stdout.count("run folder") == 1


def test_it_works_without_trackers_configuration_or_steps(tmp_path, capsys):
    AcceleratorState._reset_state(reset_partial_state=True)
    tracker = EspalierTracker(output_dir=str(tmp_path), trackers=())
    accelerator = Accelerator(cpu=True, log_with=[tracker])
    accelerator.init_trackers("ignored")
    folder = accelerator.get_tracker("espalier", unwrap=True).run.folder
    for loss in (2.0, math.inf):
        accelerator.log({"loss": loss})
    accelerator.log({"model": "gpt2"})
    accelerator.log({"loss": 1}, step=7)
    accelerator.log({"loss": 0})
    accelerator.end_training()
    records = [(r["event"], r["step"], r["metrics"]) for r in journal.read(folder)]
    assert records == [
        ("start", 0, {}),
        ("train", 0, {"loss": 2.0}),
        ("train", 1, {"loss": "Infinity"}),
        ("others", 2, {}),
        ("train", 7, {"loss": 1}),
        ("train", 8, {"loss": 0}),
        ("finish", 8, {}),
    ]
    assert capsys.readouterr().out == f"run folder  {folder}\n"
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_project_is_the_clone_around_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "clone/.git").mkdir(parents=True)
    (tmp_path / "clone/examples").mkdir()
    monkeypatch.chdir(tmp_path / "clone/examples")
    tracker = EspalierTracker("mine", trackers=())
    tracker.start()
    assert Identity.load(tracker.folder).project == project_name(tmp_path / "clone")
    tracker.finish()


def test_no_value_of_a_script_is_an_option_of_a_tracker(run, tmp_path, monkeypatch):
    monkeypatch.delenv("TRACKIO_SPACE_ID", raising=False)
    tracker = EspalierTracker("theirs", project="demo", output_dir=str(tmp_path), tracker_group="ours")
    values = {
        "trackio_space_id": "trackio",
        "output_dir": "elsewhere",
        "wandb_entity": "somebody",
        "tracker_tags": ["a", "b"],
        "tracker_group": "theirs",
        "lr": 0.1,
    }
    tracker.start()
    tracker.store_init_configuration(values)
    assert [one.name for one in tracker.lanes.lanes] == ["trackio"]
    tracker.log({"loss": 1.0})
    tracker.finish()
    config = next(journal.read(tracker.folder))["config"]
    ours = {"tracker": ["trackio"], "tracker_group": "ours", "tracker_project": "demo"}
    assert config == {("lr" if name == "lr" else f"config.{name}"): v for name, v in values.items()} | ours


def test_an_end_without_a_run_is_nothing_and_a_row_without_one_is_a_sentence(tmp_path, capsys):
    tracker = EspalierTracker("mine", output_dir=str(tmp_path), trackers=())
    tracker.finish()
    for folder, what in (("mine", "no run has started"), ("mine-2", f"the run in {tmp_path}/mine has ended")):
        for call in (tracker.log, tracker.log_images, tracker.store_init_configuration):
            with pytest.raises(UserError, match=rf"^EspalierTracker: {what}; call init_trackers, or start, first$"):
                call({"loss": 1.0})
        tracker.start()
        tracker.log({"loss": 2.0})
        tracker.finish()
        tracker.finish()
        assert tracker.folder.name == folder
        assert [record["event"] for record in journal.read(tracker.folder)] == ["start", "train", "finish"]
    tracker.start()
    tracker.start()  # ends the one before
    assert [record["event"] for record in journal.read(tmp_path / "mine-3")] == ["start", "finish"]
    assert tracker.folder.name == "mine-4"
    tracker.finish()
    assert capsys.readouterr().out.count("run folder") == 4


def test_wrong_arguments_are_sentences_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UsageError, match=r"^EspalierTracker: TRACKER takes none, all or some of .+ did you mean tensorboard\?$"
    ):
        EspalierTracker(trackers=("tensorbard",))
    with pytest.raises(UsageError, match=r"^EspalierTracker: unknown option WANDB_OFLINE; did you mean WANDB_OFFLINE"):
        EspalierTracker(wandb_ofline=True)
    with pytest.raises(UsageError, match=r"^EspalierTracker: WANDB_OFFLINE=y has no effect: it needs "):
        EspalierTracker(wandb_offline=True)
    wrong = 'must be text, a number or a bool, lists as "a,b"; got '
    for value in (["a", "b"], None):
        with pytest.raises(UsageError, match=rf"^EspalierTracker: TRACKER_TAGS {wrong}{re.escape(repr(value))}$"):
            EspalierTracker(tracker_tags=value)
    with pytest.raises(UsageError, match=r"^EspalierTracker: WANDB_OFFLINE .*1"):
        EspalierTracker(trackers=("wandb",), wandb_offline=1)
    with pytest.raises(UsageError, match=r"^EspalierTracker: TRACKER_GROUP holds a password or token"):
        EspalierTracker(trackers=(), tracker_group="https://me:secret@host")
    assert EspalierTracker(tracker_group=1).options["tracker_group"] == "1"
    assert list(tmp_path.iterdir()) == []


def test_rows_go_where_their_steps_grow_and_repetitions_where_they_were(tmp_path):
    book = journal.Journal(tmp_path)
    said = [
        (("loss",), 1, "train"),
        (("lr",), 1, "train.2"),  # a second call in a step
        (("eval_loss",), 1, "eval"),
        (("loss",), 2, "train"),
        (("epoch_loss",), 0, "train.3"),  # counts something else
        (("lr",), 2, "train.2"),
        (("epoch_loss",), 1, "train.3"),
        (("loss",), 1, "train"),  # again, after a resume
        (("loss", "lr"), 3, "train"),
        (("loss",), 3, "train.2"),
    ]
    series = Series(tmp_path)
    for names, step, event in said:
        assert series.event(names, step) == event
        book.write(event, step, dict.fromkeys(names, 0.5))
    again = Series(tmp_path)
    assert (again.last, again.steps, again.rows) == (series.last, series.steps, series.rows)
    assert (again.last, again.steps) == (3, {"train": 3, "train.2": 3, "eval": 1, "train.3": 1})


def test_values_become_numbers_or_what_json_can_hold():
    import numpy as np
    import torch

    values = {"a": torch.tensor(2.5), "b": {"c": np.int64(3), "d": {"e": torch.tensor([True])}}, "f": np.ones(2)}
    flat = flattened(values)
    assert {name: value for name, value in flat.items() if name != "f"} == {"a": 2.5, "b/c": 3, "b/d/e": True}
    assert plain(flat["f"]) == [1.0, 1.0]
    odd = {"path": Path("a"), 1: [math.nan, -math.inf, None, torch.zeros(1, 2)], "set": {1}}
    assert plain(odd) == {"path": "a", "1": ["nan", "-inf", None, [[0.0, 0.0]]], "set": [1]}
    json.dumps(plain(odd), allow_nan=False)
