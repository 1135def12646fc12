"""Fuzz targets for the files and texts that training and sampling read: checkpoints, data, corpora, prompts."""

import codecs
import io
import json
import struct
from functools import cache
from pathlib import Path
from typing import Any

import torch

from gpt2 import sample, trained
from gpt2.data import sources, tokenizer, windows
from gpt2.model import GPT2, ModelOptions
from gpt2.session import Session
from gpt2.weights import source
from lib.config.kconf import Schema
from lib.machine import device
from lib.record import checkpoint, checkpoint_file
from scripts import checkpoint_info
from tests import runs, training
from tests.fuzzing.promise import TARGETS, outcome, target, terminal

_ABOUT = {"run_id": "0123456789ab", "run": "run", "model": "custom"}
_RUN = Path("run")
_CHECKPOINT = _RUN / "checkpoints" / checkpoint.name(0)


@cache
def _session() -> Session:
    """A tiny model with its data, ready to train."""
    with terminal():
        made = training.schema(Path().absolute(), n_layer=1, n_embd=8, block_size=8, dataset_max_tokens=4000)
        return Session(made, device.choose(made.bind(device.SystemOptions)))


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def _state() -> dict[str, Any]:
    return _session().training.state_dict()


def _body() -> bytes:
    file = io.BytesIO()
    torch.save({"step": 0, **_state()}, file)
    return file.getvalue()


def _checkpoints() -> list[bytes]:
    (path := Path(checkpoint.name(0))).unlink(missing_ok=True)
    keeping = checkpoint.Keeping(checkpoint_keep=2, checkpoint_best=True, checkpoint_at="")
    return [checkpoint.save(Path(), 0, _state(), keeping, _ABOUT).read_bytes() for path in [path]]


def _place() -> Path:
    """Where the checkpoint of a run in this folder is; makes the run if there is none yet."""
    if not _CHECKPOINT.parent.is_dir():
        runs.write(_RUN, config={"batch_size": 4, "gradient_accumulation": 2, "block_size": 8})
        _session().schema.write(_RUN / ".config")
        _CHECKPOINT.parent.mkdir()
    return _CHECKPOINT


def _sealed(body: bytes, header: dict[str, Any] | bytes) -> None:
    """Write a checkpoint with any content and a valid checksum."""
    with _place().open("wb") as file:
        sealer = checkpoint_file.Sealer(file)
        sealer.write(body)
        if isinstance(header, dict):
            sealer.seal(header)
        else:
            line = b"\n" + header[:60_000] + b"\n"
            sealer.write(line)
            sealer.write(f"sha256 {sealer.digest.hexdigest()} {len(line):08d} espalier checkpoint\n".encode())


def _restored() -> bool:
    """Show the run's checkpoint, read its weights and train on it; each works or ends with a clear sentence."""
    path = _place()
    problem = checkpoint_info.problem(path)
    outcome(lambda: print(problem or checkpoint_info.details(checkpoint_file.header(path))))
    try:
        state = outcome(checkpoint.load, path)
    except MemoryError:  # crafted input may need more memory than there is; the programs have a sentence for that
        return False
    assert state is None or not problem
    outcome(lambda: trained.load(source.find(str(path)), _session().schema))
    return state is not None and outcome(lambda: _session().training.load_state_dict(state) or True) is not None


@target(_checkpoints)
def checkpoints(data: bytes) -> bool:
    """The bytes of a checkpoint: a file with a single changed bit is not loaded."""
    _place().write_bytes(data)
    accepted = _restored()
    # An input with another valid checksum is a forgery: libFuzzer sees the expected one in the comparison.
    seeds = TARGETS["checkpoints"].seeds()
    assert not accepted or data in seeds or not data.endswith(tuple(seed[-100:] for seed in seeds))
    return accepted


@target(lambda: [_body()])
def crafted_checkpoints(data: bytes) -> bool:
    """A checkpoint with any content and a valid checksum: no code in it is run, and content that does not fit fails."""
    _sealed(data, _ABOUT | {"step": 0, **checkpoint.contents(_state())})
    return _restored()


def _header() -> bytes:
    about = {"format": checkpoint_file.FORMAT, "bytes": 1, **_ABOUT, "step": 0}
    return json.dumps(about | checkpoint.contents(_state())).encode()


@target(lambda: [_header()])
def checkpoint_headers(data: bytes) -> bool:
    """The header of a checkpoint with a valid checksum."""
    _sealed(_body(), data)
    return _restored()


