"""The dry run of a sweep: which runs it would make, with their tokens and estimates of disk and time."""

import dataclasses
import shutil
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from lib.compare.plan import Configuration, Run, Sweep
from lib.config.kconf import Schema
from lib.record import checkpoint_file
from lib.terminal.console import columns, duration, listed, roughly

WIDTH = 80
_SHOWN = 3  # names after a reason
_LABEL = 28  # characters of a row's label
# Configurations with the same values of these cost the same, apart from pruning.
COSTLY = (
    "MODEL_NAME N_LAYER N_HEAD N_EMBD MLP_WIDTHS HEAD_COUNTS BLOCK_SIZE TOKENIZER BATCH_SIZE GRADIENT_ACCUMULATION "
    "DEVICE DTYPE THREADS OPTIMIZER ADAMWPRUNE_BASE_OPTIMIZER_NAME DISTILL_FROM"
).split()


class Cost(Protocol):
    """What one configuration costs: seconds of a step, seconds to evaluate a window, bytes of a checkpoint."""

    step: float
    window: float
    checkpoint: int


@dataclasses.dataclass
class Part:
    """Runs of the same kind, cost and length."""

    label: str
    steps: int
    tokens: int  # of one run
    seconds: float | None  # of one run; None: not estimated
    disk: int  # bytes of one run's checkpoints, at most
    runs: list[Run] = dataclasses.field(default_factory=list)

    @property
    def left(self) -> int:
        """How many are still to be trained. A run that was begun counts as a whole one."""
        return sum(not run.finished for run in self.runs)


def parts(runs: Iterable[Run], trials: Iterable[Run], measure: Callable[[Schema], Cost], start: float) -> list[Part]:
    """All runs by kind, cost and length; `measure` is called once for each cost. `start` is in seconds per run."""
    schema, known, found, of = Schema(), {}, {}, {}
    for kind, run in [*(("", run) for run in runs), *(("tuning: ", run) for run in trials)]:
        one = run.configuration
        if (kind, one.name) not in of:
            one.resolve(schema)
            costly = tuple(schema.options[name].text for name in COSTLY)
            key = kind, one.oneshot, costly, schema["MAX_ITERS"], _disk_options(schema), _evaluations(schema)
            if key not in found:
                if costly not in known:
                    known[costly] = measure(schema)
                found[key] = _part(kind + _label(one, schema), one, schema, known[costly], start)
            of[kind, one.name] = found[key]
        of[kind, one.name].runs.append(run)
    return list(found.values())


def _part(label: str, one: Configuration, schema: Schema, cost: Cost, start: float) -> Part:
    steps = 0 if one.oneshot else schema["MAX_ITERS"]
    tokens = steps * schema["BATCH_SIZE"] * schema["GRADIENT_ACCUMULATION"] * schema["BLOCK_SIZE"]
    seconds = start + steps * cost.step + _evaluations(schema) * cost.window
    return Part(label, steps, tokens, None if one.oneshot else seconds, kept(schema) * cost.checkpoint)


def _label(one: Configuration, schema: Schema) -> str:
    size = f"{schema['N_LAYER']}x{schema['N_EMBD']}" if schema["N_LAYER"] else str(schema["MODEL_NAME"])
    return f"{'oneshot' if one.oneshot else schema['OPTIMIZER']} {size}"


def _disk_options(schema: Schema) -> tuple[str, ...]:
    names = "CHECKPOINT_KEEP CHECKPOINT_AT CHECKPOINT_BEST CHECKPOINT_INTERVAL".split()
    return tuple(schema.options[name].text for name in names)


