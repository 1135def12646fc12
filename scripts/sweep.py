"""Train a matrix of configurations x seeds at equal budget, and say which are better, and how sure that is.

A sweep is a text file. The first word of a line says what the line is:

  # a comment
  defconfig gpt2_tiny                        the preset, or configuration file, that all start from
  seeds 1..3                                 each configuration is trained once with each seed
  common MAX_ITERS=1200 TRACKER=none         options for all configurations (any number of such lines)
  dense                                      a configuration: its name, then the options that differ
  half PRUNING_METHOD=magnitude TARGET_SPARSITY=0.5        another one; all are compared with the first
  matrix OPTIMIZER=adam,adamw                each combination of values is a configuration
  wanda from=@dense oneshot ...              begins from the run of another configuration with the same seed
  tune 8 LEARNING_RATE=log:1e-4:1e-2         every method gets the same number of trials first

Words with several values on the command line, as in OPTIMIZER=adam,adamw SEED=1..3, multiply every configuration, or
are a sweep by themselves over .config. docs/sweeps.md has the whole language.

All lines are checked before anything is trained. What would make budgets unequal is an error, except the size of the
model and MAX_ITERS: configurations that differ in the matched quantity are not ranked together. CONFIG_ variables of
the environment and, with a file, .config are not read.

--engine says where the runs are trained: local (this machine), ray or slurm. It changes no folder and no result.
docs/cluster.md has more.

The runs are <OUTPUT_DIR>/<sweep>/<configuration>-seed<n>, each with a log beside it. The sweep's folder also has
table.md and results.json, which are renewed whenever a run has ended. Ctrl-C saves the runs that are being trained. The
same command then continues the sweep: it keeps finished runs and resumes the others. Finished runs of other folders
count if they are the same. The exit code is 0 if all runs are finished, 1 if one has failed, 124 when --time or a run's
RUN_TIME is over, and 130 after Ctrl-C.
"""

import argparse
import contextlib
import dataclasses
import functools
import math
import os
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt2 import preflight
from gpt2.present import present
from gpt2.weights import named
from lib.base import durations, files
from lib.base.errors import UsageError, UserError, run_program
from lib.base.signals import StopSignals
from lib.compare import comparison, estimate, rematch, reuse, sweep, table, trainers, tuning
from lib.compare.so_far import SoFar
from lib.compare.sweep import Run, Sweep
from lib.config import extras
from lib.config.command_line import unconfigured
from lib.config.config_file import ConfigError
from lib.config.kconf import Schema
from lib.engines import engine, job
from lib.record import lineage, short
from lib.terminal import view
from lib.terminal.console import listed, say

_POLL = 0.2  # seconds between looks at the trainers
_OWN = {"fresh": False, "baseline": ""}  # arguments with which only runs in the folder of the sweep count as its trials
_WRAP = {"subsequent_indent": "  ", "break_on_hyphens": False, "break_long_words": False}


def main() -> int:
    """Train the runs that are not finished and show the table; returns the exit code."""
    args = _arguments()
    plan = sweep.read(files.named(args.file) if args.file else None, args.words, adopt, choose)
    for one in (one for one in plan.configurations if one.matched):
        say(f"{one.name}: match={':'.join(one.matched)} chose {one.chosen}")
    rematch.check(plan, choose)
    if args.dry_run:
        dry_run(plan, args)
        return 0
    code, failures = 0, {}
    if plan.tuning:
        plan, code = tune(plan, args)
        if code > 1:
            say("stopped; the same command continues the sweep")
            return code
        plan, code = tuning.chosen(plan), 0  # a trial that failed has lost
    if not args.fresh:
        plan = reuse.pinned(plan, present())
    for run in plan.runs():
        run.check()
    plan.check_data()
    if args.table_only:
        plan = counting(plan, args)
    elif not all(run.finished for run in plan.runs()):
        check(plan)  # only here, because it imports torch, which takes seconds
        check_sources(plan)
        plan = plan.kept()
        with files.held(plan.folder, "training this sweep"):
            plan, code, failures = train(plan, args, SoFar)
    if not any(run.finished for run in plan.runs()):
        say(f"{plan.folder}: no run is finished yet, so there is no table")
    else:
        show(plan.folder, SoFar(plan).write())
    for run, sentence in failures.items():
        print(f"error: {run.name} {sentence}", file=sys.stderr)
    if code > 1:
        is_short = all(run.finished or short.why(run.folder) for run in plan.runs())
        say(f"stopped; {'another RUN_TIME' if is_short else 'the same command'} continues the sweep")
    return code


