"""Reads a checkpoint of nanoGPT, the file ckpt.pt of its trainer."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from gpt2.weights import pickled
from gpt2.weights.form import Content, Shape, Source, check, tokenizer
from lib.base.errors import UserError

_SHAPE = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")  # in the order of Shape
_COMPILED = "_orig_mod."  # torch.compile puts it before every name


def find(given: str, path: Path) -> Source:
    """The model in the file at `path`."""
    found = pickled.load(path)
    arguments = found.get("model_args")
    numbers = [arguments.get(key) for key in _SHAPE] if isinstance(arguments, dict) else []
    if not numbers or "model" not in found or not all(type(number) is int for number in numbers):
        raise UserError(
            f"{path}: is no checkpoint of nanoGPT, which has model and model_args with {', '.join(_SHAPE)}; name a "
            "ckpt.pt, a run or the folder of a Hugging Face model"
        )
    shape = Shape(*numbers)
    check(path, shape)
    return Source(
        given=given,
        kind="nanogpt",
        path=path,
        shape=shape,
        tokenizer=tokenizer(shape.vocab_size),
        activation="gelu",
        revision="",
        step=0,
        ancestors={},
        foreign=path.resolve().parent.name,
    )


def read(source: Source) -> Content:
    """The tensors of a checkpoint, one by one.

    A model without biases (bias=False) gets biases of zero, which compute the same. Training moves them, though.

    nanoGPT's softmax counts the 47 rows that pad GPT-2's vocabulary to 50,304. Our model leaves them out, so our loss
    is lower for such a model. Without padding both losses are equal up to rounding.
    """
    found = pickled.load(source.path)
    biased = found["model_args"].get("bias", True)
    if type(biased) is not bool:
        raise UserError(f"{source.path}: bias in model_args is neither True nor False; save the checkpoint again")
    return Content(tensors=_ours(source, found["model"], biased), masks={})


def _ours(source: Source, state: object, biased: bool) -> Iterator[tuple[str, Tensor]]:
    """The tensors with our names, without the causal masks; their orientation is ours."""
    for name, tensor in pickled.named(source.path, state):
        name = name.removeprefix(_COMPILED).removeprefix("transformer.")
        if not name.endswith(".attn.bias"):  # the causal mask, which is there without flash attention
            yield name, tensor
    if not biased:
        for name, shape in source.shape.tensors().items():
            if name.endswith(".bias"):
                yield name, torch.zeros(shape)
