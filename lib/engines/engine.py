"""What engines have in common: what they are asked for, how they are found by name, and what a started job tells."""

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from lib.base.errors import UsageError
from lib.base.threads import cores
from lib.config import extras
from lib.engines.job import Job

NAMES = ("local", "ray", "slurm")
ALONE = "each run of a sweep is one process; leave NPROC out, and give JOBS=2 to train two runs at a time"


class Wishes(NamedTuple):
    """What the user asks of an engine, and what it must know of the sweep."""

    folder: Path  # of the sweep
    data: Path  # where prepared data is
    threads: int = 0  # the highest THREADS of a configuration; 0: all leave it open
    gpus: bool = True  # whether configurations may use GPUs
    run_time: float = 0  # the longest RUN_TIME in seconds; 0: one has none
    jobs: int | None = None  # runs at a time; None: the engine decides
    together: bool = False  # the jobs are the processes of one run, which begin together: JOBS is called NPROC
    gpus_per_run: str = ""
    partition: str = ""
    sbatch: str = ""
    detach: bool = False


class End(NamedTuple):
    """How a trainer ended."""

    code: int  # its exit code; negative: the signal that ended it
    why: str = ""  # what the engine knows, where the log may not tell


class Task(Protocol):
    """A job that was started."""

    def poll(self) -> End | None:
        """How it ended; None as long as it is waiting or works."""

    def stop(self) -> None:
        """Ask the trainer to save and end. A job that still waits ends without one."""

    def state(self) -> str:
        """Where it is, in words: `SLURM job 4711_3, pending`."""


class Engine(Protocol):
    """Starts jobs somewhere. Nothing but a run's own lock decides who trains it."""

    jobs: int  # how many may be started at the same time
    threads: int  # of each run that leaves their number open; 0: as its configuration says

    def start(self, jobs: Iterable[Job]) -> list[Task | None]:
        """Start jobs; None for one that a process works on already, so that it can only be waited for."""

    def close(self) -> None:
        """Leave the engine. What was not stopped before may go on where the engine allows it."""


def build(name: str, wishes: Wishes, say: Callable[[str], object]) -> Engine:
    """The engine of this name, ready for jobs. It says what it will use; raises UserError for what does not work."""
    check(name, PARTITION=wishes.partition, SBATCH=wishes.sbatch, DETACH=wishes.detach)
    if name != "local":
        check_installed(name)
    return importlib.import_module(f"lib.engines.{name}").Engine(wishes, say)


def check(name: str, **for_slurm: str | bool) -> None:
    """Raise UsageError if there is no such engine, or if another one than SLURM was given a word of SLURM's."""
    if name not in NAMES:
        raise UsageError(f"ENGINE={name}: there is no such engine; use {', '.join(NAMES[:-1])} or {NAMES[-1]}")
    if name != "slurm":
        for word, given in for_slurm.items():
            if given:
                raise UsageError(f"{word}: ENGINE={name} has no such thing; give ENGINE=slurm, or leave {word} out")


def check_installed(name: str) -> None:
    """Raise UsageError, which says how to install what is missing, if an engine's packages are not installed."""
    if missing := extras.missing(name):
        needed = extras.install(f"'{package}'" for package in extras.extra(name))
        raise UsageError(f"ENGINE={name} needs {' and '.join(missing)}; {needed}")


def count(word: str, text: str) -> int:
    """The number in NPROC=2 or JOBS=2; raises UsageError if `text` is not one."""
    if not text.isascii() or not text.isdigit() or not int(text):
        what = "processes to start" if word == "NPROC" else "runs to train at the same time"
        raise UsageError(f"{word}={text}: must be a whole number of at least 1, the number of {what}")
    return int(text)


def share(jobs: int, threads: int) -> int:
    """The threads of each of several `jobs` on this machine that leave their number open; 0: as configured."""
    return max(1, cores() // jobs) if jobs > 1 and threads == 0 else 0


def each_run(text: str) -> float | None:
    """GPUS_PER_RUN as a number; None if it is not given. Raises UsageError unless it is 0, 1/n or a whole number."""
    if not text:
        return None
    try:
        found = float(text)
        if found >= 0 and (found == int(found) or (found < 1 and abs(1 / found - round(1 / found)) < 0.05)):
            return found
    except (ValueError, OverflowError):
        pass
    raise UsageError(
        f"GPUS_PER_RUN={text}: must be 0 (GPUs are not handed out), a share such as 0.5 or 0.25, or a whole number"
    )
