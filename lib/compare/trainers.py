"""The trainers of a sweep's runs: each run after those that it needs, by an engine, and what is seen of them."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from lib.base.errors import UserError
from lib.base.seldom import Seldom
from lib.compare import live
from lib.compare.live import State
from lib.compare.plan import Run, Sweep
from lib.config.kconf import Schema
from lib.engines.engine import End, Engine, Task
from lib.engines.job import Job, reason
from lib.record import history, journal, short
from lib.terminal.console import duration, say

_LOOK = 0.5  # seconds, at least, from one look at the journals of all runs in training to the next


def ordered(plan: Sweep) -> list[Run]:
    """All runs seed by seed, each after those that it begins from."""
    found: dict[str, Run] = {}

    def add(run: Run) -> None:
        if run.name not in found:
            for source in run.before(plan):
                add(source)
            found[run.name] = run

    for run in plan.runs():
        add(run)
    return list(found.values())


class Trainer:
    """What is seen of the trainer of one run, new or resumed, wherever it works."""

    def __init__(self, run: Run, job: Job, task: Task | None):
        """`task` is None if a process of an earlier sweep still works on the run, so that it can only be looked at."""
        self.run, self.job, self.task = run, job, task
        self.offset = self.step = 0
        self.pace: list[tuple[float, int]] = []  # when this program saw the first and the newest step, and these
        self.end: End | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing works on the run any more."""
        if not self.task:
            return not self.job.held
        self.end = self.end or self.task.poll()
        return self.end is not None

    def stop(self) -> None:
        """Ask the trainer to save and end. The process of an earlier sweep goes on."""
        if self.task:
            self.task.stop()
        else:
            say(f"{self.run.name}  goes on in the process of an earlier sweep; the next sweep finds what it made")

    def progress(self) -> int:
        """Read what is new in the journal of the run; returns the last step there, which `step` keeps."""
        if (self.run.folder / journal.FILE).exists():
            before = self.step
            record, self.offset = journal.newest(self.run.folder, self.offset)
            self.step = record["step"] if record else before
            if self.step != before:
                first = self.pace[:1] if self.pace and self.pace[0][1] < self.step else []
                self.pace = [*first, (time.monotonic(), self.step)]
        return self.step

    def left(self, steps: int) -> float | None:
        """The seconds until `steps` are made; None before the pace is known."""
        if len(self.pace) < 2:
            return None
        (began, first), (newest, step) = self.pace
        return max(0.0, newest + (newest - began) / (step - first) * (steps - step) - time.monotonic())

    def reason(self) -> str:
        """Why the trainer ended before the run was finished: what the engine knows, or what the log says."""
        return self.end.why or reason(self.job.log, self.end.code)


class Settings(NamedTuple):
    """What the trainers of a configuration need to know of it."""

    steps: int
    threads: int
    run_time: str


