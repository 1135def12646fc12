"""Which finished model a program begins from, such as make oneshot: a checkpoint of RUN, or what INIT_FROM names."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from lib.base.errors import UsageError
from lib.config.kconf import Schema
from lib.record import checkpoint_file, run

_RUN = "RUN="  # how the source of an INIT_FROM begins that a run named


def arguments(parser: argparse.ArgumentParser, done: str) -> None:
    """Add --run and --checkpoint; `done` is what happens to the model: `pruned`."""
    parser.add_argument(
        "--run",
        metavar="RUN",
        help=f"the run whose model is {done}: its folder, its name in OUTPUT_DIR, or one of its checkpoints "
        "(default: the latest run, unless INIT_FROM is given)",
    )
    parser.add_argument(
        "--checkpoint", metavar="newest|best|STEP", help="which checkpoint of the run (default: newest)"
    )


def base(args: argparse.Namespace, words: Sequence[str]) -> Path | None:
    """The configuration of the run that is named, or of the latest; None with INIT_FROM, whose base is .config.

    Puts the run's folder and checkpoint into `args`. Raises UsageError if two models are named.
    """
    if source := _init_from(args, words):
        if args.run:
            raise UsageError(f"RUN={args.run} and INIT_FROM={source} both name a model; give one of them")
        if args.checkpoint:
            raise UsageError(f"CHECKPOINT={args.checkpoint} is of a RUN; write INIT_FROM=RUN@{args.checkpoint}")
        return None
    found = run.named(args.run, words)
    args.run, args.checkpoint = found.folder, found.chosen(args.checkpoint)
    return run.configuration(args.run)


def name(schema: Schema, args: argparse.Namespace) -> None:
    """Set INIT_FROM to the checkpoint of the run that `base` found; without one it stays as given."""
    if args.run:
        path = checkpoint_file.chosen(args.run, args.checkpoint)
        schema.override([("INIT_FROM", f"{args.run}@{checkpoint_file.step(path)}", f"{_RUN}{args.run}")])


def source(schema: Schema) -> str:
    """The checkpoint of a run that `name` set, as RUN@STEP; "" if INIT_FROM is what the user gave."""
    return schema["INIT_FROM"] if schema.sources.get("INIT_FROM", "").startswith(_RUN) else ""


def _init_from(args: argparse.Namespace, words: Sequence[str]) -> str:
    """INIT_FROM as the user gave it beside .config; "" if not."""
    given = [word.partition("=")[2] for word in words if word.startswith(("INIT_FROM=", "CONFIG_INIT_FROM="))]
    return args.INIT_FROM or (given and given[-1]) or os.environ.get("CONFIG_INIT_FROM") or ""
