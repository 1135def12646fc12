"""Where weights can be read from: a run, a Hugging Face folder or hub name, or a checkpoint of nanoGPT."""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gpt2.weights import runs
from gpt2.weights.form import Content, Shape, Source, Weights
from lib.base import files
from lib.base.errors import UsageError, UserError
from lib.record import checkpoint, checkpoint_file, run

__all__ = ["Shape", "Source", "Weights", "find", "read"]

_READERS = {"run": runs.read}


def find(given: str) -> Source:
    """The source that the value of INIT_FROM, or of a RUN@CHECKPOINT, names. Reads no tensors.

    A name on the hub is resolved to a commit, and its files are downloaded. Raises UserError with one sentence for
    everything that cannot be used.
    """
    path = files.named(given)
    named = _run(given)
    if named:
        return runs.find(given, named)
    raise UsageError(f"{path}: there is no run, folder or checkpoint of this name; check INIT_FROM")


def _run(given: str) -> run.Named | None:
    """The run and the checkpoint that `given` names, or None if it is something else."""
    path = files.named(given)
    if path.is_file() and not checkpoint_file.is_name(path.name):
        return None
    name, at, which = (given, "", "") if path.exists() else given.rpartition("@")
    folder, checkpoint_name = run.named(name if at else given, sys.argv[1:])  # OUTPUT_DIR may be among the words
    if not (folder / "run.json").exists():
        return None
    return run.Named(folder, which if at else checkpoint_name)


def read(source: Source, block_size: int, vocab_size: int) -> Weights:
    """The weights of a source, cut to `block_size` positions and `vocab_size` tokens; raises UserError.

    Weights that are NaN or infinite, or that are missing, are errors.
    """
    shape = source.shape
    for what, asked, there in (("positions", block_size, shape.block_size), ("tokens", vocab_size, shape.vocab_size)):
        if asked > there:
            option = "lower BLOCK_SIZE" if what == "positions" else "choose another TOKENIZER"
            raise UsageError(f"{source.path}: the weights are for {there} {what}, not for {asked}; {option}")
    rows = {"wte.weight": vocab_size, "wpe.weight": block_size}
    content = _READERS[source.kind](source)
    state = _collected(source, content, rows)
    masks = {name: mask[: rows.get(name, len(mask))] for name, mask in content.masks.items()}
    for name, mask in masks.items():
        if name not in state or mask.shape != state[name].shape:
            raise UserError(f"{source.path}: the mask of {name} does not fit the weights; use another source")
    return Weights(state, _digest(content.files), masks)


def _collected(source: Source, content: Content, rows: dict[str, int]) -> dict[str, Tensor]:
    """The tensors of `content` in float32, cut to `rows`, if they are exactly those of the shape."""
    expected, state = source.shape.tensors(), {}
    for name, tensor in content.tensors:
        if expected.get(name) != tuple(tensor.shape):
            problem = (
                f"is {list(tensor.shape)}, and the shape asks for {list(expected[name])}"
                if name in expected
                else ("is no part of a GPT-2 of this shape")
            )
            raise UserError(f"{source.path}: the tensor {name} {problem}; use weights that fit their configuration")
        if not tensor.is_floating_point():
            raise UserError(f"{source.path}: the tensor {name} has the type {tensor.dtype}, not a floating-point type")
        if not checkpoint.is_finite([tensor]):
            raise UserError(f"{source.path}: weights in {name} are NaN or infinite; use other weights")
        kept = tensor if len(tensor) == rows.get(name, len(tensor)) else tensor[: rows[name]].clone()
        state[name] = kept.to(torch.float32).contiguous()
    if missing := [name for name in expected if name not in state]:
        raise UserError(
            f"{source.path}: {len(missing)} of {len(expected)} tensors are missing, the first is {missing[0]}; use "
            "weights that fit their configuration"
        )
    return state


def _digest(paths: Sequence[Path]) -> str:
    """See Weights.sha256."""
    found = {}
    for path in paths:
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    if len(found) == 1:
        return next(iter(found.values()))
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in sorted(found.items())).encode()).hexdigest()
