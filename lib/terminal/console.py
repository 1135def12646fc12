"""What a run shows in the terminal: a progress bar, or plain lines where the output is not a terminal."""

import errno
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from tqdm import tqdm

from lib.base.errors import NO_ROOM, shown
from lib.record import journal
from lib.record.best import Evaluation, best


class Console:
    """Shows the records of a run as they are written to the journal."""

    def __init__(self, steps: int, done: int, evaluations: Callable[[], Sequence[Evaluation]]):
        """A bar of `steps` steps of which `done` are behind us; `evaluations` tells those in force at any time."""
        self.live = sys.stderr.isatty()
        self.steps, self.evaluations = steps, evaluations
        self.bar = tqdm(
            total=steps,
            initial=done,
            disable=not self.live,
            dynamic_ncols=True,
            leave=False,
            bar_format="{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{remaining} left{postfix}]",
        )

    def tick(self) -> None:
        """One more step was launched."""
        self.bar.update()

    def move(self, step: int, steps: int) -> None:
        """`step` of `steps` steps are behind us: for one who looks at another process's run."""
        self.steps = self.bar.total = steps
        self.bar.update(step - self.bar.n)

    def say(self, text: str) -> None:
        """A line above the bar."""
        with self.bar.external_write_mode(file=sys.stdout):
            say(text)

    def show(self, record: journal.Record) -> None:
        """A record of the journal, in the form that fits its event."""
        metrics, step = journal.numbers(record), record["step"]
        if record["event"] == "train":
            line = (
                f"loss {metrics['train_loss']:.4f}  lr {metrics['learning_rate']:.2e}  "
                f"{metrics['tokens_per_second']:,.0f} tokens/s"
            )
            if metrics.get("sparsity"):
                line += f"  sparsity {metrics['sparsity']:.1%}"
            self.bar.set_postfix_str(line)
            if not self.live:
                self.say(f"step {step:>{len(str(self.steps))}}/{self.steps}  {line}")
        elif record["event"] == "eval":
            found = best(self.evaluations())
            better = found is not None and found.step == step
            self.say(
                f"step {step:>{len(str(self.steps))}}/{self.steps}  val loss {metrics['val_loss']:.4f}  "
                f"perplexity {metrics['val_perplexity']:,.2f}{'  best' if better else ''}"
            )
        elif record["event"] == "alert" and record.get("kind") != "finished":  # which the summary says at length
            kind = "note" if record.get("level") == "info" else "alert"
            self.say(f"{kind}: {record.get('message', record.get('kind'))}")

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Say in front of the bar what is being done while no step is made."""
        self.bar.set_description_str(what)
        try:
            yield
        finally:
            self.bar.set_description_str("")

    def close(self) -> None:
        """Remove the bar."""
        self.bar.close()


def say(text: str) -> None:
    """Print a line; when nobody reads any more (a pipe to `head`, a terminal that was closed), go on in silence.

    So, after a word of it, where the output is a file on a disk that is full: no run should end for that.
    """
    try:
        print(shown(text), flush=True)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO, *NO_ROOM):  # EIO: a closed terminal, before SIGHUP tells of it
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        if error.errno in NO_ROOM:
            with suppress(OSError):  # it may go to the same file
                print(f"note: from here on, what is printed is lost: {error.strerror}", file=sys.stderr)


def duration(seconds: float) -> str:
    """`1:02:03`, `2:03` or `4.5 s`."""
    if seconds < 60 or not math.isfinite(seconds):
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def roughly(seconds: float) -> str:
    """What is known roughly: `40 s`, `2:03`, `1:02:03`, `14 hours`, `12 days`, `5 years`."""
    for unit, length in (("years", 365 * 86400), ("days", 86400), ("hours", 3600)):
        if seconds >= 3 * length:
            return f"{seconds / length:,.0f} {unit}"
    return duration(seconds) if round(seconds) >= 60 else f"{max(1, round(seconds))} s"


def table(facts: Mapping[str, object]) -> str:
    """Names and values in two columns."""
    width = max(map(len, facts))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in facts.items())


def columns(rows: Sequence[Sequence[str]]) -> str:
    """A table of texts, the first column flush left and the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(n) for cell, n in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
