"""Fuzz targets for models and masks from elsewhere, and for the texts of perplexity: whatever their files contain."""

import contextlib
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow
import safetensors.torch
import torch
from huggingface_hub import constants
from pyarrow import parquet
from torch import Tensor

from gpt2 import trained
from gpt2.data import tokenizer
from gpt2.evaluation import perplexity
from gpt2.model import GPT2, ModelOptions
from gpt2.weights import adopt, huggingface, masks, source
from lib.config.kconf import Schema
from lib.machine import device
from lib.prune import masks_file
from lib.record import lineage
from tests.fuzzing.promise import outcome, target

_FOLDER, _TRACE = Path("model"), Path("executed")
_SHAPE = {"n_layer": 1, "n_head": 1, "n_embd": 4, "vocab_size": 256}
_CONFIG = {"model_type": "gpt2", "activation_function": "gelu_new", "n_positions": 8, "n_inner": None, **_SHAPE}
_INDEX = {
    "metadata": {},
    "weight_map": {"wte.weight": "model-1.safetensors", "ln_f.bias": "model-2.safetensors"},
}
_EXPORT = {"lineage": {"ancestors": {"0123456789ab": 4096, "openai-community/gpt2": None}}}


class _Code:
    """What a pickle executes when it is loaded without care."""

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(_TRACE),)


@cache
def _state() -> dict[str, Tensor]:
    """Weights with our names; those of the published layout have the same shapes where this matters."""
    torch.manual_seed(1)
    return {name: torch.randn(shape) for name, shape in source.Shape(1, 1, 4, 8, 256).tensors().items()}


@cache
def _published() -> dict[str, Tensor]:
    turned = {name: value.t().contiguous() for name, value in _state().items() if name.endswith(huggingface._CONV1D)}
    return {f"transformer.{name}": value for name, value in (_state() | turned).items()}


@cache
def _weights() -> bytes:
    return safetensors.torch.save(_published())


@cache
def _masks() -> bytes:
    kept = {name: (value > 0).to(torch.uint8) for name, value in _state().items() if value.dim() == 2}
    masks_file.write(Path("seed.safetensors"), kept)
    return Path("seed.safetensors").read_bytes()


def _model(**files: bytes) -> Path:
    """A folder with a valid model, and the files that are given; `__` in a name stands for a dot."""
    shutil.rmtree(_FOLDER, ignore_errors=True)
    _FOLDER.mkdir()
    for name, content in {"config__json": json.dumps(_CONFIG).encode(), **files}.items():
        (_FOLDER / name.replace("__", ".")).write_bytes(content)
    return _FOLDER


@cache
def _schema() -> Schema:
    return Schema()


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """No name is looked up on the hub, no code is executed, and nothing is written beside what is there."""
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    there = sorted(Path().rglob("*"))
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
    assert not _TRACE.exists() and sorted(Path().rglob("*")) == there


def _taken(given: Path) -> bool:
    """Whether a model starts with these weights; each part of the way works or ends with a clear sentence."""
    with _offline():
        found = outcome(source.find, str(given))
        if found is None:
            return False
        assert json.loads(json.dumps(found.ancestors)) == found.ancestors and lineage.words(found.ancestors)
        weights = _read(found)
        if weights is None:
            return False
        assert {name: tuple(value.shape) for name, value in weights.state.items()} == found.shape.tensors()
        _schema().clear()
        _schema().override([(name, text, "") for name, text in (("INIT_FROM", str(given)), ("DEVICE", "cpu"))])
        return (
            outcome(adopt.adopt, _schema(), lambda *_: found) is not None
            and outcome(trained.load, found, _schema()) is not None
        )


def _read(found: source.Source) -> source.Weights | None:
    try:
        return outcome(source.read, found, found.shape.block_size, found.shape.vocab_size)
    except (MemoryError, RuntimeError) as error:  # a small file may stand for many numbers; programs have a sentence
        assert device.is_out_of_memory(error), error
        return None


# ---- Hugging Face ----------------------------------------------------------------------------------------------------


@target(
    lambda: [json.dumps(_CONFIG).encode(), json.dumps(_CONFIG | {"n_inner": 16, "layer_norm_epsilon": 1e-5}).encode()]
)
def model_config(data: bytes) -> bool:
    """config.json beside valid weights."""
    return _taken(_model(config__json=data, model__safetensors=_weights()))


@target(lambda: [_weights()])
def model_safetensors(data: bytes) -> bool:
    """model.safetensors."""
    return _taken(_model(model__safetensors=data))


def _split(whole: bytes) -> tuple[bytes, bytes]:
    """The header and the numbers of a file of safetensors."""
    (size,) = struct.unpack_from("<Q", whole)
    return whole[8 : 8 + size], whole[8 + size :]


