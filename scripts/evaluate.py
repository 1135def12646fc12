"""Measure a model: tasks, perplexity, validation loss, and what its sparsity saves.

Without --tasks and --perplexity it measures the loss on the whole validation split. Results go into the run's journal,
and from there to its trackers. INIT_FROM=... in place of a run measures other weights, and only prints the results.
"""

import argparse
import contextlib
import dataclasses
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
from lib.base.signals import end_at_once

end_at_once()

from gpt2 import place, trained
from gpt2.data import prepare, windows
from gpt2.evaluation import cost, perplexity, result, tasks, validation
from gpt2.evaluation.harness import Answers
from gpt2.evaluation.result import Result
from gpt2.weights import adopt, source
from lib import track
from lib.base import files, signals
from lib.base.errors import UsageError, UserError, run_program
from lib.config import command_line
from lib.config.kconf import Options, Schema
from lib.machine import device
from lib.record import checkpoint_file, journal, run
from lib.record.in_force import Record
from lib.terminal.console import say
from lib.track import trust, waiting


@dataclasses.dataclass(frozen=True)
class EvaluateOptions(Options):
    """What the measurements need beside the options of the model."""

    batch_size: int
    seed: int
    task_data: str
    eval_limit: int
    json_output: str
    tracker: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What to measure, and of which weights."""

    schema: Schema
    folder: Path | None  # of the run; None: the weights that INIT_FROM names
    checkpoint: Path | None
    tasks: str
    perplexity: str

    @property
    def options(self) -> EvaluateOptions:
        return self.schema.bind(EvaluateOptions)


def main() -> int:
    """Measure, print, and record; returns the exit code."""
    asked = _asked(sys.argv[1:])
    options, schema = asked.options, asked.schema
    tasks.check(asked.tasks, options.task_data)
    if asked.perplexity:
        perplexity.check(asked.perplexity, options.task_data)
    if asked.folder:
        _check_idle(asked.folder)
        found = source.find(f"{asked.folder}@{_step(asked.checkpoint)}")
    else:
        found = adopt.adopt(schema)
    for warning in schema.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    with device.errors_for_users():
        loaded = trained.load(found, schema)
        loaded.model.eval()
        dtype = str(loaded.machine.dtype).removeprefix("torch.")
        name = f"{asked.folder}, {asked.checkpoint.stem}" if asked.folder else found.given
        words = [name, f"weights sha256 {loaded.weights.sha256[:12]}", dtype, loaded.machine.name]
        say(", ".join([*words, f"lm-eval {tasks.version()}"] if asked.tasks else words))
        signals.interrupt()
        results = list(_measure(asked, loaded))
    about = {"sha256": loaded.weights.sha256, "dtype": dtype}
    about |= {"checkpoint": asked.checkpoint.name} if asked.checkpoint else {}
    records = [one.record(found.step) | about for one in results]
    result.show(records, results, say)
    if output := options.json_output if _given("JSON_OUTPUT", sys.argv[1:]) else "":
        files.write_json(Path(output), {"model": name, "step": found.step, **about, "results": records})
    if asked.folder:
        _record(asked.folder, found.step, results, about)
        _deliver(asked)
    return 0


def _given(option: str, argv: list[str]) -> bool:
    """Whether the command line gives an option."""
    flag = "--" + option.lower().replace("_", "-")
    return any(word.partition("=")[0].removeprefix("CONFIG_") in (option, flag) for word in argv)


def _asked(argv: list[str]) -> Asked:
    foreign = _given("INIT_FROM", argv)

    def arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--run", metavar="RUN", help="the folder of the run, or a checkpoint of it [the latest run]"
        )
        parser.add_argument("--checkpoint", metavar="newest|best|STEP", help="which checkpoint of the run [newest]")
        parser.add_argument("--tasks", default="", help="tasks of lm-eval, separated by commas")
        parser.add_argument("--perplexity", default="", help="texts for the perplexity, such as wikitext2,c4")

    def own_configuration(args: argparse.Namespace) -> Path | None:
        if foreign:
            if args.run or args.checkpoint:
                raise UsageError("name a run or INIT_FROM, not both")
            return None
        found = run.named(args.run, argv)
        args.run, args.checkpoint = found.folder, found.chosen(args.checkpoint)
        return run.configuration(args.run)

    schema, args = command_line.resolve(__doc__, argv, arguments=arguments, base=own_configuration)
    folder = None if foreign else args.run
    path = checkpoint_file.chosen(folder, args.checkpoint) if folder else None
    if _given("JSON_OUTPUT", argv):
        _check_output(Path(schema["JSON_OUTPUT"]))
    return Asked(schema, folder, path, args.tasks, args.perplexity)


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _check_idle(folder: Path) -> None:
    """Raise UserError if the results could not be recorded at the end."""
    with files.held(folder, "training this run"):
        pass


def _check_output(path: Path) -> None:
    """Raise UsageError if a file there is not one of this program's."""
    if path.is_file() and path.stat().st_size:
        try:
            ours = "results" in json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):
            ours = False
        if not ours:
            raise UsageError(f"JSON_OUTPUT={path}: exists and holds no results of make evaluate; name another file")


def _measure(asked: Asked, loaded: trained.Trained) -> Iterator[Result]:
    options, model, machine = asked.options, loaded.model, loaded.machine
    if asked.tasks:
        answers = Answers(model, loaded.tokenizer, machine, options.batch_size, options.seed)
        yield from tasks.measure(answers, asked.tasks, options.task_data, options.eval_limit)
    if asked.perplexity:
        size = options.batch_size
        yield from perplexity.measure(asked.perplexity, options.task_data, model, loaded.tokenizer, machine, size)
    if not (asked.tasks or asked.perplexity):
        yield validation.measure(model, _data(asked, machine), machine)
        if loaded.weights.masks:
            yield from cost.measure(model, loaded.weights.state, loaded.weights.masks, machine)


def _data(asked: Asked, machine: device.Machine) -> windows.Data:
    """The data of the configuration. Relative paths of a run start where it was trained."""
    there, missing = place.choose(asked.schema, asked.folder, 0) if asked.folder else (Path.cwd(), "")
    if missing:
        raise UsageError(missing)
    with contextlib.chdir(there):
        options = asked.schema.bind(windows.DataOptions)
        prepare.ensure(options)
        return windows.load(options, machine.ranks)


def _record(folder: Path, step: int, results: list[Result], about: dict[str, str]) -> list[Record]:
    """Append the results to the run's journal."""
    with files.held(folder, "training this run"):
        book = journal.Journal(folder)
        try:
            written = [book.write("task", step, one.metrics, **one.fields(), **about) for one in results]
            book.sync()
        finally:
            book.close()
    say(f"recorded in {folder / journal.FILE}; see make show RUN={shlex.quote(str(folder))}")
    return written


def _deliver(asked: Asked) -> None:
    """Give the results to the trackers of the run. What cannot be delivered now stays pending for `make sync`."""
    names = track.names(asked.options.tracker, asked.schema.values())
    if not names:
        return
    try:
        trust.check(asked.folder, names)
    except UserError as error:
        say(f"note: the trackers do not have the results yet: {error}")
        return
    patience = waiting.patience(asked.schema.bind(waiting.WaitOptions).tracker_wait)
    waiting.end(track.Lanes(asked.folder, names), patience, say)


if __name__ == "__main__":
    run_program(main)
