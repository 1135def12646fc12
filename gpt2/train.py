"""Train GPT-2 as configured: by .config, configuration files, the environment, NAME=value words and flags.

A run gets a folder of its own with its configuration, journal and checkpoints; --resume continues one.
"""

import argparse
import functools
import os
import sys
from pathlib import Path

if not __package__:  # a program, whose folder Python put there; `from gpt2.train import train` found the right one
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from lib.signals import end_at_once

    end_at_once()

from lib import command_line, launch, run, schedule, signals, threads, track
from lib.errors import UserError, run_program


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resume",
        metavar="RUN_FOLDER",
        type=Path,
        help="continue this run from its last checkpoint, with its own configuration in place of .config; "
        '"latest" takes the newest run in the output folder',
    )


def _own_configuration(argv: list[str], args: argparse.Namespace) -> Path | None:
    """The configuration of the run to resume, or None for a new run."""
    if args.resume == Path("latest"):
        args.resume = run.newest(argv)
    return run.configuration(args.resume) if args.resume else None


def train(argv: list[str]) -> int:
    """Resolve the configuration, prepare the data if it is missing, and train; returns the exit code.

    `argv` is what follows the program's name on a command line. Launched as one of several processes, by torchrun, srun
    or as a worker of Ray Train, this trains with the others; all must have the same `argv`.
    """
    place = launch.found(os.environ)
    try:
        return _train(argv, place)
    except UserError as error:
        if place.rank:
            error.args = tuple(f"rank {place.rank}: {sentence}" for sentence in error.args)
        raise


def _train(argv: list[str], place: launch.Launch) -> int:
    own = functools.partial(_own_configuration, argv)
    schema, args = command_line.resolve(__doc__, argv, arguments=_arguments, base=own)
    if place.rank == 0:
        for warning in [*schema.warnings, *schedule.check(schema.bind(schedule.ScheduleOptions))]:
            print(f"warning: {warning}", file=sys.stderr)
        if not args.resume and not command_line.config_files(args.config, os.environ):
            print(f"there is no .config in {Path.cwd()}: options that are not given have their defaults")
    track.names(schema["TRACKER"])  # refuses what cannot be used here
    threads.spin_little()
    with signals.ending_at_once():
        from gpt2 import start  # imports torch, which takes seconds: --help and mistakes are answered before

    words = [__file__, *argv]
    return start.resume(schema, words, args.resume, place) if args.resume else start.new(schema, words, place)


def main() -> int:
    """Train as the command line says; returns the exit code."""
    return train(sys.argv[1:])


if __name__ == "__main__":
    run_program(main)
