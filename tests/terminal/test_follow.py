"""Following a run that another process trains: real processes, real journals, pipes that close."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from tests.forked import Program
from tests.runs import ended, evaluated, trained, write
from tests.training import ROOT

# Stands for a trainer: holds the run's folder, and records what it is told on its standard input, in JSON.
TRAINER = """
    import json, sys
    from pathlib import Path
    sys.path.insert(0, {root!r})
    from lib.base import files
    from lib.record import journal
    with files.held(Path({run!r}), "training"):
        print("held", flush=True)
        book = None
        for line in sys.stdin:
            book = book or journal.Journal(Path({run!r}))
            arguments, details = json.loads(line)
            book.write(*arguments, **details)
"""
FINAL = {"final_val_loss": 1.5, "best_val_loss": 1.25, "total_time_seconds": 61.0}


def trainer(run):
    code = textwrap.dedent(TRAINER).format(root=str(ROOT), run=str(run))
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def record(process, *arguments, **details):
    print(json.dumps([arguments, details]), file=process.stdin, flush=True)


def tail(run, *flags):
    return Program(run.parent, "scripts/runs.py", ["tail", str(run), *flags], dict(os.environ))


def metrics(step):
    [(_, _, found, _)] = trained(step)
    return found


@pytest.fixture
def new(tmp_path):
    """The folder of a run that has no journal yet."""
    run = write(tmp_path / "run")
    (run / "journal.jsonl").unlink()
    return run


def test_a_run_that_has_no_journal_yet_is_followed_to_its_end(new):
    training, following = trainer(new), tail(new)
    record(training, "start", 0, config={"max_iters": 2})
    record(training, "train", 1, metrics(1))
    assert following.stdout.readline() == "step 1/2  loss 8.0000  lr 5.00e-01  100 tokens/s\n"  # live
    record(training, "eval", 2, {"val_loss": 1.5, "val_perplexity": 4.5})
    record(training, "system", 2, {"system/power": 70.0})
    record(training, "alert", 2, {}, kind="end", message="it is over")
    record(training, "finish", 2, FINAL, status="finished")
    output, _ = following.communicate(timeout=120)  # while the trainer still holds the folder, to wait for its trackers
    assert output.splitlines() == [
        "step 2/2  val loss 1.5000  perplexity 4.50  best",
        "alert: it is over",
        "finished after step 2 in 1:01: val loss 1.5000 final, 1.2500 best",
    ]
    assert following.returncode == 0
    training.communicate(timeout=120)


def test_a_trainer_that_is_killed_is_noticed(new):
    training, following = trainer(new), tail(new)
    record(training, "start", 0, config={"max_iters": 30}, machine={"device": "cpu", "ranks": 2})
    record(training, "train", 12, metrics(12))
    assert following.stdout.readline().startswith("step 12/30")
    training.kill()
    training.communicate(timeout=120)
    output, _ = following.communicate(timeout=120)
    assert output == f"crashed after step 12; continue with: make resume RUN={new} NPROC=2\n"
    assert following.returncode == 1


def test_a_one_shot_run_that_stopped_cannot_be_resumed(new):
    pruning, following = trainer(new), tail(new)
    record(pruning, "start", 0, config={"max_iters": 12, "pruning_dynamics": "oneshot"})
    record(pruning, "finish", 3, {}, status="interrupted")
    pruning.communicate(timeout=120)
    assert following.communicate(timeout=120)[0] == (
        "interrupted after block 3; a one-shot run cannot be continued, so prune again\n"
    )


def test_a_run_that_is_about_to_resume_is_followed(tmp_path):
    run = write(tmp_path / "run", *trained(1), ended(1, "interrupted"))
    training = trainer(run)  # it takes a while from here to its `resume`
    following = tail(run)
    assert following.stdout.readline().startswith("step  1/40")
    record(training, "resume", 1, config={"max_iters": 40}, changed={})
    assert following.stdout.readline() == "resumed after step 1\n"
    record(training, "finish", 1, {}, status="failed", message="no more disk")
    training.communicate(timeout=120)
    output, _ = following.communicate(timeout=120)
    assert output == f"failed after step 1: no more disk; continue with: make resume RUN={run}\n"


def test_waiting_for_a_resume(tmp_path):
    run = write(tmp_path / "run", *trained(1), ended(1, "interrupted"))
    following = tail(run, "--wait")
    assert following.stdout.readline().startswith("step  1/40")
    training = trainer(run)
    record(training, "resume", 1, config={"max_iters": 40}, changed={})
    record(training, "finish", 1, FINAL, status="finished")
    output, _ = following.communicate(timeout=120)
    training.communicate(timeout=120)
    assert output.startswith("resumed after step 1\nfinished after step 1 in 1:01: ")


def test_it_begins_with_the_last_ten_records_and_the_best_loss_before_them(tmp_path):
    run = write(tmp_path / "run", evaluated(0, 1.0), *trained(*range(1, 31)), evaluated(30, 2.0), ended(30, **FINAL))
    output, _ = tail(run).communicate(timeout=120)
    lines = output.splitlines()
    assert [line.split()[1] for line in lines[:9]] == [f"{step}/40" for step in range(22, 31)]
    assert lines[9] == "step 30/40  val loss 2.0000  perplexity 2.00"  # not the best
    assert len(lines) == 11


def best_steps(run):
    """The steps that `tail` calls the best."""
    output, _ = tail(run).communicate(timeout=120)
    return [int(line.split()[1].partition("/")[0]) for line in output.splitlines() if line.endswith("  best")]


def test_the_best_of_a_journal_that_has_no_sparsity_with_its_evaluations(tmp_path):
    """As earlier versions wrote it: the training record before has it."""
    sparse = [(event, step, metrics | {"sparsity": 0.5}, {}) for event, step, metrics, _ in trained(2, 3)]
    events = [*trained(1), evaluated(1, 1.0), sparse[0], evaluated(2, 3.0), sparse[1], evaluated(3, 3.5)]
    assert best_steps(write(tmp_path / "run", *events, ended(3, **FINAL))) == [1, 2]


def test_the_best_is_not_compared_with_what_was_taken_back(tmp_path):
    again = "resume", 1, {}, {"changed": {"learning_rate": ["1", "2"]}, "config": {"max_iters": 40}}
    events = [*trained(1), evaluated(1, 4.0), evaluated(2, 1.0), again, evaluated(2, 3.0), evaluated(3, 3.5)]
    assert best_steps(write(tmp_path / "run", *events, ended(3, **FINAL))) == [1, 2, 2]


def test_no_block_of_a_one_shot_run_is_the_best(tmp_path):
    events = [evaluated(0, 1.0), evaluated(1, 3.0), evaluated(2, 2.0), ended(2, **FINAL)]
    config = {"max_iters": 2, "pruning_dynamics": "oneshot"}
    assert best_steps(write(tmp_path / "run", *events, config=config)) == []
    assert best_steps(write(tmp_path / "other", *events)) == [0]


def test_ctrl_c_leaves_in_silence(new):
    training, following = trainer(new), tail(new)
    record(training, "start", 0, config={"max_iters": 2})
    record(training, "train", 1, metrics(1))
    following.stdout.readline()
    following.send_signal(signal.SIGINT)
    assert following.communicate(timeout=120)[0] == ""
    assert following.returncode == 0
    training.communicate(timeout=120)


def test_a_reader_that_goes_away_ends_it(tmp_path):
    run = write(tmp_path / "run", *trained(*range(1, 31)), ended(30, **FINAL))
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, str(ROOT / "scripts/runs.py"), "tail", str(run)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=30)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_runs_of_other_programs_have_other_metrics(tmp_path):
    events = [("train", 3, {"loss": 1.5, "epoch": 2}, {}), ("train.2", 3, {"reward": 0.25}, {}), ended(3)]
    output, _ = tail(write(tmp_path / "run", *events, config={"lr": 0.1})).communicate(timeout=120)
    assert output.splitlines() == [
        "step 3  loss 1.5000  epoch 2", "step 3  reward 0.2500", "finished after step 3 in 3.0 s",
    ]  # fmt: skip
