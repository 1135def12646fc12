"""Train GPT-2 as configured: by .config, configuration files, the environment, NAME=value words and flags.

A run gets a folder of its own with its configuration, journal and checkpoints; --resume continues one.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt2 import prepare_data
from lib import command_line, kconf, run, schedule, track
from lib.errors import run_program


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resume",
        metavar="RUN_FOLDER",
        type=Path,
        help="continue this run from its last checkpoint, with its own configuration in place of .config; "
        '"latest" takes the newest run in the output folder',
    )


def _folder(args: argparse.Namespace) -> Path | None:
    """The folder of the run to resume, or None for a new run."""
    if args.resume == Path("latest"):
        args.resume = run.latest(str(args.OUTPUT_DIR or kconf.Schema()["OUTPUT_DIR"]))
    return args.resume


def main() -> int:
    """Resolve the configuration, prepare the data if it is missing, and train; returns the exit code."""

    def own_configuration(args: argparse.Namespace) -> Path | None:
        return folder / ".config" if (folder := _folder(args)) else None

    schema, args = command_line.resolve(__doc__, sys.argv[1:], arguments=_arguments, base=own_configuration)
    for warning in schema.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    schedule.check(schema.bind(schedule.ScheduleOptions))
    track.check_installed(schema["TRACKER"])
    prepare_data.ensure(schema)
    # Threads that wait for each other in OpenMP spin 300,000 times before they sleep. Where another program uses a core,
    # they spin for a thread that is not running: the default preset on 2 cores then fell from 15,000 to 900 tokens/s,
    # and to 7,000 with this, which costs 7 % on an idle machine. Read by libgomp when torch loads it.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    from gpt2 import session  # imports torch, which takes seconds: --help and mistakes are answered before

    return session.resume(schema, args.resume) if args.resume else session.start(schema)


if __name__ == "__main__":
    run_program(main)
