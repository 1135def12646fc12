"""Which process this is: what each launcher says, and what contradicts itself."""

import json
import os
import pty
import subprocess
import sys
import types
from pathlib import Path

import pytest

from lib.base import launch
from lib.base.errors import UsageError
from lib.base.launch import ALONE, Launch, found
from lib.config.command_line import unconfigured

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "my-run-42",
}  # fmt: skip
SLURM = {
    "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "4711", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "gpu[07-09,12],login1",
}  # fmt: skip


def test_without_a_launcher_a_process_is_alone():
    assert found({}) == ALONE
    assert found({"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) == ALONE  # a batch script


def test_torchrun_says_it_in_its_environment():
    assert found(TORCHRUN) == Launch("torchrun", 3, 4, 1, "my-run-42", "env://")
    assert found(TORCHRUN | {"TORCHELASTIC_RUN_ID": "none"}).job == ""
    assert found({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}).size == 1


def test_slurm_says_it_to_what_srun_starts():
    assert found(SLURM) == Launch("slurm", 3, 4, 1, "4711.0", "tcp://gpu07:29748")
    assert found(SLURM | {"MASTER_ADDR": "b", "MASTER_PORT": "1"}).address == "tcp://b:1"
    for nodes, first in (("one", "one"), ("r[1-2]n[3,5]x,r7", "r1n3x"), ("a3,a[5-6]", "a3")):
        assert found(SLURM | {"SLURM_STEP_NODELIST": nodes}).address == f"tcp://{first}:29748"
    named = found(SLURM | {launch.JOB: "my-run"})  # by make train ENGINE=slurm
    assert (named.job, named.address) == ("my-run", "tcp://gpu07:29748")
    assert found(SLURM | {"SLURM_PTY_PORT": "1"}).job == ""  # a shell: each start in it is another run
    assert found(SLURM | TORCHRUN).launcher == "torchrun"  # srun torchrun ...
    assert found(SLURM | {"SLURM_NTASKS": "9"}).size == 4  # a step of fewer tasks than its job has


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (TORCHRUN | {"RANK": "4"}, "environment RANK=4: must be a whole number from 0 to 3; "),
        (TORCHRUN | {"WORLD_SIZE": "two"}, "environment WORLD_SIZE=two: must be a whole number of at least 1; "),
        (TORCHRUN | {"LOCAL_RANK": "-1"}, "environment LOCAL_RANK=-1: must be a whole number from 0 to 3; "),
        ({"RANK": "0"}, "RANK says that this is one process of a job, and WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, "),
        (SLURM | {"SLURM_LOCALID": ""}, "SLURM_STEP_ID says that this is one process of a job, and SLURM_LOCALID is "),
        (SLURM | {"SLURM_STEP_NODELIST": ""}, "or set MASTER_ADDR to the machine of the first process"),
        (SLURM | {"SLURM_PROCID": "x"}, "environment SLURM_PROCID=x: must be a whole number from 0 to 3; "),
    ],
)
def test_what_cannot_be_is_one_sentence(env, message):
    with pytest.raises(UsageError) as raised:
        found(env)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_inside_a_worker_ray_is_asked_first(monkeypatch):
    context = types.SimpleNamespace(
        get_world_rank=lambda: 1,
        get_world_size=lambda: 2,
        get_local_rank=lambda: 0,
        get_experiment_name=lambda: "mine",
    )
    monkeypatch.setitem(sys.modules, "ray.train", types.SimpleNamespace(get_context=lambda: context))
    assert found(TORCHRUN) == Launch("ray", 1, 2, 0, "mine", "env://")


def test_a_driver_of_ray_is_no_worker(monkeypatch):
    def outside():
        raise RuntimeError("`get_context` cannot be used outside of a Ray Train training function")

    monkeypatch.setitem(sys.modules, "ray.train", types.SimpleNamespace(get_context=outside))
    assert found({}) == ALONE


