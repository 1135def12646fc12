"""A run as engines see it: its folder, its log and lock, and the program that begins or continues it."""

import contextlib
import dataclasses
import os
import runpy
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from lib.base import files
from lib.base.errors import UserError
from lib.config.command_line import unconfigured
from lib.config.kconf import ROOT
from lib.engines.shared import SHARE
from lib.record import run

_POLL = 0.2  # seconds between tries to lock a run that another process trains
_PATIENCE = 60.0  # seconds of such tries: a worker that only seems to be lost ends by then


def program(path: str, *words: str) -> list[str]:
    """The command of a program of the repository."""
    return [sys.executable, os.path.relpath(ROOT / path), *words]


@dataclasses.dataclass(frozen=True)
class Job:
    """What an engine moves: a call of a trainer on one run's folder. To call it again continues the run."""

    folder: Path  # the run's, which the trainer makes
    log: Path  # the file with the output of its trainers, beside the folder, see `lib.compare.plan.Run.log`
    path: str  # of the program: a path in the repository
    words: tuple[str, ...]  # the program's arguments for a new run
    run_time: str = ""  # the present RUN_TIME, which may be another one than the run was begun with
    afresh: bool = False  # begins again each time, because its program cannot continue a run
    threads: int = 1  # that it computes with

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.name

    @property
    def held(self) -> bool:
        """Whether a process works on the run."""
        return files.is_held(self.log.parent, self.log.name) or files.is_held(self.folder)

    def command(self) -> list[str]:
        """The program that begins or continues the run."""
        if self.afresh:
            remove(self.folder)
        if run.is_begun(self.folder):  # a resumed run keeps its number of threads
            return program(self.path, "--resume", str(self.folder), f"RUN_TIME={self.run_time}")
        return program(self.path, *self.words)


def remove(folder: Path) -> None:
    """Remove a run if it is begun. A kill leaves all of it, or a hidden folder that the next call removes."""
    hidden = folder.with_name(f".{folder.name}.removed")
    if hidden.exists():
        shutil.rmtree(hidden)
    if run.is_begun(folder):
        folder.rename(hidden)
        shutil.rmtree(hidden)


def announced(command: list[str]) -> bytes:
    """The line of a log with which the output of a trainer begins."""
    return f"$ {shlex.join(command)}\n".encode()


def reason(log: Path, code: int) -> str:
    """Why the newest trainer of a log ended with this exit code: its error, or the last line of its output."""
    session = log.read_text(errors="replace").rpartition("\n$ ")[2]
    lines = [line for line in session.splitlines()[1:] if line.strip()]  # the first line is the command
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return [f"exit code {code} without a message", *lines, *errors][-1]


# ---- in a worker's process -------------------------------------------------------------------------------------------


def settle(folder: Path, given: Mapping[str, str]) -> None:
    """Give this process, which is an engine's worker, the folder and the environment of the program that started it.

    So relative paths mean the same. `given` are the variables of that program, such as keys of trackers: those that
    this worker lacks are added. Raises UserError.
    """
    try:
        os.chdir(folder)
    except OSError as error:
        raise UserError(f"{folder}: is not there on {os.uname().nodename} ({error.strerror}); {SHARE}") from None
    environment = unconfigured({**given, **os.environ})
    os.environ.clear()
    os.environ.update(environment)


def work(job: Job, folder: Path, given: Mapping[str, str]) -> int:
    """Train a job's run in this process, which is an engine's worker; returns the trainer's exit code.

    For `folder` and `given`, see `settle`. A process that works on the run already is waited for, though not for long:
    it may be that of a worker that only seems to be lost.

    Raises UserError.
    """
    settle(folder, given)
    with job.log.open("ab", buffering=0) as log:
        until = time.monotonic() + _PATIENCE
        while not files.locks(log.fileno(), job.log):
            if time.monotonic() > until:
                raise UserError(f"{job.folder}: another process trains this run; wait for it or stop it")
            time.sleep(_POLL)
        command = job.command()
        return call(command, log)


def call(command: list[str], log: IO[bytes]) -> int:
    """Run a Python program in this process, with its output in `log`; returns its exit code."""
    log.write(announced(command))
    with _printing_to(log):
        return _call(command[1:])


def _call(words: list[str]) -> int:
    sys.argv = words
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as done:
        if isinstance(done.code, str):
            print(done.code, file=sys.stderr)  # as Python does
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except BaseException:  # as Python does at the end of a program
        traceback.print_exc()
        return 1
    return 0


@contextlib.contextmanager
def _printing_to(log: IO[bytes]) -> Iterator[None]:
    """A context in which this process, and those that it starts, print to the end of `log`."""
    before, kept = (sys.stdout, sys.stderr), [os.dup(1), os.dup(2)]
    for fd in (1, 2):
        os.dup2(log.fileno(), fd)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):  # the disk may be full
            sys.stdout.flush()
        sys.stdout, sys.stderr = before
        for fd, was in enumerate(kept, 1):
            os.dup2(was, fd)
            os.close(was)
