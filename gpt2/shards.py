"""Shards: tokens on disk. Writes and reads prepared datasets, and reads the bins of nanoGPT, llm.c and modded-nanogpt.

A prepared dataset is a folder of raw little-endian uint16 files with a meta.json, which says how it was made and what
is in it. While it is being made the folder is called <name>.partial, and meta.json lists the shards that are finished.
"""

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2.corpora import CorpusOptions, describe
from gpt2.sources import DataError
from lib import files
from lib.errors import UsageError, UserError

VERSION = 1  # of meta.json
SPLITS = ("train", "val")
TOKEN = np.dtype("<u2")
_SETTINGS = ("dataset_source", "dataset_subset", "dataset_text_field", "dataset_max_tokens", "val_fraction")
_HEADER_BYTES, _MAGIC = 1024, 20240520  # of llm.c and modded-nanogpt: 256 int32: magic, version, tokens, zeros


@dataclass(frozen=True)
class PreparedOptions(CorpusOptions):
    """Which prepared dataset, and where."""

    tokenizer: str
    data_dir: str

    @property
    def folder(self) -> Path:
        """Where the prepared dataset, or the bins, live."""
        return (
            Path(self.data_dir) if self.dataset == "bins" else Path(self.data_dir, f"{self.dataset}-{self.tokenizer}")
        )

    @property
    def settings(self) -> dict[str, object]:
        """The options that decide what is in it; None where the dataset has no such option."""
        settings = {name: getattr(self, name) for name in _SETTINGS}
        if self.dataset == "shakespeare":  # its hash is checked: a copy from anywhere is the same
            settings["dataset_source"] = None
        return settings


# ---- meta.json -------------------------------------------------------------------------------------------------------


def read_meta(folder: Path) -> dict | None:
    """What meta.json in a folder says, or None without one; raises DataError when it cannot be understood."""
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        meta["tokenizer"] + meta["source"], dict(meta["settings"])
        for shard in (shard for split in SPLITS for shard in meta["splits"][split]["shards"]):
            if shard["file"] != Path(shard["file"]).name or shard["tokens"] < 0:  # a path could lead anywhere
                raise ValueError
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path}: is damaged; delete {folder} and prepare it again") from None
    if meta.get("version") != VERSION:
        raise DataError(
            f"{path}: has version {meta.get('version')}, not {VERSION}; delete {folder} to prepare it again"
        )
    return meta


def check_settings(options: PreparedOptions, meta: dict) -> None:
    """Raise UsageError that says what differs when `meta` is of data prepared with other settings."""
    differences = [
        f"{name.upper()} {before!r}, not {now!r}"
        for name, now in (options.settings | {"tokenizer": options.tokenizer}).items()
        if (before := {**meta["settings"], "tokenizer": meta["tokenizer"]}.get(name)) != now
    ]
    if (source := _own_files_now(options) or meta["source"]) != meta["source"]:
        differences.append(f"{meta['source']}, and there are {source} now")
    if differences:
        raise UsageError(
            f"{options.folder}: was prepared with {' and '.join(differences)}; set that, choose another DATA_DIR, or "
            "delete the folder to prepare it again"
        )


def _own_files_now(options: PreparedOptions) -> str:
    """What one's own files are now, to notice a change; empty if they are gone, which prepared data may outlive."""
    if options.dataset == "files":
        with contextlib.suppress(UserError):
            return describe(options)
    return ""


# ---- writing ---------------------------------------------------------------------------------------------------------


