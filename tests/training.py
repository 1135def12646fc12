"""Runs the real trainer on a tiny model and a small text, for tests of whole runs."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

from lib.kconf import Schema

ROOT = Path(__file__).resolve().parents[1]
TEXT = "".join(f"{n} squared is {n * n}, and its cube is {n**3}.\n" for n in range(2000))
TINY = {
    "model_name": "custom", "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32, "dropout": 0.1,
    "dataset": "files", "dataset_source": "corpus.txt", "tokenizer": "bytes",
    "batch_size": 4, "gradient_accumulation": 2, "max_iters": 40, "warmup_steps": 5, "learning_rate": 0.003,
    "eval_interval": 10, "eval_samples": 8, "log_interval": 1, "checkpoint_interval": 10,
    "device": "cpu", "dtype": "float32", "threads": 1, "seed": 7, "sample_tokens": 20, "tracker_run_name": "run",
    "system_metrics_interval": 0,
}  # fmt: skip


def arguments(**changes: object) -> list[str]:
    """Flags of the tiny run, with changes; False and True are --no-x and --x."""
    flags = []
    for name, value in (TINY | changes).items():
        flag = name.replace("_", "-")
        flags += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return flags


def start(folder: Path, *words: str, **popen: object) -> subprocess.Popen:
    """Start `python gpt2/train.py <words>` in `folder`, which gets the corpus."""
    (folder / "corpus.txt").write_text(TEXT)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("CONFIG_", "WANDB", "TRACKIO"))}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "gpt2" / "train.py"), *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **popen,
    )


def train(folder: Path, *words: str, code: int = 0) -> str:
    """Train to the end and return what was printed; fails when the exit code is not `code`."""
    process = start(folder, *words)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    return output


def losses(run: Path) -> dict[int, float]:
    """step -> train_loss, as written in a run's journal."""
    return {r["step"]: r["metrics"]["train_loss"] for r in records(run, "train")}


def records(run: Path, event: str) -> list[dict]:
    """The events of a kind in a run's journal, as often as they are in it."""
    lines = (run / "journal.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == event]


def text(value: object) -> str:
    """An option's value as a configuration writes it."""
    return {True: "y", False: "n"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def schema(folder: Path, **changes: object) -> Schema:
    """The configuration of the tiny run in `folder`, which gets the corpus; raises ConfigError for what cannot be."""
    (folder / "corpus.txt").write_text(TEXT)
    values = TINY | {"dataset_source": folder / "corpus.txt", "data_dir": folder / "data"} | changes
    made = Schema()
    made.override([(name.upper(), text(value), "test") for name, value in values.items()])
    return made


class Records(list):
    """A recorder that keeps the events: (event, step, metrics)."""

    def write(self, event: str, step: int, metrics: dict[str, float]) -> None:
        self.append((event, step, metrics))

    def tick(self) -> None:
        pass

    def busy(self, what: str) -> contextlib.nullcontext:
        return contextlib.nullcontext()

    def save(self, step: int) -> None:
        pass


def run(made: Schema) -> Records:
    """Train in this process, without a run folder; returns what the loop recorded."""
    from gpt2 import loop
    from gpt2.session import Session
    from lib import device

    session, records = Session(made, device.choose(made.bind(device.SystemOptions))), Records()
    options = made.bind(loop.LoopOptions)
    loop.train(session.training, session.data, session.machine, options, session.schedule, records, lambda: False)
    return records
