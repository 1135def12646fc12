"""Measure a model: tasks, perplexity, validation loss, and what its sparsity saves.

Without --tasks and --perplexity it measures the loss on the whole validation split. Results go into the run's journal,
and from there to its trackers. INIT_FROM=... in place of a run measures other weights, and only prints the results.
"""

import argparse
import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
from lib.base.signals import end_at_once

end_at_once()

from gpt2 import ending, place, trained
from gpt2.data import prepare, shards, windows
from gpt2.evaluation import cost, perplexity, tasks, validation
from gpt2.evaluation.harness import Answers
from gpt2.evaluation.recording import Recording
from gpt2.evaluation.result import Result
from gpt2.weights import adopt, source
from lib import track
from lib.base import files, signals
from lib.base.errors import UsageError, UserError, run_program
from lib.config import command_line
from lib.config.kconf import Options, Schema
from lib.machine import device
from lib.record import checkpoint, checkpoint_file, run
from lib.terminal.console import say
from lib.track import trust, waiting

_OF_THE_RUN = ("Model", "Dataset")  # menus
_MAY_DIFFER = ("DATA_DIR", "DATA_CACHE_DIR", "DROPOUT")  # where the data lies, and what measurements do without
_OF_TRAINING = ("Training", "Optimizer", "Pruning", "Output")  # menus; these of their options are used here:
_USED = ("BATCH_SIZE", "EVALUATE", "OUTPUT_DIR", "JSON_OUTPUT", "TASK_DATA", "EVAL_LIMIT")


@dataclasses.dataclass(frozen=True)
class EvaluateOptions(Options):
    """What the measurements need beside the options of the model."""

    batch_size: int
    seed: int
    task_data: str
    eval_limit: int
    tracker: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What to measure, and of which weights."""

    schema: Schema
    folder: Path | None  # of the run; None: the weights that INIT_FROM names
    checkpoint: Path | None
    tasks: str
    perplexity: str
    output: Path | None  # for the results as JSON

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
        found = source.find(f"{asked.folder}@{checkpoint_file.step(asked.checkpoint)}")
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
        about = {"sha256": loaded.weights.sha256, "dtype": dtype}
        about |= {"checkpoint": asked.checkpoint.name} if asked.checkpoint else {}
        recording = Recording(name, found.step, about, asked.folder)
        signals.interrupt()
        try:
            for one in _measure(asked, loaded):
                recording.add(one)
        finally:
            recording.end(asked.output)
    if asked.folder:
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
    _check_used(schema)
    folder = None if foreign else args.run
    path = checkpoint_file.chosen(folder, args.checkpoint) if folder else None
    if folder:
        _check_same(schema, folder)
    output = Path(schema["JSON_OUTPUT"]) if _given("JSON_OUTPUT", argv) and schema["JSON_OUTPUT"] else None
    if output:
        ending.check_output(output, "results", "holds no results of make evaluate")
    return Asked(schema, folder, path, args.tasks, args.perplexity, output)


def _check_used(schema: Schema) -> None:
    """Raise UsageError for an option on the command line that has no effect here."""
    for name in sorted(schema.given):
        if schema.sources[name].startswith("environment "):
            continue
        option = schema.options[name]
        if name == "EVAL_TASKS":
            raise UsageError(f"EVAL_TASKS={option.text}: is for the end of a training; use TASKS={option.text}")
        if option.menu[0] in _OF_TRAINING and name not in _USED:
            raise UsageError(f"{name}={option.text}: make evaluate trains nothing, so it has no effect; leave it out")


def _check_same(schema: Schema, folder: Path) -> None:
    """Raise UsageError if a result would not be one of the run: with another model, other data or another tokenizer."""
    own = Schema()
    own.load(run.configuration(folder), ranges=False)  # an earlier version may have had wider ranges
    for name, option in schema.options.items():
        if option.menu[0] in _OF_THE_RUN and name not in _MAY_DIFFER and schema[name] != own[name]:
            raise UsageError(
                f"{name}={option.text}: the run has {name}={own.options[name].text}, and results are recorded as its "
                f"own; leave it out, or measure INIT_FROM={shlex.quote(str(folder))}, which records nothing"
            )


def _check_idle(folder: Path) -> None:
    """Raise UserError if the results could not be recorded at the end."""
    with files.held(folder, "training this run"):
        pass


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
        data = windows.load(options, machine.ranks)
    if asked.checkpoint:
        _check_data(asked.folder, checkpoint.load(asked.checkpoint).get("data"), data)
    return data


def _check_data(folder: Path, before: dict[str, dict[str, str]] | None, data: windows.Data) -> None:
    """Raise UserError unless the data is that of the run; `before` is split -> file -> sha256, from a checkpoint."""
    if not before:
        return
    now = {split: sums if before.get(split) else {} for split, sums in data.sums().items()}  # EVALUATE=n has one split
    if changed := shards.differing({split: before.get(split, {}) for split in now}, now):
        raise UserError(f"{folder}: was trained on other data than {data.folder} holds ({changed}); restore that data")


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
