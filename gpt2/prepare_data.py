"""Download and tokenise the configured dataset once; training reads what this leaves in the data folder."""

import contextlib
import functools
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from lib.base.signals import end_at_once

    end_at_once()

import numpy as np
from tqdm import tqdm

from gpt2 import preflight
from gpt2.data import corpora, shards, sources, tokenizer, tokens
from gpt2.data.corpora import Text
from gpt2.data.local_files import reason
from gpt2.data.shards import PreparedOptions, ShardWriter
from gpt2.data.sources import DataError
from gpt2.data.splits import NO_FRACTION
from lib.base import files
from lib.base.errors import UserError, run_program
from lib.base.threads import cores
from lib.config import command_line
from lib.config.kconf import Schema

SHARD_TOKENS = 100_000_000  # 200 MB; an interruption costs the shard that is being written
_BATCH_CHARACTERS, _BATCH_TEXTS = 1 << 20, 4096  # what a thread tokenises at once: about 0.1 s of work
_MOST_THREADS = 32  # each holds some 25 MB: an encoder and texts on their way
_REPORT_SECONDS = 10
_WAIT_SECONDS = 0.2  # between two looks whether another program is done
_LOCK = "lock"  # a file in the folder, open for writing: NFS locks neither a folder nor a file that is only read

Numbered = tuple[int, Text]  # a text with its number in the corpus


def ensure(schema: Schema) -> None:
    """Prepare the configured dataset unless that is done; whether it fits the options is for `data.load` to say."""
    options = schema.bind(PreparedOptions)
    if options.dataset != "bins" and not options.folder.exists():
        prepare(options)


def prepare(options: PreparedOptions, *, shard_tokens: int = SHARD_TOKENS, threads: int | None = None) -> Path:
    """Tokenise the dataset into `options.folder`, or finish what was interrupted, and return the folder.

    `threads` tokenise at once, by default one per core. Waits while another program prepares the same. What was
    prepared before is read whole to see whether it has changed. Raises DataError if it has, for a corpus that cannot be
    read or is too small and for a disk that cannot be written, UsageError when other settings have been prepared there.
    """
    folder, begin = options.folder, time.monotonic()
    if folder.exists():
        _check_prepared(options)
        return folder
    partial = shards.partial(folder)
    if (plain := shards.partial(options.plain_folder)) != partial and plain.exists():
        print(
            f"note: {plain}: an earlier version began to prepare other data there; delete it, or set again what it "
            "was prepared with to go on",
            file=sys.stderr,
        )
    try:
        with _locked(partial):
            if folder.exists():  # another program was quicker
                _check_prepared(options)
                return folder
            meta = _fill(partial, options, shard_tokens, threads or default_threads())
            partial.rename(folder)
            with contextlib.suppress(OSError):  # an empty file that does no harm
                (folder / _LOCK).unlink()
    except MemoryError:
        raise DataError(f"{partial}: memory does not suffice for preparing it; finished shards are kept") from None
    except OSError as error:
        raise DataError(f"{partial}: cannot be written: {files.reason(error, partial.parent)}") from None
    print(f"{_summary(folder, meta)}, in {time.monotonic() - begin:.1f} seconds")
    if note := _off(options, meta):
        print(f"note: {note}")
    return folder


def main() -> int:
    """Prepare the dataset that the command line configures; returns the exit code."""
    schema, _ = command_line.resolve(__doc__, sys.argv[1:])
    for warning in [*schema.warnings, *preflight.quick(schema.bind)]:
        print(f"warning: {warning}", file=sys.stderr)
    options = schema.bind(PreparedOptions)
    if not options.folder.exists():
        preflight.check(schema.bind)  # imports torch, which takes seconds: what takes hours should not be for nothing
    if options.dataset == "bins":
        print(f"{options.data_dir}: bins are read as they are; there is nothing to prepare")
    else:
        prepare(options)
    return 0


# ---- the folder ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Make the folder and keep other programs from preparing it meanwhile; waits for one that does."""
    handle = None
    while handle is None:
        partial.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another program has just removed or renamed the folder
            handle = _held(partial, wait=True)
    try:
        yield
    finally:
        _give_back(partial, handle)


