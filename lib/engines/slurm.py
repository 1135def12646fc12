"""The engine SLURM: an array of jobs, by submitit. A job that meets its time limit saves its run and is requeued.

The jobs go on without the program that submitted them. `slurm/` in the sweep's folder has their numbers, submitit's
files, and a file for each run with the exit code of its trainer; nothing there is unpickled by the sweep.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from lib.base import files
from lib.base.errors import UsageError, UserError
from lib.config.kconf import ROOT
from lib.engines.engine import End, Wishes, each_run
from lib.engines.job import Job, work
from lib.record import checkpoint_file

_AT_A_TIME = 256  # submitit's limit
_ARRAY = 1000  # jobs of an array: SLURM's MaxArraySize is 1001 unless an administrator changed it
_MINUTES = 60  # of a job, if neither SBATCH nor RUN_TIME says
_MARGIN = 15  # minutes that a job has beside RUN_TIME, for what comes before and after training
_LOOK = 2.0  # seconds between questions to the queue
_GRACE = 15.0  # seconds after a job has left the queue, in which the file of its end may arrive
LAST = 600  # seconds in which SLURM ends a job that it has sent SIGTERM


class Submitted:
    """What was submitted to SLURM: the numbers of the jobs in `folder`, and where they are in the queue."""

    def __init__(self, folder: Path, name: str):
        """`name` is that of the jobs. Raises UserError where there is no SLURM, or if no controller answers."""
        if missing := [name for name in ("sbatch", "squeue", "scancel", "srun") if not shutil.which(name)]:
            raise UserError(
                f"ENGINE=slurm: there is no {' or '.join(missing)} here; start this on a login node of a cluster"
            )
        self.folder = folder
        self.queue = Queue(re.sub(r"[^\w.-]", "_", name))
        self.queue.look()

    def known(self) -> dict[str, str]:
        """Run -> the number of its newest job."""
        try:
            return json.loads((self.folder / "jobs.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder}/jobs.json: cannot be read: {error}; remove it if no job is left") from None

    def keep(self, known: dict[str, str]) -> None:
        """Replace what is `known`."""
        files.write_json(self.folder / "jobs.json", known)

    def forget(self, name: str) -> None:
        """Let the next call of the program submit a run again, if it is not finished."""
        known = self.known()
        if known.pop(name, None):
            self.keep(known)


class Engine(Submitted):
    """See `lib.engines.engine.Engine`."""

    jobs = 1_000_000  # all that are ready are submitted; SLURM has them wait

    def __init__(self, wishes: Wishes, say: Callable[[str], object]):
        """Read what sbatch is to be told; raises UserError where there is no SLURM."""
        super().__init__(wishes.folder / "slurm", wishes.folder.name)
        more = sbatch_options(wishes.sbatch)
        self.threads = wishes.threads or int(more.get("cpus-per-task", 1))
        gpus = each_run(wishes.gpus_per_run) or 0
        if gpus != int(gpus):
            raise UsageError(f"GPUS_PER_RUN={wishes.gpus_per_run}: SLURM hands out whole GPUs; give a whole number")
        self.parameters: dict[str, Any] = {
            "job_name": self.queue.name,
            "time": minutes(wishes.run_time),
            "cpus_per_task": self.threads,
            "array_parallelism": wishes.jobs or _AT_A_TIME,
            "stderr_to_stdout": True,
            "setup": [f"export PYTHONPATH={shlex.quote(str(ROOT))}"],  # where the job finds the class below
            "additional_parameters": {"requeue": True} | more,
            **({"partition": wishes.partition} if wishes.partition else {}),
            **({"gpus_per_node": int(gpus)} if gpus else {}),
        }
        limit, where = more.get("time", f"{minutes(wishes.run_time)} minutes"), place(wishes.partition)
        graphics = f", {int(gpus)} GPU" if gpus else ", no GPU (GPUS_PER_RUN=1 asks for one)" if wishes.gpus else ""
        say(
            f"SLURM: {where}, {wishes.jobs or _AT_A_TIME} at a time, {self.threads} CPU{'s' * (self.threads > 1)} for "
            f"each run{graphics}, requeued after {limit} until it is finished"
        )

    def start(self, jobs: Iterable[Job]) -> "list[Task | None]":
        known, found, new = self.known(), {}, []
        for job in jobs:
            number = known.get(job.name, "")
            if number and (self.queue.state(number) or ended(self.folder, job.name, number)):
                found[job.name] = Task(self, job.name, number)  # of an earlier call of the sweep
            elif job.held:
                found[job.name] = None
            else:
                new.append(job)
        for n in range(0, len(new), _ARRAY):
            found |= self._submit(new[n : n + _ARRAY])
        return [found[job.name] for job in jobs]

    def _submit(self, jobs: "Sequence[Job]") -> "dict[str, Task]":
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError

        here, environment = Path.cwd(), self.folder.absolute()
        executor = SlurmExecutor(environment, max_num_timeout=1_000_000)
        executor.update_parameters(**self.parameters)
        try:
            with executor.batch():
                made = [executor.submit(Work(job, here, environment)) for job in jobs]
        except FailedJobError as error:
            raise refused("the sweep", str(error)) from None
        numbers = {job.name: one.job_id for job, one in zip(jobs, made, strict=True)}
        self.keep(self.known() | numbers)
        self.queue.look()
        return {name: Task(self, name, number) for name, number in numbers.items()}

    def close(self) -> None:
        """Jobs that were not asked to stop go on."""


class Queue:
    """SLURM's queue, as far as it holds jobs of this user with one name."""

    def __init__(self, name: str):
        self.name, self.states, self.looked = name, {}, 0.0  # job -> its state

    def state(self, number: str) -> str:
        """`pending`, `running`, ...; empty if the job is not there."""
        if time.monotonic() - self.looked > _LOOK:
            with contextlib.suppress(UserError):  # the controller is away: what was known stays
                self.look()
        return self.states.get(number, "")

    def look(self) -> None:
        """Ask SLURM; raises UserError if it does not answer."""
        command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", f"--name={self.name}", "--format=%i|%T"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        self.looked = time.monotonic()
        if done.returncode:
            words = " ".join(done.stderr.split())[:300]
            raise UserError(f"ENGINE=slurm: the queue does not answer ({words}); is slurmctld running?")
        rows = (line.split("|") for line in done.stdout.split())
        self.states = {number: state.lower() for number, state in rows}


