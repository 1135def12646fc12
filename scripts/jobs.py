"""Jobs that `make job` started on rented machines of Hugging Face: list, follow and cancel them, bring runs home.

  make jobs; make job-logs ID=...; make job-cancel ID=...
  make fetch RUN=runs/name                     bring what the jobs wrote into the run's folder

Exit codes of logs: 0 if the job is finished, 1 if it failed or was cancelled, 124 if its time is over, 130 after
Ctrl-C, which leaves the job running. docs/jobs.md has more.
"""

import argparse
import sys
from collections.abc import Callable
from datetime import UTC
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from lib.base.errors import UsageError, run_program
from lib.jobs import api, bucket, record
from lib.jobs.api import Jobs
from lib.jobs.follow import follow
from lib.terminal.console import columns, roughly, say


def main() -> int | None:
    """Do what the first word says; returns the exit code."""
    commands: dict[str, Callable[[list[str]], int | None]] = {
        "list": show, "logs": logs, "cancel": cancel, "fetch": fetch,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=commands)
    args = parser.parse_args(sys.argv[1:2])
    return commands[args.command](sys.argv[2:])


def logs(argv: list[str]) -> int:
    """Follow a job until it ends."""
    args = _parser("job-logs", "id").parse_args(argv)
    return follow(Jobs(args.owner), _id(args.id), args.owner)


def cancel(argv: list[str]) -> None:
    """Cancel a job."""
    args = _parser("job-cancel", "id").parse_args(argv)
    info = Jobs(args.owner).cancel(_id(args.id))
    say(f"job {info.id} is {api.state(info)}")


def show(argv: list[str]) -> None:
    """List the jobs that `make job` started."""
    args = _parser("jobs").parse_args(argv)
    jobs = Jobs(args.owner)
    rows = [("job", "run", "does", "machine", "state", "ran", "submitted")]
    for one in jobs.started():
        labels = one.labels or {}
        ran = roughly(one.durations.running_secs) if one.durations and one.durations.running_secs else "-"
        begun = one.created_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M") if one.created_at else "-"
        flavor = str(getattr(one.flavor, "value", one.flavor or "-"))
        rows.append((one.id, labels.get(api.RUN, "-"), labels[api.KIND], flavor, api.state(one), ran, begun))
    say(columns(rows) if len(rows) > 1 else f"{jobs.owner} has no jobs of Espalier; start one with make job")


def fetch(argv: list[str]) -> None:
    """Bring a run home from its bucket."""
    args = _parser("fetch", "run", "bucket").parse_args(argv)
    if not args.run:
        raise UsageError("RUN=runs/name is needed: the run or sweep to bring home")
    folder = record.place(args.run)
    known = record.load(folder)
    jobs = Jobs(args.owner or (known.owner if known else ""))
    place = bucket.named(args.bucket or (known.bucket or "none" if known else ""), jobs.owner)
    if not place:
        raise UsageError(f"{folder}: its job had no bucket, so its output is lost")
    count = bucket.fetch(jobs, place, folder, say)
    say(f"{folder}: {f'{count} files came' if count else 'has all that the bucket has'}")


def _parser(target: str, *names: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"make {target}", allow_abbrev=False)
    for name in ("owner", *names):
        parser.add_argument(f"--{name}", default="")
    return parser


def _id(given: str) -> str:
    if not given:
        raise UsageError("ID=... is needed: the id of a job, as make jobs shows it")
    return given


if __name__ == "__main__":
    run_program(main)
