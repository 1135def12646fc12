"""The file masks.safetensors: the masks of a model as packed bits.

The file has one uint8 tensor for each mask: numpy's packbits of the mask in row-major order, 1 where the weight is
kept. The metadata has one key, `espalier-masks`, with JSON: the version of the format, and for each tensor its shape,
its orientation, and the parameter that it masks in transformers' GPT2LMHeadModel. A Conv1D there is transposed. To
unpack:

    import json, numpy, safetensors
    with safetensors.safe_open("masks.safetensors", "numpy") as file:
        for name, about in json.loads(file.metadata()["espalier-masks"])["tensors"].items():
            bits = numpy.unpackbits(file.get_tensor(name), count=numpy.prod(about["shape"]))
            mask = bits.reshape(about["shape"])  # rows are outputs, columns are inputs
            mask = mask.T if about["transposed"] else mask  # as transformers has the weight about["huggingface"]
"""

import hashlib
import json
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from lib.base import files
from lib.base.errors import UserError
from lib.prune import bits

FILE = "masks.safetensors"
VERSION = 1
# One key, because safetensors writes several in random order, and then the same masks had files of different sha256.
_KEY = "espalier-masks"
_CONV1D = (".attn.c_attn.weight", ".attn.c_proj.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight")


def write(path: Path, masks: dict[str, Tensor]) -> None:
    """Write masks (parameter name -> uint8 mask of our shape and orientation, (out, in)) as packed bits, atomically."""
    tensors = {
        name: {
            "shape": list(mask.shape),
            "orientation": _orientation(len(mask.shape)),
            "huggingface": f"transformer.{name}",
            "transposed": name.endswith(_CONV1D),
        }
        for name, mask in masks.items()
    }
    packed = {name: bits.pack(mask) for name, mask in masks.items()}
    about = {_KEY: json.dumps({"version": VERSION, "tensors": tensors})}
    files.write(path, safetensors.torch.save(packed, about))


def _orientation(dimensions: int) -> str:
    return "out,in" if dimensions == 2 else "out"  # of an embedding, "out" are its ids


def read_file(path: Path) -> tuple[dict[str, Tensor], str]:
    """The masks in a file that `write` wrote, and the sha256 of the file; raises UserError with one sentence."""
    try:
        with path.open("rb") as content:
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        with safetensors.safe_open(path, "pt") as file:
            tensors = _described(path, (file.metadata() or {}).get(_KEY))
            names = set(file.keys())
            if names != tensors.keys():
                name = min(names ^ tensors.keys())
                raise UserError(f"{path}: its metadata and its tensors differ in {name!r}; write the file again")
            return {name: _mask(path, name, file, about) for name, about in tensors.items()}, sha256
    except OSError as error:
        raise UserError(f"{path}: the masks cannot be read: {error.strerror or error}") from None
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: is cut off, damaged or no safetensors file ({error})") from None


def _described(path: Path, text: str | None) -> dict[str, dict]:
    """What the metadata says of each tensor."""
    if text is None:
        raise UserError(
            f"{path}: holds no masks, because its metadata lacks {_KEY!r}; name a file that make export-model wrote"
        )
    try:
        found = json.loads(text)
        version, tensors = found["version"], found["tensors"]
    except (ValueError, RecursionError, TypeError, KeyError):
        raise UserError(f"{path}: its metadata {_KEY!r} is not valid; write the file again") from None
    if version != VERSION:
        raise UserError(
            f"{path}: has version {str(version)[:20]} of the format of masks, and this Espalier reads {VERSION}; use "
            "the version that wrote it"
        )
    if not isinstance(tensors, dict) or not tensors:
        raise UserError(f"{path}: its metadata names no tensors; write the file again")
    return tensors


def _mask(path: Path, name: str, file: safetensors.safe_open, about: object) -> Tensor:
    shape = about.get("shape") if isinstance(about, dict) else None
    if not isinstance(shape, list) or not shape or not all(type(size) is int and size > 0 for size in shape):
        raise UserError(f"{path}: the shape of {name!r} in its metadata is not valid; write the file again")
    if about.get("orientation") != _orientation(len(shape)):
        raise UserError(
            f"{path}: the orientation of {name!r} is {about.get('orientation')!r}, and this Espalier reads "
            f"{_orientation(len(shape))!r}; write the mask with outputs as rows"
        )
    packed, size = file.get_slice(name), bits.size(shape)
    if packed.get_dtype() != "U8" or packed.get_shape() != [size]:
        raise UserError(
            f"{path}: {name!r} is {packed.get_dtype()} {packed.get_shape()}, but the bits of a mask of {shape} are U8 "
            f"[{size}]; write the file again"
        )
    return bits.unpack(file.get_tensor(name), shape)