def test_programs_that_are_started_are_no_ranks():
    kept = {"PATH": "/bin", "SLURM_JOB_ID": "4711"}
    env = TORCHRUN | SLURM | kept | {"TORCHELASTIC_RESTART_COUNT": "0", "CONFIG_SEED": "1"}
    env |= {launch.AGAIN: "NPROC=4", launch.JOB: "my-run"}
    assert found(launch.without(env)) == ALONE
    assert unconfigured(env) == kept | {"SLURM_STEP_NODELIST": SLURM["SLURM_STEP_NODELIST"]}


# ---- what ends with this process -------------------------------------------------------------------------------------

JOBS = {
    "SLURM job": {"SLURM_JOB_ID": "4711"},
    "PBS job": {"PBS_JOBID": "4711.head"},
    "LSF job": {"LSB_JOBID": "4711"},
    "Flux job": {"FLUX_JOB_ID": "f2Kx"},
    "Grid Engine job": {"JOB_ID": "4711", "SGE_TASK_ID": "undefined"},
    "Hugging Face job": {"JOB_ID": "699d874f1aad19adb8aaeadc", "ACCELERATOR": "none"},
    "AWS Batch job": {"AWS_BATCH_JOB_ID": "5a-b"},
    "Kubernetes pod": {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
}
ASK = """
import json, os, sys
from lib.base import launch
for env in json.loads(sys.argv[1]):
    print(launch.ends_with_us(env) or "nothing")
"""


def asked(*environments, before=(), **popen):
    """What a new process finds, for each of these environments; `before` are the words that start it."""
    done = subprocess.run(
        [*before, sys.executable, "-c", ASK, json.dumps(environments)],
        cwd=ROOT, text=True, capture_output=True, timeout=30, check=False, **popen,
    )  # fmt: skip
    return done.stdout.splitlines() or done.stderr


def test_a_job_ends_with_its_process_but_not_with_what_a_person_starts_in_its_shell():
    nothing = {"JOB_ID": "an id of something else", "HOME": "/root"}
    assert asked(*JOBS.values(), nothing, stdin=subprocess.DEVNULL) == [*JOBS, "nothing"]
    ours, theirs = pty.openpty()
    assert asked(*JOBS.values(), nothing, stdin=theirs) == ["nothing"] * 9
    assert asked({"RAY_RAYLET_PID": "4711"}, stdin=theirs) == ["Ray worker"]  # which nobody types in
    os.close(ours)
    os.close(theirs)


def test_a_container_ends_with_its_main_process_and_not_with_what_came_into_it_later():
    """In a real namespace of processes, whose process 1 leads session 1, as runtimes of containers have it."""
    container = ["unshare", "--pid", "--fork", "--mount-proc", "setsid"]
    if subprocess.run([*container, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a namespace of processes cannot be made here")
    torchrun = {"TORCHELASTIC_RUN_ID": "none"}
    assert asked({}, torchrun, stdin=subprocess.DEVNULL, before=container)[0] == "container"
    shell = [*container, "sh", "-c", '"$0" "$@"; exit']  # the shell is process 1
    assert asked({}, stdin=subprocess.DEVNULL, before=shell) == ["container"]
    worker = [*container, "sh", "-c", 'setsid --wait "$0" "$@"; exit']  # torchrun gives each worker its own session
    assert asked({}, torchrun, stdin=subprocess.DEVNULL, before=worker) == ["nothing", "container"]


def test_a_worker_of_ray_takes_its_processes_with_it(monkeypatch):
    context = types.SimpleNamespace(
        get_world_rank=lambda: 0,
        get_world_size=lambda: 1,
        get_local_rank=lambda: 0,
        get_experiment_name=lambda: "mine",
    )
    monkeypatch.setitem(sys.modules, "ray.train", types.SimpleNamespace(get_context=lambda: context))
    assert launch.ends_with_us({}) == "Ray worker"


def test_a_run_is_continued_as_it_was_started():
    assert launch.resume(Path("runs/my run"), env={}) == "make resume RUN='runs/my run'"
    more = launch.resume(Path("runs/a"), "LEARNING_RATE=...", {launch.AGAIN: "NPROC=4 ENGINE=ray"})
    assert more == "make resume RUN=runs/a NPROC=4 ENGINE=ray LEARNING_RATE=..."
