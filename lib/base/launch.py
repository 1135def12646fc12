"""How this process was started: its rank and the size of its job, and whether a job or container ends with it."""

import dataclasses
import hashlib
import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from lib.base.errors import UsageError

# What scripts/processes.py tells the ranks that it starts.
AGAIN = "ESPALIER_AGAIN"  # words of make, such as NPROC=4 ENGINE=ray: they continue the run where it was trained
JOB = "ESPALIER_JOB"  # names a SLURM job by its run, because each sbatch has another number
# Variables that launchers set. Every process that a rank starts inherits them.
_VARIABLES = frozenset(
    "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK GROUP_WORLD_SIZE ROLE_RANK ROLE_WORLD_SIZE ROLE_NAME "
    "NODE_RANK MASTER_ADDR MASTER_PORT SLURM_STEP_ID SLURM_PROCID SLURM_LOCALID SLURM_STEP_NUM_TASKS "
    f"{AGAIN} {JOB}".split()
)
# A job's name for people, and variables that all its processes have. The job's end kills what they leave behind.
_JOBS = {
    "SLURM job": ("SLURM_JOB_ID",),
    "PBS job": ("PBS_JOBID",),
    "LSF job": ("LSB_JOBID",),
    "Flux job": ("FLUX_JOB_ID",),
    "Grid Engine job": ("JOB_ID", "SGE_TASK_ID"),
    "Hugging Face job": ("JOB_ID", "ACCELERATOR"),  # huggingface.co/docs/hub/jobs-configuration
    "AWS Batch job": ("AWS_BATCH_JOB_ID",),
    "Kubernetes pod": ("KUBERNETES_SERVICE_HOST",),
}


@dataclasses.dataclass(frozen=True)
class Launch:
    """A process's launcher, and its place in its job."""

    launcher: str  # "ray", "torchrun" or "slurm"; empty without one
    rank: int
    size: int  # processes of the job
    local_rank: int  # the rank among the processes on its machine
    job: str  # stays the same when the launcher starts this job again; empty if every start is a new job
    address: str  # where the processes meet: an init_method of torch.distributed


ALONE = Launch("", 0, 1, 0, "", "")


def found(env: Mapping[str, str]) -> Launch:
    """Find out what launched this process; raises UsageError for an environment that contradicts itself."""
    return _ray() or _torchrun(env) or _slurm(env) or ALONE


def without(env: Mapping[str, str]) -> dict[str, str]:
    """The environment without launchers' variables, for a process that is not a rank of this one's job."""
    return {n: value for n, value in env.items() if n not in _VARIABLES and not n.startswith("TORCHELASTIC_")}


def resume(folder: Path, more: str = "", env: Mapping[str, str] = os.environ) -> str:
    """The command that continues the run in `folder` with as many processes, started in the same way; `more` words."""
    return " ".join(filter(None, [f"make resume RUN={shlex.quote(str(folder))}", env.get(AGAIN), more]))


def ends_with_us(env: Mapping[str, str]) -> str:
    """What ends when this process does, such as `SLURM job`; empty if nothing does, as far as can be seen.

    A person's shell in a job goes on, so standard input must not be a terminal. A container ends with its process 1.
    Container runtimes make process 1 the leader of session 1, which its children stay in. torchrun gives each worker
    a session of its own. A program that came by `docker exec`, ssh or a server has another session.
    """
    # Ray kills what a worker leaves behind: docs.ray.io, "Lifetimes of a User-Spawn Process".
    if _ray() or "RAY_RAYLET_PID" in env:
        return "Ray worker"
    typed = os.isatty(0)
    for words, names in _JOBS.items():
        if not typed and all(env.get(name) for name in names):
            return words
    started = os.getppid() if "TORCHELASTIC_RUN_ID" in env else os.getpid()
    is_main = sys.platform == "linux" and os.getsid(started) == 1 and (not typed or os.getpgid(started) == 1)
    return "container" if is_main else ""


def _ray() -> Launch | None:
    """What Ray reports in a worker of Ray Train. The worker has imported `ray.train`; this module never imports it."""
    train = sys.modules.get("ray.train")
    if train is None:
        return None
    try:
        context = train.get_context()
    except (RuntimeError, DeprecationWarning):  # this is a driver or a trial of Ray Tune
        return None
    rank, size, local = context.get_world_rank(), context.get_world_size(), context.get_local_rank()
    return Launch("ray", rank, size, local, context.get_experiment_name() or "", "env://")


def _torchrun(env: Mapping[str, str]) -> Launch | None:
    if "RANK" not in env:
        return None
    needed = ["WORLD_SIZE", "LOCAL_RANK"]
    if env.get("WORLD_SIZE") != "1":
        needed += ["MASTER_ADDR", "MASTER_PORT"]
    _require(env, "RANK", needed)
    size = _number(env, "WORLD_SIZE", 1)
    rank, local = _number(env, "RANK", 0, size), _number(env, "LOCAL_RANK", 0, size)
    job = env.get("TORCHELASTIC_RUN_ID", "none")
    return Launch("torchrun", rank, size, local, "" if job == "none" else job, "env://")


def _slurm(env: Mapping[str, str]) -> Launch | None:
    """A task that srun started. None in the batch script, and in what the script starts without srun."""
    if "SLURM_STEP_ID" not in env:
        return None
    _require(env, "SLURM_STEP_ID", ["SLURM_JOB_ID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"])
    size = _number(env, "SLURM_STEP_NUM_TASKS", 1)  # SLURM_NTASKS may count the tasks of the whole job
    rank, local = _number(env, "SLURM_PROCID", 0, size), _number(env, "SLURM_LOCALID", 0, size)
    step = f"{env['SLURM_JOB_ID']}.{env['SLURM_STEP_ID']}"
    job = env.get(JOB) or step
    address = "" if size == 1 else f"tcp://{_first_host(env)}:{env.get('MASTER_PORT') or _port(step)}"
    if "SLURM_PTY_PORT" in env:  # `srun --pty bash`: a person starts programs there, each a new run
        job = ""
    return Launch("slurm", rank, size, local, job, address)


def _first_host(env: Mapping[str, str]) -> str:
    """MASTER_ADDR, or the first host of SLURM_STEP_NODELIST, such as node07 of `node[07-09,12],login1`."""
    if env.get("MASTER_ADDR"):
        return env["MASTER_ADDR"]
    _require(env, "SLURM_STEP_ID", ["SLURM_STEP_NODELIST"], "or set MASTER_ADDR to the machine of the first process")
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", env["SLURM_STEP_NODELIST"]).split(",")[0]


def _port(step: str) -> int:
    """A port computed from the step's ids, so its processes agree. Linux gives ports from 32768 to other programs."""
    return 12000 + int(hashlib.sha256(step.encode()).hexdigest(), 16) % 20000


def _require(env: Mapping[str, str], because: str, names: list[str], otherwise: str = "") -> None:
    if missing := [name for name in names if not env.get(name)]:
        raise UsageError(
            f"environment {because} says that this is one process of a job, and {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing; start the job by torchrun or srun, which set "
            f"{'it' if len(missing) == 1 else 'them'}, {otherwise or f'or unset {because}'}"
        )


def _number(env: Mapping[str, str], name: str, least: int, below: int | None = None) -> int:
    text = env[name]
    if not text.isascii() or not text.isdigit() or int(text) < least or (below is not None and int(text) >= below):
        wanted = f"a whole number from {least} to {below - 1}" if below else f"a whole number of at least {least}"
        raise UsageError(
            f"environment {name}={text}: must be {wanted}; torchrun and srun set it; unset it to run one process"
        )
    return int(text)
