"""Reads a GPT-2 from a Hugging Face folder: config.json, and safetensors or pytorch_model.bin, in shards or not."""

import json
from collections.abc import Iterator
from pathlib import Path

import safetensors
from torch import Tensor

from gpt2.weights import pickled
from gpt2.weights.form import Content, Shape, Source, check, tokenizer
from lib.base.errors import UserError
from lib.prune import masks_file
from lib.record import lineage

_SHAPE = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")  # in the order of Shape
# What changes the model's results -> the only value that our model computes, which is also the default of transformers.
_FIXED = {
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
_ACTIVATIONS = {"gelu_new": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh", "gelu": "gelu"}  # theirs -> ours
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there is read
_CONV1D = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")  # (in, out) there, (out, in) in our model
_LONGEST_NAME = 255  # bytes; file systems raise OSError for longer ones
_BUFFERS = (".attn.bias", ".attn.masked_bias")  # the causal mask, which early versions of transformers saved


def find(given: str, folder: Path, name: str = "", revision: str = "") -> Source:
    """The model in `folder`. `name` and `revision` are those of the hub's repository that it was downloaded from."""
    config = _json(folder / "config.json")
    shape = _shape(folder / "config.json", config)
    files(folder)  # they are all there
    ancestors = _ancestors(folder)
    foreign = name or folder.resolve().name if ancestors is None else ""
    if foreign and revision:
        ancestors, foreign = {f"{foreign}@{revision}": None}, ""
    return Source(
        given=given,
        kind="huggingface",
        path=folder,
        shape=shape,
        tokenizer=tokenizer(shape.vocab_size),
        activation=_activation(folder / "config.json", config),
        revision=revision,
        step=0,
        ancestors=ancestors or {},
        foreign=foreign,
    )


def read(source: Source) -> Content:
    """The tensors of a folder, one by one, and the masks that our export wrote."""
    path = source.path / masks_file.FILE
    kept = masks_file.read_file(path)[0] if path.is_file() else {}
    return Content(tensors=_ours(files(source.path)), masks=kept)


def _json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path.parent}: has no {path.name}, so it is neither a run nor a Hugging Face folder; name a folder with "
            f"{path.name} and weights"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read as JSON: {why}; download the file again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: is not a JSON object; download the file again")
    return found


def _shape(path: Path, config: dict) -> Shape:
    """The shape that a configuration describes; raises UserError if our model computes something else."""
    kind = config.get("model_type")
    if kind != "gpt2":
        raise UserError(f"{path}: describes a model of the type {kind!r}, and only gpt2 can be read; name a GPT-2")
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            raise UserError(
                f"{path}: has {key}={config[key]!r}, and this GPT-2 computes only {key}={value!r}; name another model"
            )
    numbers = [config.get(key) for key in _SHAPE]
    for key, number in zip(_SHAPE, numbers, strict=True):
        if type(number) is not int or number < 1:
            raise UserError(f"{path}: {key} is {number!r}, not a positive whole number; correct the file")
    inner = config.get("n_inner")
    if inner is not None and type(inner) is not int:
        raise UserError(f"{path}: n_inner is {inner!r}, not a whole number; correct the file")
    shape = Shape(*numbers, mlp_widths="" if inner in (None, 4 * numbers[2]) else str(inner))
    check(path, shape)
    return shape


def _activation(path: Path, config: dict) -> str:
    name = config.get("activation_function", "gelu_new")  # the default of transformers
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise UserError(
            f"{path}: has activation_function={name!r}, and this GPT-2 computes only {', '.join(_ACTIVATIONS)}; name "
            "another model"
        )
    return _ACTIVATIONS[name]


def files(folder: Path) -> list[Path]:
    """The files with the weights, which all exist; safetensors come before pickles, and one file before shards."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _shards(index)
    raise UserError(f"{folder}: has no weights: neither {' nor '.join(_WEIGHTS)} nor shards of them; add the file")


def _shards(index: Path) -> list[Path]:
    """The files that an index of shards names; raises UserError if one is missing."""
    names = _json(index).get("weight_map")
    # Only names in the same folder: a received index may name any file.
    if not isinstance(names, dict) or not names or not all(_is_name(name, index.suffixes) for name in names.values()):
        raise UserError(f"{index}: has no weight_map from tensors to files beside it; download the file again")
    paths = sorted({index.with_name(name) for name in names.values()})
    if missing := [path.name for path in paths if not path.is_file()]:
        raise UserError(
            f"{index.parent}: {len(missing)} of {len(paths)} shards are missing, the first is {missing[0]}; download "
            "the missing files"
        )
    return paths


def _is_name(name: object, suffixes: list[str]) -> bool:
    plain = isinstance(name, str) and Path(name).name == name and name.endswith(suffixes[0])
    return plain and len(name.encode(errors="surrogatepass")) <= _LONGEST_NAME


def _ours(paths: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of these files with our names and orientation, without the causal masks."""
    for path in paths:
        for name, tensor in _safetensors(path) if path.suffix == ".safetensors" else pickled.tensors(path):
            name = name.removeprefix("transformer.")
            if not name.endswith(_BUFFERS):
                yield name, tensor.t() if name.endswith(_CONV1D) and tensor.dim() == 2 else tensor


def _safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                yield name, file.get_tensor(name)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: is cut off or damaged ({error}); download the file again") from None


def _ancestors(folder: Path) -> dict[str, int | None] | None:
    """What our export recorded; None for other models, because nobody knows their tokens."""
    path = folder / "espalier.json"
    if not path.is_file():
        return None
    recorded = _json(path).get("lineage")
    found = recorded.get("ancestors") if isinstance(recorded, dict) else None
    if not lineage.is_ancestors(found):
        raise UserError(f"{path}: has no valid lineage; export the run again, or delete this file")
    return found
