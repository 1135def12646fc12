"""A run of several processes on Ray: Ray Train's TorchTrainer, which starts all again if one is lost with its worker.

Facts of Ray 2.60: a worker calls the trainer in a thread, where no signal arrives. So a desk, which is an actor of Ray
on this machine, hands on the wish to stop. FailureConfig counts each exception of a worker. So the trainer's own errors
are exit codes, which the desk keeps: only a worker that ends without one is a failure that Ray Train tries again.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lib.base import files, launch, signals
from lib.base.errors import UserError
from lib.base.signals import StopSignals
from lib.config.kconf import ROOT
from lib.engines import engine, job, ray
from lib.engines.group import Group, Output, frozen

_LOOK = 0.2  # seconds between looks at the output
_ASK = 0.5  # seconds between a worker's questions whether to stop
_HEAR = 15.0  # seconds in which a process that trains hears the wish to stop; one that has not begun saves nothing
_WAIT = 30.0  # seconds after which it is said that no process has begun


def run(group: Group, say: Callable[[str], object]) -> int:
    """Train in Ray's workers to the end, a signal or a failure; returns the exit code. Raises UserError."""
    engine.check_installed("ray")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # which prints each line of a worker twice
    with files.held(group.folder, "following the processes of this run"), contextlib.ExitStack() as stack:
        cluster = ray.Cluster(group.wishes(), say)
        stack.callback(cluster.close)
        say(f"{cluster.place}, {group.count} processes with {cluster.share} each; their output is in {group.log}")
        try:
            desk = _desk(cluster.ray)
            with StopSignals("the processes save and end") as stopped:
                watch = _Watch(cluster.ray, desk, group, stopped, say)
                failure = _fit(_trainer(cluster, desk, group), watch)
            found = cluster.ray.get(desk.worst.remote())
        except cluster.ray.exceptions.RayError as error:
            words = " ".join(str(error).split())[:300]
            raise UserError(f"Ray has ended ({words}); the same command goes on from the last checkpoint") from None
        if failure and not stopped():
            raise UserError(
                f"Ray Train gives up after {ray.RETRIES} new starts of lost processes "
                f"({' '.join(str(failure).split())[:300]}); the same command goes on from the last checkpoint"
            )
        rank, code = found if found and not failure else (0, stopped.exit_code)
    if code and rank:  # its output was not shown
        print(f"error: {job.reason(_log(group.folder, rank), code)}", file=sys.stderr)
    return code


def _trainer(cluster: ray.Cluster, desk: Any, group: Group) -> Any:
    """Ray Train, which is to start the processes."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def train(config: dict[str, Any]) -> None:
        import sys

        sys.path.insert(0, config["root"])
        from lib.engines import ray_group

        ray_group.work(**config["work"])

    folder = group.folder.absolute()
    work = {
        "desk": desk,
        "folder": folder,
        "words": frozen(group),
        "here": Path.cwd(),
        "given": ray.given(),
        "again": group.again,
    }
    each = {"CPU": cluster.threads, **({"GPU": cluster.gpus} if cluster.gpus else {})}
    return TorchTrainer(
        train,
        train_loop_config={"root": str(ROOT), "work": work},
        scaling_config=ScalingConfig(num_workers=group.count, use_gpu=bool(cluster.gpus), resources_per_worker=each),
        run_config=RunConfig(
            name=group.job, storage_path=str(folder / "ray"), failure_config=FailureConfig(max_failures=ray.RETRIES)
        ),
    )


def _fit(trainer: Any, watch: "_Watch") -> BaseException | None:
    """Let Ray Train work to the end, or until nobody trains after a wish to stop; returns its failure.

    In a thread: in the main one, Ray Train takes Ctrl-C for itself, and aborts.
    """
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    while thread.is_alive() and watch.goes_on():
        thread.join(_LOOK)
    watch.output.show()
    return failures[0] if failures else None


class _Watch:
    """Shows what the processes print, and hands on the wish to stop."""

    def __init__(self, there: Any, desk: Any, group: Group, stopped: StopSignals, say: Callable[[str], object]):
        """`there` is the module of Ray."""
        self.ray, self.desk, self.group, self.stopped, self.say = there, desk, group, stopped, say
        self.output, self.began, self.asked = Output(group.log), time.monotonic(), 0.0

    def goes_on(self) -> bool:
        """Look once. False if no process will hear the wish to stop, because none trains."""
        self.output.show()
        now = time.monotonic()
        if self.began and now > self.began + _WAIT:
            if not self.ray.get(self.desk.there.remote()):
                self.say("no process has begun yet: Ray starts them, or waits for machines; Ctrl-C gives up")
            self.began = 0.0
        if self.stopped() and not self.asked:
            self.asked = now
            self.desk.stop.remote(self.stopped.heard[0])
        return not self.asked or now < self.asked + _HEAR or self.ray.get(self.desk.heard.remote())


def _desk(there: Any) -> Any:
    """An actor of Ray, on this machine: where the processes ask whether to stop, and leave their exit codes."""

    class Desk:
        def __init__(self) -> None:
            self.number, self.ends, self.hearing, self.begun = 0, {}, False, 0

        def begin(self, rank: int) -> int:
            self.ends.pop(rank, None)  # of an earlier start
            self.begun += 1
            return self.number

        def there(self) -> int:
            return self.begun

        def stop(self, number: int) -> None:
            self.number = number

        def asked(self) -> int:
            return self.number

        def hear(self) -> None:
            self.hearing = True

        def heard(self) -> bool:
            return self.hearing

        def end(self, rank: int, code: int) -> None:
            self.ends[rank] = code

        def worst(self) -> tuple[int, int] | None:
            """The rank whose end says most, and its exit code: the highest, and the first of equal ones.

            None if no rank has ended. Those that lose the others end with 1.
            """
            return max(self.ends.items(), key=lambda end: end[1]) if self.ends else None

    here = there.get_runtime_context().get_node_id()
    strategy = there.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
    return there.remote(num_cpus=0, scheduling_strategy=strategy)(Desk).remote()


# ---- in a worker's process -------------------------------------------------------------------------------------------


def work(desk: Any, folder: Path, words: list[str], here: Path, given: dict[str, str], again: str) -> None:
    """Train as one of the processes, in a worker of Ray Train; leaves the exit code at the desk.

    For `here` and `given`, see `job.settle`; `again` are the words of make that start the processes again.
    """
    from ray import get, train
    from torch import distributed

    rank = train.get_context().get_world_rank()
    if number := get(desk.begin.remote(rank)):
        get(desk.end.remote(rank, 128 + number))
        return
    job.settle(here, given)
    os.environ[launch.AGAIN] = again
    threading.Thread(target=_listen, args=(desk, get), name="listener", daemon=True).start()
    with _log(folder, rank).open("wb" if rank else "ab", buffering=0) as log:
        code = job.call(job.program("gpt2/train.py", *words), log)
    get(desk.end.remote(rank, code))
    if code and distributed.is_initialized() and distributed.get_backend() == "gloo":
        distributed.destroy_process_group()  # so that the other ranks notice: this process goes on


def _listen(desk: Any, get: Callable[[Any], Any]) -> None:
    """Ask the desk whether to stop, until the trainer has heard it."""
    while not (number := get(desk.asked.remote())):
        time.sleep(_ASK)
    while not signals.ask(number):
        time.sleep(_ASK)
    get(desk.hear.remote())


def _log(folder: Path, rank: int) -> Path:
    """The output of a rank. Each has its own file, because network file systems mix what several append."""
    return folder / (f"rank-{rank}.log" if rank else "output.log")