def _joined(header: bytes, whole: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + _split(whole)[1]


@target(lambda: [_split(_weights())[0]])
def safetensors_header(data: bytes) -> bool:
    """The header of model.safetensors, with its length before it and the numbers after it."""
    return _taken(_model(model__safetensors=_joined(data, _weights())))


def _indices() -> list[bytes]:
    names = (
        "model-1.safetensors",
        "../outside.safetensors",
        str(Path("outside.safetensors").absolute()),
        "a" * 300 + ".safetensors",
    )
    return [json.dumps(_INDEX).encode(), *(json.dumps({"weight_map": {"wte.weight": name}}).encode() for name in names)]


@target(_indices)
def shard_index(data: bytes) -> bool:
    """model.safetensors.index.json: no file outside of its folder is read, though there are weights."""
    Path("outside.safetensors").write_bytes(_weights())
    items = list(_published().items())
    parts = {f"model-{n}__safetensors": safetensors.torch.save(dict(items[n - 1 :: 2])) for n in (1, 2)}
    folder = _model(model__safetensors__index__json=data, **parts)
    found = outcome(huggingface.files, folder)
    assert found is None or {path.parent for path in found} == {folder}
    return _taken(folder)


@target(lambda: [json.dumps(_EXPORT).encode()])
def export_lineage(data: bytes) -> bool:
    """espalier.json, which an export has beside its weights."""
    return _taken(_model(model__safetensors=_weights(), espalier__json=data))


# ---- pickles ---------------------------------------------------------------------------------------------------------


def _nanogpt(state: Any, **changes: Any) -> dict[str, Any]:
    arguments = {**_SHAPE, "block_size": 8, "bias": True, "dropout": 0.0} | changes
    return {"model": state, "model_args": arguments, "iter_num": 5, "config": {}}


def _objects() -> list[Any]:
    """What a file of torch.save may hold: two models, and what is none."""
    state = {f"_orig_mod.transformer.{name}": value for name, value in _state().items()}
    one = {**_published(), "transformer.wte.weight": torch.randn(256, 4).to_sparse()}
    wide = {**_published(), "transformer.wte.weight": torch.zeros(1).expand(256, 4)}
    return [
        _published(), _nanogpt(state), _nanogpt(state, bias=torch.zeros(2)), _nanogpt({}, n_layer=10**12, bias=False),
        _nanogpt({}, n_embd=10**15, bias=False), {"model": _Code(), "model_args": {}}, one, wide, [_Code()],
    ]  # fmt: skip


def _saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _both(data: bytes) -> bool:
    """The bytes as pytorch_model.bin and as nanoGPT's ckpt.pt."""
    Path("ckpt.pt").write_bytes(data)
    return any([_taken(_model(pytorch_model__bin=data)), _taken(Path("ckpt.pt"))])


@target(lambda: [*map(_saved, _objects()), pickle.dumps(_Code())])
def torch_files(data: bytes) -> bool:
    """A file of torch.save, or what is none."""
    return _both(data)


def _pickles() -> list[bytes]:
    found = []
    for value in _objects():
        with zipfile.ZipFile(io.BytesIO(_saved(value))) as archive:
            found.append(archive.read("archive/data.pkl"))
    return found


@target(_pickles)
def pickles(data: bytes) -> bool:
    """The pickle in a file of torch.save, with the right checksums around it.

    PyTorch 2.13 takes minutes to refuse a class whose name has 200,000 letters: a search in its message is quadratic.
    """
    if len(data) > 20_000:
        return False
    with zipfile.ZipFile(io.BytesIO(_saved(_published()))) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (parts | {"archive/data.pkl": data}).items():
            archive.writestr(name, content)
    return _both(file.getvalue())


# ---- masks -----------------------------------------------------------------------------------------------------------


def _masked(data: bytes) -> bool:
    """Whether masks are read, without a model beside them and with one."""
    Path("masks.safetensors").write_bytes(data)
    with _offline():
        found = outcome(masks.read, "masks.safetensors")
    assert found is None or all(mask.max() <= 1 for mask in found[0].values())
    _taken(_model(model__safetensors=_weights(), masks__safetensors=data))
    return found is not None


@target(lambda: [_masks()])
def mask_files(data: bytes) -> bool:
    """masks.safetensors."""
    return _masked(data)


def _abouts() -> list[bytes]:
    about = json.loads(_split(_masks())[0])["__metadata__"][masks_file._KEY]
    return [about.encode(), about.replace("[256, 4]", json.dumps([256, 4] + [1] * 100)).encode()]


@target(_abouts)
def mask_descriptions(data: bytes) -> bool:
    """What the metadata of masks.safetensors says of each mask."""
    header = json.loads(_split(_masks())[0])
    header["__metadata__"][masks_file._KEY] = data.decode(errors="surrogateescape")
    return _masked(_joined(json.dumps(header).encode(), _masks()))


# ---- texts of perplexity ---------------------------------------------------------------------------------------------


@cache
def _measured() -> tuple[GPT2, device.Machine]:
    machine = device.choose(device.SystemOptions("cpu", "float32", 0, False, "float32"))
    return GPT2(ModelOptions("custom", 1, 1, 4, 8, 0.0, "gelu-tanh"), 256).eval(), machine


def _measure(name: str, data: bytes) -> bool:
    """Whether the perplexity of a text is measured."""
    Path(name).write_bytes(data)
    model, machine = _measured()

    def results() -> list:
        perplexity.check(name, "")
        return list(perplexity.measure(name, "", model, tokenizer.load("bytes"), machine, 512))

    found = outcome(results)
    assert found is None or all(isinstance(value, float) for value in found[0].metrics.values())
    return found is not None


@target(lambda: [b'{"text": "A first row."}\n{"text": "t\\u00e9\\ud83d\\ude00 \\ud800", "n": 1}\n{"text": null}\n'])
def perplexity_lines(data: bytes) -> bool:
    """A file of JSON lines."""
    return _measure("text.jsonl", data)


def _tables() -> list[bytes]:
    found = []
    for texts in (["A first row.", None, "Größe"], [b"A first row.", b"\xff\xfe"], [1, 2], ["A row", ""] * 600):
        file = io.BytesIO()
        parquet.write_table(pyarrow.table({"text": texts}), file)
        found.append(file.getvalue())
    return found


@target(_tables)
def perplexity_tables(data: bytes) -> bool:
    """A parquet file."""
    return _measure("text.parquet", data)


@target(lambda: ["A text, which is long enough for a window.\n Größe \N{GRINNING FACE}".encode()])
def perplexity_texts(data: bytes) -> bool:
    """A text file."""
    return _measure("text.txt", data)
