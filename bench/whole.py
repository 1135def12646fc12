"""Training runs as a user starts them, each in its own process, on bins made here: speed, start, memory and loss."""

import contextlib
import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from bench import documents, process
from gpt2.data import tokenizer
from gpt2.data.shards import TOKEN
from lib.record import journal

_VAL_SHARE = 20  # the last 1 / 20 of the text is for validation
LEARNING_RATE = 1e-4  # the first losses are compared: without warm-up, a larger rate makes them unstable
_OPTIONS = {
    "MODEL_NAME": "custom", "DATASET": "bins", "DATA_DIR": "bins", "WARMUP_STEPS": 0, "LR_SCHEDULE": "constant",
    "LEARNING_RATE": LEARNING_RATE,
    "LOG_INTERVAL": 1, "EVAL_INTERVAL": 0, "CHECKPOINT_INTERVAL": 0, "SAMPLE_TOKENS": 0, "TRACKER": "none",
    "TRACKER_RUN_NAME": "run",
}  # fmt: skip
_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


class Shape(NamedTuple):
    """A model, its batch, and how many steps are timed."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int  # tokens
    batch_size: int
    tokenizer: str
    warmup: int  # steps before the timed ones
    steps: int  # timed steps

    @property
    def tokens(self) -> int:
        """The tokens of a step."""
        return self.batch_size * self.block_size

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that nanoGPT calls by the same names."""
        return {name: getattr(self, name) for name in ("n_layer", "n_head", "n_embd", "block_size", "batch_size")}


TINY = Shape(n_layer=1, n_head=2, n_embd=32, block_size=16, batch_size=2, tokenizer="bytes", warmup=1, steps=3)


class Outcome(NamedTuple):
    """The measurements of a run."""

    step_seconds: float  # median of the timed steps
    first_step_seconds: float  # from the start of the process to its first `train` record
    seconds: float  # of the whole process
    peak_bytes: int
    loss: float  # mean of the timed steps, in nats per token


class Program:
    """A run to repeat, as `run` of a Case that reports; it keeps all outcomes."""

    def __init__(self, run: Callable[[], Outcome]):
        self.run = run
        self.outcomes: list[Outcome] = []

    def __call__(self) -> float:
        """Run it once more; the median of its steps in seconds."""
        self.outcomes.append(self.run())
        return self.outcomes[-1].step_seconds

    def figures(self) -> dict[str, float]:
        """Medians of the other measurements."""
        _, first, seconds, peak, loss = map(statistics.median, zip(*self.outcomes, strict=True))
        return {"first step after s": first, "whole s": seconds, "peak MiB": peak / 2**20, "loss": loss}


@contextlib.contextmanager
def scratch(names: set[str]) -> Iterator[Path]:
    """A folder for runs that is removed at the end, with this Python's sources as `<tokenizer>/{train,val}.bin`."""
    with tempfile.TemporaryDirectory(prefix="espalier-bench-") as made:
        text = "".join(documents())
        for name in names:
            ids = tokenizer.load(name).encode_batch([text])[0].astype(TOKEN)
            (folder := Path(made, name)).mkdir()
            cut = len(ids) - len(ids) // _VAL_SHARE
            ids[:cut].tofile(folder / "train.bin")
            ids[cut:].tofile(folder / "val.bin")
        yield Path(made)


def train(shape: Shape, folder: Path, device: torch.device, cold: bool = False, **options: str) -> Outcome:
    """Train `shape` in `folder`, which `scratch` made, with options as a user gives them; raises UserError.

    It is compiled, as `auto` compiles runs of some minutes, unless it is TINY or on mps. A `cold` run begins with empty
    caches of the compiler.
    """
    with tempfile.TemporaryDirectory(dir=folder) as made:
        here = Path(made)
        (here / "bins").symlink_to(folder / shape.tokenizer)
        given = {name.upper(): value for name, value in shape.sizes.items()} | _OPTIONS | {
            "TOKENIZER": shape.tokenizer, "MAX_ITERS": shape.warmup + shape.steps, "EVAL_SAMPLES": shape.batch_size,
            "DEVICE": device.type, "COMPILE": "n" if shape == TINY or device.type == "mps" else "y",
        }  # fmt: skip
        caches = {name: str(here / name) for name in _CACHES} if cold else {}
        done = process.ours("train.py", given | options, here, device, **caches)
        records = [r for r in journal.history(here / "runs" / "run").values() if r["event"] == "train"]
    counted = [
        record for record in records if record["step"] >= shape.warmup
    ]  # the first of them only starts the clock
    seconds = statistics.median(
        (b["time"] - a["time"]) / (b["step"] - a["step"]) for a, b in itertools.pairwise(counted)
    )
    loss = statistics.mean(journal.numbers(record)["train_loss"] for record in counted[1:])
    return Outcome(seconds, records[0]["time"] - done.began, done.seconds, done.peak_bytes, loss)
