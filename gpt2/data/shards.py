"""Shards: tokens on disk. Writes and reads prepared datasets.

A prepared dataset is a folder of raw little-endian uint16 files with a meta.json, which says how it was made and what
is in it. While it is being made the folder is called <name>.partial, and meta.json lists the shards that are finished.
"""

import contextlib
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2.data.corpora import AT_THE_END, CorpusOptions, describe, describe_as_before, splitting
from gpt2.data.local_files import DataError
from gpt2.data.splits import NO_FRACTION
from gpt2.data.tokens import TOKEN, Seal, TokenFile, allow_files, size
from lib.base import files
from lib.base.errors import UsageError, UserError

VERSION = 1  # of meta.json
SPLITS = ("train", "val")
CHANGED = (
    "has another sha256 than meta.json says, so it was changed or damaged; put it back, or delete the folder and "
    "prepare it again"
)
_SETTINGS = (
    *("dataset_source", "dataset_subset", "dataset_text_field", "dataset_max_tokens", "val_fraction"),
    *("dataset_end_of_text", "text_errors"),
)
# What data were prepared with before there were these options, which is not in their meta.json.
_EARLIER = {"dataset_end_of_text": False, "text_errors": "strict"}


@dataclass(frozen=True)
class PreparedOptions(CorpusOptions):
    """Which prepared dataset, and where."""

    tokenizer: str
    data_dir: str

    @property
    def folder(self) -> Path:
        """Where the prepared dataset, or the bins, live.

        A dataset whose source can vary has that in its name, so that several live beside each other. One of an earlier
        version, which has not, is used where it was prepared, or begun, with the same settings.
        """
        plain = self.plain_folder
        if self.dataset == "bins" or not self.settings["dataset_source"]:
            return plain
        named = Path(self.data_dir, f"{self.dataset}-{_source_name(self.settings)}-{self.tokenizer}")
        if named.exists():
            return named
        begun = not partial(named).exists() and _was_prepared(partial(plain), self)
        return plain if begun or _was_prepared(plain, self) else named

    @property
    def plain_folder(self) -> Path:
        """Where an earlier version put it, without a source in the name."""
        return Path(self.data_dir, *([f"{self.dataset}-{self.tokenizer}"] if self.dataset != "bins" else []))

    @property
    def settings(self) -> dict[str, object]:
        """The options that decide what is in it; None where the dataset has no such option."""
        settings = {name: getattr(self, name) for name in _SETTINGS}
        if self.dataset == "shakespeare":  # its hash is checked: a copy from anywhere is the same
            settings["dataset_source"] = None
        return settings


def partial(folder: Path) -> Path:
    """Where a dataset is while it is being prepared."""
    return folder.with_name(folder.name + ".partial")


def _source_name(settings: dict[str, object]) -> str:
    """A name for what text is read from, which people understand and no other way to write a source has.

    A relative path is named as it is written, so that a clone of a project elsewhere finds its prepared data. The same
    path in another working folder has this name too; `check_settings` sees where the files there are other ones.
    """
    source, subset = _normal(settings["dataset_source"]), settings["dataset_subset"] or ""
    plain = [part for part in Path(source).parts if not set(part) & set("*?")]
    words = "-".join(re.findall(r"[\w.]+", subset or (plain or [""])[-1]))[:40].strip(".") or "all"
    return f"{words}-{hashlib.sha256(f'{source} {subset}'.encode(errors='surrogateescape')).hexdigest()[:6]}"


def _normal(value: object) -> object:
    """A setting in the form in which it is compared: `corpus/`, `./corpus` and `corpus` are one source."""
    return os.path.normpath(value) if isinstance(value, str) and value else value


def _was_prepared(folder: Path, options: PreparedOptions) -> bool:
    """Whether a folder holds what was prepared with these settings."""
    with contextlib.suppress(DataError):
        meta = read_meta(folder)
        return meta is not None and not _other_settings(options, meta)
    return False


# ---- meta.json -------------------------------------------------------------------------------------------------------


def read_meta(folder: Path) -> dict | None:
    """What meta.json in a folder says, or None without one; raises DataError when it cannot be understood."""
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        version = meta["version"]
        sound = version != VERSION or _sound(meta)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise DataError(f"{path}: is damaged; delete {folder} and prepare it again")
    if version != VERSION:
        raise DataError(f"{path}: has version {version!r:.50}, not {VERSION}; delete {folder} to prepare it again")
    return meta


def _sound(meta: dict) -> bool:
    """Whether meta.json has what is read of it, as `ShardWriter` writes that; may raise for what has not."""
    return (
        isinstance(meta["settings"], dict)
        and all(isinstance(meta[name], str) and meta[name].isprintable() for name in ("tokenizer", "source"))
        and isinstance(meta.get("split", ""), str)
        and _is_count(meta["vocab_size"])
        and all(_sound_split(split, meta["splits"][split]) for split in SPLITS)
    )