@dataclass
class ShardWriter:
    """Writes the tokens of one split, shard by shard; an unfinished shard is a temporary file that a restart redoes."""

    folder: Path
    split: str
    shard_tokens: int  # a shard ends with the first text that brings it to this size
    shards: list[dict]  # the finished ones: file, tokens, sha256, texts
    _file: object = None
    _hash: object = None
    _open_tokens: int = 0

    def __post_init__(self):
        self.texts = self.shards[-1]["texts"] if self.shards else 0  # of either split, up to the last that was added

    @property
    def tokens(self) -> int:
        """Tokens in all shards, the unfinished one included."""
        return sum(shard["tokens"] for shard in self.shards) + self._open_tokens

    def add(self, ids: np.ndarray, text: int) -> bool:
        """Append the tokens of text number `text`; True when that finished a shard."""
        if self._file is None:
            self._file, self._hash = files.partial(self._path).open("wb"), hashlib.sha256()
        content = np.ascontiguousarray(ids, TOKEN).data
        self._file.write(content)
        self._hash.update(content)
        self._open_tokens += len(ids)
        self.texts = text + 1
        return self._open_tokens >= self.shard_tokens and self.finish()

    def finish(self) -> bool:
        """Finish the shard that is being written; False when there is none."""
        if self._file is None:
            return False
        with self._file:
            files.commit(self._file, self._path)
        done = {"file": self._path.name, "tokens": self._open_tokens, "sha256": self._hash.hexdigest()}
        self.shards.append(done | {"texts": self.texts})
        self._file, self._open_tokens = None, 0
        return True

    def summary(self) -> dict:
        """The split's entry in meta.json."""
        return {"tokens": sum(shard["tokens"] for shard in self.shards), "shards": self.shards}

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.split}-{len(self.shards):05d}.bin"


# ---- reading ---------------------------------------------------------------------------------------------------------


def open_prepared(folder: Path, meta: dict) -> dict[str, list[np.ndarray]]:
    """The shards of each split, mapped into memory; raises DataError when a file is not what meta.json says."""
    return {
        split: [_open_shard(folder / shard["file"], shard["tokens"]) for shard in meta["splits"][split]["shards"]]
        for split in SPLITS
    }


def _open_shard(path: Path, tokens: int) -> np.ndarray:
    size = _size(path)
    if size != tokens * TOKEN.itemsize:
        raise DataError(
            f"{path}: holds {size} bytes where meta.json promises {tokens * TOKEN.itemsize}; delete {path.parent} and "
            "prepare it again"
        )
    return _map(path, 0, tokens)


def open_bins(folder: Path, vocab_size: int) -> dict[str, list[np.ndarray]]:
    """The *train*.bin and *val*.bin files in a folder, mapped into memory, each kind recognised by its header.

    Reads every token once, to raise DataError for ids beyond the vocabulary.
    """
    splits = {}
    for split in SPLITS:
        paths = sorted(folder.glob(f"*{split}*.bin"))
        if not paths:
            raise DataError(f"{folder}: holds no *{split}*.bin; DATA_DIR must name the folder of the bins")
        splits[split] = [_open_bin(path) for path in paths]
        for path, tokens in zip(paths, splits[split], strict=True):
            if (largest := _largest(tokens)) >= vocab_size:
                raise DataError(
                    f"{path}: holds token id {largest}, beyond the {vocab_size} ids of the tokenizer; choose the "
                    "TOKENIZER that it was made with"
                )
    return splits


def _open_bin(path: Path) -> np.ndarray:
    size = _size(path)
    with path.open("rb") as file:
        header = np.frombuffer(file.read(12).ljust(12, b"\0"), "<i4")
    if header[0] != _MAGIC:  # as uint16 this would be token 55432, which GPT-2 does not have
        if size % TOKEN.itemsize:
            raise DataError(f"{path}: is cut off: {size} bytes are no whole number of uint16 tokens; copy it again")
        return _map(path, 0, size // TOKEN.itemsize)
    version, tokens = int(header[1]), int(header[2])
    if version != 1:
        raise DataError(f"{path}: has version {version} of llm.c's format; only version 1 holds GPT-2 tokens")
    if size != _HEADER_BYTES + tokens * TOKEN.itemsize:
        raise DataError(
            f"{path}: is cut off or damaged: its header promises {tokens} tokens, it holds "
            f"{max(0, size - _HEADER_BYTES) / TOKEN.itemsize:g}; copy it again"
        )
    return _map(path, _HEADER_BYTES, tokens)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _map(path: Path, offset: int, tokens: int) -> np.ndarray:
    try:
        return np.memmap(path, TOKEN, "r", offset, (tokens,)) if tokens else np.empty(0, TOKEN)  # mmap takes no 0 bytes
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _largest(tokens: np.ndarray, step: int = 1 << 26) -> int:
    return max((int(tokens[start : start + step].max()) for start in range(0, len(tokens), step)), default=0)
