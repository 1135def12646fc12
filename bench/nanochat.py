"""Runs the base training of nanochat, from a checkout of https://github.com/karpathy/nanochat, at the same shape.

Its model differs (rotary embeddings, no bias, a head and embeddings of its own for values), and so does its optimizer.
It prepares our text with its own programs. They need the package rustbpe.
"""

import importlib.util
import re
from pathlib import Path

import torch

from bench import documents, peer, process
from bench.peer import Way
from bench.whole import Outcome, Shape
from gpt2.data import tokenizer

FILES = ("nanochat/gpt.py",)  # by which a checkout is known
_SPECIAL = 9  # tokens that it adds to its 256 bytes
_STEP = re.compile(r"step (?P<step>\d+)/\d+ .*\| loss: (?P<loss>\S+) .*\| dt: (?P<ms>[\d.]+)ms")
_DOCUMENT = 1000  # characters
_SETTINGS = {"window-pattern": "L", "eval-every": -1, "core-metric-every": -1, "sample-every": -1}


def missing() -> list[str]:
    """The packages that it needs and this Python does not have."""
    return [name for name in ("rustbpe",) if importlib.util.find_spec(name) is None]


class Nanochat:
    """nanochat, whose optimizer does not run without the compiler."""

    name, eager = "nanochat", False

    def __init__(self, ref: Path):
        self.ref = ref

    def shipped(self, device: torch.device, dtype: str) -> Way:
        """By itself it uses float32 on a CPU."""
        return Way(dtype if device.type == "cuda" else "float32", compiled=True, shipped=True)

    def train(self, way: Way, shape: Shape, folder: Path, device: torch.device, variables: dict[str, str]) -> Outcome:
        """See Peer."""
        base = folder / "nanochat"
        variables = variables | {"PYTHONPATH": str(self.ref), "NANOCHAT_BASE_DIR": str(base)}
        if not base.is_dir():
            self._prepare(base, tokenizer.vocab_size(shape.tokenizer), variables)
        width = shape.n_embd // shape.n_layer
        settings = _SETTINGS | {
            "depth": shape.n_layer, "aspect-ratio": width, "head-dim": shape.n_embd // shape.n_head,
            "max-seq-len": shape.block_size, "device-batch-size": shape.batch_size, "total-batch-size": shape.tokens,
            "num-iterations": shape.warmup + shape.steps, "device-type": device.type,
        }  # fmt: skip
        variables |= {"NANOCHAT_DTYPE": way.dtype}
        words = ["-m", "scripts.base_train", *(f"--{name}={value}" for name, value in settings.items())]
        return peer.outcome(process.run(words, base, device, **variables), shape, f"--ref {self.ref}", _STEP)

    def _prepare(self, base: Path, vocabulary: int, variables: dict[str, str]) -> None:
        """Our text in the form of its data, and its tokenizer, with a vocabulary as near to ours as it can be."""
        import pyarrow  # slow to import
        import pyarrow.parquet

        data = base / "base_data_climbmix"
        data.mkdir(parents=True)
        text = "".join(documents())
        pieces = [text[first : first + _DOCUMENT] for first in range(0, len(text), _DOCUMENT)]
        cut = len(pieces) - len(pieces) // 20
        for number, part in enumerate((pieces[:cut], pieces[cut:])):  # the last file is for validation
            pyarrow.parquet.write_table(pyarrow.table({"text": part}), data / f"shard_{number:05d}.parquet")
        words = ["-m", "scripts.tok_train", f"--vocab-size={max(vocabulary, 256 + _SPECIAL)}"]
        process.run(words, base, torch.device("cpu"), **variables)
