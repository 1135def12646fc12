"""How runs look: tables, facts, sparklines. Where the output is not a terminal, text is plain and never cut."""

import io
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lib.base.errors import printable, shown

_BLOCKS, _ASCII = "▁▂▃▄▅▆▇█", "_.,-~=+#"
_COLOURS = {"running": "cyan", "starting": "cyan", "finished": "green", "interrupted": "yellow"}
_BAD = "red"  # every other state
_ANY = 10_000  # columns of a plain text: enough for any name


class Column(NamedTuple):
    """A column of a table."""

    title: str
    show: Callable[[Any], str] = str  # a value -> its text in a terminal
    left: bool = False
    style: Callable[[Any], str] = lambda value: ""


def terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()


def width(columns: int = _ANY) -> int:
    """Columns of the terminal; `columns` if the output is not a terminal."""
    return _console(columns).width


def _console(columns: int) -> Any:
    """A rich console on the terminal. If there is none, it writes to a text of so many columns."""
    from rich.console import Console

    if terminal():
        return Console(highlight=False, emoji=False, markup=False)
    return Console(file=io.StringIO(), width=columns, color_system=None, highlight=False, emoji=False, markup=False)


def out(*parts: Any, columns: int = _ANY) -> None:
    """Print texts and grids, `columns` wide if the output is not a terminal."""
    console = _console(columns)
    for part in parts:
        console.print(shown(part) if isinstance(part, str) else part)
    if not terminal():
        print("\n".join(line.rstrip() for line in console.file.getvalue().splitlines()))


def heading(text: str) -> Any:
    """A line that begins a part of a page."""
    return styled(f"\n{text}", "bold")


def grid(rows: Iterable[Sequence[Any]], titles: Sequence[str] = (), right: int = 0) -> Any:
    """Rows of texts in columns, the last `right` of them flush right. The first column names the row."""
    from rich.table import Table

    rows = list(rows)
    number = len(rows[0])
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=bool(titles), header_style="dim")
    for n in range(number):
        numeric = n >= number - right
        table.add_column(
            titles[n] if titles else "",
            justify="right" if numeric else "left",
            style="dim" if n == 0 else "",
            overflow="fold",
            no_wrap=numeric,
        )
    for row in rows:
        table.add_row(*(shown(cell) if isinstance(cell, str) else cell for cell in row))
    return table


def table(columns: Sequence[Column], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table. If the output is not a terminal, it is tab-separated, with complete numbers; None is empty."""
    if not terminal():
        print("\t".join(column.title for column in columns))
        for row in rows:
            print("\t".join("" if value is None else printable(str(value)) for value in row))
        return
    _console(_ANY).print(_screen(columns, rows))


def tables(columns: Sequence[Column], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table in a terminal, as several if it is too wide: each has the first column. No cell is shortened."""
    console = _console(_ANY)
    room, groups = console.width, [[0]]
    for n in range(1, len(columns)):
        if len(groups[-1]) > 1 and _width(console, columns, rows, [*groups[-1], n]) > room:
            groups.append([0])
        groups[-1].append(n)
    for number, group in enumerate(groups):
        if number:
            console.print()
        console.width = max(room, _width(console, columns, rows, group))  # the terminal wraps what is wider
        console.print(_part(columns, rows, group))


def _width(console: Any, columns: Sequence[Column], rows: Sequence[Sequence[Any]], group: Sequence[int]) -> int:
    """How wide a table of the columns in `group` is."""
    return console.measure(_part(columns, rows, group), options=console.options.update(width=_ANY)).maximum


def _part(columns: Sequence[Column], rows: Sequence[Sequence[Any]], group: Sequence[int]) -> Any:
    """A table of the columns in `group`."""
    return _screen([columns[n] for n in group], [[row[n] for n in group] for row in rows])


def _screen(columns: Sequence[Column], rows: Iterable[Sequence[Any]]) -> Any:
    """A table for a terminal."""
    from rich import box
    from rich.table import Table

    screen = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        header_style="dim",
        border_style="dim",
    )
    for n, column in enumerate(columns):
        screen.add_column(column.title, justify="left" if column.left else "right", overflow="fold", no_wrap=n > 0)
    for row in rows:
        screen.add_row(*(_cell(column, value) for column, value in zip(columns, row, strict=True)))
    return screen


def sheet(cells: Sequence[Sequence[str]], notes: Iterable[str]) -> None:
    """Print a table of texts, titles first, with notes below. It is 80 columns wide if there is no terminal."""
    titles, *rows = cells
    grids = [grid(rows, titles, right=len(titles) - 1), "", *(grid([("-", note)]) for note in notes)]
    out("", *grids, columns=80)


def _cell(column: Column, value: Any) -> Any:
    return styled("-" if value is None else column.show(value), column.style(value))


def colour(state: str) -> str:
    """The style in which a run's state is shown."""
    return _COLOURS.get(state, _BAD)


def styled(text: str, style: str) -> Any:
    """A text in a style."""
    from rich.text import Text

    return Text(shown(text), style=style)


# ---- numbers ---------------------------------------------------------------------------------------------------------


def sparkline(series: Mapping[int, float], last_step: int, cells: int) -> str:
    """A metric over the steps 0 to `last_step`: a mean per cell, `!` where a value is NaN or infinite."""
    means = _means(series, last_step, cells)
    finite = [value for value in means if value is not None and math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    blocks = _BLOCKS if (sys.stdout.encoding or "").lower().startswith("utf") else _ASCII
    marks = []
    for value in means:
        if value is None:
            marks.append(" ")
        elif not math.isfinite(value):
            marks.append("!")
        else:
            marks.append(
                blocks[min(int((value - low) / (high - low) * len(blocks)), len(blocks) - 1)]
                if high > low
                else blocks[0]
            )
    return "".join(marks)


def _means(series: Mapping[int, float], last_step: int, cells: int) -> list[float | None]:
    """The mean of each cell. A cell without a measurement repeats the cell before it.

    Cells before the first measurement and after the last are None.
    """
    groups: dict[int, list[float]] = {}
    for step, value in series.items():
        groups.setdefault(min(step * cells // max(last_step, 1), cells - 1), []).append(value)
    means, now = [], None
    for cell in range(cells):
        if cell in groups:
            now = sum(groups[cell]) / len(groups[cell])
        means.append(now if cell <= max(groups, default=-1) else None)
    return means


def number(value: float | None) -> str:
    """A metric's value, short: `2,400`, `0.6931`, `3.00e-04`."""
    if value is None:
        return "-"
    if isinstance(value, int) or (math.isfinite(value) and abs(value) >= 1000):
        return f"{value:,.0f}" if abs(value) < 1e9 or isinstance(value, int) else f"{value:.2e}"
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.001 or not math.isfinite(value) else f"{value:.2e}"


def loss(value: float) -> str:
    """`1.6070`."""
    return f"{value:.4f}"


def percent(value: float) -> str:
    """`50.0%`, and `-` for zero."""
    return f"{value:.1%}" if value else "-"


def whole(value: float) -> str:
    """`11,783`."""
    return f"{value:,.0f}"


def age(moment: float, now: float | None = None) -> str:
    """How long ago a moment (unix seconds) was: `8 s`, `3 min`, `5 h`, `2 d`."""
    seconds = max(0, int((time.time() if now is None else now) - moment))
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