def _evaluations(schema: Schema) -> int:
    """How many windows a run evaluates: before the first step, at each interval, and after the last step."""
    last, every = schema["MAX_ITERS"], schema["EVAL_INTERVAL"]
    return (1 + (-(-last // every) if every else 1)) * schema["EVAL_SAMPLES"]


def kept(schema: Schema) -> int:
    """How many checkpoints a finished run can have: the newest, the best one, and those that are kept for good."""
    last, every = schema["MAX_ITERS"], schema["CHECKPOINT_INTERVAL"]
    saved = -(-last // every) if every else 1
    for_good = len(checkpoint_file.steps(schema["CHECKPOINT_AT"]) - {last})
    return min(schema["CHECKPOINT_KEEP"], saved) + bool(schema["CHECKPOINT_BEST"]) + for_good


# ---- what is shown ---------------------------------------------------------------------------------------------------


def text(plan: Sweep, found: Sequence[Part], jobs: int, free: Callable[[Path], int] | None = None) -> str:
    """The dry run in words, at most 80 columns wide. `free` gives the free bytes of a folder's disk."""
    rows = [("", "runs", "to do", "steps", "tokens", "each", "together")]
    for part in found:
        each = "?" if part.seconds is None else roughly(part.seconds)
        together = "?" if part.seconds is None else roughly(part.seconds * part.left) if part.left else "-"
        sizes = f"{part.steps:,}", _short(part.tokens)
        rows.append((_name(part, found), f"{len(part.runs)}", f"{part.left}", *sizes, each, together))
    lines = [_first(plan, found), "", columns(rows), ""]
    lines += _totals(found, jobs)
    lines += [f"dropped: {listed(names, _SHOWN)}: {why}" for why, names in plan.dropped_by_reason().items()]
    needed = sum(part.disk * part.left for part in found)
    if needed > (room := (free or _free)(plan.folder)):
        lines.append(
            f"warning: {_bytes(room)} are free at {plan.folder}, and the runs can take {_bytes(needed)}; free some, or "
            "lower CHECKPOINT_KEEP"
        )
    return "\n".join(line if "\n" in line else textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in lines)


def _name(part: Part, found: Sequence[Part]) -> str:
    """The label of a row; where rows of equal length share it, also the configurations. Their end tells them apart."""
    if sum((other.label, other.steps) == (part.label, part.steps) for other in found) == 1:
        return part.label if len(part.label) <= _LABEL else part.label[: _LABEL - 1] + "~"
    names = list(dict.fromkeys(run.configuration.name for run in part.runs))
    label = f"{part.label}: {names[0]}" + (f" +{len(names) - 1}" if len(names) > 1 else "")
    return label if len(label) <= _LABEL else "~" + label[1 - _LABEL :]


def _first(plan: Sweep, found: Sequence[Part]) -> str:
    runs = [run for part in found for run in part.runs]
    trials = sum(len(part.runs) for part in found if part.label.startswith("tuning: "))
    reused = sum(run.elsewhere is not None for run in runs)
    done = sum(run.finished for run in runs) - reused
    reported = f"{_many(len(plan.configurations), 'configuration')} x {_many(len(plan.seeds), 'seed')}"
    return (
        f"{plan.name}: {_many(len(runs), 'run')}: {reported}{f', and {trials} of tuning' if trials else ''}. Finished: "
        f"{done}. Reused from other folders: {reused}. Still to be made: {len(runs) - done - reused}. "
        "Nothing was started."
    )


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _totals(found: Sequence[Part], jobs: int) -> list[str]:
    left = [part for part in found if part.left]
    seconds = sum(part.seconds * part.left for part in left if part.seconds is not None)
    lines = [
        f"still to train: {_short(sum(part.tokens * part.left for part in left))} tokens",
        f"disk: at most {_bytes(sum(part.disk * part.left for part in left))} of checkpoints",
        f"time: about {roughly(seconds / jobs) if seconds else duration(0)} with JOBS={jobs}. This is an estimate from "
        "a few steps of each model and optimizer on random tokens, and from one run of one step for what a run takes "
        "beside them. It leaves out preparing data, masks, saving large models, and that jobs slow each other.",
    ]
    if any(part.seconds is None for part in left):
        lines.append("?: not in the time; one-shot pruning has no steps that repeat, so a few of them show nothing.")
    return lines


def _free(folder: Path) -> int:
    """The free bytes of the disk where `folder` would be."""
    return shutil.disk_usage(
        next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    ).free


def _short(count: float) -> str:
    """`614,400`, `61.4 M`, `1.2 G`."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if count >= 10 * size or (count >= size and unit != "M"):
            return f"{count / size:,.1f} {unit}"
    return f"{count:,.0f}"


def _bytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e10 else f"{count / 1e6:,.1f} MB"
