"""The size and shape of a model, and what follows from them. Needs no PyTorch."""

import dataclasses

from gpt2.weights import layers
from lib.base.errors import UsageError
from lib.config.kconf import Options
from lib.prune.kinds import Group, Part


@dataclasses.dataclass(frozen=True)
class ModelOptions(Options):
    """What the model computes: size, shape and activation. All layers are alike, as in the published models."""

    model_name: str
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int  # tokens
    dropout: float
    activation: str  # gelu-tanh or gelu

    @property
    def widths(self) -> tuple[int, ...]:
        """The neurons inside the MLP of each layer."""
        return (4 * self.n_embd,) * self.n_layer

    @property
    def heads(self) -> tuple[int, ...]:
        """The attention heads of each layer, each of width n_embd / n_head."""
        return (self.n_head,) * self.n_layer


@dataclasses.dataclass(frozen=True)
class ShapeOptions(ModelOptions):
    """A model whose layers may have lost neurons and heads, as `make shrink` leaves it. An empty text: none is lost."""

    mlp_widths: str
    head_counts: str

    @property
    def widths(self) -> tuple[int, ...]:
        """As in ModelOptions; raises UsageError."""
        return layers.neurons(self.mlp_widths, self.n_layer, self.n_embd)

    @property
    def heads(self) -> tuple[int, ...]:
        """As in ModelOptions; raises UsageError."""
        return layers.heads(self.head_counts, self.n_layer, self.n_head)


def check(options: ModelOptions) -> None:
    """Raise UsageError for a shape that no model has."""
    if options.n_embd % options.n_head:
        raise UsageError(
            f"N_EMBD={options.n_embd} cannot be divided among N_HEAD={options.n_head} heads; choose a multiple"
        )
    _ = options.widths, options.heads


def tensors(options: ShapeOptions, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the model's parameters, in its order, without the padding of the vocabulary."""
    sizes = options.n_layer, options.n_head, options.n_embd, options.block_size
    return layers.Shape(*sizes, vocab_size, options.mlp_widths, options.head_counts).tensors()


def groups(options: ModelOptions) -> list[Group]:
    """The heads and neurons of each block with all their weights, for pruning them as a whole."""
    found = []
    for n, (count, width) in enumerate(zip(options.heads, options.widths, strict=True)):
        attn, mlp = f"h.{n}.attn.", f"h.{n}.mlp."
        heads = {"c_attn.weight": Part(0, 3), "c_attn.bias": Part(0, 3), "c_proj.weight": Part(1)}
        neurons = {"c_fc.weight": Part(0), "c_fc.bias": Part(0), "c_proj.weight": Part(1)}
        found += [
            Group("heads", count, {attn + name: part for name, part in heads.items()}),
            Group("neurons", width, {mlp + name: part for name, part in neurons.items()}),
        ]
    return found