# ---- data ------------------------------------------------------------------------------------------------------------


def _prepared() -> Path:
    return _session().data.folder


@target(lambda: [(_prepared() / "meta.json").read_bytes()])
def meta(data: bytes) -> bool:
    """meta.json of prepared data: if it is accepted, it describes the tokens correctly."""
    good = _intact_meta()
    (_prepared() / "meta.json").write_bytes(data)
    try:
        found = outcome(windows.load, _session().schema.bind(windows.DataOptions))
        return found is not None and _used(found)
    finally:
        (_prepared() / "meta.json").write_bytes(good)


@cache
def _intact_meta() -> bytes:
    return (_prepared() / "meta.json").read_bytes()


def _used(data: windows.Data) -> bool:
    for x, y in (data.batch(3, 1), *data.val_batches()):
        assert x.shape == y.shape and x.min() >= 0 and x.max() < data.vocab_size
    return True


def _bins() -> list[bytes]:
    tokens = [n % 100 for n in range(400)]
    plain = struct.pack("<400H", *tokens)
    return [plain, struct.pack("<3i", 20240520, 1, 400).ljust(1024, b"\0") + plain]


@target(_bins)
def bins(data: bytes) -> bool:
    """A bin of nanoGPT, llm.c or modded-nanogpt."""
    folder = Path("bins")
    folder.mkdir(exist_ok=True)
    (folder / "train.bin").write_bytes(data)
    (folder / "val.bin").write_bytes(_bins()[0])
    schema = Schema()
    given = {"DATASET": "bins", "DATA_DIR": "bins", "TOKENIZER": "bytes", "BLOCK_SIZE": "8", "BATCH_SIZE": "4"}
    schema.override([(name, text, "test") for name, text in given.items()])
    found = outcome(windows.load, schema.bind(windows.DataOptions))
    return found is not None and _used(found)


@target(lambda: [b'{"text": "one", "n": 1}\n{"text": "t\\u00e9\\ud83d\\ude00 \\ud800"}\n\n'])
def json_lines(data: bytes) -> bool:
    """A corpus of JSON lines: every line is a document, or the error names it."""
    path = Path("corpus.jsonl")
    path.write_bytes(data)
    sources.text_bytes([path], "text")
    found = outcome(lambda: list(sources.json_lines([path], "text")))
    if found is None:
        return False
    assert len(found) <= sum(bool(line.strip()) for line in data.split(b"\n"))  # nulls are left out
    tokenizer.load("bytes").encode_batch(found)
    return True


@target(lambda: ["One. Two\n\n dréi \N{GRINNING FACE}".encode() * 40])
def text_files(data: bytes) -> bool:
    """A text file as a corpus: the pieces in which it is read are the complete file."""
    path = Path("corpus-2.txt")
    path.write_bytes(data)
    found = outcome(lambda: "".join(sources.pieces(path)))
    assert found is None or found.encode() == data.removeprefix(codecs.BOM_UTF8)
    return found is not None


# ---- prompts ---------------------------------------------------------------------------------------------------------


@cache
def _model(vocabulary: int) -> GPT2:
    return GPT2(ModelOptions("custom", 1, 1, 4, 8, 0.0, "gelu-tanh"), vocabulary)


_PROMPTS = ["def ", "Größe 東京 \N{GRINNING FACE}", " " * 70_000, "a" * 1_000_000]


@target(lambda: [b"\xed\xa0\x80 \xff\0", *(prompt.encode() for prompt in _PROMPTS)])
def prompts(data: bytes) -> bool:
    """A prompt for sampling, as a command line or a caller from Python gives it; either tokenizer takes any text."""
    machine = device.choose(device.SystemOptions("cpu", "float32", 0, False, "float32"))
    for prompt in {data.decode(errors="surrogateescape"), data.decode(errors="replace")}:
        options = sample.SampleOptions(prompt, sample_tokens=2, temperature=1.0, top_k=0, seed=1)
        for name in ("bytes", "gpt2"):
            tokens = tokenizer.load(name)
            [ids] = tokens.encode_batch([prompt])
            if "\ufffd" not in prompt and prompt.isprintable():
                assert tokens.decode(ids).decode() == prompt
            text = sample.text(_model(tokens.vocab_size), tokens, machine, options)
            assert text.startswith(prompt)
    return True