class Task:
    """A job of SLURM that trains a run."""

    def __init__(self, engine: Submitted, name: str, number: str):
        self.engine, self.name, self.number = engine, name, number
        self.gone, self.stopped = 0.0, False

    def poll(self) -> End | None:
        end = ended(self.engine.folder, self.name, self.number)
        if end is None:
            if self.engine.queue.state(self.number):
                self.gone = 0.0
                return None
            self.gone = self.gone or time.monotonic()
            if time.monotonic() - self.gone < _GRACE and not self.stopped:
                return None
            why = f"SLURM job {self.number} left the queue before the run was finished"
            end = End(1, f"{why} (cancelled, out of memory or lost): sacct -j {self.number} may tell more")
        self.engine.forget(self.name)
        return end

    def stop(self) -> None:
        """A waiting job is cancelled. A running one gets SIGINT, so that it may take its time to save."""
        self.stopped = True
        for words in (["--state=PENDING"], ["--state=RUNNING", "--signal=INT"]):
            subprocess.run(["scancel", *words, self.number], capture_output=True, check=False)

    def state(self) -> str:
        return f"SLURM job {self.number}, {self.engine.queue.state(self.number) or 'ended'}"


def ended(folder: Path, name: str, number: str) -> End | None:
    """How the trainer of a run ended in the job of this number; None if it has not."""
    try:
        found = json.loads((folder / f"{name}.end").read_text(encoding="utf-8"))
        return End(int(found["code"]), str(found["why"])) if found["job"] == number else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        return End(1, f"{folder / name}.end cannot be read: {error}")


def minutes(run_time: float) -> int:
    """The time limit of a job, unless SBATCH says one; `run_time` in seconds is the run's, 0 if it has none."""
    return -(-int(run_time) // 60) + _MARGIN if run_time else _MINUTES


def place(partition: str) -> str:
    """The partition in words."""
    return f"partition {partition}" if partition else "the default partition"


def refused(what: str, output: str) -> UsageError:
    """The error for what sbatch does not take, from its `output`."""
    told = re.findall(r"sbatch: error: (.+)", output) or [" ".join(output.split())[-300:]]
    return UsageError(f"sbatch refuses {what}: {'; '.join(dict.fromkeys(told))}; change PARTITION or SBATCH")


def sbatch_options(text: str, ours: Collection[str] = ()) -> dict[str, str | bool]:
    """Long options of sbatch -> their values, of a text such as `--account=me --exclusive`; raises UsageError.

    Options that are `ours` are refused too.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"SBATCH={text}: cannot be understood: {str(error).lower()}") from None
    found: dict[str, str | bool] = {}
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not re.fullmatch(r"[a-z][a-z0-9-]+", name):
            raise UsageError(f"SBATCH: write the long options of sbatch, as in --account=me; got {word!r}")
        if name in ("array", "output", "error", "wrap", "job-name", *ours):
            raise UsageError(f"SBATCH: ENGINE=slurm sets --{name} itself; leave it out")
        found[name] = value if equals else True
    if not re.fullmatch(r"[1-9]\d{0,5}", str(found.get("cpus-per-task", 1))):
        raise UsageError(f"SBATCH: --cpus-per-task={found['cpus-per-task']}: must be a whole number")
    return found


class Work:
    """In a job: trains a run, and lets submitit requeue the job if it met its time limit. submitit pickles this."""

    def __init__(self, job: Job, here: Path, folder: Path):
        self.job, self.here, self.folder = job, here, folder
        self.requeued = False

    def __call__(self) -> int:
        number = os.environ["SLURM_JOB_ID"]
        if "SLURM_ARRAY_JOB_ID" in os.environ:
            number = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        before, why = self._saved(), ""
        try:
            code = work(self.job, self.here, {})
        except UserError as error:
            code, why = 1, str(error)
        if code == 128 + signal.SIGUSR2:
            if self._saved() != before:
                signal.raise_signal(signal.SIGUSR2)  # submitit's handler requeues the job, which ends it
            code, why = 1, "made no step within the job's time limit; give it more, such as SBATCH=--time=240"
        if code == 128 + signal.SIGTERM:  # preempted or cancelled. SLURM requeues only what does not end by itself
            time.sleep(LAST)
        if self.requeued:  # the signal came before or after training
            raise SystemExit(code)
        files.write_json(self.folder / f"{self.job.name}.end", {"job": number, "code": code, "why": why})
        return code

    def checkpoint(self) -> Any:
        """What submitit submits again."""
        from submitit.helpers import DelayedSubmission

        self.requeued = True
        return DelayedSubmission(Work(self.job, self.here, self.folder))

    def _saved(self) -> list[Path]:
        return checkpoint_file.find(self.here / self.job.folder / "checkpoints")
