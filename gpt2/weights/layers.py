"""The shape of a GPT-2: how many neurons and heads each layer has, and its tensors. Needs no PyTorch."""

import dataclasses
from collections.abc import Sequence

from lib.base.errors import UsageError

_MOST_NEURONS, _MOST_HEADS = 400_000, 1000  # of a layer: what the largest N_EMBD and N_HEAD make


@dataclasses.dataclass(frozen=True)
class Shape:
    """The numbers that fix the shape of a GPT-2."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int  # positions
    vocab_size: int  # rows of the embedding; of foreign weights with the rows that only pad the vocabulary
    mlp_widths: str = ""  # as the options of these names have them: empty if no neurons or heads were removed
    head_counts: str = ""

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """The names and shapes of the tensors of our model."""
        width, blocks = self.n_embd, {}
        counts = heads(self.head_counts, self.n_layer, self.n_head)
        widths = neurons(self.mlp_widths, self.n_layer, width)
        for n, (count, inner) in enumerate(zip(counts, widths, strict=True)):
            inside = count * (width // self.n_head)  # of all heads together
            block = {
                "ln_1.weight": (width,), "ln_1.bias": (width,),
                "attn.c_attn.weight": (3 * inside, width), "attn.c_attn.bias": (3 * inside,),
                "attn.c_proj.weight": (width, inside), "attn.c_proj.bias": (width,),
                "ln_2.weight": (width,), "ln_2.bias": (width,),
                "mlp.c_fc.weight": (inner, width), "mlp.c_fc.bias": (inner,),
                "mlp.c_proj.weight": (width, inner), "mlp.c_proj.bias": (width,),
            }  # fmt: skip
            blocks |= {f"h.{n}.{name}": shape for name, shape in block.items()}
        embeddings = {"wte.weight": (self.vocab_size, width), "wpe.weight": (self.block_size, width)}
        return {**embeddings, **blocks, "ln_f.weight": (width,), "ln_f.bias": (width,)}


def neurons(text: str, n_layer: int, n_embd: int) -> tuple[int, ...]:
    """The neurons of each layer for a value of MLP_WIDTHS; raises UsageError."""
    return _each("MLP_WIDTHS", text, n_layer, 4 * n_embd, _MOST_NEURONS)


def heads(text: str, n_layer: int, n_head: int) -> tuple[int, ...]:
    """The heads of each layer for a value of HEAD_COUNTS; raises UsageError."""
    return _each("HEAD_COUNTS", text, n_layer, n_head, _MOST_HEADS)


def text(numbers: Sequence[int], usual: int) -> str:
    """The shortest value of MLP_WIDTHS or HEAD_COUNTS for these numbers; `usual` is what an empty text means."""
    each = [str(number) for number in (numbers[:1] if len(set(numbers)) == 1 else numbers)]
    return "" if each == [str(usual)] else ",".join(each)


def _each(option: str, text: str, n_layer: int, usual: int, most: int) -> tuple[int, ...]:
    if not text:
        return (usual,) * n_layer
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and len(word) < 10 and 0 < int(word) <= most for word in words):
        raise UsageError(f"{option}={text}: each number must be from 1 to {most:,}, with commas between")
    if len(words) not in (1, n_layer):
        raise UsageError(
            f"{option}={text}: has {len(words)} numbers, and the model has {n_layer} layers; give one number for all "
            "layers, or one for each"
        )
    return tuple(map(int, words)) * (n_layer // len(words))
