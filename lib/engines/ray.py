"""The engine Ray: a task for each run, on this machine or a cluster. What is lost with a worker or node starts again.

Facts of Ray 2.60: `max_retries` covers system failures only, so an exit code is returned. `ray.cancel` raises SIGINT's
handler in the worker's main thread, which our trainers take for a wish to save and end. `max_calls=1` gives each run a
process of its own. Functions of functions are pickled as they are, so a worker needs nothing on its path to begin.
"""

import contextlib
import dataclasses
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lib.base.errors import UserError
from lib.base.threads import cores
from lib.config.kconf import ROOT
from lib.engines import gpus, shared
from lib.engines.engine import End, Wishes, each_run
from lib.engines.job import Job

RETRIES = 3  # of a run whose worker is lost
_STORE = 80 * 2**20  # bytes of Ray's object store: a task takes a few words and returns a number
_SECONDS = 60  # in which a node must answer
_OURS = ("RAY_", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")  # what Ray itself gives a worker


class Cluster:
    """Ray, as a program of ours uses it. Without RAY_ADDRESS, it is started on this machine and ends with the program.

    `gpus`, `jobs` and `threads` are the GPUs of each job, the jobs at a time, and the CPUs of each job.
    """

    def __init__(self, wishes: Wishes, say: Callable[[str], object]):
        """Start Ray or join the cluster; raises UserError where it is not reached, or its workers cannot train."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # GPUS_PER_RUN=0 hides no GPU
        import ray  # takes half a second

        self.ray = ray
        address = os.environ.get("RAY_ADDRESS", "")
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            if address in ("", "local"):
                each = self._begin(wishes, say)
            else:
                self._join(address)
                each = each_run(wishes.gpus_per_run)
            nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
            self.gpus, self.jobs, self.threads = sized([node["Resources"] for node in nodes], wishes, each)
            self._check(nodes, wishes)
            where = f"Ray at {address}" if address else "Ray on this machine"
            self.place = f"{where}: {len(nodes)} node{'s' * (len(nodes) > 1)}"
            self.share = f"{self.threads} CPU{'s' * (self.threads > 1)}" + (
                f" and {self.gpus:g} GPU" if self.gpus else ""
            )
            stack.pop_all()

    def _begin(self, wishes: Wishes, say: Callable[[str], object]) -> float | None:
        """Start Ray here, with the free GPUs. Returns how many GPUs each run gets."""
        places = []
        if wishes.gpus:
            places = gpus.places(wishes.jobs, wishes.gpus_per_run, os.environ, say, together=wishes.together)
        free = list(dict.fromkeys(name for place in places for name in place.split(",")))
        with _showing(free):
            self._init(
                address="local",
                num_cpus=max(cores(), wishes.jobs if wishes.together else 1),  # else they would wait for ever
                num_gpus=len(free),
                include_dashboard=False,
                object_store_memory=_STORE,
                _system_config={"task_oom_retries": RETRIES},  # without this, Ray repeats for ever what needs too much
            )
        return (each_run(wishes.gpus_per_run) or 1) if free else 0

    def _join(self, address: str) -> None:
        if address.startswith("ray://"):
            raise UserError(
                f"RAY_ADDRESS={address}: is an address for Ray's client, which sees no folder of the cluster; start "
                "this program on a machine of the cluster, with RAY_ADDRESS=auto"
            )
        advice = "start one by `ray start --head`, or unset RAY_ADDRESS to train on this machine"
        host, _, port = address.rpartition(":")
        try:
            if port.isdigit():  # Ray itself would try for a minute
                socket.create_connection((host, int(port)), timeout=5).close()
            self._init(address=address)
        except (OSError, RuntimeError, ValueError, self.ray.exceptions.RayError) as error:
            words = " ".join(str(error).split())[:300]
            raise UserError(f"RAY_ADDRESS={address}: no Ray cluster can be joined there ({words}); {advice}") from None

    def _init(self, **words: Any) -> None:
        self.ray.init(log_to_driver=False, logging_level="ERROR", configure_logging=True, **words)

    def _check(self, nodes: Sequence[dict[str, Any]], wishes: Wishes) -> None:
        """Raise UserError if a node does not see the folders, or has other versions."""

        def look(root: str, here: str, offers: list[tuple[str, str]]) -> tuple[dict[str, str], str]:
            import sys
            from pathlib import Path

            if not Path(root).is_dir():
                return {}, f"{root}: is not there"
            sys.path.insert(0, root)
            from lib.engines import shared

            return shared.look(here, offers)

        strategy = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        task = self.ray.remote(num_cpus=0, max_calls=1, max_retries=1)(look)
        with shared.offered([Path.cwd(), wishes.folder, wishes.data]) as offers:
            for node in nodes:
                ref = task.options(scheduling_strategy=strategy(node["NodeID"], soft=False)).remote(
                    str(ROOT), str(Path.cwd()), offers
                )
                name = node["NodeName"]
                try:
                    there, wrong = self.ray.get(ref, timeout=_SECONDS)
                except self.ray.exceptions.RayError as error:
                    words = " ".join(str(error).split())[-300:]
                    raise UserError(
                        f"the worker {name} does not answer ({words}); stop Ray there, or mend it"
                    ) from None
                if not there:
                    raise UserError(f"{wrong} on the worker {name}; {shared.SHARE}")
                shared.check(name, there, wrong, offers)

    def close(self) -> None:
        """Leave the cluster, which ends what this program started there; end Ray if it was started here."""
        self.ray.shutdown()


class Engine(Cluster):
    """See `lib.engines.engine.Engine`."""

    def __init__(self, wishes: Wishes, say: Callable[[str], object]):
        """See `Cluster`."""
        super().__init__(wishes, say)
        say(f"{self.place}, {self.jobs} at a time, {self.share} for each run")

    def start(self, jobs: Iterable[Job]) -> "list[Task | None]":
        return [self._start(job) for job in jobs]

    def _start(self, job: Job) -> "Task | None":
        def train(root: str, fields: dict[str, Any], here: str, given: dict[str, str]) -> int:
            import sys

            sys.path.insert(0, root)
            from pathlib import Path

            from lib.engines.job import Job, work

            return work(Job(**fields), Path(here), given)

        if job.held:
            return None
        words = {"num_cpus": job.threads, "num_gpus": self.gpus, "max_calls": 1, "max_retries": RETRIES}
        task = self.ray.remote(**words)(train).options(name=job.name)
        return Task(self.ray, task.remote(str(ROOT), _fields(job), str(Path.cwd()), given()))


class Task:
    """A task of Ray that trains a run."""

    def __init__(self, ray: Any, ref: Any):
        self.ray, self.ref = ray, ref

    def poll(self) -> End | None:
        ready, _ = self.ray.wait([self.ref], timeout=0)
        if not ready:
            return None
        try:
            return End(self.ray.get(self.ref))
        except self.ray.exceptions.TaskCancelledError:  # it had not begun
            return End(130)
        except self.ray.exceptions.RayTaskError as error:
            return End(1, " ".join(str(error.cause).split()))
        except self.ray.exceptions.RayError as error:
            words = " ".join(str(error).split())[:300]
            return End(1, f"its worker was lost {RETRIES + 1} times; the last time: {words}")

    def stop(self) -> None:
        self.ray.cancel(self.ref)

    def state(self) -> str:
        return "a task of Ray"


def given() -> dict[str, str]:
    """The variables of this program that its workers get where they lack them."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}


def sized(nodes: Sequence[dict[str, float]], wishes: Wishes, each: float | None) -> tuple[float, int, int]:
    """The GPUs of each run, the runs at a time, and the CPUs of each, for nodes with these resources.

    `each` is GPUS_PER_RUN; None: one if there are GPUs. Without GPUs, and without JOBS, each node has one run. Raises
    UserError if a run fits nowhere, or if the processes of one run do not fit at the same time.
    """
    if not nodes:
        raise UserError("the Ray cluster has no CPU; start a worker there by `ray start --address=...`")
    found = [node.get("GPU", 0) for node in nodes]
    if each is None:
        each = float(wishes.gpus and any(found))
    room = sum(int(count // each) if each >= 1 else round(count / each) for count in found) if each else 0
    if each and not room:
        raise UserError(f"GPUS_PER_RUN={each:g}: no node of the Ray cluster has so many; the most are {max(found):g}")
    cpus = [int(node["CPU"]) for node, count in zip(nodes, found, strict=True) if count or not each]
    if wishes.threads > max(cpus):
        raise UserError(
            f"THREADS={wishes.threads}: no node of the Ray cluster has so many CPUs; the most are {max(cpus)}"
        )
    jobs = wishes.jobs or room or len(nodes)
    size = max(wishes.threads, 1)
    fit = min(sum(count // size for count in cpus), room if each else jobs)
    if wishes.together and fit < jobs:
        graphics = f" and {each:g} GPU" if each else ""
        raise UserError(
            f"NPROC={jobs}: the Ray cluster has room for {fit} processes with {size} CPU{'s' * (size > 1)}{graphics} "
            "each; give a smaller NPROC, or start more workers by `ray start --address=...`"
        )
    return each, jobs, wishes.threads if wishes.together and wishes.threads else cpus_each(cpus, jobs)


def cpus_each(nodes: Sequence[int], jobs: int) -> int:
    """The most CPUs for each of so many jobs, each of which is on one node; at least 1."""
    return next((size for size in range(max(nodes), 0, -1) if sum(node // size for node in nodes) >= jobs), 1)


def _fields(job: Job) -> dict[str, Any]:
    return {field.name: getattr(job, field.name) for field in dataclasses.fields(job)}


@contextlib.contextmanager
def _showing(free: list[str]) -> Iterator[None]:
    """A context in which Ray sees these GPUs only; all if the list is empty."""
    before = os.environ.get(gpus.VISIBLE)
    if free:
        os.environ[gpus.VISIBLE] = ",".join(free)
    try:
        yield
    finally:
        if free:
            os.environ.pop(gpus.VISIBLE)
            if before is not None:
                os.environ[gpus.VISIBLE] = before
