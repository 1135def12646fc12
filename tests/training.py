"""Runs the real trainer on a tiny model and a small text, for tests of whole runs."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from lib.config.kconf import Schema
from tests.forked import Trainer

ROOT = Path(__file__).resolve().parents[1]
TEXT = "".join(f"{n} squared is {n * n}, and its cube is {n**3}.\n" for n in range(2000))
TINY = {
    "model_name": "custom", "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32, "dropout": 0.1,
    "dataset": "files", "dataset_source": "corpus.txt", "tokenizer": "bytes",
    "batch_size": 4, "gradient_accumulation": 2, "max_iters": 40, "warmup_steps": 5, "learning_rate": 0.003,
    "eval_interval": 10, "eval_samples": 8, "log_interval": 1, "checkpoint_interval": 10,
    "device": "cpu", "dtype": "float32", "threads": 1, "seed": 7, "sample_tokens": 20, "tracker_run_name": "run",
    "system_metrics_interval": 0, "checkpoint_best": False,
}  # fmt: skip
UNEVALUATED = {"evaluate": False, "eval_interval": None, "eval_samples": None, "checkpoint_best": None}  # changes


def options(**changes: object) -> dict[str, object]:
    """The options of the tiny run, with changes; None leaves an option out."""
    return {name: value for name, value in (TINY | changes).items() if value is not None}


def arguments(**changes: object) -> list[str]:
    """Flags of the tiny run, with changes; False and True are --no-x and --x, None leaves an option out."""
    flags = []
    for name, value in options(**changes).items():
        flag = name.replace("_", "-")
        flags += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return flags


def start(folder: Path, *words: str, pictures: bool = False) -> Trainer:
    """Write the corpus to `folder` and start a forked trainer there with these words."""
    (folder / "corpus.txt").write_text(TEXT)
    return Trainer(folder, list(words), environment(), pictures=pictures)


def program(folder: Path, *words: str, **popen: object) -> subprocess.Popen:
    """Start `python gpt2/train.py <words>` as a real process, for tests of the start or of the process."""
    (folder / "corpus.txt").write_text(TEXT)
    return subprocess.Popen(
        [sys.executable, str(ROOT / "gpt2" / "train.py"), *words],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **popen,
    )


def environment() -> dict[str, str]:
    """The environment of this process, without variables that would configure the trainer."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("CONFIG_", "WANDB"))}


def train(folder: Path, *words: str, code: int = 0, by: Callable[..., Trainer | subprocess.Popen] = start) -> str:
    """Train to the end and return what was printed; fails when the exit code is not `code`."""
    process = by(folder, *words)
    output, _ = process.communicate(timeout=600)  # to compile takes minutes on a busy machine
    assert process.returncode == code, output
    return output


def losses(run: Path) -> dict[int, float]:
    """step -> train_loss, as written in a run's journal."""
    return {r["step"]: r["metrics"]["train_loss"] for r in records(run, "train")}


def records(run: Path, event: str) -> list[dict]:
    """All events of a kind in a run's journal, including repeated ones."""
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    whole = (line for line in lines if line.endswith("\n"))  # the last line may be incomplete
    return [record for record in map(json.loads, whole) if record["event"] == event]


def same(a: object, b: object) -> bool:
    """Whether nested dictionaries, lists and tensors are equal, bit for bit."""
    import torch

    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def rewrite(path: Path, state: dict) -> None:
    """Replace the state in the checkpoint at `path`: the header stays, and the checksum fits."""
    from lib.record import checkpoint, checkpoint_file

    header = checkpoint_file.header(path)
    about = {name: header[name] for name in ("run", "run_id", "model")}
    checkpoint.save(path.parent, header["step"], state, checkpoint.Keeping(1000, False, ""), about)


def text(value: object) -> str:
    """An option's value as a configuration writes it."""
    return {True: "y", False: "n"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def schema(folder: Path, **changes: object) -> Schema:
    """Write the corpus to `folder`; returns the configuration of the tiny run there. Raises ConfigError."""
    (folder / "corpus.txt").write_text(TEXT)
    values = options(**{"dataset_source": folder / "corpus.txt", "data_dir": folder / "data"} | changes)
    made = Schema()
    made.override([(name.upper(), text(value), "test") for name, value in values.items()])
    return made


class Records(list):
    """A recorder that only keeps the events: (event, step, metrics)."""

    def write(self, event: str, step: int, metrics: dict[str, float], **details: object) -> None:
        self.append((event, step, metrics))

    def alert(self, kind: str, level: str, message: str, step: int) -> None:
        self.append((f"alert {kind}", step, {}))

    def tick(self) -> None:
        pass

    def busy(self, what: str) -> contextlib.nullcontext:
        return contextlib.nullcontext()

    def save(self, step: int) -> None:
        pass


def run(made: Schema) -> Records:
    """Train in this process, without a run folder; returns what the loop recorded."""
    sys.audit("espalier.train")  # --quick skips the test here
    from gpt2 import loop
    from gpt2.session import Session
    from lib.machine import device

    session, records = Session(made, device.choose(made.bind(device.SystemOptions))), Records()
    options = made.bind(loop.LoopOptions)
    loop.train(session.training, session.data, session.machine, options, session.schedule, records, lambda: False)
    return records
