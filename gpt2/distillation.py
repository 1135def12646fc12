"""Distillation: a run also learns the predictions of a teacher, a finished model that stays as it is.

With the logits v of the teacher and z of the student, the loss of a token whose next token is y is

    (1 - w) * -log softmax(z)[y]  +  w * T^2 * KL(softmax(v / T) || softmax(z / T)),

and the loss of a step is its mean over the tokens. It is that of Hinton et al. (arXiv 1503.02531, section 2): a
weighted mean of two objectives, of which the one with soft targets has the temperature T in both models (their
equation 1). T^2 makes up for gradients that shrink as 1 / T^2. They write the cross entropy with the soft targets. It
is the KL divergence plus the entropy of the teacher, which is a constant here.

At T = 1 this is the loss with which Huang et al. (arXiv 2407.20584, section 3.3) retrain pruned GPT-2s. Kurtic et al.
(arXiv 2310.06927) use the term with T^2 to fine-tune sparse models, beside other terms.
"""

import contextlib
import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from gpt2 import flops
from gpt2.loss import linear_distillation
from gpt2.model import GPT2
from gpt2.shape import ShapeOptions
from gpt2.weights import source
from gpt2.weights.source import Source, Weights
from lib.base.errors import UsageError, UserError
from lib.config.kconf import Options, Schema


@dataclasses.dataclass(frozen=True)
class DistillOptions(Options):
    """How much a teacher counts."""

    distill_weight: float | None  # w; None: nothing is trained
    distill_temperature: float | None  # T


class Teacher:
    """A finished model whose predictions a student learns. It has no gradients, and no dropout."""

    def __init__(self, model: GPT2, options: DistillOptions):
        """`model` is changed for good: it can be trained no more."""
        self.model, self.options = model.eval().requires_grad_(False), options

    def losses(self, student: GPT2, tokens: Tensor, targets: Tensor) -> Tensor:
        """Of `tokens` and `targets` (B, T), float32 (3,): the loss to minimise, its cross entropy and its T^2 KL.

        Only the first one has a gradient. No logits of a whole batch are in memory.
        """
        with torch.no_grad():
            hidden = self.model.hidden(tokens)  # (B, T, C of the teacher)
        return linear_distillation(
            student.hidden(tokens).flatten(0, 1),
            student.wte.weight,
            targets.flatten(),
            student.vocab_size,
            hidden.flatten(0, 1),
            self.model.wte.weight,
            self.options.distill_weight,
            self.options.distill_temperature,
        )

    def flops_per_token(self) -> int:
        """The operations of its forward pass, counted as those of a dense model."""
        return flops.inference(self.model.options, self.model.vocab_size)


def find(given: str, output_dir: str, tokenizer: str) -> Source:
    """The weights that the value of DISTILL_FROM names; see `source.find`. `tokenizer` is that of the student.

    Raises UserError for what cannot be used, such as a teacher with another tokenizer.
    """
    with _naming_the_option():
        found = source.find(given, output_dir)
        if found.tokenizer != tokenizer:
            theirs = f"the tokenizer {found.tokenizer}" if found.tokenizer else f"{found.shape.vocab_size:,} tokens"
            raise UsageError(
                f"{given}: has {theirs}, and this run has the tokenizer {tokenizer}; name a teacher with the same one"
            )
        return found


def read(found: Source, block_size: int, vocab_size: int) -> tuple[GPT2, Weights]:
    """The model of a teacher, on the CPU, cut to the positions of its student, and what was read.

    Raises UserError, also for a teacher with fewer positions.
    """
    with _naming_the_option():
        weights = source.read(found, block_size, vocab_size)
    model = _model(found, block_size, vocab_size)
    model.load(weights.state)
    return model, weights


def stand_in(schema: Schema, vocab_size: int, device: torch.device) -> Teacher | None:
    """A teacher of the shape of DISTILL_FROM with random weights, to measure time and memory; None if there is none.

    A teacher that a sweep is still to train, @NAME, is taken to have the shape of its student.
    """
    given, shape = schema["DISTILL_FROM"], schema.bind(ShapeOptions)
    if not given:
        return None
    if given.startswith("@"):
        model = GPT2(shape, vocab_size)
    else:
        model = _model(find(given, schema["OUTPUT_DIR"], schema["TOKENIZER"]), shape.block_size, vocab_size)
    return Teacher(model.to(device), schema.bind(DistillOptions))


def _model(found: Source, block_size: int, vocab_size: int) -> GPT2:
    """A model with random weights of the shape of `found`, with so many positions and tokens."""
    shape = found.shape
    options = ShapeOptions(
        model_name="custom",
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_embd=shape.n_embd,
        block_size=block_size,
        dropout=0.0,
        activation=found.activation,
        mlp_widths=shape.mlp_widths,
        head_counts=shape.head_counts,
    )
    return GPT2(options, vocab_size)


@contextlib.contextmanager
def _naming_the_option() -> Iterator[None]:
    """A context in which errors begin with DISTILL_FROM: other options may name weights too."""
    try:
        yield
    except UserError as error:
        error.args = tuple(f"DISTILL_FROM: {sentence}" for sentence in error.args)
        raise
