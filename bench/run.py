"""Measure what training, pruning, optimizers, checkpoints, trackers and data preparation cost on this machine.

Variants take turns in every round. A ratio is the median of the ratios of all rounds, so a disturbance of a whole round
does not change it. The machine's peak rates are measured too, so that figures can be compared across machines.

A quick look:                 make bench ARGS="--size tiny --rounds 1"
One section, at GPT-2's size: make bench ARGS="--only prune"
"""

import argparse
import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from lib.base import threads

threads.spin_little()  # as in training

import torch

from bench import (
    SIZES,
    Bench,
    ceilings,
    oneshot,
    optimizers,
    prepare,
    pruning,
    reference,
    report,
    saving,
    scale,
    start,
    step,
    tracking,
    utilisation,
)
from lib.base import files
from lib.base.errors import UsageError, UserError, run_program
from lib.config.kconf import ROOT, Schema
from lib.machine import device

SECTIONS: dict[str, list[Callable[[Bench], None]]] = {  # what --only names -> what it measures, in this order
    "ceilings": [ceilings.ceilings],
    "prune": [pruning.memory, pruning.threshold, pruning.masks],
    "oneshot": [oneshot.parts],
    "oneshot-whole": [oneshot.whole],
    "optim": [optimizers.optimizers],
    "step": [step.step],
    "save": [saving.saving],
    "prepare": [prepare.prepare],
    "start": [start.start],
    "track": [tracking.tracking],
    "train": [utilisation.utilisation, utilisation.start],
    "scale-prune": [scale.thresholds],
    "scale-train": [scale.training],
    "scale-journal": [scale.journals],
    **{f"nanogpt-{name}": [functools.partial(reference.speed, name=name)] for name in reference.COMPARISONS},
    "nanogpt-memory": [reference.memory],
}

_LONG = "oneshot-whole"  # takes minutes, so it is only measured when it is named


def main() -> int:
    """Measure the chosen sections or read a report; then print, store or compare it. Returns the exit code."""
    args = _parser().parse_args()
    _check(args)
    table = report.read_table(args.table) if args.check else []
    found, problems, code = _read(args.report) if args.report else _measure(args)
    for title, section in found["sections"].items():
        print(f"\n{report.text(title, section)}")
    if args.json:
        files.write_json(args.json, found)
    if code:
        print("\ninterrupted")
        return code
    if args.write_table:
        report.write_table(args.table, found)
    if args.check:
        note, worse = report.compare(found, table)
        print(f"\n{note}")
        problems += worse
    if problems:
        raise UserError(*problems)
    return 0


def _measure(args: argparse.Namespace) -> tuple[report.Report, list[str], int]:
    """(what was measured, what failed, the exit code); Ctrl-C ends it and keeps what was measured."""
    schema = Schema()
    schema.override([("DEVICE", args.device, "--device"), ("DTYPE", args.dtype, "--dtype")])
    options = schema.bind(device.SystemOptions)
    dtype = str(device.choose(options).dtype).removeprefix("torch.")
    # With an explicit dtype, the machine's description does not say why the dtype was chosen.
    machine = device.choose(dataclasses.replace(options, dtype=dtype))
    bench = Bench(machine, args.size, args.rounds, args.ref)
    print(f"{bench.machine.use().words()}, PyTorch {torch.__version__}, size {args.size}", flush=True)
    problems, code = [], 0
    unasked = [name for name in SECTIONS if name != _LONG and (args.ref or not name.startswith("nanogpt"))]
    for name in args.only or unasked:
        try:
            for measure in SECTIONS[name]:
                measure(bench)
        except UserError as error:  # continue with the other sections
            problems.append(f"{name}: {error}")
        except KeyboardInterrupt:
            code = 130
            break
    facts = {"machine": bench.machine.use().words(), "torch": torch.__version__, "size": args.size}
    return facts | {"date": time.strftime("%Y-%m-%d"), "sections": bench.sections}, problems, code


def _read(path: Path) -> tuple[report.Report, list[str], int]:
    try:
        return json.loads(path.read_text(encoding="utf-8")), [], 0
    except (OSError, ValueError) as error:
        raise UserError(f"--report {path}: cannot be read: {error}") from None


def _check(args: argparse.Namespace) -> None:
    """Raise UsageError for invalid arguments."""
    if args.rounds < 1:
        raise UsageError(f"--rounds must be 1 or more; got {args.rounds}")
    if args.json and not (args.json.parent.is_dir() and os.access(args.json.parent, os.W_OK)):
        raise UsageError(f"--json {args.json}: cannot be written; name a file in a writable folder")
    if args.size != "gpt2" and (args.check or args.write_table):
        raise UsageError(
            f"--size {args.size}: the table is of size gpt2; leave out --check and --write-table, or --size"
        )
    if args.ref:
        args.ref = args.ref.resolve()
        reference.check(args.ref)
    elif any(name.startswith("nanogpt") for name in args.only or ()):
        raise UsageError("--only nanogpt-...: say where a checkout of karpathy/nanoGPT is: --ref FOLDER")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SECTIONS,
        metavar="SECTION",
        help=f"what to measure: {', '.join(SECTIONS)} [all but {_LONG}]",
    )
    parser.add_argument(
        "--ref", type=files.named, metavar="FOLDER", help="a checkout of nanoGPT to compare with [none]"
    )
    parser.add_argument(
        "--size", choices=SIZES, default="gpt2", help="of the models: gpt2, or tiny for a quick look [gpt2]"
    )
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one to warm up [5]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps [auto]")
    parser.add_argument("--dtype", default="auto", help="of matrix products: auto, float32, bfloat16 or float16 [auto]")
    parser.add_argument("--json", type=files.named, metavar="FILE", help="also write everything measured to this file")
    parser.add_argument(
        "--report", type=files.named, metavar="FILE", help="show a report that --json wrote; measure nothing"
    )
    parser.add_argument("--check", action="store_true", help="fail where a ratio is 10 %% worse than in the table")
    parser.add_argument("--write-table", action="store_true", help="write the ratios into the table")
    table = ROOT / "docs" / "performance.md"
    parser.add_argument(
        "--table", type=files.named, default=table, metavar="PAGE", help="the page with the table [docs/performance.md]"
    )
    return parser


if __name__ == "__main__":
    run_program(main)
