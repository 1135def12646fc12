"""Begins a run of one-shot pruning: completes the configuration, builds the parts, and makes the run's folder."""

import dataclasses
import sys
import time

from gpt2.oneshot.run import Pruning, memory_for_users
from gpt2.oneshot.shrunk import Shrinking
from gpt2.weights.adopt import adopt
from lib.base.errors import UsageError
from lib.config.kconf import Schema
from lib.record import run
from lib.terminal.console import say


def start(schema: Schema, command: list[str]) -> int:
    """Prune the model that INIT_FROM names, in a new run; returns the exit code. `command` is for the record."""
    source = adopt(schema)
    for warning in schema.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    _count_blocks(schema)
    options = schema.bind(run.RunOptions)
    with memory_for_users(schema):
        run.check_place(options)
        made = Shrinking if schema["PRUNING_METHOD"] == "shrink" else Pruning
        pruning = made(schema, source)  # before the folder: a run that cannot be built leaves no folder
        wanted = options.tracker_run_name or f"gpt2_{schema['PRUNING_METHOD']}_{time.strftime('%Y%m%d-%H%M%S')}"
        named = dataclasses.replace(options, tracker_run_name=wanted)
        folder, identity = run.create(named, begin=lambda new: schema.write(new / ".config"))
        if identity.name != wanted:
            say(f"note: {folder.parent / run.folder_name(wanted)} exists, so this run is called {identity.name}")
        return pruning.prune(folder, identity, command)


def _count_blocks(schema: Schema) -> None:
    """Set MAX_ITERS to the number of blocks, and evaluate after each block unless EVAL_INTERVAL was given."""
    steps = schema["N_LAYER"]
    if "MAX_ITERS" in schema.given and schema["MAX_ITERS"] != steps:
        raise UsageError(
            f"MAX_ITERS={schema['MAX_ITERS']}: the steps of make oneshot are the {steps} blocks of the model; leave it "
            "out"
        )
    changes = [("MAX_ITERS", str(steps), "the number of blocks")]
    if schema["EVALUATE"] and "EVAL_INTERVAL" not in schema.given:
        changes.append(("EVAL_INTERVAL", "1", "make oneshot"))
    schema.override(changes)
