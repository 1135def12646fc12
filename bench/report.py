"""A section of a benchmark's results, shown as a table."""

from typing import Any

from bench import foreign
from bench.timing import meets
from lib.terminal.console import columns

Section = dict[str, Any]


def text(title: str, section: Section, busy: bool = False) -> str:
    """A section as a table; `busy` marks figures from --allow-busy, which get no verdict."""
    if "busy" in section:
        return f"{title}: {foreign.words(section['busy'])}"
    if "rows" in section:
        return _plain(title, section["rows"], busy)
    counts = {name: value for name, value in section.items() if isinstance(value, int) and name != "repeated"}
    facts = "".join(f", {value:,} {name}" for name, value in counts.items() if value > 1)
    rounds = max((len(case["rounds"]) for case in section["cases"]), default=0)
    head = f"{title}{facts}, {rounds} round{'s' * (rounds != 1)}"
    rows = [(head, "median", "+-", "ratio", "95 % interval", "to", "goal", "rate")]
    return columns(_marked(rows + [_row(case, busy) for case in section["cases"]], busy)) + _meanwhile(section)


def _meanwhile(section: Section) -> str:
    """A line: how many rounds were repeated, and what else happened during those that were kept."""
    if not (checks := section.get("checks")):
        return ""
    speeds = [check["speed"] for check in checks]
    share, slowest = max(check["foreign"] for check in checks), min(speeds) / max(speeds)
    repeated = f"; {section['repeated']} x repeated" if section["repeated"] else ""
    return f"\n  others used at most {100 * share:.1f} % of the processor time; clock {slowest:.2f} to 1{repeated}"


def _marked(lines: list[tuple[str, ...]], busy: bool) -> list[tuple[str, ...]]:
    """Lines with a column that says that they are from a busy machine, if they are."""
    if not busy:
        return lines
    return [(*line, "busy" if number else "machine") for number, line in enumerate(lines)]


def _verdict(met: bool, busy: bool) -> str:
    return "" if busy else " met" if met else " MISSED"


def _plain(title: str, rows: dict[str, dict[str, Any]], busy: bool) -> str:
    names = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    lines = [(title, *names)]
    for row, figures in rows.items():
        shown = {name: _figure(figure) for name, figure in figures.items()}
        if figures.get("goal"):
            shown["goal"] += _verdict(meets(figures["ratio"], figures["goal"]), busy)
        lines.append((row, *(shown.get(name, "") for name in names)))
    return columns(_marked(lines, busy))


def _row(case: dict[str, Any], busy: bool) -> tuple[str, ...]:
    ratio = f"{case['ratio']:.3f}" if "ratio" in case else ""
    if case.get("every", 1) > 1:
        ratio += f" ({case['ratio_per_step']:.3f} a step)"
    show = (lambda end: f"{end:.3f}") if "ratio" in case else _seconds
    ends = "–".join(map(show, case.get("interval", ())))
    goal = case["goal"] + _verdict(case["met"], busy) if "goal" in case else ""
    rate = f"{case['rate']:,.1f} {case['rate_unit']}" if "rate" in case else ""
    spread = f"{case['iqr_seconds'] / 2 / case['median_seconds']:.0%}"
    return case["name"], _seconds(case["median_seconds"]), spread, ratio, ends, case.get("base", ""), goal, rate


def _figure(figure: float | str) -> str:
    if isinstance(figure, str):
        return figure
    return f"{figure:,.0f}" if isinstance(figure, int) or abs(figure) >= 1000 else f"{figure:.4g}"


def _seconds(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} us"
    return f"{seconds:.2f} s" if seconds >= 10 else f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3f} s"
