"""Train a matrix of configurations x seeds at equal budget, and compare means ± standard deviations over the seeds.

A sweep is a text file. The first word of a line says what the line is:

  # a comment
  defconfig gpt2_tiny                        the preset, or configuration file, that all start from
  seeds 1 2 3                                each configuration is trained once with each seed
  common MAX_ITERS=1200 TRACKER=none         options for all configurations (any number of such lines)
  dense                                      a configuration: its name, then the options that differ
  half PRUNING_METHOD=magnitude TARGET_SPARSITY=0.5        another one; all are compared with the first

All lines are checked before anything is trained. Configurations may differ in the options of the menus Optimizer and
Pruning. They may also differ in LEARNING_RATE, MIN_LR and GRAD_CLIP, which the table then shows. Any other difference
is an error, because the budgets would be unequal. INIT_FROM and INIT_MASKS may differ: then losses are compared where
the tokens of all runs on the way are equal. CONFIG_ variables of the environment and .config are not read.

The runs are <OUTPUT_DIR>/<sweep>/<configuration>-seed<n>, each with a log beside it. The sweep's folder also has
table.md and results.json. Ctrl-C saves the runs that are being trained. The same command then continues the sweep: it
keeps finished runs and resumes the others. The exit code is 0 if all runs are finished, 1 if one has failed, and 130
after Ctrl-C.
"""

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from tqdm import tqdm

from gpt2 import preflight
from lib.base import files
from lib.base.errors import UsageError, UserError, run_program
from lib.base.signals import StopSignals
from lib.base.threads import cores
from lib.compare import comparison, sweep
from lib.compare.sweep import Run, Sweep
from lib.config.command_line import unconfigured
from lib.config.config_file import ConfigError
from lib.config.kconf import ROOT, Schema
from lib.record import history, journal, lineage
from lib.terminal import view
from lib.terminal.console import duration, say

_POLL = 0.2  # seconds between looks at the trainers


def main() -> int:
    """Train the runs that are not finished and show the table; returns the exit code."""
    args = _arguments()
    plan = sweep.read(files.named(args.file), args.words, adopt)
    for run in plan.runs():
        run.check()
    code, failures = 0, {}
    if not args.table_only and not all(run.finished for run in plan.runs()):
        check(plan)  # only here, because it imports torch, which takes seconds
        check_sources(plan)
        with files.held(plan.folder, "training this sweep"):
            code, failures = train(plan, args.jobs)
    found = comparison.results(plan)
    if not any(run.finished for run in plan.runs()):
        say(f"{plan.folder}: no run is finished yet, so there is no table")
    else:
        write(plan.folder, found)
    for run, sentence in failures.items():
        print(f"error: {run.name} failed: {sentence}; see {_log(run)}", file=sys.stderr)
    if code > 1:
        say("stopped; the same command continues the sweep")
    return code


def adopt(schema: Schema, begun: Path | None) -> None:
    """Give `schema` the shape of the weights that INIT_FROM names; a run that has `begun` has it already.

    The names of runs are replaced by their folders: the runs of the sweep have another OUTPUT_DIR.
    """
    for name in lineage.OPTIONS.values():
        given = schema[name]
        if given and given != "zeros" and (folder := _resolved(name, given, schema["OUTPUT_DIR"], begun)) != given:
            schema.override([(name, folder, schema.sources[name])])
    if schema["INIT_FROM"]:
        from gpt2.weights import adopt  # here, because it imports torch, which takes seconds

        if not (begun and adopt.follow(schema, begun)):
            adopt.adopt(schema)


def _resolved(name: str, given: str, output_dir: str, begun: Path | None) -> str:
    """See source.resolved. A run that has `begun` with the run of this name tells it even if that run is gone."""
    from gpt2.weights import source

    if begun:
        there = Schema()
        there.load(begun / ".config", ranges=False)
        if there[name] == str(Path(output_dir) / given):
            return there[name]
    return source.resolved(given, output_dir)


