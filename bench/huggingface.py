"""Runs transformers' Trainer on GPT2LMHeadModel, by trainer.py."""

import importlib.util
from pathlib import Path

import torch

from bench import peer, process, whole
from bench.peer import Way
from bench.whole import Outcome, Shape
from gpt2.data import tokenizer

PACKAGES = ("transformers", "accelerate")
_PROGRAM = Path(__file__).with_name("trainer.py")


def missing() -> list[str]:
    """The packages that it needs and this Python does not have."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


class Trainer:
    """transformers' Trainer. As shipped it computes in float32 and does not compile."""

    name, eager = "Trainer", True

    def shipped(self, device: torch.device, dtype: str) -> Way:
        """By the defaults of its arguments."""
        return Way("float32", compiled=False, shipped=True)

    def train(self, way: Way, shape: Shape, folder: Path, device: torch.device, variables: dict[str, str]) -> Outcome:
        """See Peer. Its GPT-2 has the same bias and vocabulary as ours in any case."""
        settings = shape.sizes | {
            "vocab_size": tokenizer.vocab_size(shape.tokenizer), "bin": folder / shape.tokenizer / "train.bin",
            "max_steps": shape.warmup + shape.steps, "learning_rate": whole.LEARNING_RATE, "device": device.type,
            "dtype": way.dtype, "compile": int(way.compiled),
        }  # fmt: skip
        words = ["-P", str(_PROGRAM), *(f"--{name}={value}" for name, value in settings.items())]
        return peer.outcome(process.run(words, folder, device, **variables), shape, "transformers' Trainer")
