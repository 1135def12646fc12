"""The figures of all machines, which bench/results.json keeps, and what has become worse since."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from bench import goals
from gpt2 import kernels
from lib.base import files
from lib.base.errors import UserError
from lib.machine import device

SECONDS = "seconds"  # what a figure without a base is relative to
_TOLERANCE = 0.1
# Without a goal more is better for a share of the best product, and for what another trainer takes beside ours.
_MORE_THAN = ("best ", "Espalier")  # beginnings of what such a ratio is relative to

Report = dict[str, Any]  # machine, torch, size, date, allow_busy and sections, as --json writes it


class Figure(NamedTuple):
    """A measured ratio, or seconds that have a goal."""

    section: str
    case: str
    to: str  # what it is compared with
    value: float
    interval: list[float]  # of the median; empty if it was measured only a few times
    date: str
    torch: str  # its version
    machine: str

    @property
    def place(self) -> tuple[str, str]:
        """Which figure it is."""
        return self.section, self.case

    @property
    def kind(self) -> str:
        """The kind of device."""
        return kind(self.machine)


def kind(machine: str) -> str:
    """The kind of device in the description of a machine."""
    return "cuda" if machine.startswith("NVIDIA") else machine.split(",")[0]


def machine(chosen: device.Machine) -> str:
    """What tells one machine from another: device, arithmetic, processor, its features and cores."""
    return f"{chosen.use().words(reasons=False)}, {kernels.processor()}".replace("|", "/")


def figures(report: Report) -> list[Figure]:
    """All figures in a report."""
    found, facts = [], (report["date"], report["torch"], report["machine"])
    for title, section in report["sections"].items():
        if "busy" in section:
            continue
        cases = section["cases"] if "cases" in section else [{"name": k, **v} for k, v in section["rows"].items()]
        for case in cases:
            ends = list(case.get("interval", ()))
            if "ratio" in case:
                to = case["base"] if "cases" in section else case["to"]
                found.append(Figure(title, case["name"], to, case["ratio"], ends, *facts))
            elif "goal" in case:
                found.append(Figure(title, case["name"], SECONDS, case["median_seconds"], ends, *facts))
    return found


def read(path: Path) -> list[Figure]:
    """The figures of a file; raises UserError for one that is missing or invalid."""
    try:
        return [Figure(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: is not a list of figures: {error}; restore it with git") from None


def write(path: Path, report: Report) -> list[Figure]:
    """Write the figures of `report` in place of this machine's earlier ones, and return all as they are kept."""
    new = [_rounded(figure) for figure in figures(report)]
    replaced = {(figure.place, figure.machine) for figure in new}
    found = [*new, *(old for old in read(path) if (old.place, old.machine) not in replaced)]
    found.sort(key=lambda figure: (figure.machine, *figure.place))
    lines = ",\n".join(json.dumps(figure._asdict(), ensure_ascii=False) for figure in found)
    files.write(path, f"[\n{lines}\n]\n".encode())
    return found


def _rounded(figure: Figure) -> Figure:
    """With four digits. The page is written from these too, so that it is the same when it is written again."""
    short = [float(f"{number:.4g}") for number in (figure.value, *figure.interval)]
    return figure._replace(value=short[0], interval=short[1:])


def compare(report: Report, kept: list[Figure]) -> tuple[str, list[str]]:
    """(what was compared, a sentence for each ratio that is worse than the kept one by more than 10 %)."""
    now_here = [figure for figure in figures(report) if figure.to != SECONDS]
    machine = report["machine"]
    alike = [f for f in kept if f.machine.split(",")[0] == machine.split(",")[0] and f.to != SECONDS]
    alike.sort(key=lambda figure: (figure.machine == machine, figure.date))
    known = {figure.place: figure for figure in alike}  # this machine's, or else the newest
    pairs = [(now, known[now.place]) for now in now_here if now.place in known]
    if not pairs:
        known_to_fail = any("busy" in section for section in report["sections"].values())
        sentence = f"there are no ratios of these sections on {machine}; add them with --write-table"
        return "no ratios compared", [] if known_to_fail else [sentence]
    others = sorted({then.machine for _, then in pairs} - {machine})
    note = f"{len(pairs)} ratios compared"
    if left := len(known) - len(pairs):
        note += f", {left} kept ones were not measured"
    if others:
        note += f"; this machine is {machine!r}, the kept ones are of {' and '.join(map(repr, others))}"
    complaints = []
    more_is_better = {(goal.section, goal.case) for goal in goals.of(kind(machine)) if goal.bound[:2] == ">="}
    for now, then in pairs:
        more = now.place in more_is_better or now.to.startswith(_MORE_THAN)
        before, after = (now.value, then.value) if more else (then.value, now.value)
        if after > (1 + _TOLERANCE) * before:
            of = f"{now.section}: {now.case} / {now.to}"
            complaints.append(f"{of} is {now.value:.3g}, and was {then.value:.3g} on {then.date}")
    return note, complaints