def check(plan: Sweep) -> None:
    """Raise ConfigError with all reasons why configurations cannot be trained."""
    problems = []
    for configuration in plan.configurations:
        try:
            bind = configuration.schema().bind
            preflight.check_trainable(bind(preflight.TrainableOptions))
            preflight.check(bind)
        except UserError as error:
            problems += [f"{configuration.place}: {sentence}" for sentence in error.args]
    if problems:
        raise ConfigError(problems)


def check_sources(plan: Sweep) -> None:
    """Raise UsageError if what runs begin with has changed since other runs of the sweep began with the same name."""
    from gpt2.weights import masks, source

    now: dict[tuple[str, str], str] = {}  # option, its value -> sha256
    for schema in [run.configuration.schema() for run in plan.runs() if not run.folder.exists()]:
        if (given := schema["INIT_FROM"]) and ("INIT_FROM", given) not in now:
            now["INIT_FROM", given] = source.sha256(source.find(given, schema["OUTPUT_DIR"]))
        given = schema["INIT_MASKS"]
        if given and given != "zeros" and ("INIT_MASKS", given) not in now:
            now["INIT_MASKS", given] = masks.read(given, schema["OUTPUT_DIR"])[1]["sha256"]
    for run in plan.runs():
        run.check_begun(now)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", default="", help="the sweep, such as sweeps/pruning")
    parser.add_argument("words", nargs="*", metavar="NAME=value", help="options to change in all configurations")
    parser.add_argument("--jobs", type=int, default=1, help="runs to train at the same time; they share the cores")
    parser.add_argument("--table-only", action="store_true", help="train nothing; show the finished runs")
    args = parser.parse_intermixed_args()
    if not args.file:
        raise UsageError("name a sweep, such as: make sweep SWEEP=sweeps/pruning")
    if args.jobs < 1:
        raise UsageError(f"--jobs must be at least 1; got {args.jobs}")
    if ours := [name for name in os.environ if name.startswith(("CONFIG_", "KCONFIG_CONFIG")) and name != "CONFIG_"]:
        print(f"warning: a sweep does not read the environment's {', '.join(sorted(ours))}", file=sys.stderr)
    return args


def write(folder: Path, found: comparison.Results) -> None:
    """Show the table, and write it to the sweep's folder."""
    files.write_json(folder / "results.json", found)
    files.write(folder / "table.md", comparison.table(found).encode())
    view.sheet(comparison.screen(found, view.width(80)), comparison.notes(found))
    say(f"\n{folder}/table.md, {folder}/results.json")


# ---- training --------------------------------------------------------------------------------------------------------


def train(plan: Sweep, jobs: int) -> tuple[int, dict[Run, str]]:
    """Train the runs that are not finished; returns the exit code, and the reason of each run that failed."""
    with StopSignals() as stopped:
        prepared = subprocess.run(
            _program("prepare_data.py", *plan.runs()[0].words()), env=unconfigured(os.environ), check=False
        )
        if prepared.returncode and not stopped():
            raise UserError("the data could not be prepared, so no run was started")
        failures = {}
        with contextlib.closing(Trainers(plan, jobs)) as trainers:
            while trainers.work(stopped()):
                for one in trainers.ended():
                    if not one.run.finished and not stopped():
                        failures[one.run] = one.reason()
                    trainers.count(one, failures.get(one.run))
                time.sleep(_POLL)
        return stopped.exit_code or int(bool(failures)), failures