def counting(plan: Sweep, args: argparse.Namespace) -> Sweep:
    """The sweep with the finished runs of other folders that count (see lib/compare/reuse.py), which are named."""
    if args.fresh:
        return plan
    baseline = files.named(args.baseline) if args.baseline else None
    found = reuse.found(plan, plan.folder.parent, baseline, present())
    for name, words in found.words.items():
        say(f"{name} is finished already: {words}")
    for folder, why in found.refused.items():
        say(f"note: {folder} does not count: {why}")
    return found.plan


def tune(plan: Sweep, args: argparse.Namespace) -> tuple[Sweep, int]:
    """Train the trials of a sweep that are not finished, and say which have failed.

    Returns the sweep with the trials that count under other names, and the exit code. Only runs in the folder of the
    sweep count as trials. Earlier versions gave them other names.
    """
    trials, args = tuning.stage(plan), argparse.Namespace(**vars(args) | _OWN)
    for run in trials.runs():
        run.check()
    trials.check_data()
    if all(run.finished for run in trials.runs()):
        return plan, 0
    if args.table_only:
        return dataclasses.replace(plan, trials=counting(trials, args).elsewhere), 0
    check(trials)
    with files.held(trials.folder, "tuning this sweep"):
        names = {one.configuration.name: (one.method.name, one.number) for one in tuning.planned(plan)}

        def keeper(trials: Sweep) -> SoFar:
            return SoFar(dataclasses.replace(plan, trials=trials.elsewhere), trials=True)

        trials, code, failures = train(trials, args, keeper, names)
    for run, sentence in failures.items():
        print(f"warning: {run.name} {sentence}; its trial has lost", file=sys.stderr)
    return dataclasses.replace(plan, trials=trials.elsewhere), code


def dry_run(plan: Sweep, args: argparse.Namespace) -> None:
    """Print which runs the sweep would make, and what they would cost. Writes nothing."""
    if args.engine != "local":
        engine.check_installed(args.engine)
    jobs, trials = args.jobs or 1, []
    if plan.tuning:  # so what the other runs will be is not known yet
        trials = counting(tuning.stage(plan), argparse.Namespace(**vars(args) | _OWN)).runs()
    else:
        plan = counting(plan, args)
    check(plan)
    from gpt2 import calibrate  # here, because it imports torch, which takes seconds

    def measure(schema: Schema) -> estimate.Cost:
        if threads := engine.share(jobs, schema["THREADS"]):
            schema.override([("THREADS", str(threads), "JOBS")])
        return calibrate.cost(schema)

    say(estimate.text(plan, estimate.parts(plan.runs(), trials, measure, calibrate.start()), jobs))


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


def choose(schema: Schema, quantity: str, target: Schema) -> tuple[list[tuple[str, str]], str]:
    """See gpt2/sizing.py."""
    from gpt2 import sizing  # here, because it imports torch, which takes seconds

    return sizing.choose(schema, quantity, target)


def _resolved(name: str, given: str, output_dir: str, begun: Path | None) -> str:
    """See named.resolved. A run that has `begun` with the run of this name tells it even if that run is gone."""
    if begun:
        there = Schema()
        there.load(begun / ".config", ranges=False)
        if there[name] == str(Path(output_dir) / given):
            return there[name]
    return named.resolved(given, output_dir)


def check(plan: Sweep) -> None:
    """Raise ConfigError with all reasons why configurations cannot be trained."""
    problems, schema = [], Schema()
    for configuration in plan.configurations:
        try:
            bind = configuration.resolve(schema).bind
            if configuration.oneshot:  # its steps are blocks, so nothing else of a training applies
                preflight.check_evaluation(bind(preflight.EvaluationOptions))
                continue
            preflight.check_trainable(bind(preflight.TrainableOptions))
            preflight.check(bind)
        except UserError as error:
            problems += [f"{configuration.place}: {sentence}" for sentence in error.args]
    if problems:
        raise ConfigError(dict.fromkeys(problems))


