"""What every reader of weights gives: where they are, the shape of the model, and its tensors."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from gpt2.data import tokenizer as tokenizers
from gpt2.weights import layers
from gpt2.weights.layers import Shape
from lib.base.errors import UserError
from lib.config.kconf import Schema
from lib.config.option import Option
from lib.record import lineage


@functools.cache
def _options() -> Mapping[str, Option]:
    """All options with their default values; reading Kconfig takes 50 ms."""
    return Schema().options


def check(path: Path, shape: Shape) -> None:
    """Raise UserError for a shape that no configuration has: a received file may ask for any number of tensors."""
    for name in ("n_layer", "n_head", "n_embd", "block_size"):
        if predicate := _options()[name.upper()].out_of_range(str(getattr(shape, name))):
            raise UserError(f"{path}: {name} {predicate}; use other weights")
    if shape.n_embd % shape.n_head:
        raise UserError(f"{path}: n_embd={shape.n_embd} is no multiple of n_head={shape.n_head}; correct the file")
    try:
        layers.neurons(shape.mlp_widths, shape.n_layer, shape.n_embd)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights that can be read. Their tensors have not been read yet."""

    given: str  # as the user named it
    kind: str  # run, huggingface or nanogpt
    path: Path  # the checkpoint of a run, the folder, or the file ckpt.pt
    shape: Shape
    tokenizer: str  # gpt2 or bytes; "" if the vocabulary fits neither
    activation: str  # as the option ACTIVATION has it: gelu-tanh or gelu
    revision: str  # commit of the hub's repository; "" for local files
    step: int  # of the run; 0 for other sources
    # What was trained on the way to these weights: run id (or a foreign model of the hub, OWNER/NAME@COMMIT) -> tokens;
    # None: unknown. Every run counts once, with the tokens that it needed for its part.
    ancestors: dict[str, int | None]
    foreign: str = ""  # of a local model of others, the name of its folder

    def lineage(self, sha256: str) -> dict[str, int | None]:
        """`ancestors` with a local model of others, which only its content tells from others of the same name."""
        return {**self.ancestors, f"{self.foreign} {sha256[:12]}": None} if self.foreign else self.ancestors

    def flops(self, average: float | None) -> dict[str, list[float] | None]:
        """The operations for each of `ancestors`, as far as they are known: those of runs. Reads the run's journal.

        `average` is that of its `Weights`.
        """
        return lineage.flops(self.path.parent.parent, self.step, average) if self.kind == "run" else {}


@dataclasses.dataclass(frozen=True)
class Weights:
    """Tensors with the names and the orientation of our model, on the CPU, in float32."""

    state: dict[str, Tensor]  # exactly the tensors of GPT2's state; wte.weight has one row for each token id
    sha256: str  # of the whole file; of several files, the SHA-256 of their sorted "name sha256" lines
    masks: dict[str, Tensor]  # parameter name -> uint8 mask of its shape, 1 where kept; {} if it was never pruned
    average: float | None = None  # weights in scope that were kept, mean over the steps of a run that prunes


class Content(NamedTuple):
    """What the files of a source hold, before it is checked and cut."""

    tensors: Iterable[tuple[str, Tensor]]  # with the names and the orientation of our model; read one by one
    masks: dict[str, Tensor]  # as in Weights
    average: float | None = None  # as in Weights


def rows(block_size: int, vocab_size: int) -> dict[str, int]:
    """Tensor -> how many of its rows a model with so many positions and tokens has."""
    return {"wte.weight": vocab_size, "wpe.weight": block_size}


def cut(masks: Mapping[str, Tensor], block_size: int, vocab_size: int) -> dict[str, Tensor]:
    """The masks of a model with so many positions and tokens, cut as its weights are."""
    kept = rows(block_size, vocab_size)
    return {name: mask[: kept.get(name, len(mask))] for name, mask in masks.items()}


def tokenizer(rows: int) -> str:
    """The tokenizer for an embedding of so many rows: its ids, and at most as much padding as makes 50,304 of GPT-2's.

    "" if there is none.
    """
    if tokenizers.vocab_size("gpt2") <= rows <= 50304:
        return "gpt2"
    return "bytes" if rows == tokenizers.vocab_size("bytes") else ""
