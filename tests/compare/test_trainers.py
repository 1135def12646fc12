"""Trainers of a sweep: one that is killed, the pace of one, results that cannot be written, and what is removed."""

import json
import re
import shutil
import signal
import time
from types import SimpleNamespace

import psutil
import pytest

from lib.base.errors import UserError
from lib.compare import sweep, trainers
from lib.engines import job
from lib.engines.engine import End
from lib.record import run as runs
from tests.compare.test_sweep import COMMON, events, run, start, write
from tests.runs import trained
from tests.runs import write as write_run

ALONE = SimpleNamespace(jobs=1, threads=0)  # an engine that takes one run at a time


def test_a_killed_trainer_is_a_failed_run_that_the_same_command_resumes(tmp_path):
    options = f"common {COMMON} MAX_ITERS=120 CHECKPOINT_INTERVAL=10 EVAL_INTERVAL=0"
    write(tmp_path, options, "dense", "still WEIGHT_DECAY=0", head="defconfig gpt2_tiny\nseeds 1\n")
    home = tmp_path / "runs/few"
    process = start(tmp_path)
    while not (home / "dense-seed1/checkpoints/step-000000010.pt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    (trainer,) = psutil.Process(process.pid).children()
    trainer.send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert re.search(r"^dense-seed1  failed: was ended by SIGKILL  \(1 of 2 runs", output, re.MULTILINE)
    assert re.search(r"^still-seed1  val loss \d\.\d{4} ", output, re.MULTILINE)
    assert "error: dense-seed1 failed: was ended by SIGKILL; see runs/few/dense-seed1.log\n" in output
    assert run(tmp_path).count("val loss ") == 2  # the run's line and the title of a column
    (resumed,) = [event["step"] for event in events(home / "dense-seed1") if event["event"] == "resume"]
    assert resumed >= 10
    assert json.loads((home / "dense-seed1/summary.json").read_text())["steps"] == 120


def test_results_that_cannot_be_written_end_no_run(tmp_path, capsys):
    write(tmp_path, f"common OUTPUT_DIR={tmp_path}/runs", "dense")
    plan = sweep.read(tmp_path / "few")
    for one in plan.runs():
        one.folder.mkdir(parents=True)
        (one.folder / "summary.json").write_text("{}")

    def record():
        raise UserError("results.json: cannot be written: No space left on device")

    assert not trainers.Trainers(plan, ALONE, record).work(stop=False)
    assert capsys.readouterr().out == "warning: results.json: cannot be written: No space left on device\n"


@pytest.fixture
def oneshot(tmp_path):
    """A begun run of one-shot pruning."""
    write(tmp_path, f"common OUTPUT_DIR={tmp_path}/runs", "dense", "wanda from=@dense oneshot PRUNING_METHOD=wanda")
    plan = sweep.read(tmp_path / "few")
    found = plan.run(plan.named("wanda"), 1)
    write_run(found.folder, *trained(1))
    return found


def interrupted(path):
    raise KeyboardInterrupt


def test_a_kill_while_a_run_is_removed_leaves_no_half_of_it(oneshot, monkeypatch):
    folder = oneshot.folder
    whole = {path.name for path in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            job.remove(oneshot.folder)
    (left,) = folder.parent.iterdir()
    assert (left.name, {path.name for path in left.iterdir()}) == (".wanda-seed1.removed", whole)
    assert runs.folders(folder.parent) == runs.folders(folder.parent.parent) == []
    assert not oneshot.begun
    job.remove(oneshot.folder)  # before the run begins again
    assert list(folder.parent.iterdir()) == []


def test_the_time_left_follows_from_the_steps_that_were_seen(oneshot, monkeypatch):
    one = trainers.Trainer(oneshot, None, None)
    now = [100.0]
    monkeypatch.setattr(trainers.time, "monotonic", lambda: now[0])
    assert (one.progress(), one.left(11)) == (1, None)
    shutil.rmtree(oneshot.folder)
    write_run(oneshot.folder, *trained(1, 2, 3))
    one.offset = 0
    now[0] = 105.0
    assert (one.progress(), one.pace, one.left(11)) == (3, [(100.0, 1), (105.0, 3)], 20.0)
    now[0] = 200.0
    assert one.left(11) == 0.0


def test_the_time_left_follows_from_what_was_made_and_not_from_what_failed(tmp_path, monkeypatch):
    options = f"common OUTPUT_DIR={tmp_path}/runs MAX_ITERS=100"
    write(tmp_path, options, "dense", head="defconfig gpt2_tiny\nseeds 1..4\n")
    now = [100.0]
    monkeypatch.setattr(trainers.time, "monotonic", lambda: now[0])
    crew = trainers.Trainers(sweep.read(tmp_path / "few"), ALONE, lambda: None)
    for failed in crew.runs[:3]:  # each has failed at its first step
        one = trainers.Trainer(failed, crew._job(failed), "ended")
        one.step, one.end = 1, End(1, "no memory")
        crew.active.append(one)
        crew._count(one, stop=False)
    one = trainers.Trainer(crew.runs[3], None, None)
    one.step = 22
    crew.active.append(one)
    now[0] = 200.0  # 25 steps in 100 s, and 78 are left
    assert crew._status() == "3 of 4 runs, 5:12 left"


class Crowd:
    """An engine for many runs, whose jobs end when the test says so."""

    threads = 1

    def __init__(self, jobs):
        self.jobs, self.ended = jobs, {}

    def start(self, jobs):
        return [SimpleNamespace(poll=lambda name=job.name: self.ended.get(name)) for job in jobs]


@pytest.fixture
def crowd(tmp_path):
    """A sweep of 2 configurations, one of which begins from the other, and 20 seeds; its trainers and their engine."""
    lines = (f"common OUTPUT_DIR={tmp_path}/runs MAX_ITERS=10", "dense", "next from=@dense")
    write(tmp_path, *lines, head="defconfig gpt2_tiny\nseeds 1..20\n")
    engine, records = Crowd(30), []
    crew = trainers.Trainers(sweep.read(tmp_path / "few"), engine, lambda: records.append(crew.done))
    return crew, engine, records


def test_a_picture_of_many_runs_reads_what_is_new_in_each_journal_once(crowd, monkeypatch):
    crew, _, _ = crowd
    assert crew.work(stop=False)
    assert len(crew.active) == 20  # the others wait for these
    for one in crew.active:
        write_run(one.run.folder, *trained(1, 2, 3))
    looks = []
    newest = trainers.journal.newest
    monkeypatch.setattr(trainers.journal, "newest", lambda *words: looks.append(words) or newest(*words))
    now = time.monotonic() + 10
    monkeypatch.setattr(trainers.time, "monotonic", lambda: now)
    state = crew._state()
    assert crew._state() == state
    assert {one.share for row in state.rows for one in row.doing} == {0.3}
    assert len(looks) == 20


def test_runs_that_wait_for_others_are_looked_at_again_when_one_has_ended(crowd, monkeypatch):
    crew, engine, records = crowd
    tried = []
    find = crew._next
    monkeypatch.setattr(crew, "_next", lambda: tried.append(len(crew.waiting)) or find())
    for _ in range(3):
        crew.work(stop=False)
    assert tried == [*range(40, 20, -1), 20]
    done = crew.plan.run(crew.plan.named("dense"), 7)
    write_run(done.folder, *trained(10))
    (done.folder / "summary.json").write_text('{"final_val_loss": 2.5, "total_time_seconds": 1.0}')
    engine.ended[done.name] = End(0)
    crew.work(stop=False)
    assert [one.run.name for one in crew.active if one.run.configuration.begins] == ["next-seed7"]
    assert records == [0, 1]