def _held(folder: Path, *, wait: bool) -> int | None:
    """A locked descriptor of the folder's lock; None if another program has it, or had it and has removed it."""
    with contextlib.ExitStack() as undo:
        handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        undo.callback(os.close, handle)
        if not files.locks(handle, folder):
            if not wait:
                return None
            _wait(handle, folder)
        if not os.path.samestat(os.fstat(handle), (folder / _LOCK).stat()):
            return None
        undo.pop_all()
        return handle


def _give_back(folder: Path, handle: int) -> None:
    """Remove the lock, and the folder if nothing else is in it, and then unlock.

    Only who holds a lock removes it, and whoever waited for it sees that it is gone and begins anew. A folder that has
    been renamed may be another program's by now, and so may the lock in it.
    """
    with contextlib.suppress(OSError):  # the folder holds finished shards, or has its final name
        if os.path.samestat(os.fstat(handle), (folder / _LOCK).stat()):
            (folder / _LOCK).unlink()
            folder.rmdir()
    os.close(handle)


def _wait(handle: int, partial: Path) -> None:
    """Wait for the lock of another program, with a bar of what that has prepared; a kill gives the lock up too."""
    print(f"{partial}: another program is preparing this dataset; waiting for it", file=sys.stderr, flush=True)
    with tqdm(desc="prepared there", unit=" tokens", unit_scale=True, disable=None, leave=False) as bar:
        while not files.locks(handle, partial):
            time.sleep(_WAIT_SECONDS)
            with contextlib.suppress(OSError):  # a file that has just got its name
                done = sum(path.stat().st_size for path in partial.glob("*.bin*")) // shards.TOKEN.itemsize
                bar.update(max(0, done - bar.n))


def _fill(partial: Path, options: PreparedOptions, shard_tokens: int, threads: int) -> dict:
    """Write all shards and meta.json into the folder, but those that are there; returns what meta.json says."""
    meta = _meta(options)
    if meta["split"] not in corpora.UNNAMED:
        print(f"{options.dataset_source}: split {meta['split']}", flush=True)
    done = _finished(partial, meta)
    writers = {split: ShardWriter(partial, split, shard_tokens, done[split]) for split in shards.SPLITS}

    def save() -> None:
        meta["splits"] = {split: writer.summary() for split, writer in writers.items()}
        files.write_json(partial / "meta.json", meta)

    progress = Progress(options)
    try:
        _tokenise(options, writers, save, threads, progress)
        if not all(writer.tokens for writer in writers.values()):
            raise DataError(
                f"{options.dataset} {options.dataset_source or ''}".strip() + ": holds too little text for training "
                "and validation; it takes two documents that differ, or a text of several words, at least"
            )
        for split in reversed(shards.SPLITS):  # with its training tokens finished, a limited dataset is finished
            writers[split].finish()
            save()
    except KeyboardInterrupt:
        print(f"\nfinished shards are kept in {partial}; run the same command again to go on", file=sys.stderr)
        raise
    except OSError as error:
        finished = sum(writer.summary()["tokens"] for writer in writers.values()) * shards.TOKEN.itemsize
        why = files.reason(error, partial, max(0, progress.size() - finished))
        raise DataError(
            f"{partial}: the rest of the dataset cannot be written: {why}; finished shards are kept, and the same "
            "command goes on"
        ) from None
    return meta


def _meta(options: PreparedOptions) -> dict:
    """What meta.json says of a dataset, up to its splits."""
    return {
        "version": shards.VERSION,
        "dataset": options.dataset,
        "tokenizer": options.tokenizer,
        "vocab_size": tokenizer.vocab_size(options.tokenizer),
        "settings": options.settings,
        "piece_bytes": sources.PIECE_BYTES,  # by which the texts of finished shards are counted
        "source": corpora.describe(options),
        "split": corpora.splitting(options),
    }


