"""Makes the folders of finished runs and of their sweep without training, for tests of reports."""

import json
from collections.abc import Mapping
from pathlib import Path

from tests.runs import ended, evaluated, trained, write

OPTIONS = {
    "model_name": "custom", "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32, "dataset": "stdlib",
    "tokenizer": "bytes", "val_fraction": 0.05, "max_iters": 40, "batch_size": 2, "gradient_accumulation": 1,
    "evaluate": True, "eval_samples": 8, "pruning_method": "none", "learning_rate": 0.002, "tracker": [],
}  # fmt: skip


def run(folder: Path, seed: int, loss: float, status: str = "finished", **options: object) -> Path:
    """A run of 40 steps that ends with this validation loss."""
    config = OPTIONS | {"seed": seed} | options
    steps = config["max_iters"] if status == "finished" else 20
    final = {"final_val_loss": loss, "best_val_loss": loss, "total_time_seconds": 12.5} if status == "finished" else {}
    events = [*trained(*range(1, steps + 1)), evaluated(steps, loss), ended(steps, status, **final)]
    write(folder, *events, config=config)
    if status == "finished":
        tokens = steps * config["batch_size"] * config["block_size"]
        summary = final | {
            "steps": steps, "tokens": tokens, "sparsity": 0.0, "average_nonzeros": 24576, "weights_in_scope": 24576,
            "parameters": 34688,
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary | {"run": str(folder), "status": "finished"}))
    return folder


def trained_on(folder: Path, data: str) -> None:
    """Let the journal of a run have this fingerprint of the data."""
    start, rest = (folder / "journal.jsonl").read_text().split("\n", 1)
    line = json.dumps(json.loads(start) | {"data": data}, separators=(",", ":"))
    (folder / "journal.jsonl").write_text(f"{line}\n{rest}")


def sweep(folder: Path, losses: Mapping[str, Mapping[int, float]], **more: Mapping[str, object]) -> Path:
    """A sweep's folder with its results.json. `more` has further options for a configuration, `_` for its hyphens."""
    rows = []
    for name, by_seed in losses.items():
        options = more.get(name.replace("-", "_"), {})
        runs = [run(folder / f"{name}-seed{seed}", seed, loss, **options) for seed, loss in by_seed.items()]
        entries = [{"seed": seed, "folder": str(path)} for seed, path in zip(by_seed, runs, strict=True)]
        rows.append({"configuration": name, "runs": entries})
    found = {"sweep": folder.name, "seeds": [1, 2, 3], "configurations": rows}
    (folder / "results.json").write_text(json.dumps(found))
    return folder