class Trainer:
    """A trainer's process for one run, new or resumed; only this program sends it Ctrl-C."""

    def __init__(self, run: Run, threads: int):
        """Start the trainer with this number of `threads`; 0 means the number in its configuration."""
        self.run, self.offset, self.step = run, 0, 0
        words = ["--resume", str(run.folder)] if run.folder.exists() else run.words()
        if threads and not run.folder.exists():  # a resumed run keeps its number
            words.append(f"THREADS={threads}")
        command = _program("train.py", *words)
        try:
            with _log(run).open("ab") as log:
                log.write(f"$ {shlex.join(command)}\n".encode())
                log.flush()
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=unconfigured(os.environ),
                    process_group=0,
                )
        except OSError as error:
            why = files.reason(error, run.parent)
            raise UserError(f"{_log(run)}: the trainer cannot be started: {why}") from None

    def progress(self) -> int:
        """The current step of the run, from its journal."""
        if (self.run.folder / journal.FILE).exists():
            for record, offset in journal.tail(self.run.folder, self.offset):
                self.step, self.offset = record["step"], offset
        return self.step

    def reason(self) -> str:
        """Why the trainer ended before the run was finished: its error, or the last line of its log."""
        session = _log(self.run).read_text(errors="replace").rpartition("\n$ ")[2]
        lines = [line for line in session.splitlines()[1:] if line.strip()]  # the first line is the command
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        code = self.process.returncode
        if code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        return [f"exit code {code} without a message", *lines, *errors][-1]


class Trainers:
    """The trainers of a sweep, `jobs` at a time, and the progress bar."""

    def __init__(self, plan: Sweep, jobs: int):
        self.runs, self.jobs = plan.runs(), jobs
        self.waiting = [run for run in self.runs if not run.finished]
        self.active: list[Trainer] = []
        self.stopping = False
        settings = plan.configurations[0].schema()
        self.steps = settings["MAX_ITERS"]  # the same for every run, because budgets are equal
        self.threads = max(1, cores() // jobs) if jobs > 1 and settings["THREADS"] == 0 else 0
        self.done = len(self.runs) - len(self.waiting)
        self.began, self.start = time.monotonic(), float(self.done)  # start: how much was done before
        self.bar = tqdm(
            total=len(self.runs),
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
            leave=False,
            bar_format="{percentage:3.0f}%|{bar}| {desc}",
        )

    def work(self, stop: bool) -> bool:
        """Start trainers up to the limit, or with `stop` make all save and end; returns whether any still runs."""
        if stop and not self.stopping:
            self.stopping = True
            self.waiting.clear()
            for one in self.active:
                one.process.send_signal(signal.SIGINT)
        while self.waiting and len(self.active) < self.jobs:
            self.active.append(one := Trainer(self.waiting.pop(0), self.threads))
            self.start += one.progress() / self.steps
        self._show()
        return bool(self.active)

    def ended(self) -> list[Trainer]:
        """The trainers that have ended and are not counted yet."""
        return [one for one in self.active if one.process.poll() is not None]

    def count(self, one: Trainer, failure: str | None) -> None:
        """Count a trainer that has ended, and print whether its run is finished, failed or stopped."""
        if one.run.finished:
            summary = history.summary(one.run.folder)
            line = f"val loss {summary['final_val_loss']:.4f}  {duration(summary['total_time_seconds'])}"
        else:
            line = f"failed: {failure}" if failure else f"stopped after step {one.progress()}"
        self.active.remove(one)
        self.done += one.run.finished or failure is not None
        with self.bar.external_write_mode(file=sys.stdout):
            say(f"{one.run.name}  {line}  ({self._status()})")
        self._show()

    def _show(self) -> None:
        self.bar.n = self._position()
        self.bar.set_description_str(self._status())

    def _status(self) -> str:
        """`5 of 57 runs, 48:00 left`."""
        now = self._position()
        left = (len(self.runs) - now) / (now - self.start) * (time.monotonic() - self.began) if now > self.start else 0
        return f"{self.done} of {len(self.runs)} runs" + (f", {duration(left)} left" if left else "")

    def _position(self) -> float:
        """The number of finished runs, plus the finished shares of the current ones."""
        return self.done + sum(one.progress() / self.steps for one in self.active)

    def close(self) -> None:
        """Make trainers that still run save and end, and remove the bar."""
        self.work(stop=True)
        for one in self.active:
            one.process.wait()
        self.bar.close()


def _program(name: str, *words: str) -> list[str]:
    return [sys.executable, os.path.relpath(ROOT / "gpt2" / name), *words]


def _log(run: Run) -> Path:
    return run.parent / f"{run.name}.log"


if __name__ == "__main__":
    run_program(main)