def _finished(partial: Path, meta: dict) -> dict[str, list[dict]]:
    """The finished shards of each split; empties the folder when they are of no use."""
    nothing = {split: [] for split in shards.SPLITS}
    there = [path for path in partial.iterdir() if path.name != _LOCK]
    if not there:
        return nothing
    try:
        before = shards.read_meta(partial)
        if before is None:
            raise DataError("it was interrupted before the first shard was finished")
        before["settings"] = shards.all_settings(before)
        if {name: before.get(name) for name in meta} != meta:
            raise DataError("what is there was made with other settings or from another source")
        found = [file for split in shards.open_prepared(partial, before).values() for file in split]
        tokens.verify(found, shards.seals(before), meta["vocab_size"], shards.CHANGED)
    except DataError as reason:
        print(f"{partial}: starting over: {reason}", file=sys.stderr)
        for path in there:
            path.unlink()
        return nothing
    done = {split: before["splits"][split]["shards"] for split in shards.SPLITS}
    print(f"{partial}: going on after {sum(map(len, done.values()))} finished shards", file=sys.stderr)
    return done


def _check_prepared(options: PreparedOptions) -> None:
    """Say of a folder that was prepared before that nothing in it has changed; raises DataError when that is not so.

    Shards that were copied or touched, and are what they were, get their new times into meta.json where that can be
    written, so that a start of training need not read them again.
    """
    folder, meta = options.folder, shards.read_meta(options.folder)
    if meta is None:
        raise DataError(f"{folder}: is in the way: it holds no meta.json; remove it or choose another DATA_DIR")
    shards.check_settings(options, meta)
    found = [file for split in shards.open_prepared(folder, meta).values() for file in split]
    unread = {name: seal._replace(mtime_ns=None) for name, seal in shards.seals(meta).items()}
    tokens.verify(found, unread, meta["vocab_size"], shards.CHANGED)
    seals = {file.path.name: file.seal for file in found}
    if seals != shards.seals(meta):
        for shard in (shard for split in shards.SPLITS for shard in meta["splits"][split]["shards"]):
            shard["mtime_ns"] = seals[shard["file"]].mtime_ns
        _rewrite(folder, meta)
    print(f"{_summary(folder, meta)}: prepared before, with the same settings; every shard has its sha256")
    if meta["source"] != (source := corpora.describe(options)):
        print(f"note: it was made from {meta['source']}; now there is {source}: delete the folder to prepare it anew")
    if note := shards.outdated(options, meta):
        print(f"note: {note}")


def _rewrite(folder: Path, meta: dict) -> None:
    """Write meta.json anew where that can be done; another program that holds the folder writes the same."""
    with contextlib.suppress(UserError, OSError):
        if (handle := _held(folder, wait=False)) is None:
            return
        try:
            files.write_json(folder / "meta.json", meta)
        finally:
            _give_back(folder, handle)


def _summary(folder: Path, meta: dict) -> str:
    counts = [f"{meta['splits'][split]['tokens']:,} tokens for {split}" for split in shards.SPLITS]
    return f"{folder}: {', '.join(counts)}"


def _off(options: PreparedOptions, meta: dict) -> str:
    """A sentence if validation has not nearly the share that was asked for, as with few or large documents."""
    train, val = (meta["splits"][split]["tokens"] for split in shards.SPLITS)
    share, wanted = val / (train + val), options.val_fraction
    if NO_FRACTION in meta["split"] or abs(share - wanted) <= wanted / 4:
        return ""
    limited = options.dataset_max_tokens and train >= options.dataset_max_tokens
    why = "DATASET_MAX_TOKENS ended the training part" if limited else "documents are few or large"
    return f"validation has {share:.2%} of the tokens, where VAL_FRACTION asks for {wanted:.2%}, since {why}"


# ---- tokenising ------------------------------------------------------------------------------------------------------


def _tokenise(
    options: PreparedOptions,
    writers: dict[str, ShardWriter],
    save: Callable[[], None],
    threads: int,
    progress: "Progress",
) -> None:
    """Hand the tokens of every text that no finished shard holds to its split's writer, up to the limit."""
    train, val = writers["train"], writers["val"]
    limit, end = options.dataset_max_tokens or float("inf"), tokenizer.load(options.tokenizer).end_of_text
    done = {split: writer.texts for split, writer in writers.items()}
    wanted = ((n, text) for n, text in enumerate(corpora.texts(options)) if n >= done[text.split])
    with contextlib.closing(_encoded(options.tokenizer, wanted, threads)) as encoded:
        for (number, text), ids in progress.of(encoded):
            if train.tokens >= limit and number >= train.texts:
                if val.tokens:
                    break
                if text.split == "train":
                    continue
            if text.ends or (text.split == "train" and train.tokens + len(ids) >= limit):
                ids = np.append(ids, np.uint16(end))
            if writers[text.split].add(ids, number):
                save()


