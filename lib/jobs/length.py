"""How long a job may take: from a run of the same shape that a job measured, or from the user's tokens per second."""

import math
from pathlib import Path

from lib.base.errors import UserError
from lib.compare.estimate import COSTLY
from lib.config.kconf import Schema
from lib.jobs import record
from lib.record import history, run

ON_TOP = 1.3  # times the estimate, because machines differ and a job is killed when its time is over
START = 15 * 60  # seconds until the first step: the machine, the packages, the data. An allowance, not a measurement


def estimate(schema: Schema, runs: Path, flavor: str, tokens_per_second: float | None) -> tuple[int, str] | None:
    """Seconds for a run of this configuration, and from what; None if neither is known.

    A measured run in the folder `runs` counts if a job made it on the same machine (`flavor`). It must also have the
    same values of the options that decide the time of a step. Its time includes evaluations and checkpoints.
    """
    tokens = schema["MAX_ITERS"] * schema["BATCH_SIZE"] * schema["GRADIENT_ACCUMULATION"] * schema["BLOCK_SIZE"]
    source = f"{tokens_per_second:,.0f} tokens/s" if tokens_per_second else ""
    if not tokens_per_second:
        found = _measured(schema, runs, flavor)
        if found is None:
            return None
        folder, tokens_per_second = found
        source = f"{tokens_per_second:,.0f} tokens/s of {folder}"
    seconds = START + ON_TOP * tokens / tokens_per_second
    return math.ceil(seconds / 60) * 60, f"{tokens:,} tokens at {source}, 30 % more, and {START // 60} minutes to start"


def _measured(schema: Schema, runs: Path, flavor: str) -> tuple[Path, float] | None:
    """The newest run of the same shape on the same machine, and its tokens per second of the whole time."""
    shape, found = _shape(schema), []
    for folder in run.folders(runs):
        try:
            known = record.load(folder)
            whole = (folder / "summary.json").exists()
            if known is None or (known.kind, known.flavor, whole) != ("train", flavor, True):
                continue
            other = Schema()
            other.load(folder / ".config", ranges=False)
            facts = history.summary(folder)
            speed = facts["tokens"] / facts["total_time_seconds"]
        except (UserError, KeyError, TypeError, ZeroDivisionError):  # a damaged run measures nothing
            continue
        if _shape(other) == shape and 0 < speed < math.inf:
            found.append(((folder / "summary.json").stat().st_mtime, folder, speed))
    return max(found)[1:] if found else None


def _shape(schema: Schema) -> tuple[str, ...]:
    return tuple(schema.options[name].text for name in COSTLY if name != "DEVICE")
