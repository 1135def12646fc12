"""Where weights can be read from: a run, a Hugging Face folder or hub name, or a checkpoint of nanoGPT."""

import dataclasses
from pathlib import Path

from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Shape:
    """The numbers that fix the shape of a GPT-2."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int  # positions
    vocab_size: int  # rows of the embedding, padding included


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights that can be read. Their tensors have not been read yet."""

    given: str  # as the user named it
    kind: str  # run, huggingface or nanogpt
    path: Path  # the checkpoint of a run, the folder, or the file ckpt.pt
    shape: Shape
    tokenizer: str  # gpt2 or bytes; "" if the vocabulary fits neither
    revision: str  # commit of the hub's repository; "" for local files
    step: int  # of the run; 0 for other sources
    # What was trained on the way to these weights: run id (or the name of a foreign model) -> tokens; None: unknown.
    # Every run counts once, with the tokens that it needed for its part.
    ancestors: dict[str, int | None]


@dataclasses.dataclass(frozen=True)
class Weights:
    """Tensors with the names and the orientation of our model, on the CPU, in float32."""

    state: dict[str, Tensor]  # exactly the tensors of GPT2's state; wte.weight has one row for each token id
    sha256: str  # of the file; of several files, the SHA-256 of their sorted "name sha256" lines
    masks: dict[str, Tensor]  # parameter name -> uint8 mask of its shape, 1 where kept; {} if it was never pruned


def find(given: str) -> Source:
    """The source that the value of INIT_FROM, or of a RUN@CHECKPOINT, names. Reads no tensors.

    A name on the hub is resolved to a commit, and its files are downloaded. Raises UserError with one sentence for
    everything that cannot be used.
    """
    raise NotImplementedError


def read(source: Source, block_size: int, vocab_size: int) -> Weights:
    """The weights of a source, cut to `block_size` positions and `vocab_size` tokens; raises UserError.

    Weights that are NaN or infinite, or that are missing, are errors.
    """
    raise NotImplementedError
