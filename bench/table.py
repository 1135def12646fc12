"""The table of goals: this machine's as text, and all machines' in docs/performance.md."""

import functools
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path

from bench import goals
from bench.goals import Goal
from bench.results import SECONDS, Figure, Report, figures, kind
from bench.timing import meets
from lib.base import files
from lib.base.errors import UserError
from lib.terminal.console import columns

_BEGIN, _END = "<!-- written by bench/run.py --write-table -->", "<!-- end -->"
_KINDS = {"cpu": "CPU", "cuda": "NVIDIA GPU"}


def text(report: Report) -> str:
    """The goals that this report has figures for, met or missed, and why; "" without any."""
    found = {figure.place: figure for figure in figures(report)}
    rows, missed, left = [("goal", "bound", "figure", "")], [], 0
    for goal in goals.of(kind(report["machine"])):
        if figure := found.get((goal.section, goal.case)):
            rows.append((goal.name, goal.bound, _figure(figure), _verdict(goal, figure)))
            missed += [goal] * (rows[-1][-1] == "MISSED")
        elif "busy" in report["sections"].get(goal.section, {}):
            rows.append((goal.name, goal.bound, "", "not measured: busy"))
        else:
            left += goal.binds and goal.applies(report["machine"])
    if len(rows) == 1:
        return ""
    lines = [columns(rows), *_causes(missed)]
    return "\n".join(lines + [f"{left} more goals were not measured"] * (left > 0))


def write(page: Path, found: Iterable[Figure]) -> None:
    """Write the goals of all machines into `page`, between its marks."""
    before, _, after = _parts(page)
    with files.whole(page) as file:
        file.write(f"{before}{_BEGIN}\n{markdown(list(found))}{_END}{after}".encode())


def markdown(found: list[Figure]) -> str:
    """A table for each kind of device with a column for each machine, and why goals are missed."""
    parts, missed = [], []
    for device, name in _KINDS.items():
        head = sorted({figure.machine for figure in found if figure.kind == device}, reverse=True)
        known = {(figure.machine, *figure.place): figure for figure in found}
        if not head:
            bounds = "; ".join(f"{goal.name} {_shown(goal)}" for goal in goals.of(device))
            parts.append(_wrapped(f"No {name} was measured. Its goals: {bounds}.") + "\n")
            continue
        parts.append(f"| {name} | bound | {' | '.join(head)} |\n|---|--:|{'--:|' * len(head)}\n")
        parts.append(f"| measured | | {' | '.join(_days(found, one) for one in head)} |\n")
        for goal in goals.of(device):
            mine = [known.get((one, goal.section, goal.case)) for one in head]
            if not any(mine) and goal.bound.endswith("="):
                continue
            missed += [goal] * any(one and _verdict(goal, one) == "MISSED" for one in mine)
            parts.append(
                f"| {goal.name} | {_shown(goal)} | {' | '.join(map(functools.partial(_cell, goal), head, mine))} |\n"
            )
        parts.append("\n")
    causes = [_wrapped(line, "  ") for line in _causes(missed)]
    return "".join(parts + ["Why goals are missed:\n\n"] * bool(causes) + causes)


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 120, subsequent_indent=indent, break_on_hyphens=False) + "\n"


def _shown(goal: Goal) -> str:
    return goal.bound.replace("<=", "≤").replace(">=", "≥") if goal.binds else ""


def _figure(figure: Figure) -> str:
    unit = " s" if figure.to == SECONDS else ""
    ends = f" ({'–'.join(f'{end:.3g}' for end in figure.interval)})" if figure.interval else ""
    return f"{figure.value:.3g}{unit}{ends}"


def _verdict(goal: Goal, figure: Figure) -> str:
    if not goal.binds:
        return ""
    return "met" if meets(figure.value, goal.bound) else "MISSED"


def _cell(goal: Goal, machine: str, figure: Figure | None) -> str:
    if not figure:
        return "" if not goal.binds else "not measured" if goal.applies(machine) else "no bfloat16"
    return f"{_figure(figure)} {_verdict(goal, figure)}".strip()


def _days(found: list[Figure], machine: str) -> str:
    days = sorted({figure.date for figure in found if figure.machine == machine})
    return " to ".join(dict.fromkeys([days[0], days[-1]])) if days else ""


def _causes(missed: list[Goal]) -> list[str]:
    return [f"- {cause}" for cause in dict.fromkeys(goal.cause for goal in missed) if cause]


def _parts(page: Path) -> list[str]:
    """What is before the table, the table, and what is after it."""
    try:
        parts = re.split(f"{re.escape(_BEGIN)}|{re.escape(_END)}", page.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{page}: cannot be read: {error.strerror}") from None
    if len(parts) != 3:
        raise UserError(f"{page}: has no table; put the lines {_BEGIN} and {_END} where it belongs")
    return parts
