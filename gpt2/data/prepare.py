"""Preparation: tokenise the configured dataset once, into the data folder from which training reads."""

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gpt2.data import corpora, folder_lock, prepared, shards, sources, tokenizer, tokens
from gpt2.data.encoding import Progress, default_threads, encoded
from gpt2.data.local_files import DataError
from gpt2.data.prepared import PreparedOptions
from gpt2.data.shards import SPLITS, ShardWriter
from gpt2.data.split_names import NO_FRACTION
from lib.base import files
from lib.base.errors import UserError

SHARD_TOKENS = 100_000_000  # 200 MB; an interruption loses only the unfinished shard


def ensure(options: PreparedOptions) -> None:
    """Prepare the dataset if its folder does not exist. `windows.load` checks a folder that exists."""
    if options.dataset != "bins" and not options.folder.exists():
        prepare(options)


def prepare(options: PreparedOptions, *, shard_tokens: int = SHARD_TOKENS, threads: int | None = None) -> Path:
    """Tokenise the dataset into `options.folder`, or continue an interrupted preparation; returns the folder.

    `threads` encode at once, by default one per core. Waits while another program prepares the same dataset. Reads and
    verifies a folder that exists. Raises DataError if prepared data has changed, if the corpus is unreadable or too
    small, and if the disk cannot be written. Raises UsageError if the folder was prepared with other settings.
    """
    folder, begin = options.folder, time.monotonic()
    if folder.exists():
        _verify(options)
        return folder
    partial = prepared.partial(folder)
    if (plain := prepared.partial(options.plain_folder)) != partial and plain.exists():
        print(
            f"note: {plain}: an earlier version began to prepare data with other settings there; delete it, or use "
            "those settings to continue",
            file=sys.stderr,
        )
    try:
        with folder_lock.held(partial):
            if folder.exists():  # another program has finished it meanwhile
                _verify(options)
                return folder
            meta = _fill(partial, options, shard_tokens, threads or default_threads())
            partial.rename(folder)
            with contextlib.suppress(OSError):  # if the lock file stays, it is empty and does no harm
                (folder / folder_lock.NAME).unlink()
    except MemoryError:
        raise DataError(f"{partial}: not enough memory to prepare the dataset; finished shards are kept") from None
    except OSError as error:
        raise DataError(f"{partial}: cannot be written: {files.reason(error, partial.parent)}") from None
    print(f"{_summary(folder, meta)}, in {time.monotonic() - begin:.1f} seconds")
    if note := _share_note(options, meta):
        print(f"note: {note}")
    return folder


# ---- a new folder ----------------------------------------------------------------------------------------------------


def _fill(partial: Path, options: PreparedOptions, shard_tokens: int, threads: int) -> dict:
    """Write the missing shards and meta.json; returns the content of meta.json."""
    meta = _meta(options)
    if meta["split"] not in corpora.UNNAMED:
        print(f"{options.dataset_source}: split {meta['split']}", flush=True)
    done = _finished(partial, meta)
    writers = {split: ShardWriter(partial, split, shard_tokens, done[split]) for split in SPLITS}

    def save() -> None:
        meta["splits"] = {split: writer.summary() for split, writer in writers.items()}
        files.write_json(partial / "meta.json", meta)

    progress = Progress(options)
    try:
        _tokenise(options, writers, save, threads, progress)
        if not all(writers[split].tokens for split in options.splits):
            name = f"{options.dataset} {options.dataset_source or ''}".strip()
            parts = "training and validation" if options.evaluate else "training"
            whole = options.val_fraction and any(writer.tokens for writer in writers.values())
            without = ", or train on all of it with EVALUATE=n VAL_FRACTION=0" if whole else ""
            raise DataError(
                f"{name}: holds too little text for {parts}; choose a corpus of at least two different documents, "
                f"or one text of several words{without}"
            )
        for split in reversed(SPLITS):  # train last: with a limit, a finished train split ends the preparation
            writers[split].finish()
            save()
    except KeyboardInterrupt:
        print(f"\nfinished shards are kept in {partial}; run the same command again to continue", file=sys.stderr)
        raise
    except OSError as error:
        finished = sum(writer.summary()["tokens"] for writer in writers.values()) * shards.TOKEN.itemsize
        why = files.reason(error, partial, max(0, progress.expected_bytes() - finished))
        raise DataError(
            f"{partial}: the rest of the dataset cannot be written: {why}; finished shards are kept; run the same "
            "command again to continue"
        ) from None
    return meta


def _meta(options: PreparedOptions) -> dict:
    """Return the content of meta.json without `splits`."""
    return {
        "version": prepared.VERSION,
        "dataset": options.dataset,
        "tokenizer": options.tokenizer,
        "vocab_size": tokenizer.vocab_size(options.tokenizer),
        "settings": options.settings,
        "piece_bytes": sources.PIECE_BYTES,  # a finished shard counts texts, and a long document is one text per piece
        "source": corpora.describe(options),
        "split": corpora.splitting(options),
    }


