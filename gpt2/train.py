"""Train GPT-2 as configured: by .config, configuration files, the environment, NAME=value words and flags.

A run gets its own folder with its configuration, journal and checkpoints; --resume continues a run.
"""

import argparse
import contextlib
import functools
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

if not __package__:  # run as a program: Python put gpt2/ on the path, but imports need the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from lib.base.signals import end_at_once

    end_at_once()

from gpt2 import preflight
from lib import track
from lib.base import garbage, launch, load, signals, spinning
from lib.base.errors import UsageError, UserError, run_program
from lib.config import command_line
from lib.config.kconf import ROOT, Schema
from lib.record import checkpoint_file, run, trl_checkpoints

_BEGAN = load.read()
_TINY = "defconfigs/gpt2_tiny_defconfig"


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="continue this run from its last checkpoint, with its own configuration in place of .config; RUN is the "
        "folder of a run, its name in OUTPUT_DIR, a file in its folder, or latest",
    )


def _own_configuration(argv: list[str], args: argparse.Namespace) -> Path | None:
    """The configuration of the run to resume, or None for a new run."""
    if not args.resume:
        return None
    args.resume, wanted = run.named(args.resume, argv, trains=True)
    own = run.configuration(args.resume)
    if wanted:
        _check_newest(args.resume, wanted)
    return own


def _check_newest(folder: Path, wanted: str) -> None:
    """Raise UsageError, which says how to go back, unless `wanted` is the newest checkpoint of the run in `folder`."""
    path, found = checkpoint_file.chosen(folder, wanted), checkpoint_file.find(folder / "checkpoints")
    if path == found[-1]:
        return
    aside = shlex.quote(str(folder / "newer"))
    newer = [
        *found[found.index(path) + 1 :],
        *trl_checkpoints.after(folder, checkpoint_file.step(path)),
        *folder.glob("summary.json"),
    ]
    raise UsageError(
        f"{folder}: continues from its newest checkpoint, {found[-1].name}; to go back to {path.name}, first move "
        f"everything newer away: mkdir -p {aside} && mv {shlex.join(map(str, newer))} {aside} && "
        f"make resume RUN={shlex.quote(str(folder))}"
    )


def resolved(argv: list[str], count: int) -> tuple[Schema, argparse.Namespace]:
    """The configuration that these words ask for, and the run to resume if there is one; raises UserError.

    It is for `count` processes of an engine, which trains no fine-tuning.
    """
    schema, args = _read(argv)
    if args.resume and schema["FINETUNE_RECIPE"] != "none":
        raise UsageError(
            f"{args.resume}: is a fine-tuning, which no ENGINE trains; continue it on this machine: make resume "
            f"RUN={shlex.quote(str(args.resume))}{f' NPROC={count}' if count > 1 else ''}"
        )
    preflight.check_trainable(schema.bind(preflight.TrainableOptions), args.resume)
    return schema, args


def _read(argv: list[str]) -> tuple[Schema, argparse.Namespace]:
    own = functools.partial(_own_configuration, argv)
    return command_line.resolve(__doc__, argv, arguments=_arguments, base=own)


def train(argv: list[str]) -> int:
    """Resolve the configuration, and train a new run or the one to resume; returns the exit code.

    `argv` are the words after the program's name. As one of several processes that torchrun, srun or Ray Train
    started, this trains together with the others. All need the same `argv`.
    """
    launched = launch.found(os.environ)
    with _naming_the_rank(launched.rank):
        schema, args = _read(argv)
        if args.resume and schema["FINETUNE_RECIPE"] != "none":  # a run of another program, which imports ours
            os.execv(sys.executable, [sys.executable, str(ROOT / "scripts/finetune.py"), *argv])
        preflight.check_trainable(schema.bind(preflight.TrainableOptions), args.resume)
        if launched.rank == 0:
            _warn(schema, args)
        track.names(schema["TRACKER"], schema.values())  # refuses a tracker that cannot be used here
        with signals.ending_at_once(), garbage.none():
            from gpt2 import place  # imports numpy, but not torch: so much time passes that the choice need not wait

            spinning.choose(_BEGAN)
            from gpt2 import session  # imports torch, which takes seconds: --help and mistakes come first

        words = [__file__, *argv]
        if not args.resume:
            return session.train(schema, words, launched)
        there, missing = place.choose(schema, args.resume, launched.rank)
        folder = args.resume if there == Path.cwd() else args.resume.resolve()
        with contextlib.chdir(there):
            return session.train(schema, words, launched, folder, missing)


@contextlib.contextmanager
def _naming_the_rank(rank: int) -> Iterator[None]:
    """Put the rank in front of error messages, except those of rank 0."""
    try:
        yield
    except UserError as error:
        if rank:
            error.args = tuple(f"rank {rank}: {sentence}" for sentence in error.args)
        raise


def _warn(schema: Schema, args: argparse.Namespace) -> None:
    """Print warnings about the configuration, and a note where it comes from defaults only.

    The shape of a new run that starts from weights is not known yet, so that run is checked later.
    """
    known = bool(args.resume or not schema["INIT_FROM"])
    for warning in [*schema.warnings, *preflight.idle(schema), *(preflight.quick(schema.bind) if known else [])]:
        print(f"warning: {warning}", file=sys.stderr)
    if known and not args.resume and not command_line.config_files(args.config, os.environ):
        tiny = min(ROOT / _TINY, os.path.relpath(ROOT / _TINY), key=lambda path: len(str(path)))
        print(
            f"there is no .config in {Path.cwd()}: options that are not given have their defaults, so "
            f"MODEL_NAME={schema['MODEL_NAME']} and DATASET={schema['DATASET']}; a small model: --config {tiny}",
            flush=True,
        )


def main() -> int:
    """Train as the command line says; returns the exit code."""
    return train(sys.argv[1:])


if __name__ == "__main__":
    run_program(main)
