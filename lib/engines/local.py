"""The engine of this machine: a process for each run, which gets its share of the cores, and of the free GPUs."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterable

from lib.base import files
from lib.base.errors import UserError
from lib.config.command_line import unconfigured
from lib.engines import gpus
from lib.engines.engine import End, Wishes, share
from lib.engines.job import Job, announced


class Engine:
    """See `lib.engines.engine.Engine`. A trainer that outlives this program goes on to the end of its run."""

    def __init__(self, wishes: Wishes, say: Callable[[str], object]):
        """Find the free GPUs, if runs may use them. Raises UserError if there are too few."""
        self.places = gpus.environments(wishes.jobs, wishes.gpus_per_run, os.environ, say) if wishes.gpus else []
        self.jobs = len(self.places) or wishes.jobs or 1
        self.threads = share(self.jobs, 0)

    def start(self, jobs: Iterable[Job]) -> "list[Task | None]":
        return [self._start(job) for job in jobs]

    def _start(self, job: Job) -> "Task | None":
        environment = unconfigured(os.environ)
        try:
            with job.log.open("ab") as file:
                if files.is_held(job.folder) or not files.locks(file.fileno(), job.log):
                    return None
                command = job.command()
                file.write(announced(command))
                file.flush()
                place = self.places.pop(0) if self.places else {}
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,  # the process inherits the open file, and with it the lock
                    stderr=file,
                    env=environment | place,
                    process_group=0,  # only this program sends it Ctrl-C
                )
                return Task(process, place, self.places)
        except OSError as error:
            why = files.reason(error, job.log.parent)
            raise UserError(f"{job.log}: the trainer cannot be started: {why}") from None

    def close(self) -> None:
        """Nothing is left: each process has ended, or belongs to an earlier sweep."""


class Task:
    """A process that trains a run, and the variables that show it its GPUs."""

    def __init__(self, process: subprocess.Popen, place: dict[str, str], places: list[dict[str, str]]):
        self.process, self.place, self.places = process, place, places

    def poll(self) -> End | None:
        code = self.process.poll()
        if code is None:
            return None
        if self.place:  # the GPUs are free again
            self.places.append(self.place)
            self.place = {}
        return End(code, f"was ended by {signal.Signals(-code).name}" if code < 0 else "")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)  # where a script started the sweep with &, SIGINT is ignored

    def state(self) -> str:
        return f"process {self.process.pid}"