def check_sources(plan: Sweep) -> None:
    """Raise UsageError if what runs begin with has changed since other runs of the sweep began with the same name."""
    here = present()
    now: dict[tuple[str, str], str] = {}  # option, its value -> sha256
    shared = Schema()
    for run in [run for run in plan.runs() if not run.begun]:
        schema, chained = run.resolve(shared), dict(run.begins)  # runs of this sweep, which may not exist yet
        for name in lineage.OPTIONS.values():
            given = "" if name in chained else schema[name]
            if given and given != "zeros" and (name, given) not in now:
                now[name, given] = here.sha256(name, given, schema["OUTPUT_DIR"])
    for run in plan.runs():
        run.check_begun(now)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", default="", help="the sweep, such as sweeps/pruning")
    parser.add_argument("words", nargs="*", metavar="NAME=value", help="options to change in all configurations")
    parser.add_argument("--jobs", type=int, help="runs to train at the same time; they share the cores")
    parser.add_argument("--nproc", default="", help=argparse.SUPPRESS)  # of make train; it would have no effect here
    parser.add_argument("--engine", default="local", help="where runs are trained: local (default), ray or slurm")
    parser.add_argument("--gpus-per-run", default="", metavar="N", help="0: hand out none; 0.5: two runs share one")
    parser.add_argument("--partition", default="", help="the partition of SLURM's jobs")
    parser.add_argument("--sbatch", default="", metavar="OPTIONS", help="more options of sbatch, such as --account=me")
    parser.add_argument("--detach", action="store_true", help="submit SLURM's jobs, show where the runs are, and end")
    parser.add_argument("--table-only", action="store_true", help="train nothing; show the finished runs")
    parser.add_argument("--fresh", action="store_true", help="train also what finished runs of other folders have")
    parser.add_argument("--baseline", default="", metavar="FOLDER", help="also count finished runs of this folder")
    parser.add_argument("--time", default="", help="stop as after Ctrl-C when this time is over, such as 90s or 1h30m")
    parser.add_argument("--dry-run", action="store_true", help="train nothing; show the runs and what they would cost")
    args = parser.parse_intermixed_args()
    if "=" in args.file:  # a word: without a file, the words describe the sweep
        args.file, args.words = "", [args.file, *args.words]
    if not args.file and not args.words:
        raise UsageError("name a sweep or its axes, such as: make sweep OPTIMIZER=adamw,adam SEED=1..3")
    if args.time and not durations.seconds(args.time):
        raise UsageError(f"--time={args.time} is over at once; leave it out, or write {durations.EXAMPLES}")
    args.deadline = time.monotonic() + durations.seconds(args.time) if args.time else math.inf
    if args.jobs is not None and args.jobs < 1:
        raise UsageError(f"--jobs must be at least 1; got {args.jobs}")
    if args.nproc:
        raise UsageError(f"NPROC={args.nproc}: {engine.ALONE}")
    engine.check(args.engine, PARTITION=args.partition, SBATCH=args.sbatch, DETACH=args.detach)
    engine.each_run(args.gpus_per_run)
    if ours := [name for name in os.environ if name.startswith(("CONFIG_", "KCONFIG_CONFIG")) and name != "CONFIG_"]:
        print(f"warning: a sweep does not read the environment's {', '.join(sorted(ours))}", file=sys.stderr)
    return args


def show(folder: Path, found: comparison.Results) -> None:
    """Show the table and the verdicts."""
    view.sheet(table.screen(found, view.width(80)), table.notes(found))
    for line in said(folder):
        say(line)
    say(f"\n{folder}/table.md, {folder}/results.json")


def said(folder: Path) -> list[str]:
    """The verdicts of `make report`; why there are none if there are none."""
    if missing := extras.missing("report"):
        return [f"\nVerdicts need {' and '.join(missing)}; {extras.install(extras.extra('report'))}"]
    from lib.report import study, verdicts  # here, because they import scipy, which takes a second

    try:
        made = study.of_sweep(folder)
    except UserError as error:
        return [f"\nThere are no verdicts: {error}"]
    if found := verdicts.of_study(made):
        lines = (textwrap.wrap(line, view.width(80), **_WRAP) for line in found)
        return [f"\nverdicts ({made.reference} is the reference)", *(part for some in lines for part in some)]
    return []