def _sound_split(split: str, entry: dict) -> bool:
    shards = entry["shards"]
    return entry["tokens"] == sum(shard["tokens"] for shard in shards) and all(
        shard["file"] == _name(split, number)  # any other could be a path that leads anywhere, or a file twice
        and re.fullmatch("[0-9a-f]{64}", shard["sha256"])
        and all(map(_is_count, (shard["tokens"], shard["texts"], shard.get("mtime_ns", 0))))
        for number, shard in enumerate(shards)
    )


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def check_settings(options: PreparedOptions, meta: dict) -> None:
    """Raise UsageError that says what differs when `meta` is of data prepared with other settings."""
    differences = _other_settings(options, meta)
    if (source := _own_files_now(options, meta) or meta["source"]) != meta["source"]:
        differences.append(f"{meta['source']}, and there are {source} now")
    if differences:
        raise UsageError(
            f"{options.folder}: was prepared with {' and '.join(differences)}; set that, choose another DATA_DIR, or "
            "delete the folder to prepare it again"
        )


def all_settings(meta: dict) -> dict[str, object]:
    """The settings that data were prepared with, also those that were no options then."""
    return {**_EARLIER, **meta["settings"]}


def _other_settings(options: PreparedOptions, meta: dict) -> list[str]:
    """What was set otherwise when data were prepared, of what has an effect."""
    then = all_settings(meta) | {"tokenizer": meta["tokenizer"]}
    if NO_FRACTION in meta.get("split", ""):
        then["val_fraction"] = options.val_fraction
    return [
        f"{name.upper()} {then.get(name)!r}, not {now!r}"
        for name, now in (options.settings | {"tokenizer": options.tokenizer}).items()
        if now is not None and _normal(then.get(name)) != _normal(now)
    ]


def outdated(options: PreparedOptions, meta: dict) -> str:
    """A sentence about data that were split between training and validation otherwise than today; else empty."""
    with contextlib.suppress(UserError):  # one's own files may be gone
        now = splitting(options)
        if meta.get("split", now if now == AT_THE_END else "in an earlier way") != now:
            return (
                f"{options.folder}: was split in another way than it would be now ({now}), so its validation losses do "
                "not compare; choose another DATA_DIR, or, unless a run is to go on with it, delete the folder to "
                "prepare it again"
            )
    return ""


def _own_files_now(options: PreparedOptions, meta: dict) -> str:
    """What one's own files are now, to notice a change; empty if they are gone, which prepared data may outlive."""
    if options.dataset == "files":
        with contextlib.suppress(UserError):
            if "text_errors" not in meta["settings"] and describe_as_before(options) == meta["source"]:
                return meta["source"]  # the same files, of which today others would be read
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
        """The split's entry in meta.json."""
        return {"tokens": sum(shard["tokens"] for shard in self.shards), "shards": self.shards}

    @property
    def _path(self) -> Path:
        return self.folder / _name(self.split, len(self.shards))


def _name(split: str, number: int) -> str:
    return f"{split}-{number:05d}.bin"


# ---- reading ---------------------------------------------------------------------------------------------------------


def open_prepared(folder: Path, meta: dict) -> dict[str, list[TokenFile]]:
    """The shards of each split; raises DataError when a file has not the size that meta.json promises."""
    allow_files()
    return {
        split: [_open_shard(folder / shard["file"], shard["tokens"]) for shard in meta["splits"][split]["shards"]]
        for split in SPLITS
    }


def _open_shard(path: Path, tokens: int) -> TokenFile:
    if (found := size(path)) != tokens * TOKEN.itemsize:
        raise DataError(
            f"{path}: holds {found} bytes where meta.json promises {tokens * TOKEN.itemsize}; delete {path.parent} and "
            "prepare it again"
        )
    return TokenFile(path, 0, tokens)


def seals(meta: dict) -> dict[str, Seal]:
    """What meta.json knows the shards by; one that an earlier version wrote has no times."""
    return {
        shard["file"]: Seal(shard["tokens"] * TOKEN.itemsize, shard.get("mtime_ns"), shard["sha256"])
        for split in SPLITS
        for shard in meta["splits"][split]["shards"]
    }


def differing(before: dict[str, dict[str, str]], now: dict[str, dict[str, str]]) -> str:
    """What files (split -> file -> sha256) have other content than before, in words; empty when none.

    The content counts and its order, not what files are called.
    """
    if [list(before[split].values()) for split in SPLITS] == [list(now[split].values()) for split in SPLITS]:
        return ""
    known, found = ({sum_: name for split in SPLITS for name, sum_ in sums[split].items()} for sums in (before, now))
    other = sorted({(known | found)[sum_] for sum_ in known.keys() ^ found.keys()})
    return ", ".join(other[:3]) + f" and {len(other) - 3} more" * (len(other) > 3) or "the order of the files"
