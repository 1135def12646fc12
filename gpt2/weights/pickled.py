"""Reads files that torch.save wrote. No code in them is executed, and tensors are read when they are used."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from lib.base.errors import UserError
from lib.machine.device import is_out_of_memory

_ARCHIVE = b"PK\x03\x04"  # the first bytes of a zip archive; files of torch before 1.6 are none and cannot be mapped


def load(path: Path) -> dict:
    """The dictionary in a file; raises UserError if it is something else, or would execute code."""
    try:
        with path.open("rb") as file:
            archive = file.read(4) == _ARCHIVE
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: holds something other than tensors, or would execute code, so it is not loaded; use a file of "
            "weights, best in the form of safetensors"
        ) from None
    except Exception as error:  # torch raises many kinds of errors for a malformed file
        if is_out_of_memory(error):
            raise
        words = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
        why = words.split(". ")[0][:200]  # torch's further sentences advise to load the file without care
        raise UserError(f"{path}: cannot be read as a file of torch.save ({why}); download or save it again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds no dictionary of weights; use a file of weights")
    return found


def tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors in a file of weights."""
    yield from named(path, load(path))


def named(path: Path, state: object) -> Iterator[tuple[str, Tensor]]:
    """The items of a dictionary of tensors from the file at `path`; raises UserError if it is something else."""
    if not isinstance(state, dict) or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in state.items()):
        raise UserError(f"{path}: holds no dictionary of weights; use a file of weights")
    for name, tensor in state.items():
        if tensor.is_nested:  # it has no shape
            raise UserError(f"{path}: the tensor {name} is nested; use weights that fit their configuration")
        yield name, tensor.detach()
