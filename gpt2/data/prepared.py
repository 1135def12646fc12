"""A prepared dataset: which folder holds it, and what its meta.json says about settings, source and shards.

The folder holds shards of tokens and meta.json. While it is being prepared it is called <name>.partial, and meta.json
lists the finished shards.
"""

import contextlib
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from gpt2.data.corpora import AT_THE_END, CorpusOptions, describe, describe_as_before, splitting
from gpt2.data.local_files import DataError
from gpt2.data.shards import SPLITS, shard_name
from gpt2.data.split_names import NO_FRACTION
from lib.base.errors import UsageError, UserError

VERSION = 1  # of meta.json
_SETTINGS = (
    *("dataset_source", "dataset_subset", "dataset_text_field", "dataset_max_tokens", "val_fraction"),
    *("dataset_end_of_text", "text_errors"),
)
# Earlier versions had no such options and did what these values say. Their meta.json lacks them.
_EARLIER_SETTINGS = {"dataset_end_of_text": False, "text_errors": "strict"}


@dataclass(frozen=True)
class PreparedOptions(CorpusOptions):
    """Which prepared dataset, and where."""

    tokenizer: str
    data_dir: str
    evaluate: bool

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that the run reads. What a folder holds does not depend on it, because runs share folders."""
        return SPLITS if self.evaluate else ("train",)

    @property
    def folder(self) -> Path:
        """The folder of the prepared dataset, or of the bins.

        If the source of the dataset is an option, the name contains it, so that several datasets fit into DATA_DIR. A
        folder of an earlier version has no source in its name. It is used if its settings are the same.
        """
        plain = self.plain_folder
        if self.dataset == "bins" or not self.settings["dataset_source"]:
            return plain
        named = Path(self.data_dir, f"{self.dataset}-{_source_name(self.settings)}-{self.tokenizer}")
        if named.exists():
            return named
        begun = not partial(named).exists() and _has_settings(partial(plain), self)
        return plain if begun or _has_settings(plain, self) else named

    @property
    def plain_folder(self) -> Path:
        """The name that earlier versions used, which does not contain the source."""
        return Path(self.data_dir, *([f"{self.dataset}-{self.tokenizer}"] if self.dataset != "bins" else []))

    @property
    def settings(self) -> dict[str, object]:
        """The options that determine the prepared tokens; None if the dataset does not have the option."""
        settings = {name: getattr(self, name) for name in _SETTINGS}
        if self.dataset == "shakespeare":  # the hash of the text is checked, so every source gives the same text
            settings["dataset_source"] = None
        return settings


def partial(folder: Path) -> Path:
    """Return the name of the folder while it is being prepared."""
    return folder.with_name(folder.name + ".partial")


def _source_name(settings: dict[str, object]) -> str:
    """Return a readable name for the source, with a hash that tells it from other sources.

    A relative path is used as it is written, so that a clone of the project elsewhere finds its prepared data. The same
    path in another working folder gives the same name. `check_settings` detects that the files there differ.
    """
    source, subset = _normal(settings["dataset_source"]), settings["dataset_subset"] or ""
    plain = [part for part in Path(source).parts if not set(part) & set("*?")]
    words = "-".join(re.findall(r"[\w.]+", subset or (plain or [""])[-1]))[:40].strip(".") or "all"
    return f"{words}-{hashlib.sha256(f'{source} {subset}'.encode(errors='surrogateescape')).hexdigest()[:6]}"


def _normal(value: object) -> object:
    """Normalise a setting for comparison: `corpus/`, `./corpus` and `corpus` are the same source."""
    return os.path.normpath(value) if isinstance(value, str) and value else value


def _has_settings(folder: Path, options: PreparedOptions) -> bool:
    with contextlib.suppress(DataError):
        meta = read_meta(folder)
        return meta is not None and not _changed_settings(options, meta)
    return False


# ---- meta.json -------------------------------------------------------------------------------------------------------


def read_meta(folder: Path) -> dict | None:
    """Return the content of meta.json, None if there is no such file; raises DataError if it is damaged."""
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        version = meta["version"]
        valid = version != VERSION or _is_valid(meta)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        valid = False
    if not valid:
        raise DataError(f"{path}: is damaged; delete {folder} and prepare it again")
    if version != VERSION:
        raise DataError(f"{path}: has version {version!r:.50}, not {VERSION}; delete {folder} to prepare it again")
    return meta


def _is_valid(meta: dict) -> bool:
    """Check the entries that are read anywhere; may raise KeyError, TypeError or AttributeError if they are missing."""
    return (
        isinstance(meta["settings"], dict)
        and all(isinstance(meta[name], str) and meta[name].isprintable() for name in ("tokenizer", "source"))
        and isinstance(meta.get("split", ""), str)
        and _is_count(meta["vocab_size"])
        and all(_is_valid_split(split, meta["splits"][split]) for split in SPLITS)
    )


def _is_valid_split(split: str, entry: dict) -> bool:
    shards = entry["shards"]
    return entry["tokens"] == sum(shard["tokens"] for shard in shards) and all(
        shard["file"] == shard_name(split, number)  # another name could lead out of the folder, or repeat a file
        and re.fullmatch("[0-9a-f]{64}", shard["sha256"])
        and all(map(_is_count, (shard["tokens"], shard["texts"], shard.get("mtime_ns", 0))))
        for number, shard in enumerate(shards)
    )


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


# ---- settings then and now -------------------------------------------------------------------------------------------


def check_settings(options: PreparedOptions, meta: dict) -> None:
    """Raise UsageError with all differences if the data was prepared with other settings or from other files."""
    changed = _changed_settings(options, meta)
    if (source := _own_files_now(options, meta) or meta["source"]) != meta["source"]:
        changed.append(f"the source was {meta['source']} and is {source}")
    if changed:
        raise UsageError(
            f"{options.folder}: was prepared differently: {', '.join(changed)}; undo that change, choose another "
            "DATA_DIR, or delete the folder to prepare it again"
        )


def all_settings(meta: dict) -> dict[str, object]:
    """Return the settings of the prepared data, with the values of options that did not exist then."""
    return {**_EARLIER_SETTINGS, **meta["settings"]}


def _changed_settings(options: PreparedOptions, meta: dict) -> list[str]:
    """List the settings that differ, except those that have no effect."""
    then = all_settings(meta) | {"tokenizer": meta["tokenizer"]}
    if NO_FRACTION in meta.get("split", ""):
        then["val_fraction"] = options.val_fraction
    return [
        f"{name.upper()} was {then.get(name)!r} and is {now!r}"
        for name, now in (options.settings | {"tokenizer": options.tokenizer}).items()
        if now is not None and _normal(then.get(name)) != _normal(now)
    ]


def outdated(options: PreparedOptions, meta: dict) -> str:
    """Return a note if the data was split between training and validation differently than today, else ""."""
    with contextlib.suppress(UserError):  # the source files may no longer exist
        now = splitting(options)
        if meta.get("split", now if now == AT_THE_END else "in an earlier way") != now:
            return (
                f"{options.folder}: was split between training and validation in another way than today ({now}), so "
                "its validation losses cannot be compared with those of new data; choose another DATA_DIR, or delete "
                "the folder to prepare it again, unless a run still needs it"
            )
    return ""


def _own_files_now(options: PreparedOptions, meta: dict) -> str:
    """Describe the user's source files as they are now; "" if they are gone, which does not harm prepared data."""
    if options.dataset == "files":
        with contextlib.suppress(UserError):
            if "text_errors" not in meta["settings"] and describe_as_before(options) == meta["source"]:
                return meta["source"]  # the files are the same; only the choice among them has changed since
            return describe(options)
    return ""
