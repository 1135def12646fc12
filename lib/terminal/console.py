"""What a run shows while it trains: a progress bar, or plain lines where the output is not a terminal."""

import errno
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

from tqdm import tqdm

from lib.base.errors import NO_ROOM, shown
from lib.base.metric import EARLIER, Metric, line
from lib.record import journal
from lib.record.best import Evaluation, best

_LINE_SECONDS = 10.0  # between lines about something that is waited for, where the output is not a terminal


class Console:
    """Shows the records of a run as they are written to the journal."""

    def __init__(self, steps: int, done: int, evaluations: Callable[[], Sequence[Evaluation]]):
        """Show a bar of `steps` steps, of which `done` are made. `evaluations` returns the valid ones at any time."""
        self.live = sys.stderr.isatty()
        self.steps, self.evaluations = steps, evaluations
        self.metrics: dict[str, Metric] = dict(EARLIER)
        self.bar = tqdm(
            total=steps,
            initial=done,
            disable=not self.live,
            dynamic_ncols=True,
            leave=False,
            bar_format="{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{remaining} left{postfix}]",
        )

    def tick(self) -> None:
        """Move the bar by a step that the device has been given."""
        self.bar.update()

    def move(self, step: int, steps: int) -> None:
        """Move the bar to `step` of `steps`, for a run that another process trains."""
        self.steps = self.bar.total = steps
        self.bar.update(step - self.bar.n)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        with self.bar.external_write_mode(file=sys.stdout):
            say(text)

    def show(self, record: journal.Record) -> None:
        """Show a record of the journal. Its metrics are shown as `metrics` of this object says."""
        metrics, step = journal.numbers(record), record["step"]
        if record["event"] == "train":
            text = line(metrics, self.metrics)
            self.bar.set_postfix_str(text)
            if not self.live:
                self.say(f"step {step:>{len(str(self.steps))}}/{self.steps}  {text}")
        elif record["event"] == "eval":
            found = best(self.evaluations())
            better = found is not None and found.step == step
            self.say(
                f"step {step:>{len(str(self.steps))}}/{self.steps}  {line(metrics, self.metrics)}"
                f"{'  best' if better else ''}"
            )
        elif record["event"] == "alert" and record.get("kind") != "finished":  # the summary tells of the end
            kind = "note" if record.get("level") == "info" else "alert"
            self.say(f"{kind}: {record.get('message', record.get('kind'))}")

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Show in front of the bar what the run does instead of steps."""
        self.bar.set_description_str(f"{what} ")
        try:
            yield
        finally:
            self.bar.set_description_str("")

    def close(self) -> None:
        """Remove the bar."""
        self.bar.close()


class Bars:
    """How far several things are that are waited for: a bar for each, or a line where the output is not a terminal."""

    def __init__(self, unit: str):
        """`unit` is what is counted, such as `rows`."""
        self.live, self.unit = sys.stderr.isatty(), unit
        self.bars: dict[str, tqdm] = {}
        self.next_line = time.monotonic() + _LINE_SECONDS

    def show(self, counts: Mapping[str, tuple[str, int, int]]) -> None:
        """Show for each name a word about its state, how many are done, and how many there are.

        A bar whose name is left out stays as it is.
        """
        if self.live:
            for name in counts:
                if name not in self.bars:
                    self.bars[name] = self._bar()
            for name, count in counts.items():
                self._move(name, *count)
        elif counts and time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + _LINE_SECONDS
            parts = (f"{name} {state}, {n:,} of {total:,} {self.unit}" for name, (state, n, total) in counts.items())
            say("; ".join(parts))

    def _bar(self) -> tqdm:
        form = f"{{desc}} {{percentage:3.0f}}%|{{bar}}| {{n}} of {{total}} {self.unit} [{{elapsed}}]"
        return tqdm(total=1, position=len(self.bars), leave=False, bar_format=form)

    def _move(self, name: str, state: str, done: int, total: int) -> None:
        bar = self.bars[name]
        bar.n, bar.total = done, max(1, total)
        bar.ncols = shutil.get_terminal_size().columns - 3  # room for the ^C that a terminal shows
        width = max(map(len, self.bars))
        bar.set_description_str(f"{name:<{width}}  {state:<8}")  # draws the bar

    def above(self) -> AbstractContextManager[None]:
        """A context in which lines are printed above the bars."""
        return tqdm.external_write_mode(file=sys.stdout) if self.bars else nullcontext()

    def close(self) -> None:
        """Remove the bars."""
        for bar in reversed(self.bars.values()):
            bar.close()
        if self.bars:
            print("\r\033[J", end="", file=sys.stderr, flush=True)  # the ^C


def say(text: str) -> None:
    """Print a line. A run must not end because its output cannot be written, so output is dropped from then on.

    That happens when nobody reads it (a pipe to `head`, a closed terminal), and when it goes to a file on a full disk.
    A full disk is noted on standard error.
    """
    try:
        print(shown(text), flush=True)
    except OSError as error:
        # EIO comes from a closed terminal, before SIGHUP does.
        if error.errno not in (errno.EPIPE, errno.EIO, *NO_ROOM):
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        if error.errno in NO_ROOM:
            with suppress(OSError):  # standard error may go to the same file
                print(f"note: from here on, what is printed is lost: {error.strerror}", file=sys.stderr)


def duration(seconds: float) -> str:
    """`1:02:03`, `2:03` or `4.5 s`."""
    if seconds < 60 or not math.isfinite(seconds):
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def listed(names: Sequence[str], most: int) -> str:
    """`a, b, c and 4 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def roughly(seconds: float) -> str:
    """A duration that is an estimate: `40 s`, `2:03`, `1:02:03`, `14 hours`, `12 days`, `5 years`."""
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
