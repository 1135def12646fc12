"""The one definition of FLOPs: what a token costs, from the shape of the model and its non-zeros. Needs no PyTorch.

A multiplication with an addition is 2 operations. Counted are the matrix products and the attention over a whole
context, T tokens: PaLM's 6 N + 12 L C T in training (arXiv 2204.02311, appendix B), a third of it in inference. N is
the number of parameters without the positions, which are only added. If heads were removed, L C is the width of those
that are left, summed over the layers. Not counted are the optimizer, pruning itself and what is computed twice to save
memory.

Counted by non-zeros, a weight that is zero costs nothing. Its gradient costs nothing either, except for methods that
move weights under a mask (ste, sr-ste, s-ste, movement): they need the dense gradient at every step. topkast needs
that of the weights it trains.

The forward pass of a teacher is a part of training. It is counted as that of a dense model, also by non-zeros.
"""

from collections.abc import Mapping
from typing import Any

from gpt2.shape import ModelOptions

FORWARD, BACKWARD = 2, 4  # operations for a weight and a token; half of BACKWARD is for the gradient of the weight


def parameters(shape: ModelOptions, vocab_size: int) -> int:
    """All parameters, positions included; the tied head once."""
    width = shape.n_embd
    # c_attn and c_proj, and c_fc and c_proj, as wide inside as heads and neurons make them, with their biases
    attention = sum((4 * width + 3) * inside + width for inside in _inside(shape))
    mlp = sum((2 * width + 1) * neurons + width for neurons in shape.widths)
    norms = (4 * shape.n_layer + 2) * width
    return (vocab_size + shape.block_size) * width + attention + mlp + norms


def _inside(shape: ModelOptions) -> list[int]:
    """The width of all heads of each layer together: C, unless some were removed."""
    return [heads * (shape.n_embd // shape.n_head) for heads in shape.heads]


def training(shape: ModelOptions, vocab_size: int) -> int:
    """Operations for a token in a forward and backward pass of the dense model: 6 N + 12 L C T."""
    return 3 * inference(shape, vocab_size)


def inference(shape: ModelOptions, vocab_size: int) -> int:
    """Operations for a token in a forward pass of the dense model over a whole context: 2 N + 4 L C T."""
    products = parameters(shape, vocab_size) - shape.block_size * shape.n_embd
    return 2 * products + 4 * sum(_inside(shape)) * shape.block_size


def facts(model: Any, pruner: Any, teacher: int = 0) -> dict[str, float]:
    """What a run's start event has, so that readers can count its operations without knowing its model.

    Positions in scope are in no product, so they are taken to be as sparse as the rest and save nothing. `teacher` are
    the operations of a teacher for a token.
    """
    names = {getattr(weight, "name", ""): weight for weight in pruner.weights}
    positions = names["wpe.weight"].mask.numel() if "wpe.weight" in names else 0
    share = 1 - positions / pruner.total
    hidden = not getattr(pruner, "zeroes_weights", True)  # values move under the masks
    dense = pruner.gradients() if hidden else 0.0  # the share of the zeros whose own gradient is needed
    return {
        "training_per_token": training(model.options, model.vocab_size) + teacher,
        "inference_per_token": inference(model.options, model.vocab_size),
        "training_per_zero": (FORWARD + BACKWARD * (1 - dense / 2)) * share,
        "inference_per_zero": FORWARD * share,
        "weights_in_scope": pruner.total,
        **({"teacher_per_token": teacher} if teacher else {}),
    }


def summary(known: Mapping[str, float], tokens: int, average: float, final: int) -> dict[str, float]:
    """The fields of a run's summary: `known` are `facts`, `average` and `final` its non-zeros in scope."""
    taught = {"teacher_flops": known["teacher_per_token"] * tokens} if "teacher_per_token" in known else {}
    total, token, forward = (known[name] for name in ("weights_in_scope", "training_per_token", "inference_per_token"))
    return {
        "training_flops": token * tokens,
        "training_flops_nonzeros": (token - known["training_per_zero"] * (total - average)) * tokens,
        **taught,  # part of both
        "inference_flops_per_token": forward,
        "inference_flops_per_token_nonzeros": forward - known["inference_per_zero"] * (total - final),
        "nonzeros": final,
    }
