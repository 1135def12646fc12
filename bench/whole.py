"""Training runs as a user starts them, each in its own process, on bins made here: speed, start, memory and loss."""

import contextlib
import itertools
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from bench import documents, process
from gpt2 import model as models
from gpt2.data import tokenizer
from gpt2.data.shards import TOKEN
from lib.config.kconf import Schema
from lib.record import journal

_VAL_SHARE = 20  # the last 1 / 20 of the text is for validation
LEARNING_RATE = 1e-4  # the first losses are compared: without warm-up, a larger rate makes them unstable
_OPTIONS = {
    "DATASET": "bins", "DATA_DIR": "bins", "WARMUP_STEPS": 0, "LR_SCHEDULE": "constant",
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

    @property
    def options(self) -> dict[str, str]:
        """The options of Espalier that choose this model and batch."""
        return {"MODEL_NAME": "custom"} | {name.upper(): str(value) for name, value in self.sizes.items()}


TINY = Shape(n_layer=1, n_head=2, n_embd=32, block_size=16, batch_size=2, tokenizer="bytes", warmup=1, steps=3)


class Outcome(NamedTuple):
    """The measurements of a run."""

    step_seconds: float  # median of the timed steps
    first_step_seconds: float  # from the start of the process to its first `train` record
    seconds: float  # of the whole process
    peak_bytes: int
    loss: float  # mean of the timed steps, in nats per token


def medians(outcomes: list[Outcome]) -> dict[str, float]:
    """Figures of a program over several runs, but its speed and its start, which have sections of their own."""
    seconds, peak, loss = (
        statistics.median(getattr(done, name) for done in outcomes) for name in ("seconds", "peak_bytes", "loss")
    )
    return {"whole s": seconds, "peak MiB": peak / 2**20, "loss": loss}


def compilable(shape: Shape, device: torch.device) -> bool:
    """Whether the benchmark compiles: not where it would take longer than all the rest, and not on mps."""
    return shape != TINY and device.type != "mps"


def caches(folder: Path) -> dict[str, str]:
    """Environment variables by which the compiler keeps its results in `folder`."""
    return {name: str(folder / name) for name in _CACHES}


def flops_per_token(shape: Shape) -> int:
    """The model's own count for a forward and backward pass."""
    schema = Schema()
    schema.override([(name, value, "bench") for name, value in shape.options.items()])
    with torch.device("meta"):
        vocabulary = tokenizer.vocab_size(shape.tokenizer)
        return models.GPT2(schema.bind(models.ModelOptions), vocabulary).flops_per_token()


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


def train(
    shape: Shape, folder: Path, device: torch.device, variables: Mapping[str, str] | None = None, **options: str
) -> Outcome:
    """Train `shape` in `folder`, which `scratch` made, with options as a user gives them; raises UserError.

    It is compiled, as `auto` compiles long runs, unless it is not `compilable` or an option says so. `variables` are
    for the environment.
    """
    with tempfile.TemporaryDirectory(dir=folder) as made:
        here = Path(made)
        (here / "bins").symlink_to(folder / shape.tokenizer)
        given = shape.options | _OPTIONS | {
            "TOKENIZER": shape.tokenizer, "MAX_ITERS": shape.warmup + shape.steps, "EVAL_SAMPLES": shape.batch_size,
            "DEVICE": device.type, "COMPILE": "y" if compilable(shape, device) else "n",
        }  # fmt: skip
        done = process.ours("train.py", given | options, here, device, **variables or {})
        records = [r for r in journal.history(here / "runs" / "run").values() if r["event"] == "train"]
    counted = [
        record for record in records if record["step"] >= shape.warmup
    ]  # the first of them only starts the clock
    seconds = statistics.median(
        (b["time"] - a["time"]) / (b["step"] - a["step"]) for a, b in itertools.pairwise(counted)
    )
    loss = statistics.mean(journal.numbers(record)["train_loss"] for record in counted[1:])
    return Outcome(seconds, records[0]["time"] - done.began, done.seconds, done.peak_bytes, loss)
