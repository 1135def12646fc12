"""Train GPT-2 as configured: by .config, configuration files, the environment, NAME=value words and flags.

A run gets a folder of its own with its configuration, journal and checkpoints; --resume continues one.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from lib import command_line, run, schedule, threads, track
from lib.errors import run_program


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resume",
        metavar="RUN_FOLDER",
        type=Path,
        help="continue this run from its last checkpoint, with its own configuration in place of .config; "
        '"latest" takes the newest run in the output folder',
    )


def _own_configuration(args: argparse.Namespace) -> Path | None:
    """The configuration of the run to resume, or None for a new run."""
    if args.resume == Path("latest"):
        args.resume = run.newest(sys.argv[1:])
    return run.configuration(args.resume) if args.resume else None


def main() -> int:
    """Resolve the configuration, prepare the data if it is missing, and train; returns the exit code."""
    schema, args = command_line.resolve(__doc__, sys.argv[1:], arguments=_arguments, base=_own_configuration)
    for warning in [*schema.warnings, *schedule.check(schema.bind(schedule.ScheduleOptions))]:
        print(f"warning: {warning}", file=sys.stderr)
    if not args.resume and not command_line.config_files(args.config, os.environ):
        print(f"there is no .config in {Path.cwd()}: options that are not given have their defaults")
    track.check_installed(schema["TRACKER"])
    threads.spin_little()
    from gpt2 import session  # imports torch, which takes seconds: --help and mistakes are answered before

    return session.resume(schema, args.resume) if args.resume else session.start(schema)


if __name__ == "__main__":
    run_program(main)
