"""Measure what training, pruning, optimizers, checkpoints, trackers and data preparation cost on this machine.

Variants take turns in every round. A ratio is the median of the ratios of all rounds, so a disturbance of a whole round
does not change it. Rounds in which other programs use the processor are repeated. A section ends when the intervals of
all its ratios are narrow. The machine's peak rates are measured too, so that figures can be compared across machines.
At the end stand the goals, met or missed, and why.

A quick look:                 make bench ARGS="--size tiny --rounds 1"
One section, at GPT-2's size: make bench ARGS="--only prune"
"""

import argparse
import dataclasses
import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from bench import (
    SIZES,
    Bench,
    around,
    ceilings,
    foreign,
    oneshot,
    optimizers,
    prepare,
    priority,
    pruning,
    reference,
    report,
    results,
    saving,
    scale,
    start,
    step,
    sweeps,
    table,
    tracking,
    utilisation,
)
from bench.timing import Timer
from lib.base import files
from lib.base.errors import UsageError, UserError, run_program
from lib.config.kconf import ROOT, Schema
from lib.machine import device

_PEER = "peer-"  # begins the names of sections that need --ref
SECTIONS: dict[str, list[Callable[[Bench], None]]] = {  # what --only names -> what it measures, in this order
    "ceilings": [ceilings.ceilings],
    "prune": [pruning.memory, pruning.threshold, pruning.masks, pruning.passes, pruning.hidden],
    "rewire": [pruning.rewiring],
    "oneshot": [oneshot.parts],
    "oneshot-whole": [oneshot.whole],
    "optim": [optimizers.optimizers],
    "step": [step.step],
    "around": [around.around],
    "save": [saving.saving],
    "prepare": [prepare.prepare],
    "start": [start.start],
    "track": [tracking.tracking],
    "train": [utilisation.utilisation, utilisation.start],
    "scale-prune": [scale.thresholds],
    "scale-train": [scale.training],
    "scale-journal": [scale.journals],
    "scale-sweep": [sweeps.sweeps],
    **{f"{_PEER}{name}": [functools.partial(reference.speed, name=name)] for name in reference.COMPARISONS},
    f"{_PEER}start": [functools.partial(reference.start, name="4x128")],
    f"{_PEER}memory": [reference.memory],
}

_LONG = ("oneshot-whole", "scale-sweep")  # take minutes, so they are only measured when they are named
_GOALS = "goals"  # stands for all sections that have goals, but the long ones
_NO_GOALS = {"oneshot", "rewire", "scale-prune", "scale-train"}


def main() -> int:
    """Measure the chosen sections or read a report; then print, store or compare it. Returns the exit code."""
    args = _parser().parse_args()
    _check(args)
    if args.realtime:
        priority.realtime()
    kept = results.read(args.results) if args.check or args.write_table or args.page_only else []
    if args.page_only:
        table.write(args.table, kept)
        return 0
    found, problems, code = _read(args.report) if args.report else _measure(args)
    for title, section in found["sections"].items():
        print(f"\n{report.text(title, section, found.get('allow_busy', False))}")
    if not found.get("allow_busy") and (goals := table.text(found)):
        print(f"\n{goals}")
    if args.json:
        files.write_json(args.json, found)
    if found.get("allow_busy") and (args.check or args.write_table):
        raise UserError("this report is from --allow-busy; its ratios are not compared and do not go into the table")
    if code:
        print("\ninterrupted")
        return code
    if args.write_table:
        table.write(args.table, results.write(args.results, found))
    if args.check:
        note, worse = results.compare(found, kept)
        print(f"\n{note}")
        problems += worse
    if problems:
        raise UserError(*problems)
    return 0


def _measure(args: argparse.Namespace) -> tuple[results.Report, list[str], int]:
    """(what was measured, what failed, the exit code); Ctrl-C ends it and keeps what was measured."""
    schema = Schema()
    schema.override([("DEVICE", args.device, "--device"), ("DTYPE", args.dtype, "--dtype")])
    options = schema.bind(device.SystemOptions)
    dtype = str(device.choose(options).dtype).removeprefix("torch.")
    # With an explicit dtype, the machine's description does not say why the dtype was chosen.
    machine = device.choose(dataclasses.replace(options, dtype=dtype))
    timer = Timer(machine.device, args.rounds, args.within, args.allow_busy)
    bench = Bench(machine, args.size, timer, args.peer, brief=_GOALS in (args.only or ()))
    print(f"{machine.use().words()}, PyTorch {torch.__version__}, size {args.size}", flush=True)
    problems, code = [], 0
    left_out = {*_LONG} | ({"track"} if args.realtime else set())
    unasked = [name for name in SECTIONS if name not in left_out and (args.ref or not name.startswith(_PEER))]
    asked = args.only or unasked
    if bench.brief:
        asked = [name for name in unasked if name not in _NO_GOALS or name in asked]
    end = time.perf_counter() + 60 * args.minutes
    for number, name in enumerate(asked):
        now = time.perf_counter()
        timer.until = now + (end - now) / (len(asked) - number)  # what a section leaves is for those after it
        try:
            for measure in SECTIONS[name]:
                try:
                    measure(bench)
                except UserError as error:  # continue with the others
                    problems.append(f"{name}: {error}")
        except KeyboardInterrupt:
            code = 130
            break
    facts = {"machine": results.machine(machine), "torch": torch.__version__, "size": args.size}
    facts |= {"date": time.strftime("%Y-%m-%d"), "allow_busy": args.allow_busy}
    return facts | {"sections": bench.sections}, problems, code