class Trainers:
    """The trainers of a sweep, as many at a time as its engine takes, and what is seen of them."""

    def __init__(
        self,
        plan: Sweep,
        engine: Engine,
        record: Callable[[], object] = lambda: None,
        find: Callable[[], Sequence[str]] = tuple,
        trials: Mapping[str, tuple[str, int]] | None = None,
        options: Mapping[str, Mapping[str, str]] | None = None,
    ):
        """`record` keeps what came of the sweep so far. It is called at the start and after runs that have ended.

        `find` returns the verdicts so far. `trials` tells the method and the number of each configuration that is one.
        `options` are more options of a configuration's new runs, by its name; they do not change what is learned.
        """
        self.options, self.schema = options or {}, Schema()
        self.plan, self.engine, self.record = plan, engine, record
        self.runs = ordered(plan)
        self.waiting = [run for run in self.runs if not run.finished and not self._is_short(run)]
        self.active: list[Trainer] = []
        self.failures: dict[Run, str] = {}  # run -> what happened, after its name
        self.stopping = self.blocked = False
        self.unrecorded = True
        self.looks, self.records = Seldom(_LOOK), Seldom()
        self.done = len(self.runs) - len(self.waiting)
        self.began, self.start = time.monotonic(), float(self.done)  # start: how much was done before
        self.screen, self.verdicts = live.Screen(), live.Verdicts(find)
        self.table = live.Table(plan, trials or {})
        left = {run.name for run in self.waiting}
        for run in self.runs:
            if run.name not in left:
                self.table.end(run, "finished" if run.finished else "short")

    def work(self, stop: bool) -> bool:
        """Count trainers that have ended, and start others up to the limit, or with `stop` make all save and end.

        Returns whether there is more to do.
        """
        ended = [one for one in self.active if one.ended]
        for one in ended:
            self._count(one, stop)
        if stop and not self.stopping:
            self.stopping = True
            self.screen.leave()
            self.waiting.clear()
            for one in self.active:
                one.stop()
            self.active = [one for one in self.active if one.task]
        self.blocked = self.blocked and not ended  # what has ended may be what others wait for
        ready: list[Run] = []
        while len(self.active) + len(ready) < self.engine.jobs and not self.blocked:
            if run := self._next():
                ready.append(run)
            self.blocked = run is None
        if ready:
            self._begin(ready)
        self.unrecorded = self.unrecorded or bool(ended)
        if self.unrecorded and (self.records.due or not self.active):  # now that no trainer waits for this
            self._record()
        self.screen.show(self._state)
        return bool(self.active)

    def _record(self) -> None:
        """Keep what came of the sweep so far. A full disk, for example, must not end the runs that go on."""
        self.unrecorded, self.verdicts.stale = False, True
        with self.records:
            try:
                self.record()
            except UserError as error:
                self._say(f"warning: {error}")

    def _next(self) -> Run | None:
        """Take the first waiting run whose sources are finished. Those whose sources have failed are not tried."""
        for run in list(self.waiting):
            sources = [source for source in run.before(self.plan) if not source.finished]
            if lost := next((one for one in sources if one in self.failures or self._is_short(one)), None):
                self.waiting.remove(run)
                self.failures[run] = f"was not tried, because it begins from {lost.name}, which is not finished"
                self.done += 1
                self.start += 1  # it took no time, so it says nothing of the pace
                self.table.end(run, "not tried")
                self._say(f"{run.name}  {self.failures[run]}  ({self._status()})")
            elif not sources:
                self.waiting.remove(run)
                return run
        return None

    def _begin(self, runs: Sequence[Run]) -> None:
        jobs = [self._job(run) for run in runs]
        for run, job, task in zip(runs, jobs, self.engine.start(jobs), strict=True):
            self.active.append(one := Trainer(run, job, task))
            one.progress()
            self.start += self._share(one)
            one.pace.clear()  # what was made before says nothing about it
            if not task:
                self._say(f"{run.name}  a process of an earlier sweep still works on it; waiting for it")

    def _job(self, run: Run) -> Job:
        """What the engine is to do for a run. Threads that the configuration leaves open are those of the engine."""
        settings, words = self._settings(run.configuration.name), run.words()
        more = dict(self.options.get(run.configuration.name, {}))
        if settings.threads == 0 and self.engine.threads:
            more["THREADS"] = str(self.engine.threads)
        words += [f"{name}={value}" for name, value in more.items()]
        threads = settings.threads or self.engine.threads or 1
        afresh = run.configuration.oneshot  # it trains nothing, and cannot be continued
        return Job(run.folder, run.log, run.program, tuple(words), settings.run_time, afresh, threads)

    @functools.cache  # noqa: B019 - as long as the sweep
    def _settings(self, name: str) -> Settings:
        schema = self.plan.named(name).resolve(self.schema)
        return Settings(schema["MAX_ITERS"], schema["THREADS"], schema["RUN_TIME"])

    def _is_short(self, run: Run) -> bool:
        """Whether it has stopped because of the present RUN_TIME. Another one lets it go on."""
        return short.why(run.folder) == short.words(self._settings(run.configuration.name).run_time)

    def _count(self, one: Trainer, stop: bool) -> None:
        """Count a trainer that has ended, and print whether its run is finished, failed or stopped."""
        one.progress()
        run, part = one.run, self._share(one)
        self.active.remove(one)
        how = "finished"
        if run.finished:
            summary = history.summary(run.folder)
            line = f"val loss {summary['final_val_loss']:.4f}  {duration(summary['total_time_seconds'])}"
        elif self._is_short(run):
            how = "short"
            line = f"{short.why(run.folder)} after step {one.step}: a short run, which is not ranked"
        elif stop:
            how, line = "", f"stopped after step {one.step}"
        elif not one.task:
            how, line = "", "the process of the earlier sweep has ended before the run was finished"
            self.waiting.insert(0, run)
        else:
            how, line = "failed", f"failed: {one.reason()}"
            self.failures[run] = f"{line}; see {one.job.log}"
        self.done += bool(how)
        if how != "finished":  # only a part of it was made
            self.start += bool(how) - part
        self.table.end(run, how)
        self._say(f"{run.name}  {line}  ({self._status()})")

    def left(self) -> list[str]:
        """The names of the runs that are neither finished nor have failed."""
        return [run.name for run in self.runs if not run.finished and run not in self.failures]

    def _say(self, text: str) -> None:
        self.screen.say(text, self._state)

    def _state(self) -> State:
        """What the table shows."""
        share = self._position() / len(self.runs)
        doing = {one.run.name: (self._share(one), one.left(self._steps(one))) for one in self.active}
        return State(self.table.rows(doing), self._status(), share, self.verdicts.newest(), self.table.titles)

    def _status(self) -> str:
        """`5 of 57 runs, 48:00 left`."""
        now = self._position()
        left = (len(self.runs) - now) / (now - self.start) * (time.monotonic() - self.began) if now > self.start else 0
        return f"{self.done} of {len(self.runs)} runs" + (f", {duration(left)} left" if left else "")

    def _position(self) -> float:
        """The number of finished runs, plus the finished shares of the current ones."""
        if self.looks.due:
            with self.looks:
                for one in self.active:
                    one.progress()
        return self.done + sum(map(self._share, self.active))

    def _share(self, one: Trainer) -> float:
        return one.step / self._steps(one)

    def _steps(self, one: Trainer) -> int:
        return self._settings(one.run.configuration.name).steps

    def detach(self) -> None:
        """Say where each trainer is, and leave them all to the engine."""
        for one in self.active:
            where = one.task.state() if one.task else "a process of an earlier sweep"
            self._say(f"{one.run.name}  {where}, after step {one.step} of {self._steps(one)}")
        self.active, self.waiting = [], []

    def close(self) -> None:
        """Make trainers that still run save and end, and remove the table."""
        self.work(stop=True)
        while not all(one.ended for one in self.active):
            time.sleep(0.05)