def _finished(partial: Path, meta: dict) -> dict[str, list[dict]]:
    """Return the finished shards of each split; deletes what was prepared with other settings or is damaged."""
    nothing = {split: [] for split in SPLITS}
    there = [path for path in partial.iterdir() if path.name != folder_lock.NAME]
    if not there:
        return nothing
    try:
        before = prepared.read_meta(partial)
        if before is None:
            raise DataError("it was interrupted before the first shard was finished")
        before["settings"] = prepared.all_settings(before)
        if {name: before.get(name) for name in meta} != meta:
            raise DataError("its shards were made with other settings or from another source")
        found = [file for split in shards.open_shards(partial, before).values() for file in split]
        tokens.verify(found, shards.seals(before), meta["vocab_size"], shards.CHANGED)
    except DataError as reason:
        print(f"{partial}: starting over: {reason}", file=sys.stderr)
        for path in there:
            path.unlink()
        return nothing
    done = {split: before["splits"][split]["shards"] for split in SPLITS}
    print(f"{partial}: continuing after {sum(map(len, done.values()))} finished shards", file=sys.stderr)
    return done


def _tokenise(
    options: PreparedOptions,
    writers: dict[str, ShardWriter],
    save: Callable[[], None],
    threads: int,
    progress: Progress,
) -> None:
    """Write the tokens of all texts that are not in finished shards, until training has DATASET_MAX_TOKENS."""
    train, val = writers["train"], writers["val"]
    limit, end = options.dataset_max_tokens or float("inf"), tokenizer.load(options.tokenizer).end_of_text
    done = {split: writer.texts for split, writer in writers.items()}
    wanted = ((n, text) for n, text in enumerate(corpora.texts(options)) if n >= done[text.split])
    with contextlib.closing(encoded(options.tokenizer, wanted, threads)) as found:
        for (number, text), ids in progress.show(found):
            if train.tokens >= limit and number >= train.texts:
                if val.tokens or not options.val_fraction:
                    break
                if text.split == "train":
                    continue
            if text.ends or (text.split == "train" and train.tokens + len(ids) >= limit):
                ids = np.append(ids, np.uint16(end))
            if writers[text.split].add(ids, number):
                save()


def _summary(folder: Path, meta: dict) -> str:
    counts = [f"{meta['splits'][split]['tokens']:,} tokens for {split}" for split in SPLITS]
    return f"{folder}: {', '.join(counts)}"


def _share_note(options: PreparedOptions, meta: dict) -> str:
    """Return a note if validation's share of the tokens differs from VAL_FRACTION by over a quarter, else ""."""
    train, val = (meta["splits"][split]["tokens"] for split in SPLITS)
    share, wanted = val / (train + val), options.val_fraction
    if NO_FRACTION in meta["split"] or abs(share - wanted) <= wanted / 4:
        return ""
    limited = options.dataset_max_tokens and train >= options.dataset_max_tokens
    why = "DATASET_MAX_TOKENS ended the training part" if limited else "the documents are few or large"
    return f"validation has {share:.2%} of the tokens instead of VAL_FRACTION={wanted:.2%}, because {why}"


# ---- a folder that exists --------------------------------------------------------------------------------------------


def _verify(options: PreparedOptions) -> None:
    """Read all shards of a prepared folder and print that they are unchanged; raises DataError if one has changed.

    Unchanged shards may have new modification times, from a copy for instance. meta.json then gets these times, if it
    can be written, so that a start of training need not read the shards again.
    """
    folder, meta = options.folder, prepared.read_meta(options.folder)
    if meta is None:
        raise DataError(
            f"{folder}: holds no meta.json, so it is not a prepared dataset; remove it, or choose another DATA_DIR"
        )
    prepared.check_settings(options, meta)
    found = [file for split in shards.open_shards(folder, meta).values() for file in split]
    unread = {name: seal._replace(mtime_ns=None) for name, seal in shards.seals(meta).items()}
    tokens.verify(found, unread, meta["vocab_size"], shards.CHANGED)
    seals = {file.path.name: file.seal for file in found}
    if seals != shards.seals(meta):
        for shard in (shard for split in SPLITS for shard in meta["splits"][split]["shards"]):
            shard["mtime_ns"] = seals[shard["file"]].mtime_ns
        _rewrite(folder, meta)
    print(f"{_summary(folder, meta)}: prepared before, with the same settings; the sha256 of every shard is right")
    if meta["source"] != (source := corpora.describe(options)):
        print(
            f"note: it was made from {meta['source']}, and the source is now {source}; delete the folder to prepare "
            "it again"
        )
    if note := prepared.outdated(options, meta):
        print(f"note: {note}")


def _rewrite(folder: Path, meta: dict) -> None:
    """Write meta.json if possible. A program that holds the lock writes the same, so there is no need to wait."""
    with contextlib.suppress(UserError, OSError):
        if (handle := folder_lock.take(folder, wait=False)) is None:
            return
        try:
            files.write_json(folder / "meta.json", meta)
        finally:
            folder_lock.give_back(folder, handle)
