"""Decides whether an existing run has something left to do, and from which checkpoint a retry starts."""

import dataclasses
from pathlib import Path

from gpt2 import alerts, ending, micro_batches
from gpt2.announce import Start
from gpt2.weights import adopt
from lib.base import files
from lib.base.errors import UsageError
from lib.base.launch import Launch
from lib.config.kconf import Schema
from lib.machine.dist import Ranks
from lib.record import checkpoint, checkpoint_file, history, option_changes, retries
from lib.terminal.console import say


def still_to_do(schema: Schema, folder: Path) -> dict[str, list[str]] | None:
    """The options that change the course of the run in `folder`; None, with a message to the user, if it is finished.

    Raises UsageError for a change that would make it another run, and for checkpoints beyond MAX_ITERS.
    """
    found = checkpoint.find(folder / "checkpoints")
    step = checkpoint_file.step(found[-1]) if found else 0
    if step > schema["MAX_ITERS"]:
        raise UsageError(f"{folder}: is at step {step}, beyond MAX_ITERS={schema['MAX_ITERS']}; raise MAX_ITERS")
    changed, summary = option_changes.find(schema, folder), folder / "summary.json"
    option_changes.check_in_time(schema, folder, changed)
    if (
        not summary.exists()
        or "MAX_ITERS" in changed
        or (changed and not option_changes.has_all_steps(schema, folder, changed))
    ):
        return changed
    if output := schema["JSON_OUTPUT"]:
        ending.check_output(Path(output))
        files.write_json(Path(output), history.read(summary))
    say(f"{folder} is finished: see {summary}; to train further, raise MAX_ITERS")
    return None


def follow(schema: Schema, folder: Path) -> None:
    """Give `schema` what the run in `folder`, begun by this job, has found since: learning rate, shape, cut."""
    retries.follow(schema, folder)
    adopt.follow(schema, folder)
    micro_batches.follow(schema, folder)


def say_begun(schema: Schema, folder: Path, launch: Launch) -> None:
    """Say that this job began the run in `folder`; raises UsageError if options that change its course differ."""
    say(f"{folder} was begun by this {launch.launcher} job, {launch.job}; for a new run, set another TRACKER_RUN_NAME")
    if changed := option_changes.find(schema, folder):
        raise UsageError(
            f"{folder}: this job began it with other options ({option_changes.words(changed)}); for a new "
            "run, set another TRACKER_RUN_NAME; to continue this run with the new options, use --resume"
        )


def retry(schema: Schema, start: Start, ranks: Ranks, since: int, vocab_size: int) -> Start:
    """How to start again after a divergence; gives the `schema` a lower learning rate.

    No step from `since` on is trusted (see `go_back`).
    """
    number = ranks.first(lambda: go_back(start.folder, since, vocab_size))
    retries.lower(schema, number)
    changed = ranks.first(lambda: option_changes.find(schema, start.folder))
    return dataclasses.replace(start, changed=changed, retry=number)


def go_back(folder: Path, since: int, vocab_size: int) -> int:
    """Remove the checkpoints that a retry must not start from; returns the number of the retry.

    These are the checkpoints of step `since` and later, and those from the time when the model was worse than guessing.
    A lower learning rate does not repair weights that grew a millionfold before a loss was NaN.
    """
    since = min(since, alerts.worse_since(folder, vocab_size))
    with files.held(folder, "training this run"):
        for path in checkpoint.find(folder / "checkpoints"):
            if path.name >= checkpoint.name(since):
                path.unlink()
    return retries.made(folder) + 1
