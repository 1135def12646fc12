"""Following a job in the terminal to its end, and what to do then."""

import shlex
import sys
from pathlib import Path

from lib.base import redact
from lib.base.errors import shown
from lib.jobs.api import Jobs
from lib.terminal.console import say


def follow(jobs: Jobs, job: str, owner: str, folder: Path | None = None, again: str = "") -> int:
    """Follow a job to its end, and say what to do then; Ctrl-C leaves it running.

    `folder` is that of the run, if its output survives; `again` is what goes on with it.
    """
    try:
        end = jobs.follow(job, say)
    except KeyboardInterrupt:
        going, off = command("job-logs", owner, ID=job), command("job-cancel", owner, ID=job)
        say(f"job {job} goes on; follow it again: {going}; cancel it: {off}")
        return 130
    after = f"; bring its output home: {command('fetch', owner, RUN=str(folder))}" if folder else ""
    if end.code:
        sentence = end.sentence + after + (f"; go on with it: {again}" if folder and again else "")
        print(f"error: {shown(redact.hide(sentence))}", file=sys.stderr)
    else:
        say(end.sentence + after)
    return end.code


def command(target: str, owner: str, **words: str) -> str:
    """A command of make that the user may type, for jobs of this owner."""
    given = [f"{name}={text}" for name, text in words.items()] + ([f"JOB_OWNER={owner}"] if owner else [])
    return shlex.join(["make", target, *given])
