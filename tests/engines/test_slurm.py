"""The engine SLURM with a real one: arrays, time limits, requeues, cancelled jobs, and the same command again."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from lib.base.errors import UserError
from lib.engines import slurm as engine
from lib.engines.engine import End, Wishes
from lib.record import journal
from tests.engines import slurm
from tests.training import ROOT, TEXT, records

TINY = (
    "MODEL_NAME=custom N_LAYER=1 N_HEAD=1 N_EMBD=8 BLOCK_SIZE=32 DATASET=files DATASET_SOURCE=corpus.txt "
    "TOKENIZER=bytes BATCH_SIZE=4 WARMUP_STEPS=5 EVAL_INTERVAL=0 EVAL_SAMPLES=4 LOG_INTERVAL=1 "
    "CHECKPOINT_INTERVAL=0 DEVICE=cpu DTYPE=float32 THREADS=1 SAMPLE_TOKENS=0 TRACKER=none SYSTEM_METRICS_INTERVAL=0"
)
with_slurm = pytest.mark.extra("slurm")
installed = pytest.mark.skipif(bool(slurm.missing()), reason="needs Debian's slurmctld, slurmd, munge and slurm-client")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The variables of a SLURM that was started for these tests."""
    with slurm.cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.fixture
def sweep(tmp_path, cluster):
    """Starts a sweep with these lines and words: sweep(["dense MAX_ITERS=20"], "--jobs", "2")."""
    (tmp_path / "corpus.txt").write_text(TEXT)

    def start(lines, *words):
        (tmp_path / "few").write_text("\n".join(["defconfig gpt2_tiny", "seeds 1", f"common {TINY}", *lines, ""]))
        return subprocess.Popen(
            [sys.executable, str(ROOT / "scripts/sweep.py"), "few", "--engine", "slurm", *words],
            cwd=tmp_path,
            env=cluster | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def finish(process, code=0):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output
    return output


def wait_for(found, seconds=180):
    until = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return result


def steps(folder, name):
    path = folder / "runs/few" / name / "journal.jsonl"
    return path.read_text().count('"event":"train"') if path.exists() else 0


def events(folder, name):
    return [r["event"] for r in journal.read(folder / "runs/few" / name) if r["event"] in ("start", "resume", "finish")]


@with_slurm
@installed
def test_an_array_trains_a_sweep_after_chains_and_a_run_that_diverges_is_tried_once(sweep, tmp_path):
    lines = ["dense MAX_ITERS=20", "late MAX_ITERS=60 OPTIMIZER=sgd LEARNING_RATE=10 WEIGHT_DECAY=1"]
    lines += ["after from=@dense MAX_ITERS=20"]
    output = finish(sweep(lines, "--jobs", "2", "--partition", "main"), 1)
    assert "SLURM: partition main, 2 at a time, 1 CPU for each run, requeued after 60 minutes until it is" in output
    assert re.search(r"^dense-seed1  val loss \d\.\d{4} ", output, re.MULTILINE)
    assert re.search(r"^after-seed1  val loss \d\.\d{4} ", output, re.MULTILINE)
    assert re.search(r"^late-seed1  failed: the run has diverged; ", output, re.MULTILINE)
    assert (tmp_path / "runs/few/late-seed1.log").read_text().count("$ ") == 1
    assert json.loads((tmp_path / "runs/few/slurm/jobs.json").read_text()) == {}


@with_slurm
@installed
def test_a_job_that_meets_its_time_limit_saves_and_is_requeued_and_ctrl_c_saves_and_the_command_goes_on(
    sweep, tmp_path, cluster
):
    """SLURM counts limits in minutes, so the signal comes early. A requeued job waits for two, which is cut here."""
    lines = ["dense MAX_ITERS=1000000"]
    home, run = tmp_path / "runs/few", tmp_path / "runs/few/dense-seed1"
    process = sweep(lines, "--sbatch=--time=1 --signal=USR2@50")
    wait_for(lambda: [log for log in home.glob("slurm/*log.out") if "Requeued job" in log.read_text()], 90)
    assert events(tmp_path, "dense-seed1") == ["start", "finish"]
    number = json.loads((home / "slurm/jobs.json").read_text())["dense-seed1"]
    wait_for(lambda: slurm.ask(cluster, "squeue", "--noheader", "--format=%T") == "PENDING\n")
    time.sleep(3)  # until nothing is left of the job's first start
    slurm.ask(cluster, "scontrol", "update", f"jobid={number}", "starttime=now")
    wait_for(lambda: "resume" in events(tmp_path, "dense-seed1") and steps(tmp_path, "dense-seed1") > 10)
    stop(process, tmp_path)
    made = [r["step"] for r in journal.read(run) if r["event"] == "train"]
    assert made == list(range(1, len(made) + 1)) and len(made) > 10
    assert [r["step"] for r in records(run, "train")] == made  # nothing was made twice
    process = sweep(lines)
    wait_for(lambda: steps(tmp_path, "dense-seed1") > len(made))
    stop(process, tmp_path)
    assert events(tmp_path, "dense-seed1") == ["start", "finish"] + ["resume", "finish"] * 2


def stop(process, folder):
    """Press Ctrl-C, once the sweep looks at its runs."""
    results = folder / "runs/few/results.json"
    wait_for(lambda: results.stat().st_mtime > psutil.Process(process.pid).create_time())
    process.send_signal(signal.SIGINT)
    output = finish(process, 130)
    assert re.search(r"^dense-seed1  stopped after step \d+  ", output, re.MULTILINE)


@with_slurm
@installed
def test_a_detached_sweep_says_where_it_is_and_a_cancelled_job_is_submitted_again(sweep, tmp_path, cluster):
    lines = ["dense MAX_ITERS=1000000", "short MAX_ITERS=20"]
    output = finish(sweep(lines, "--detach", "--jobs", "1"))
    found = re.findall(r"^(\w+)-seed1  SLURM job (\d+_\d), \w+, after step 0 of \d+$", output, re.MULTILINE)
    assert [name for name, _ in found] == ["dense", "short"]
    wait_for(lambda: steps(tmp_path, "dense-seed1") > 5)
    output = finish(sweep(lines, "--detach", "--jobs", "1"))
    assert re.search(rf"^dense-seed1  SLURM job {found[0][1]}, running, after step [1-9]\d*", output, re.MULTILINE)
    slurm.ask(cluster, "scancel", found[0][1])  # as an administrator does
    wait_for(lambda: (tmp_path / "runs/few/short-seed1/summary.json").exists())
    saved = steps(tmp_path, "dense-seed1")
    assert events(tmp_path, "dense-seed1") == ["start", "finish"]  # it saved
    output = finish(sweep(lines, "--detach", "--jobs", "1"))
    again = re.search(r"^dense-seed1  SLURM job (\d+), \w+, after step (\d+) of", output, re.MULTILINE)
    assert again[1] != found[0][1] and int(again[2]) == saved
    process = sweep(lines)
    wait_for(lambda: steps(tmp_path, "dense-seed1") > saved)
    stop(process, tmp_path)
    assert events(tmp_path, "dense-seed1") == ["start", "finish", "resume", "finish"]


@with_slurm
@installed
def test_a_partition_that_does_not_exist_is_a_sentence(sweep):
    output = finish(sweep(["dense MAX_ITERS=20"], "--partition", "nope"), 2)
    assert "error: sbatch refuses the sweep: invalid partition specified: nope; " in output
    assert "Traceback" not in output


# ---- without a cluster -----------------------------------------------------------------------------------------------


def test_options_of_sbatch_are_read():
    assert engine.sbatch_options("--account=me --exclusive --constraint='a|b' --time=2-0") == {
        "account": "me", "exclusive": True, "constraint": "a|b", "time": "2-0"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("-A me", "SBATCH: write the long options of sbatch, as in --account=me; got '-A'"),
        ("--array=1-3", "SBATCH: ENGINE=slurm sets --array itself; leave it out"),
        ("--x='", "SBATCH=--x=': cannot be understood: no closing quotation"),
        ("--cpus-per-task=many", "SBATCH: --cpus-per-task=many: must be a whole number"),
    ],
)
def test_options_of_sbatch_that_cannot_be_used_are_refused(text, told):
    with pytest.raises(UserError) as caught:
        engine.sbatch_options(text)
    assert str(caught.value) == told


