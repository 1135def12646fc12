"""The size and shape of a model, with a check that needs no PyTorch."""

import dataclasses

from lib.base.errors import UsageError
from lib.config.kconf import Options


@dataclasses.dataclass(frozen=True)
class ModelOptions(Options):
    """What the model computes: size, shape and activation."""

    model_name: str
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int  # tokens
    dropout: float
    activation: str  # gelu-tanh or gelu


def check(options: ModelOptions) -> None:
    """Raise UsageError if N_EMBD is not a multiple of N_HEAD."""
    if options.n_embd % options.n_head:
        raise UsageError(
            f"N_EMBD={options.n_embd} cannot be divided among N_HEAD={options.n_head} heads; choose a multiple"
        )