def _read(path: Path) -> tuple[results.Report, list[str], int]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--report {path}: cannot be read: {error}") from None
    busy = {title: section["busy"] for title, section in found["sections"].items() if "busy" in section}
    return found, [f"{title}: {foreign.words(share)}" for title, share in busy.items()], 0


def _check(args: argparse.Namespace) -> None:
    """Raise UsageError for invalid arguments."""
    if args.rounds < 1:
        raise UsageError(f"--rounds must be 1 or more; got {args.rounds}")
    if not args.minutes > 0:
        raise UsageError(f"--minutes must be more than 0; got {args.minutes:g}")
    if not 0 <= args.within < 1:
        raise UsageError(f"--within must be 0 or more and less than 1; got {args.within:g}")
    if args.allow_busy and (args.check or args.write_table):
        raise UsageError("--allow-busy: such figures are not compared; leave out --check and --write-table")
    if args.realtime and "track" in (args.only or ()):
        raise UsageError("--only track: trackers run at the lowest priority; leave out --realtime")
    if args.json and not (args.json.parent.is_dir() and os.access(args.json.parent, os.W_OK)):
        raise UsageError(f"--json {args.json}: cannot be written; name a file in a writable folder")
    if args.size != "gpt2" and (args.check or args.write_table):
        raise UsageError(
            f"--size {args.size}: the table is of size gpt2; leave out --check and --write-table, or --size"
        )
    args.peer = None
    if args.ref:
        args.peer = reference.check(args.ref)
    elif any(name.startswith(_PEER) for name in args.only or ()):
        raise UsageError("--only peer-...: name what to compare with: --ref FOLDER, or --ref transformers")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*SECTIONS, _GOALS],
        metavar="SECTION",
        help=f"what to measure: {', '.join(SECTIONS)}; or {_GOALS}, whatever has some [all but {' and '.join(_LONG)}]",
    )
    parser.add_argument(
        "--ref", metavar="PEER", help="to compare with: a checkout of nanoGPT or nanochat, or transformers [none]"
    )
    parser.add_argument(
        "--size", choices=SIZES, default="gpt2", help="of the models: gpt2, or tiny for a quick look [gpt2]"
    )
    parser.add_argument("--rounds", type=int, default=15, help="the most rounds, after one to warm up [15]")
    parser.add_argument(
        "--within",
        type=float,
        default=0.03,
        metavar="SHARE",
        help="stop when the 95 %% interval of each median ratio reaches at most this far to each side [0.03]",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="about how long to measure; sections that need longer make fewer rounds, but at least one [no limit]",
    )
    parser.add_argument(
        "--allow-busy", action="store_true", help="measure also beside other programs, without verdicts"
    )
    parser.add_argument(
        "--realtime", action="store_true", help="run before all programs of normal priority, where that is permitted"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps [auto]")
    parser.add_argument("--dtype", default="auto", help="of matrix products: auto, float32, bfloat16 or float16 [auto]")
    parser.add_argument("--json", type=files.named, metavar="FILE", help="also write everything measured to this file")
    parser.add_argument(
        "--report", type=files.named, metavar="FILE", help="show a report that --json wrote; measure nothing"
    )
    parser.add_argument("--check", action="store_true", help="fail where a ratio is 10 %% worse than the kept one")
    parser.add_argument(
        "--write-table", action="store_true", help="keep the figures, and write the table of goals into the page"
    )
    parser.add_argument(
        "--page-only", action="store_true", help="write the page again from the kept figures; measure nothing"
    )
    kept, page = ROOT / "bench" / "results.json", ROOT / "docs" / "performance.md"
    parser.add_argument(
        "--results", type=files.named, default=kept, metavar="FILE", help="the kept figures [bench/results.json]"
    )
    parser.add_argument(
        "--table", type=files.named, default=page, metavar="PAGE", help="the page with the table [docs/performance.md]"
    )
    return parser


if __name__ == "__main__":
    run_program(main)
