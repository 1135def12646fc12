"""The results of a benchmark: shown as tables, and as ratios written to docs/performance.md or compared with it."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from bench.timing import meets
from lib.base import files
from lib.base.errors import UserError
from lib.terminal.console import columns

_BEGIN, _END = "<!-- written by bench/run.py --write-table -->", "<!-- end -->"
_HEAD = "| section | case | to | ratio | goal | date | machine |\n|---|---|---|--:|--:|---|---|\n"
_TOLERANCE = 0.1

Report = dict[str, Any]  # machine, torch, size, date and sections, as --json writes it
Section = dict[str, Any]


class Ratio(NamedTuple):
    """A line of the table."""

    section: str
    case: str
    to: str  # what it is compared with
    ratio: float
    goal: str  # empty: less is better
    date: str
    machine: str

    @property
    def place(self) -> tuple[str, str, str]:
        """Which ratio it is."""
        return self.section, self.case, self.to


def ratios(report: Report) -> list[Ratio]:
    """All ratios in a report."""
    found = []
    for title, section in report["sections"].items():
        figures = section["cases"] if "cases" in section else [{"name": k, **v} for k, v in section["rows"].items()]
        for case in figures:
            if "ratio" in case:
                to = case["base"] if "cases" in section else case["to"]
                facts = case["ratio"], case.get("goal", ""), report["date"], report["machine"]
                found.append(Ratio(title, case["name"], to, *facts))
    return found


# ---- the table of the documentation ----------------------------------------------------------------------------------


def read_table(page: Path) -> list[Ratio]:
    """The ratios between the marks of a page; raises UserError for a page without them or an invalid line."""
    found = []
    for line in _parts(page)[1].strip().splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        try:
            found.append(Ratio(*cells[:3], float(cells[3]), *cells[4:]))
        except (IndexError, ValueError, TypeError):
            raise UserError(
                f"{page}: the line {line!r} is not a ratio; write the table again with --write-table"
            ) from None
    return found


def write_table(page: Path, report: Report) -> None:
    """Write the ratios of `report` into the table of `page`, in place of this machine's in the same sections."""
    before, _, after = _parts(page)
    others = [r for r in read_table(page) if r.machine != report["machine"] or r.section not in report["sections"]]
    table = [*ratios(report), *others]
    lines = [f"| {' | '.join([*r.place, f'{r.ratio:.3g}', r.goal, r.date, r.machine])} |\n" for r in table]
    with files.whole(page) as file:
        file.write(f"{before}{_BEGIN}\n{_HEAD}{''.join(lines)}{_END}{after}".encode())


def _parts(page: Path) -> list[str]:
    """What is before the table, the table, and what is after it."""
    try:
        parts = re.split(f"{re.escape(_BEGIN)}|{re.escape(_END)}", page.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{page}: cannot be read: {error.strerror}") from None
    if len(parts) != 3:
        raise UserError(f"{page}: has no table; put the lines {_BEGIN} and {_END} where it belongs")
    return parts


def compare(report: Report, table: list[Ratio]) -> tuple[str, list[str]]:
    """(what was compared, a sentence for each ratio that is worse than in the table by more than 10 %)."""
    machine = report["machine"]
    kind = machine.split(",")[0]
    known = {r.place: r for r in table if r.machine.split(",")[0] == kind} | {
        r.place: r for r in table if r.machine == machine
    }
    pairs = [(now, known[now.place]) for now in ratios(report) if now.place in known]
    if not pairs:
        return "no ratios compared", [
            f"the table has no ratios of these sections on {machine}; add them with --write-table"
        ]
    others = sorted({then.machine for _, then in pairs} - {machine})
    note = f"{len(pairs)} ratios compared"
    if left := len(known) - len(pairs):
        note += f", {left} of the table were not measured"
    if others:
        note += f"; this machine is {machine!r}, the table's {' and '.join(map(repr, others))}"
    complaints = []
    for now, then in pairs:
        before, after = (now.ratio, then.ratio) if then.goal.startswith(">=") else (then.ratio, now.ratio)
        if after > (1 + _TOLERANCE) * before:
            of = f"{now.section}: {now.case} / {now.to}"
            complaints.append(f"{of} is {now.ratio:.3g}, and was {then.ratio:.3g} on {then.date}")
    return note, complaints


# ---- for people ------------------------------------------------------------------------------------------------------


def text(title: str, section: Section) -> str:
    """A section as a table."""
    if "rows" in section:
        return _plain(title, section["rows"])
    facts = "".join(f", {value:,} {name}" for name, value in section.items() if isinstance(value, int) and value > 1)
    rounds = max((len(case["rounds"]) for case in section["cases"]), default=0)
    rows = [(f"{title}{facts}, {rounds} round{'s' * (rounds != 1)}", "median", "+-", "ratio", "to", "goal", "rate")]
    return columns(rows + [_row(case) for case in section["cases"]])


def _plain(title: str, rows: dict[str, dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    lines = [(title, *names)]
    for row, figures in rows.items():
        shown = {name: _figure(figure) for name, figure in figures.items()}
        if figures.get("goal"):
            shown["goal"] += " met" if meets(figures["ratio"], figures["goal"]) else " MISSED"
        lines.append((row, *(shown.get(name, "") for name in names)))
    return columns(lines)


def _row(case: dict[str, Any]) -> tuple[str, ...]:
    ratio = f"{case['ratio']:.3f}" if "ratio" in case else ""
    if case.get("every", 1) > 1:
        ratio += f" ({case['ratio_per_step']:.3f} a step)"
    goal = f"{case['goal']} {'met' if case['met'] else 'MISSED'}" if "goal" in case else ""
    rate = f"{case['rate']:,.1f} {case['rate_unit']}" if "rate" in case else ""
    spread = f"{case['iqr_seconds'] / 2 / case['median_seconds']:.0%}"
    return case["name"], _seconds(case["median_seconds"]), spread, ratio, case.get("base", ""), goal, rate


def _figure(figure: float | str) -> str:
    if isinstance(figure, str):
        return figure
    return f"{figure:,.0f}" if isinstance(figure, int) or abs(figure) >= 1000 else f"{figure:.4g}"


def _seconds(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} us"
    return f"{seconds:.2f} s" if seconds >= 10 else f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3f} s"