def test_where_there_is_no_slurm_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"^ENGINE=slurm: there is no sbatch or squeue or scancel or srun here; start "):
        engine.Engine(Wishes(tmp_path, tmp_path), print)


def test_a_queue_that_does_not_answer_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact' >&2\nexit 1\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UserError) as caught:
        engine.Queue("few").look()
    told = "ENGINE=slurm: the queue does not answer (slurm_load_jobs error: Unable to contact); is slurmctld running?"
    assert str(caught.value) == told


def test_the_end_of_a_job_is_that_of_its_number(tmp_path):
    (tmp_path / "one.end").write_text('{"job": "7_1", "code": 2, "why": ""}')
    assert engine.ended(tmp_path, "one", "7_1") == End(2)
    assert engine.ended(tmp_path, "one", "8_1") is None  # of an earlier job
    assert engine.ended(tmp_path, "two", "7_1") is None
    (tmp_path / "one.end").write_text("7")
    assert engine.ended(tmp_path, "one", "7_1").code == 1


def test_a_run_that_saves_nothing_within_its_time_is_not_requeued(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(engine, "work", lambda *_: 128 + signal.SIGUSR2)
    one = engine.Work(engine.Job(tmp_path / "one", tmp_path / "one.log", "gpt2/train.py", ()), tmp_path, tmp_path)
    assert one() == 1
    end = engine.ended(tmp_path, "one", "7")
    assert end == End(1, "made no step within the job's time limit; give it more, such as SBATCH=--time=240")
