"""The table below the lines of a sweep while it trains, where standard error is a terminal: what is done and left."""

import math
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from statistics import fmean
from typing import Any, NamedTuple

from lib.base.errors import UserError
from lib.base.seldom import Seldom
from lib.compare.plan import Run, Sweep
from lib.record import history
from lib.terminal.console import roughly, say

_SECONDS = 0.5  # at least, from one picture to the next
_WIDE = 80  # columns; where there are fewer, words are left out
_BAR = 40  # cells at most
_BLOCKS, _ASCII = "█░", "#-"
Line = tuple[str, str]  # text and style


class Doing(NamedTuple):
    """A run that is being trained."""

    label: str  # `seed 3`
    share: float  # of its steps
    left: float | None  # seconds; None: not known yet


class Row(NamedTuple):
    """A configuration, or a method that is tuned."""

    name: str
    runs: int
    done: int = 0  # finished ones
    loss: float | None = None
    doing: tuple[Doing, ...] = ()
    lost: tuple[str, ...] = ()  # `seed 2 failed`
    ended: int = 0  # its newest run was the n-th one of the sweep that ended; 0: none has


class State(NamedTuple):
    """What the table shows."""

    rows: Sequence[Row]
    status: str  # `5 of 57 runs, 48:00 left`
    share: float  # of the sweep that is done
    verdicts: Sequence[str] = ()  # so far
    titles: tuple[str, str] = ("configuration", "val loss")


# ---- the picture: a function from a state to lines -------------------------------------------------------------------


