"""Say what came of a sweep or of several runs: verdicts with intervals, tables and figures, on one page.

It reads journals, summaries and provenance only. Runs are ranked only at equal budget and evaluation. The page says
what was equal and what was not. As in:

  make report                                         the latest sweep
  make report SWEEP=sweeps/pruning REFERENCE=dense MARGIN=0.005
  make report RUNS='runs/a runs/b runs/c' BY=optimizer,target_sparsity

The folder report/ in the sweep's folder (OUT=folder: another) gets index.html, which needs no other file, report.md,
results.csv with a row for each run, verdicts.csv, and each figure as SVG and PDF in figures/.
"""

import argparse
import math
import re
import shlex
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from lib.base import files
from lib.base.errors import UsageError, run_program, shown
from lib.config import extras
from lib.config.command_line import resolve
from lib.record import run
from lib.report import study, verdicts, writing
from lib.report.study import Study


def main() -> int:
    """Write the report and print its verdicts; returns 0."""
    args = _arguments()
    if missing := extras.missing("report"):
        raise UsageError(f"a report needs {' and '.join(missing)}; {extras.install(extras.extra('report'))}")
    made, place = _study(args)
    folder = files.named(args.out) if args.out else place
    writing.write(folder, made)
    for line in verdicts.of_study(made):
        print(shown(line))
    for note in made.notes:
        print(shown(f"note: {note}"))
    print(shown(f"\n{folder}/index.html, {folder}/report.md"))
    return 0


def _study(args: argparse.Namespace) -> tuple[Study, Path]:
    """What is reported, and the folder of its report unless the user names one."""
    if args.runs:
        folders = [path for given in _words(args.runs) for path in _runs(files.named(given))]
        by = [name for name in args.by.split(",") if name]
        return study.of_runs(folders, by, args.reference, args.margin), Path("report")
    if args.by:
        raise UsageError("BY groups the runs of RUNS; a sweep has its configurations")
    folder = _sweep(args.sweep, Path(resolve("", args.assignments)[0]["OUTPUT_DIR"]))
    return study.of_sweep(folder, args.reference, args.margin), folder / "report"


def _words(runs: str) -> list[str]:
    try:
        return shlex.split(runs)
    except ValueError as error:
        raise UsageError(f"RUNS: cannot be understood: {str(error).lower()}") from None


def _runs(folder: Path) -> list[Path]:
    """The run in a folder, or all the runs below it."""
    if (folder / "run.json").exists():
        return [folder]
    if found := run.folders(folder):
        return found
    raise UsageError(f"{folder}: is not a run and has none")


def _sweep(given: str, output_dir: Path) -> Path:
    """The folder of the sweep that the user names, by its file or its folder; the latest if none is named."""
    if given:
        named = files.named(given)
        for folder in (named, output_dir / named.name):
            if (folder / study.RESULTS).exists():
                return folder
        raise UsageError(
            f"{given}: neither it nor {output_dir / named.name} has {study.RESULTS}, which make sweep writes"
        )
    found = sorted(output_dir.glob(f"*/{study.RESULTS}"), key=lambda path: (path.stat().st_mtime, path))
    if not found:
        raise UsageError(f"{output_dir}: has no sweep with results; name runs, as in RUNS='runs/a runs/b'")
    return found[-1].parent


def _margin(text: str) -> float:
    try:
        if 0 < float(text) < math.inf:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of nats per token above 0, as in 0.005")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "words", nargs="*", metavar="SWEEP | OUTPUT_DIR=folder", help="the sweep's file or folder [the latest one]"
    )
    parser.add_argument("--runs", default="", help="folders of runs, or folders with runs, separated by spaces")
    parser.add_argument(
        "--by", default="", help="options that make configurations of --runs [all that decide what is learned]"
    )
    parser.add_argument("--reference", default="", help="the configuration to compare with, beside the dense one")
    parser.add_argument(
        "--margin", type=_margin, help="differences that do not matter, in nats [the dense runs' deviation over seeds]"
    )
    parser.add_argument("--out", default="", help="the folder of the report [report/ in the sweep's folder, or here]")
    args = parser.parse_args()
    args.assignments = [word for word in args.words if word.startswith("OUTPUT_DIR=")]
    named = [word for word in args.words if word not in args.assignments]
    if wrong := [word for word in named if re.match(r"[A-Z_0-9]+=", word)]:
        raise UsageError(f"{wrong[0]}: a report trains nothing, so of the options it takes OUTPUT_DIR only")
    if len(named) + bool(args.runs) > 1:
        raise UsageError("name one sweep, or RUNS, not both")
    args.sweep = named[0] if named else ""
    return args


if __name__ == "__main__":
    run_program(main)