def so_far(plan: Sweep) -> list[str]:
    """The verdicts over at least two seeds while other runs are trained."""
    runs = Counter(run.configuration.name for run in plan.runs() if run.finished)
    if sum(n > 1 for n in runs.values()) < 2 or extras.missing("report"):
        return []
    from lib.report import study, verdicts

    try:
        blocks = study.of_sweep(plan.folder).blocks
    except UserError:  # such as a damaged run, of which its own line tells
        return []
    compared = [block.comparison for block in blocks if block.comparison]
    return [verdicts.sentence(*item, one) for one in compared for item in one.verdicts.items() if item[1].n > 1]


# ---- training --------------------------------------------------------------------------------------------------------


def train(
    plan: Sweep,
    args: argparse.Namespace,
    keeper: Callable[[Sweep], SoFar],
    trials: Mapping[str, tuple[str, int]] | None = None,
) -> tuple[Sweep, int, dict[Run, str]]:
    """Train the runs that are not finished. A `keeper` writes what came of the sweep so far whenever a run has ended.

    Returns the sweep with the runs that count, the exit code, and what happened to each run that is not finished.
    """
    with contextlib.closing(build(plan, args)) as runner, StopSignals() as stopped:
        # The shape of a model that begins from another run is not known to this program before that run is there.
        first = next(run for run in trainers.ordered(plan) if not run.configuration.begins)
        command = job.program("gpt2/prepare_data.py", *first.words())
        prepared = subprocess.run(command, env=unconfigured(os.environ), check=False)
        if prepared.returncode and not stopped():
            raise UserError("the data could not be prepared, so no run was started")
        if not stopped():  # after that, because both compare the data
            plan.check_data(present().data)
            plan = counting(plan, args)
        find = tuple if trials else functools.partial(so_far, plan)
        crew = trainers.Trainers(plan, runner, keeper(plan).write, find, trials, calibrated(plan, runner.threads))
        stopped.clear = crew.screen.leave
        with contextlib.closing(crew):
            while crew.work(stopped() or time.monotonic() > args.deadline):
                if args.detach:
                    crew.detach()
                    say("the same command shows how far they are, and submits what is still to begin")
                    return plan, 0, crew.failures
                time.sleep(_POLL)
        code = stopped.exit_code or int(bool(crew.failures))
        is_over = time.monotonic() > args.deadline
        # What is left before the time is over has met its RUN_TIME. A trial that did has lost.
        if not stopped.exit_code and (is_over or not (trials or code)) and (left := crew.left()):
            why = "the time of the sweep is over" if is_over else "RUN_TIME is over"
            say(f"{why}; left: {listed(left, most=5)}")
            code = durations.TIME_OVER
        return plan, code, crew.failures


def calibrated(plan: Sweep, threads: int) -> dict[str, dict[str, str]]:
    """Configuration -> options for how its runs compute on a CPU, which are measured here once, before the first run.

    So all runs compute in the same way, and none measures beside others. Runs that begin from others, whose shape is
    not known yet, choose by themselves.
    """
    from gpt2 import kernels

    waiting, schema = {run.configuration.name for run in plan.runs() if not run.begun}, Schema()
    return {
        one.name: kernels.planned(one.resolve(schema), threads)
        for one in plan.configurations
        if one.name in waiting and not one.oneshot and not one.begins
    }


def build(plan: Sweep, args: argparse.Namespace) -> engine.Engine:
    """The engine that the user asks for; raises UserError where it does not work."""
    schema, names = Schema(), ("RUN_TIME", "DATA_DIR", "THREADS", "DEVICE")
    resolved = (one.resolve(schema) for one in plan.configurations)
    given, folders, threads, devices = zip(*(tuple(one[name] for name in names) for one in resolved), strict=True)
    times = [durations.seconds(time or "0") for time in given]
    wishes = engine.Wishes(
        folder=plan.folder,
        data=files.named(folders[0]),
        threads=max(threads),
        gpus=any(device in ("auto", "cuda") for device in devices),
        run_time=max(times) if all(times) else 0,
        jobs=args.jobs,
        gpus_per_run=args.gpus_per_run,
        partition=args.partition,
        sbatch=args.sbatch,
        detach=args.detach,
    )
    return engine.build(args.engine, wishes, say)


if __name__ == "__main__":
    run_program(main)