def lines(state: State, columns: int, height: int, bar: str = _BLOCKS) -> list[Line]:
    """The table, with the most important rows if there is no room for all. No line has `columns` characters or more.

    A terminal would wrap a longer line, and the table has a line less than the terminal, for the cursor.
    """
    room, width = height - 3, columns - 1  # without titles, the total and the cursor
    verdicts = [("so far: " if n == 0 else "  ") + line for n, line in enumerate(state.verdicts)]
    verdicts = verdicts[: max(0, room // 3 if len(state.rows) + len(verdicts) > room else len(verdicts))]
    shown = _most_important(state.rows, room - len(verdicts))
    found = _table(state, shown, width) if shown else []
    if shown and (hidden := len(state.rows) - len(shown)):
        found.append((f"{hidden} of {len(state.rows)} not shown", "dim"))
    found += [(_total(state, width, bar), "bold"), *((line, "") for line in verdicts)]
    return [(_cut(text, width), style) for text, style in found]


def _most_important(rows: Sequence[Row], room: int) -> list[Row]:
    """As many rows as there is room for, in their order: those in training, failed ones, and those that ended last."""
    if len(rows) <= room:
        return list(rows)
    ranked = sorted(range(len(rows)), key=lambda n: (not rows[n].doing, not rows[n].lost, -rows[n].ended, n))
    return [rows[n] for n in sorted(ranked[: max(0, room - 1)])]  # the last line says how many are not shown


def _table(state: State, rows: Sequence[Row], width: int) -> list[Line]:
    narrow = width + 1 < _WIDE
    first, loss = state.titles
    cells = [(first, "done", loss, "now")]
    for row in rows:
        mean = "-" if row.loss is None else f"{row.loss:.4f}"
        cells.append((row.name, f"{row.done}/{row.runs}", mean, _now(row, narrow)))
    name, done, value = (max(len(line[n]) for line in cells) for n in range(3))
    name = min(name, max(8, width // 3))
    texts = (f"{_cut(a, name):<{name}}  {b:>{done}}  {c:>{value}}  {d}".rstrip() for a, b, c, d in cells)
    return list(zip(texts, ["dim", *map(_style, rows)], strict=True))


def _now(row: Row, narrow: bool) -> str:
    parts = []
    for one in row.doing:
        left = "" if one.left is None else f" {roughly(one.left)}" if narrow else f", {roughly(one.left)} left"
        parts.append(f"{one.label} {one.share:.0%}{left}" if one.share else f"{one.label} starts")
    return "; ".join([*parts, *row.lost])


def _style(row: Row) -> str:
    if row.lost:
        return "red"
    return "cyan" if row.doing else "green" if row.done == row.runs else "" if row.done else "dim"


def _total(state: State, width: int, bar: str) -> str:
    cells = min(_BAR, width - len(state.status) - 7)
    if cells < 5:
        return state.status
    full = int(state.share * cells)
    return f"{state.status}  {bar[0] * full}{bar[1] * (cells - full)} {state.share:4.0%}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(0, width - 2)]}.."[:width]


# ---- the state -------------------------------------------------------------------------------------------------------


class Table:
    """What is known of the runs of a sweep, or of the trials of its methods, for the rows of the table."""

    def __init__(self, plan: Sweep, trials: Mapping[str, tuple[str, int]]):
        """`trials` tells the method and the number of each configuration that is a trial."""
        self.trials, self.seeds = trials, plan.seeds
        self.titles = ("method", "best loss") if trials else ("configuration", "val loss")
        self.members: dict[str, list[Run]] = {}  # row -> its runs
        for run in plan.runs():
            name = run.configuration.name
            self.members.setdefault(trials[name][0] if trials else name, []).append(run)
        self.ended: dict[str, str] = {}  # run -> `finished`, or how it was lost, in the order of their ends
        self.losses: dict[str, float] = {}  # of finished runs

    def end(self, run: Run, how: str) -> None:
        """Take in that a run has ended, with a word that says how."""
        self.ended.pop(run.name, None)
        self.ended[run.name] = how
        if how == "finished":
            with suppress(UserError):  # what is damaged is told where results are written
                self.losses[run.name] = history.summary(run.folder).get("final_val_loss", math.nan)

    def rows(self, doing: Mapping[str, tuple[float, float | None]]) -> list[Row]:
        """All rows. `doing` tells of each run in training its share and the seconds that are left."""
        order = {name: n for n, name in enumerate(self.ended, 1)}
        return [
            Row(
                name,
                len(runs),
                sum(self.ended.get(run.name) == "finished" for run in runs),
                self._loss(runs),
                tuple(Doing(self._label(run), *doing[run.name]) for run in runs if run.name in doing),
                tuple(f"{self._label(run)} {how}" for run in runs if (how := self._lost(run))),
                max(order.get(run.name, 0) for run in runs),
            )
            for name, runs in self.members.items()
        ]

    def _lost(self, run: Run) -> str:
        how = self.ended.get(run.name, "")
        return "" if how == "finished" else how

    def _loss(self, runs: Sequence[Run]) -> float | None:
        """The mean so far; of trials, the best of those that have ended."""
        if not self.trials:
            losses = [self.losses[run.name] for run in runs if run.name in self.losses]
            return fmean(losses) if losses else None
        found: dict[str, list[float]] = {}
        for run in runs:
            found.setdefault(run.configuration.name, []).append(self.losses.get(run.name, math.nan))
        return min(filter(math.isfinite, map(fmean, found.values())), default=None)

    def _label(self, run: Run) -> str:
        """`seed 3`, `trial 2`, `trial 2 seed 101`."""
        seed = f"seed {run.seed}"
        if not self.trials:
            return seed
        return f"trial {self.trials[run.configuration.name][1]}" + (f" {seed}" if len(self.seeds) > 1 else "")


# ---- the terminal ----------------------------------------------------------------------------------------------------


class Screen:
    """Prints the lines of a sweep, and the table below them where standard error is a terminal.

    The cursor stays below the table, and is never hidden, so that nothing is to be repaired after a kill.
    """

    def __init__(self):
        self.live = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self.drawn: list[int] = []  # the lengths of the lines that are there
        self.pictures = Seldom(_SECONDS)
        self.lock = threading.Lock()

    def say(self, text: str, make: Callable[[], State]) -> None:
        """Print a line, and the table below it again."""
        with self.lock:
            self._write(self._erasure())
            say(text)
        self._draw(make)

    def show(self, make: Callable[[], State]) -> None:
        """Draw the table again, unless it is there since a moment."""
        if self.pictures.due:
            self._draw(make)

    def _draw(self, make: Callable[[], State]) -> None:
        if not self.live or not self._in_front():
            return
        with self.pictures:
            self._put(make(), self._size())

    def _put(self, state: State, size: tuple[int, int]) -> None:
        utf = (sys.stderr.encoding or "").lower().startswith("utf")
        with self.lock:
            if not self.live:  # it was left since
                return
            picture = lines(state, *size, bar=_BLOCKS if utf else _ASCII)
            # Each line is overwritten in place: to erase all first would flicker.
            text = "".join(f"{line}\033[K\n" for line in self._styled(picture))
            self._write(f"{self._top()}{text}\033[J")
            self.drawn = [len(line) for line, _ in picture]

    def leave(self) -> None:
        """Remove the table for good. A thread that hears signals may call this too."""
        held = self.lock.acquire(timeout=_SECONDS)  # after Ctrl-S the terminal takes nothing
        self._write(self._erasure())
        self.live = False
        if held:
            self.lock.release()

    def _in_front(self) -> bool:
        """Whether the terminal is this program's. After Ctrl-Z and with `&` it is the shell's."""
        try:
            if os.tcgetpgrp(2) == os.getpgrp():
                return True
        except OSError:  # it does not control programs
            return True
        self.drawn = []
        return False

    def _size(self) -> tuple[int, int]:
        try:
            columns, height = os.get_terminal_size(2)
        except OSError:  # it was closed
            columns = height = 0
        return (columns, height) if columns and height else (80, 24)

    def _top(self) -> str:
        """What moves the cursor to the first line. A terminal that became narrower has wrapped the lines."""
        columns, _ = self._size()
        up = sum(max(1, -(-length // columns)) for length in self.drawn)
        return f"\r\033[{up}A" if up else ""

    def _erasure(self) -> str:
        """What removes the table. In the background, a shell has written below it, so it stays."""
        text = f"{self._top()}\033[J" if self.drawn and self._in_front() else ""
        self.drawn = []
        return text

    def _styled(self, picture: Sequence[Line]) -> list[str]:
        """The lines with colours, if the terminal and NO_COLOR allow them."""
        console = _console()
        with console.capture() as found:
            for text, style in picture:
                console.print(text, style=style, no_wrap=True, overflow="ignore", crop=False)
        return found.get().splitlines()

    def _write(self, text: str) -> None:
        if text:
            try:
                os.write(2, text.encode(sys.stderr.encoding or "ascii", errors="replace"))
            except OSError:  # the terminal was closed
                self.live = False


def _console() -> Any:
    from rich.console import Console

    return Console(stderr=True, width=10_000, highlight=False, emoji=False, markup=False)


class Verdicts:
    """The verdicts so far. A thread finds them: it imports scipy, which takes a second, and no trainer may wait."""

    def __init__(self, find: Callable[[], Sequence[str]]):
        self.find, self.lines = find, ()
        self.stale, self.thread = False, None
        self.finds = Seldom()

    def newest(self) -> Sequence[str]:
        """Those that were found last. If a run has ended since, the thread is started again, after a pause."""
        if self.stale and self.finds.due and not (self.thread and self.thread.is_alive()):
            self.stale = False
            self.thread = threading.Thread(target=self._find, name="verdicts", daemon=True)
            self.thread.start()
        return self.lines

    def _find(self) -> None:
        with self.finds:
            self.lines = tuple(self.find())
