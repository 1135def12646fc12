"""What a start is about: a new run, one that goes on, or one that there is nothing left to do for."""

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from gpt2 import alerts, changes, ending, session
from gpt2.divergence import Diverged
from lib.base import files
from lib.base.errors import UsageError, UserError
from lib.base.launch import Launch
from lib.config.kconf import Schema
from lib.machine import device
from lib.record import checkpoint, history, retries, run
from lib.terminal.console import say


def new(schema: Schema, words: list[str], launch: Launch) -> int:
    """Train a new run, or go on with the one that this job began before it was started again; returns the exit code.

    `words` is the command line, for the record.
    """
    options = schema.bind(run.RunOptions)
    run_id = run.job_id(options, launch)
    machine = device.choose(schema.bind(device.SystemOptions), launch)
    with _device_errors(), machine.ranks:
        if run_id and (folder := machine.ranks.first(lambda: run.find(schema["OUTPUT_DIR"], run_id))):
            retries.follow(schema, folder)
            machine.ranks.first(lambda: _say_begun(schema, folder, launch))
            return _go_on(schema, words, folder, machine)
        machine.ranks.first(lambda: run.check_place(options))
        return _train(
            schema,
            words,
            machine,
            lambda: run.create(options, run_id, lambda new: schema.write(new / ".config"))[0],
            changed={},
        )


def resume(schema: Schema, words: list[str], folder: Path, launch: Launch, missing: str = "") -> int:
    """Continue the run in `folder` from its last checkpoint; returns the exit code.

    `missing` says what the run lacks that training needs; UsageError says it unless the run is finished.
    """
    machine = device.choose(schema.bind(device.SystemOptions), launch)
    with _device_errors(), machine.ranks:
        return _go_on(schema, words, folder, machine, missing)


def _say_begun(schema: Schema, folder: Path, launch: Launch) -> None:
    """Say that this job began the run in `folder`; raises UsageError if that was to learn something else."""
    say(f"{folder} was begun by this {launch.launcher} job, {launch.job}; another TRACKER_RUN_NAME begins another")
    if changed := _changed(schema, folder):
        raise UsageError(
            f"{folder}: this job began it with other options ({changes.words(changed)}); another TRACKER_RUN_NAME "
            "begins another run, and --resume goes on with this one, changed"
        )


def _go_on(schema: Schema, words: list[str], folder: Path, machine: device.Machine, missing: str = "") -> int:
    changed = machine.ranks.first(lambda: _still_to_do(schema, folder))
    if changed is not None and missing:
        raise UsageError(missing)
    return 0 if changed is None else _train(schema, words, machine, lambda: folder, changed)


def _train(
    schema: Schema,
    words: list[str],
    machine: device.Machine,
    place: Callable[[], Path],
    changed: dict[str, list[str]],
) -> int:
    """Train the run in the folder that `place` names or makes, again and again while it diverges and has retries."""
    made = session.Session(schema, machine)  # before the folder is made: what cannot be built leaves none behind
    folder, retry = machine.ranks.first(place), 0
    while True:
        try:
            return made.train(folder, words, changed, retry)
        except Diverged as error:
            since, vocab_size, compiled = error.since, made.data.vocab_size, made.training.compiled
        del made  # whose memory the next one needs
        gc.collect()
        if compiled:
            torch.compiler.reset()  # it holds the model, and gives up on one that it has compiled eight times
        retry = machine.ranks.first(functools.partial(_go_back, folder, since, vocab_size))
        retries.lower(schema, retry)
        changed = machine.ranks.first(lambda: _changed(schema, folder))
        made = session.Session(schema, machine)


def _go_back(folder: Path, since: int, vocab_size: int) -> int:
    """Remove the checkpoints that a retry must not begin from; returns its number.

    These are of step `since` and later, or of when the model had become worse than one that knows nothing already: a
    lower learning rate does not bring back weights that have grown a millionfold before a loss is no number.
    """
    since = min(since, alerts.worse_since(folder, vocab_size))
    with files.held(folder, "training this run"):
        for path in checkpoint.find(folder / "checkpoints"):
            if path.name >= checkpoint.name(since):
                path.unlink()
    return retries.made(folder) + 1


def _still_to_do(schema: Schema, folder: Path) -> dict[str, list[str]] | None:
    """What changes the course of the run in `folder`; None if nothing does and it is finished, which is said.

    Raises UsageError for what would make it another run, and where its checkpoints are beyond its end.
    """
    found = checkpoint.find(folder / "checkpoints")
    step = int(found[-1].stem.removeprefix("step-")) if found else 0
    if step > schema["MAX_ITERS"]:
        raise UsageError(f"{folder}: is at step {step}, beyond MAX_ITERS={schema['MAX_ITERS']}; raise that")
    changed, summary = _changed(schema, folder), folder / "summary.json"
    changes.check_in_time(schema, folder, changed)
    if not summary.exists() or "MAX_ITERS" in changed or (changed and not changes.is_made(schema, folder, changed)):
        return changed
    if output := schema["JSON_OUTPUT"]:
        ending.check_output(Path(output))
        files.write_json(Path(output), history.read(summary))
    say(f"{folder} is finished: see {summary}; to train on, raise MAX_ITERS")
    return None


def _changed(schema: Schema, folder: Path) -> dict[str, list[str]]:
    """See `changes.of_course`; nothing of a run that was killed before its configuration was written."""
    return changes.of_course(schema, folder) if (folder / ".config").exists() else {}


@contextlib.contextmanager
def _device_errors() -> Iterator[None]:
    """Turn failures of torch's that a user can do something about into a sentence."""
    try:
        yield
    except Exception as error:
        if sentence := device.trouble(error):
            raise UserError(sentence) from None
        raise
