"""What a start is about: a new run, one that goes on, or one that there is nothing left to do for."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from gpt2 import changes, session
from lib import comparison, device, files, run
from lib.console import say
from lib.errors import UsageError, UserError
from lib.kconf import Schema
from lib.launch import Launch


def new(schema: Schema, words: list[str], launch: Launch) -> int:
    """Train a new run, or go on with the one that this job began before it was started again; returns the exit code.

    `words` is the command line, for the record.
    """
    options = schema.bind(run.RunOptions)
    run_id = run.job_id(options, launch)
    machine = device.choose(schema.bind(device.SystemOptions), launch)
    with _memory_errors(), machine.ranks:
        if run_id and (folder := machine.ranks.first(lambda: _begun(schema, run_id, launch))):
            return _go_on(schema, words, folder, machine)
        made = session.Session(schema, machine)  # before the folder is made: what cannot be built leaves none behind
        folder = machine.ranks.first(lambda: run.create(options, run_id)[0])
        return made.train(folder, words, changed={})


def resume(schema: Schema, words: list[str], folder: Path, launch: Launch) -> int:
    """Continue the run in `folder` from its last checkpoint; returns the exit code."""
    machine = device.choose(schema.bind(device.SystemOptions), launch)
    with _memory_errors(), machine.ranks:
        return _go_on(schema, words, folder, machine)


def _begun(schema: Schema, run_id: str, launch: Launch) -> Path | None:
    """The run that this job began, if it did, which is said; raises UsageError if that was to learn something else."""
    if folder := run.find(schema["OUTPUT_DIR"], run_id):
        say(f"{folder} was begun by this {launch.launcher} job, {launch.job}; another TRACKER_RUN_NAME begins another")
        if changed := _changed(schema, folder):
            values = ", ".join(f"{name} {before} -> {now}" for name, (before, now) in changed.items())
            raise UsageError(
                f"{folder}: this job began it with other options ({values}); another TRACKER_RUN_NAME begins another "
                "run, and --resume goes on with this one, changed"
            )
    return folder


def _go_on(schema: Schema, words: list[str], folder: Path, machine: device.Machine) -> int:
    changed = machine.ranks.first(lambda: _still_to_do(schema, folder))
    return 0 if changed is None else session.Session(schema, machine).train(folder, words, changed)


def _still_to_do(schema: Schema, folder: Path) -> dict[str, list[str]] | None:
    """What changes the course of the run in `folder`; None if nothing does and it is finished, which is said."""
    changed, summary = _changed(schema, folder), folder / "summary.json"
    if changed or not summary.exists():
        return changed
    if output := schema["JSON_OUTPUT"]:
        session.check_output(Path(output))
        files.write_json(Path(output), comparison.read(summary))
    say(f"{folder} is finished: see {summary}; to train on, raise MAX_ITERS")
    return None


def _changed(schema: Schema, folder: Path) -> dict[str, list[str]]:
    """See `changes.of_course`; nothing of a run that was killed before its configuration was written."""
    return changes.of_course(schema, folder) if (folder / ".config").exists() else {}


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """Turn torch's ways of saying that memory is short into a sentence."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not device.is_out_of_memory(error):
            raise
        raise UserError(
            "memory does not suffice: halve BATCH_SIZE and double GRADIENT_ACCUMULATION, which learns the same, or "
            "choose a smaller model or BLOCK_SIZE"
        ) from None
