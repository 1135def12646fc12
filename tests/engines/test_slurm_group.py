"""A run of several processes on a real SLURM: time limit, requeue, Ctrl-C, a killed process, the same command again."""

import re
import signal
import subprocess
import time

import psutil
import pytest

from lib.base.errors import UsageError
from lib.engines import slurm_group
from lib.engines.engine import End
from lib.record import journal
from tests.engines import groups, slurm
from tests.engines.groups import finish, steps
from tests.engines.test_group import of
from tests.engines.test_slurm import TINY, cluster, installed, wait_for, with_slurm
from tests.training import TEXT, losses, records

__all__ = ["cluster", "of"]  # fixtures


@pytest.fixture
def start(tmp_path):
    """Starts a run of two processes: start(environment, ["--engine=slurm", "--detach"], "MAX_ITERS=20")."""
    (tmp_path / "corpus.txt").write_text(TEXT)

    def started(environment, options, *words):
        return groups.start(tmp_path, environment, options, *TINY.split(), "TRACKER_RUN_NAME=run", *words)

    return started


def events(folder):
    return [r["event"] for r in journal.read(folder) if r["event"] in ("start", "resume", "finish")]


def trainers(folder):
    """The processes that train in this folder."""
    found = []
    for one in psutil.process_iter():
        try:
            if one.cwd() == str(folder) and any(word.endswith("gpt2/train.py") for word in one.cmdline()[:2]):
                found.append(one)
        except psutil.Error:
            pass
    return found


@with_slurm
@installed
def test_a_run_outlives_its_time_limit_ctrl_c_and_a_killed_process(start, tmp_path, cluster):
    """SLURM counts limits in minutes, so the signal comes early. A requeued job waits for two, which is cut here."""
    options, words = ["--engine=slurm", "--sbatch=--time=1 --signal=USR2@50"], ["MAX_ITERS=1000000"]
    home, run = tmp_path / "runs/.jobs/run", tmp_path / "runs/run"
    output = finish(start(cluster, [*options, "--detach"], *words))
    number = re.search(r"^SLURM job (\d+); its output is in runs/\.jobs/run/output\.log$", output, re.MULTILINE)[1]
    assert "#SBATCH --ntasks=2\n" in output and (home / "job.sh").read_text() in output
    wait_for((home / "output.log").exists)
    wait_for(lambda: "DUE TO JOB REQUEUE" in (home / "output.log").read_text(), 90)
    assert events(run) == ["start", "finish"]
    assert (home / "output.log").read_text().count("SIGUSR2: stopping after this batch, then saving") == 1
    wait_for(lambda: slurm.ask(cluster, "squeue", "--noheader", "--format=%T") == "PENDING\n")
    time.sleep(3)  # until nothing is left of the job's first start
    slurm.ask(cluster, "scontrol", "update", f"jobid={number}", "starttime=now", "timelimit=10")
    process = start(cluster, options, *words)  # follows the job that is there
    wait_for(lambda: events(run) == ["start", "finish", "resume"] and len(trainers(tmp_path)) == 2)
    made = steps(run)
    wait_for(lambda: steps(run) > made)
    process.send_signal(signal.SIGINT)
    output = finish(process, 130)
    assert f"SLURM job {number}, " in output and "SIGINT: the run saves, and its job ends" in output
    again = "NPROC=2 ENGINE=slurm SBATCH='--time=1 --signal=USR2@50'"
    assert re.search(
        rf"^stopped after step \d+; continue with: make resume RUN=runs/run {again}$", output, re.MULTILINE
    )
    assert events(run) == ["start", "finish", "resume", "finish"]
    made = [r["step"] for r in journal.read(run) if r["event"] == "train"]
    assert made == list(range(1, len(made) + 1))
    assert [r["step"] for r in records(run, "train")] == made  # nothing was made twice
    assert not trainers(tmp_path) and slurm.ask(cluster, "squeue", "--noheader") == ""


@with_slurm
@installed
def test_a_run_whose_process_is_killed_goes_on_bit_for_bit_with_the_same_command(start, tmp_path, cluster):
    words, run = ["MAX_ITERS=400", "CHECKPOINT_INTERVAL=20"], tmp_path / "runs/run"
    process = start(cluster, ["--engine=slurm"], *words)
    wait_for(lambda: steps(run) >= 30)
    trainers(tmp_path)[0].kill()
    assert "has lost the other ranks of its run (" in finish(process, 137)
    output = finish(start(cluster, ["--engine=slurm"], *words))
    assert re.search(r"^resuming runs/run after step \d+", output, re.MULTILINE)
    output = finish(start(cluster, ["--engine=slurm"], *words))
    assert "runs/run is finished: " in output and "SLURM" not in output
    run.rename(tmp_path / "on slurm")
    finish(start(cluster, [], *words))
    assert losses(run) == losses(tmp_path / "on slurm") and len(losses(run)) == 400


@with_slurm
@installed
def test_a_partition_that_does_not_exist_is_a_sentence(start, cluster, tmp_path):
    output = finish(start(cluster, ["--engine=slurm", "--partition=nope"]), 2)
    assert "error: sbatch refuses the run: invalid partition specified: nope; " in output
    assert "Traceback" not in output and not (tmp_path / "runs/.jobs/run/jobs.json").exists()


# ---- without a cluster -----------------------------------------------------------------------------------------------


def test_the_script_asks_for_what_the_run_needs(of, folder):
    one = of("DEVICE=cuda", "THREADS=4", "RUN_TIME=1h", count=8)
    text = slurm_group.script(one._replace(partition="gpu", sbatch="--account=me --exclusive --time=9"), ["A='b c'"])
    for line in ("ntasks=8", "cpus-per-task=4", "time=9", "signal=USR2@90", "requeue", "partition=gpu", "account=me"):
        assert f"#SBATCH --{line}\n" in text
    assert "#SBATCH --gpus-per-task=1\n" in text and "#SBATCH --exclusive\n" in text
    assert "gpus-per-task" not in slurm_group.script(one._replace(sbatch="--gres=gpu:8"), [])
    assert "#SBATCH --time=75\n" in slurm_group.script(one, [])
    assert "gpt2/train.py 'A='\"'\"'b c'\"'\"''\n" in text
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


def test_a_dry_run_shows_the_script_and_writes_nothing(of, folder, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(folder))  # without SLURM
    assert slurm_group.run(of("SEED=1")._replace(dry_run=True), print) == 0
    assert capsys.readouterr().out.startswith("#!/bin/bash\n# A run of 2 processes")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("sbatch", "told"),
    [
        ("--ntasks=3", "SBATCH: ENGINE=slurm sets --ntasks itself; leave it out"),
        ("--comment='a\nb'", "SBATCH: an option of sbatch is one line"),
    ],
)
def test_options_that_do_not_fit_are_refused(of, sbatch, told):
    with pytest.raises(UsageError) as caught:
        slurm_group.script(of()._replace(sbatch=sbatch), [])
    assert str(caught.value) == told


def test_the_exit_code_is_that_of_the_run_unless_it_was_stopped():
    assert [slurm_group._code(End(code), stopped) for code, stopped in ((0, 0), (2, 0), (0, 130), (1, 130))] == [
        0, 2, 0, 130,
    ]  # fmt: skip
    with pytest.raises(Exception, match=r"^left the queue$"):
        slurm_group._code(End(1, "left the queue"), 0)