def _encoded(name: str, texts: Iterable[Numbered], threads: int) -> Iterator[tuple[Numbered, np.ndarray]]:
    """The texts in order, each with its token ids.

    tiktoken computes outside the interpreter's lock, so that threads use all cores. At most two batches per thread are
    on their way. With the corpus grows only what `splits.assign` knows copies by: about 10 bytes for each document for
    training, twice that for a moment now and then, and some 100 bytes for each that validation has a part of.
    """
    waiting, encode = deque(), functools.partial(_encode, tokenizer.load(name))
    pool = ThreadPoolExecutor(threads)
    try:
        for batch in _batches(texts):
            waiting.append((batch, pool.submit(encode, batch)))
            if len(waiting) > 2 * threads:
                batch, future = waiting.popleft()
                yield from zip(batch, future.result(), strict=True)
        for batch, future in waiting:
            yield from zip(batch, future.result(), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _encode(encoder: tokenizer.Tokenizer, batch: list[Numbered]) -> list[np.ndarray]:
    """The token ids of each text; raises DataError that says where the text is on which the tokenizer fails."""
    try:
        return encoder.encode_batch([text.text for _, text in batch])
    except (UserError, MemoryError):
        raise
    except Exception as error:  # whatever a tokenizer raises
        if len(batch) == 1:
            ((number, text),) = batch
            place = getattr(text.text, "place", "") or f"text {number + 1:,}, which begins {text.text[:40]!r}"
            raise DataError(f"{place}: the tokenizer fails: {reason(error)}; change or remove that text") from None
    return [ids for one in batch for ids in _encode(encoder, [one])]


def _batches(texts: Iterable[Numbered]) -> Iterator[list[Numbered]]:
    batch, size = [], 0
    for numbered in texts:
        batch.append(numbered)
        size += len(numbered[1].text)
        if size >= _BATCH_CHARACTERS or len(batch) == _BATCH_TEXTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class Progress:
    """How far the corpus has been tokenised: a bar on a terminal, a line now and then elsewhere.

    It is of training tokens where they are limited, else of bytes of text; without a known end there is no total.
    """

    def __init__(self, options: PreparedOptions):
        self.limit = options.dataset_max_tokens
        self.total, self.unit = self.limit or corpora.size(options), " tokens" if self.limit else "B"
        self.done = self.tokens = 0  # of the total, and of both splits

    def of(self, encoded: Iterable[tuple[Numbered, np.ndarray]]) -> Iterator[tuple[Numbered, np.ndarray]]:
        """Pass the tokens on, and show it."""
        begin = said = time.monotonic()
        with tqdm(total=self.total or None, unit=self.unit, unit_scale=True, disable=None, leave=False) as bar:
            for (number, text), ids in encoded:
                step = _bytes(text.text) if not self.limit else len(ids) if text.split == "train" else 0
                self.done += step
                self.tokens += len(ids)
                yield (number, text), ids
                bar.set_postfix_str(f"{self.tokens / 1e6:,.1f} M tokens", refresh=False)
                bar.update(step)
                if bar.disable and (now := time.monotonic()) - said > _REPORT_SECONDS:
                    said, speed = now, self.tokens / (now - begin)
                    print(f"{self.tokens:,} tokens, {speed:,.0f} per second", file=sys.stderr, flush=True)

    def size(self) -> int:
        """About how many bytes all tokens of both splits will take; 0 where the size of the corpus is not known."""
        return int(float(f"{self.tokens / max(1, self.done) * self.total * shards.TOKEN.itemsize:.2g}"))


def _bytes(text: str) -> int:
    """Its size in UTF-8, without making that of the many texts that are ASCII."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def default_threads() -> int:
    """One per core that this process may use, up to _MOST_THREADS."""
    return min(cores(), _MOST_THREADS)


if __name__ == "__main__":
    run_program(main)
