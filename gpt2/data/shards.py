"""Shards: the files in which the tokens of a prepared dataset lie, raw little-endian uint16. Writes and opens them."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2.data.local_files import DataError
from gpt2.data.tokens import TOKEN, Seal, TokenFile, allow_files, file_size
from lib.base import files

SPLITS = ("train", "val")
CHANGED = (
    "has another sha256 than meta.json says, so it was changed or damaged; restore it, or delete the folder and "
    "prepare it again"
)


def shard_name(split: str, number: int) -> str:
    """Return the file name of a shard; `number` counts from 0 in each split."""
    return f"{split}-{number:05d}.bin"


@dataclass
class ShardWriter:
    """Writes the tokens of one split, shard by shard.

    An unfinished shard is a temporary file, which is written again after an interruption.
    """

    folder: Path
    split: str
    shard_tokens: int  # the text that reaches this size ends the shard
    shards: list[dict]  # the finished ones: file, tokens, mtime_ns, sha256, texts
    _file: object = None
    _hash: object = None
    _open_tokens: int = 0

    def __post_init__(self):
        # How many texts the corpus has up to the last one that was added here. Texts of both splits count.
        self.texts = self.shards[-1]["texts"] if self.shards else 0

    @property
    def tokens(self) -> int:
        """Tokens in all shards, the unfinished one included."""
        return sum(shard["tokens"] for shard in self.shards) + self._open_tokens

    def add(self, ids: np.ndarray, text: int) -> bool:
        """Append the tokens of text number `text`; returns True if that finished a shard."""
        if self._file is None:
            self._file, self._hash = files.partial(self._path).open("wb"), hashlib.sha256()
        content = np.ascontiguousarray(ids, TOKEN).data
        self._file.write(content)
        self._hash.update(content)
        self._open_tokens += len(ids)
        self.texts = text + 1
        return self._open_tokens >= self.shard_tokens and self.finish()

    def finish(self) -> bool:
        """Finish the shard that is being written; returns False if there is none."""
        if self._file is None:
            return False
        with self._file:
            files.commit(self._file, self._path)
        self.shards.append(
            {
                "file": self._path.name,
                "tokens": self._open_tokens,
                "mtime_ns": self._path.stat().st_mtime_ns,
                "sha256": self._hash.hexdigest(),
                "texts": self.texts,
            }
        )
        self._file, self._open_tokens = None, 0
        return True

    def summary(self) -> dict:
        """Return the split's entry in meta.json."""
        return {"tokens": sum(shard["tokens"] for shard in self.shards), "shards": self.shards}

    @property
    def _path(self) -> Path:
        return self.folder / shard_name(self.split, len(self.shards))


def open_shards(folder: Path, meta: dict, splits: Iterable[str] = SPLITS) -> dict[str, list[TokenFile]]:
    """Open the shards of these splits; raises DataError if a file does not have the size that meta.json says."""
    allow_files()
    return {
        split: [_open(folder / shard["file"], shard["tokens"]) for shard in meta["splits"][split]["shards"]]
        for split in splits
    }


def _open(path: Path, tokens: int) -> TokenFile:
    if (size := file_size(path)) != tokens * TOKEN.itemsize:
        raise DataError(
            f"{path}: has {size} bytes, and meta.json says {tokens * TOKEN.itemsize}; delete {path.parent} and "
            "prepare it again"
        )
    return TokenFile(path, 0, tokens)


def seals(meta: dict) -> dict[str, Seal]:
    """Return file name -> seal, as meta.json has them; those of earlier versions have no modification time."""
    return {
        shard["file"]: Seal(shard["tokens"] * TOKEN.itemsize, shard.get("mtime_ns"), shard["sha256"])
        for split in SPLITS
        for shard in meta["splits"][split]["shards"]
    }


def differing(before: dict[str, dict[str, str]], now: dict[str, dict[str, str]]) -> str:
    """Name the files whose content has changed, as a part of a sentence; "" if nothing has changed.

    Both arguments are split -> file name -> sha256. A file that was only renamed counts as unchanged.
    """
    if [list(before[split].values()) for split in SPLITS] == [list(now[split].values()) for split in SPLITS]:
        return ""
    known, found = ({sum_: name for split in SPLITS for name, sum_ in sums[split].items()} for sums in (before, now))
    other = sorted({(known | found)[sum_] for sum_ in known.keys() ^ found.keys()})
    return ", ".join(other[:3]) + f" and {len(other) - 3} more" * (len(other) > 3) or "the order of the files"
