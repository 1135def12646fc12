"""Creates run folders without training, for tests of code that reads them."""

import json
from pathlib import Path
from typing import Any

from lib.record.journal import Journal

NOON = 1_795_262_400.0  # unix seconds of the first record; the others follow one second apart


def write(folder: Path, *events: tuple[str, int, dict[str, float], dict[str, Any]], config: dict | None = None) -> Path:
    """Write a run folder: its journal has a start with `config`, then `events` (name, step, metrics, details)."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "run.json").exists():
        identity = {"run_id": "0123456789ab", "project": "project", "name": folder.name}
        (folder / "run.json").write_text(json.dumps(identity))
    moments = iter(range(1000))
    book = Journal(folder, clock=lambda: NOON + next(moments))
    book.write("start", 0, config=config or {"max_iters": 40, "tracker": []}, machine="cpu")
    for name, step, metrics, details in events:
        book.write(name, step, metrics, **details)
    book.close()
    return folder


def trained(*steps: int) -> list[tuple[str, int, dict[str, float], dict[str, Any]]]:
    """A `train` event for each step, with loss 8 / step."""
    rate = {"learning_rate": 0.5, "sparsity": 0.0, "tokens_per_second": 100.0}
    return [("train", step, {"train_loss": 8 / step, "tokens": 64 * step} | rate, {}) for step in steps]


def evaluated(step: int, loss: float) -> tuple[str, int, dict[str, float], dict[str, Any]]:
    """An `eval` event."""
    return "eval", step, {"val_loss": loss, "val_perplexity": 2.0}, {}


def ended(step: int, status: str = "finished", **metrics: float) -> tuple[str, int, dict[str, float], dict[str, Any]]:
    """A `finish` event."""
    return "finish", step, metrics, {"status": status}
