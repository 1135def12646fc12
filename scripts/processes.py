"""Start the trainer as several processes, which train one run together: processes.py 4 WORD...

The words are those of gpt2/train.py. Without --engine this is torchrun on this machine, with the trainer's exit code
and without torchrun's traceback. --engine ray starts the processes as workers of Ray Train, --engine slurm by a job of
SLURM. docs/cluster.md has more.
"""

import argparse
import importlib
import logging
import os
import signal
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt2 import train
from lib.base import launch, signals, threads
from lib.base.errors import UserError, run_program
from lib.config.kconf import Schema
from lib.engines import engine, group
from lib.terminal.console import say

TRAIN = Path(__file__).resolve().parents[1] / "gpt2/train.py"
# After a signal the trainer still saves a checkpoint and hands its last rows to the trackers.
_SECONDS_TO_STOP = 600


def main() -> int:
    """Train to the end; returns the exit code of the trainer."""
    args = _arguments()
    count = engine.count("NPROC", args.count)
    engine.check(args.engine, PARTITION=args.partition, SBATCH=args.sbatch, DETACH=args.detach, DRY_RUN=args.dry_run)
    if args.engine == "local":
        return torchrun(count, args.words)
    schema, given = train.resolved(args.words, count)
    found = group.of(schema, given.resume, args.engine, count, args.words)
    found = found._replace(partition=args.partition, sbatch=args.sbatch, detach=args.detach, dry_run=args.dry_run)
    if found.begun and (found.begun / "summary.json").exists() and is_finished(schema, found, bool(given.resume)):
        return 0
    return importlib.import_module(f"lib.engines.{args.engine}_group").run(found, say)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="local", help="where: local (default), ray or slurm")
    parser.add_argument("--partition", default="", help="the partition of SLURM's job")
    parser.add_argument("--sbatch", default="", metavar="OPTIONS", help="more options of sbatch, such as --account=me")
    parser.add_argument("--detach", action="store_true", help="submit SLURM's job, say where it is, and end")
    parser.add_argument("--dry-run", action="store_true", help="show the script for SLURM, and submit nothing")
    parser.add_argument("count", metavar="NPROC", help="how many processes")
    parser.add_argument("words", metavar="WORD", nargs=argparse.REMAINDER, help="a word for gpt2/train.py")
    return parser.parse_args()


def torchrun(count: int, words: list[str]) -> int:
    """Train by processes of this machine; returns the exit code of the trainer."""
    os.environ[launch.AGAIN] = f"NPROC={count}"
    # torchrun would choose 1.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads.cores() // count)))
    with signals.ending_at_once():
        from torch.distributed import run
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.ERROR)  # torchrun's; the trainer says itself what failed
    options = ["--standalone", f"--nproc-per-node={count}", f"--shutdown-timeout={_SECONDS_TO_STOP}"]
    try:
        run.run(run.parse_args([*options, str(TRAIN), *words]))
    except SignalException as stopped:
        return 128 + stopped.sigval
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            raise UserError(
                f"rank {rank} of {count} was ended by {name}; continue the run with: make resume NPROC={count}"
            ) from None
        return failure.exitcode
    return 0


def is_finished(schema: Schema, found: group.Group, resumed: bool) -> bool:
    """Whether the run has nothing left to do, which is said. No job need be started to learn that. Raises UserError."""
    from gpt2 import resume  # imports torch, which takes seconds

    if not resumed:
        resume.follow(schema, found.begun)
        resume.say_begun(schema, found.begun, launch.Launch(found.engine, 0, found.count, 0, found.job, ""))
    return resume.still_to_do(schema, found.begun) is None


if __name__ == "__main__":
    run_program(main)
