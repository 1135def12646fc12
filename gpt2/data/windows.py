"""Windows: which windows of the prepared tokens make up each training batch and the validation set.

The training windows form an endless sequence, and each step takes the next batch_size x gradient_accumulation of them.
Window g of the sequence belongs to epoch g // N. Each epoch cuts the tokens into N windows that do not overlap, with
its own offset and its own order. Both are computed from the seed and the epoch, and nothing is stored. So the windows
of a step depend only on the seed and the step. Neither the division into micro-batches nor a restart changes them.

Letters: B batch, T time (the context length), N windows in an epoch.
"""

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gpt2.data import bins, local_copy, prepared, shards, tokens
from gpt2.data import tokenizer as tokenizers
from gpt2.data.local_files import DataError
from gpt2.data.shards import SPLITS
from gpt2.data.tokens import TOKEN, Seal, TokenFile
from lib.base.errors import UsageError
from lib.base.files import named
from lib.machine.dist import ALONE, Ranks
from lib.terminal.console import say

Batch = tuple[Tensor, Tensor]  # token ids and, for each, the id that follows it; (B, T) int64


@dataclass(frozen=True)
class DataOptions(prepared.PreparedOptions):
    """Which data, and how much of it a step and an evaluation read."""

    block_size: int  # tokens
    batch_size: int  # windows
    gradient_accumulation: int  # micro-batches
    seed: int
    eval_samples: int | None  # windows; None: nothing is evaluated
    data_cache_dir: str  # for copies of the token files on this machine; empty: none


def load(options: DataOptions, ranks: Ranks = ALONE, pin: bool = False) -> "Data":
    """Open the prepared dataset or the bins that the options name; `pin` puts batches into page-locked memory.

    Rank 0 checks that the files have not changed, and the other ranks check that they have the same files. Raises
    DataError or UsageError if data is missing, damaged, changed, prepared with other settings or too small.
    """
    tokenizer, meta = tokenizers.load(options.tokenizer), None
    if options.dataset == "bins":
        files, known = bins.open_bins(options.folder, options.splits), {}
    else:
        meta = _meta(options, tokenizer)
        files, known = shards.open_shards(options.folder, meta, options.splits), shards.seals(meta)
    if options.data_cache_dir:
        files = local_copy.made(options.folder, files, known, named(options.data_cache_dir), ranks.rank == 0)
    data = Data(options, files, tokenizer, pin)
    seen = ranks.first(lambda: data.verify(known, shards.CHANGED))
    ranks.first(lambda: _say_notes(data, meta))
    data.verify(seen, "differs from the file on rank 0; give all ranks the same data")
    return data


def _say_notes(data: "Data", meta: dict | None) -> None:
    """Print notes about data that can be used but may not be what the user expects."""
    options = data.options
    if meta is None:
        notes = bins.notes(options.folder, data.files, options.tokenizer, data.vocab_size)
    else:
        notes = [prepared.outdated(options, meta)]
    for note in filter(None, notes):
        say(f"note: {note}")


def _meta(options: DataOptions, tokenizer: tokenizers.Tokenizer) -> dict:
    """Read meta.json of the prepared dataset and check that it fits the options."""
    folder = options.folder
    meta = prepared.read_meta(folder)
    if meta is None:
        raise DataError(
            f"{folder}: this dataset is not prepared; prepare it with the same options: python gpt2/prepare_data.py "
            f"--dataset {options.dataset} --tokenizer {options.tokenizer} --data-dir {options.data_dir}"
        )
    prepared.check_settings(options, meta)
    if meta["vocab_size"] != tokenizer.vocab_size:
        raise DataError(
            f"{folder}: meta.json says {meta['vocab_size']} token ids, the tokenizer {options.tokenizer} has "
            f"{tokenizer.vocab_size}; delete {folder} and prepare it again"
        )
    return meta


class Split:
    """The tokens of one split, which lie in one or more files and are read as one long text.

    Raises UsageError if there are too few tokens for a window.
    """

    def __init__(self, name: str, parts: Sequence[TokenFile], block_size: int):
        self.name, self.parts, self.block_size = name, [part for part in parts if len(part)], block_size
        self.begins = np.cumsum([0, *map(len, self.parts)], dtype=np.int64)  # of each part; the last is the text's end
        self.tokens = int(self.begins[-1])
        if self.tokens <= block_size:
            without = ", or set EVALUATE=n to train without validation" * (name == "validation")
            raise UsageError(
                f"the {name} split has {self.tokens} tokens, and a window takes BLOCK_SIZE + 1 = {block_size + 1}; "
                f"choose a smaller BLOCK_SIZE or a larger dataset{without}"
            )

    def windows(self, starts: np.ndarray) -> np.ndarray:
        """Read T + 1 tokens from each of `starts` (B,), across the ends of files; returns uint16 (B, T + 1)."""
        numbers = np.searchsorted(self.begins, starts, side="right") - 1
        places = starts - self.begins[numbers]
        count, parts, read = self.block_size + 1, self.parts, []
        rest = np.maximum(0, starts + count - self.begins[numbers + 1])  # tokens that lie in the next shards
        for number, place, more in zip(numbers.tolist(), places.tolist(), rest.tolist(), strict=True):
            read.append(parts[number].read(place, count - more))
            while more:
                number += 1
                read.append(parts[number].read(0, min(more, len(parts[number]))))
                more -= len(read[-1]) // TOKEN.itemsize
        return np.frombuffer(b"".join(read), TOKEN).reshape(-1, count)


class Data:
    """Gives the batches of a dataset; knows its files and its tokenizer. With EVALUATE=n it has no validation split."""

    def __init__(
        self, options: DataOptions, files: dict[str, list[TokenFile]], tokenizer: tokenizers.Tokenizer, pin: bool
    ):
        self.options, self.files, self.tokenizer, self.pin = options, files, tokenizer, pin
        self.train = Split("training", files["train"], options.block_size)
        self.val = Split("validation", files["val"], options.block_size) if options.evaluate else None
        self.vocab_size = tokenizer.vocab_size

    @property
    def folder(self) -> Path:
        """The folder of the token files."""
        return self.options.folder

    def verify(self, known: Mapping[str, Seal], if_changed: str) -> dict[str, Seal]:
        """Check the files against their `known` seals (see `tokens.verify`); returns the current seals."""
        files = [file for split in self.files.values() for file in split]
        tokens.verify(files, known, self.vocab_size, if_changed)
        return {file.path.name: file.seal for file in files}

    def sums(self) -> dict[str, dict[str, str]]:
        """Return split -> file -> sha256, by which a checkpoint identifies its data.

        Raises DataError if a file has changed since it was opened: no checkpoint may contain training on other tokens.
        """
        known = {file.path.name: file.seal for split in self.files.values() for file in split}
        self.verify(known, "was changed while a run trained on it; restore it and resume from the last checkpoint")
        return {split: {f.path.name: f.seal.sha256 for f in self.files.get(split, [])} for split in SPLITS}

    @property
    def fingerprint(self) -> str:
        """A hash of all tokens, which identifies the data."""
        content = [[file.seal.sha256 for file in split] for split in self.files.values()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def tokens_per_step(self) -> int:
        """How many tokens an optimizer step trains on."""
        return self.options.batch_size * self.options.gradient_accumulation * self.options.block_size

    @property
    def description(self) -> str:
        """The dataset in a few words, for people."""
        val = f"and {self.val.tokens:,} validation tokens" if self.val else "tokens, no validation"
        return f"{self.options.dataset}-{self.options.tokenizer}: {self.train.tokens:,} training {val}"

    def batch(self, step: int, micro: int) -> Batch:
        """Return micro-batch `micro` of optimizer step `step`, both from 0; depends only on these two and the seed."""
        size = self.options.batch_size
        first = (step * self.options.gradient_accumulation + micro) * size
        sequence = np.arange(first, first + size, dtype=np.int64)
        return self._tensors(self.train, training_starts(sequence, self.train, self.options.seed))

    def calibration(self, count: int) -> Tensor:
        """Return the first `count` windows of the training order, token ids (count, T) int64; none overlaps another.

        Raises UsageError if there are fewer in an epoch.
        """
        if (there := windows_per_epoch(self.train)) < count:
            raise UsageError(
                f"CALIBRATION_SAMPLES={count}: the training split has {there} windows of BLOCK_SIZE="
                f"{self.options.block_size} tokens; lower CALIBRATION_SAMPLES or BLOCK_SIZE, or choose a larger dataset"
            )
        starts = training_starts(np.arange(count, dtype=np.int64), self.train, self.options.seed)
        return self._tensors(self.train, starts)[0]

    @property
    def val_windows(self) -> int:
        """How many windows `val_batches` has: EVAL_SAMPLES, or all windows if there are fewer; 0 with EVALUATE=n."""
        if self.val is None:
            return 0
        return min(self.options.eval_samples, (self.val.tokens - 1) // self.options.block_size)

    def val_batches(self, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
        """Yield the share of `rank`: windows spread evenly over the validation split, always the same ones."""
        for starts in self._val_starts(rank, ranks):
            yield self._tensors(self.val, starts)

    @functools.cached_property
    def val_bytes(self) -> int:
        """How many bytes of text the targets of all `val_batches` stand for."""
        sizes = self.tokenizer.text_bytes()
        return sum(int(sizes[self._windows(self.val, starts)[:, 1:]].sum()) for starts in self._val_starts())

    def bits_per_byte(self, loss: float) -> float:
        """A mean loss over `val_batches`, in nats per token, in bits per byte of text; infinite without any text."""
        nats = loss * self.val_windows * self.options.block_size
        return nats / math.log(2) / self.val_bytes if self.val_bytes else math.inf

    def _val_starts(self, rank: int = 0, ranks: int = 1) -> Iterator[np.ndarray]:
        available, count = (self.val.tokens - 1) // self.options.block_size, self.val_windows
        starts = np.arange(count, dtype=np.int64) * available // count * self.options.block_size
        for first in range(rank * self.options.batch_size, count, ranks * self.options.batch_size):
            yield starts[first : first + self.options.batch_size]

    def _tensors(self, split: Split, starts: np.ndarray) -> Batch:
        windows = self._windows(split, starts)
        x, y = (torch.from_numpy(part.astype(np.int64)) for part in (windows[:, :-1], windows[:, 1:]))
        return (x.pin_memory(), y.pin_memory()) if self.pin else (x, y)

    def _windows(self, split: Split, starts: np.ndarray) -> np.ndarray:
        """Like `split.windows`; raises DataError for an id that the tokenizer does not have."""
        windows = split.windows(starts)
        if (largest := int(windows.max())) >= self.vocab_size:
            raise DataError(
                f"{self.folder}: the {split.name} split holds token id {largest}, beyond the {self.vocab_size} ids of "
                f"the tokenizer {self.options.tokenizer}; delete the folder and prepare it again"
            )
        return windows


# ---- the order of training -------------------------------------------------------------------------------------------


def windows_per_epoch(split: Split) -> int:
    """Return N: one window less than fits, so that the offset of an epoch can vary by up to a window."""
    return max(split.tokens // split.block_size - 1, 1)


def training_starts(sequence: np.ndarray, split: Split, seed: int) -> np.ndarray:
    """Return where in `split` the windows with these numbers in the endless sequence (B,) start: (B,)."""
    count = windows_per_epoch(split)
    room = min(split.block_size, split.tokens - count * split.block_size)  # offsets that leave `count` windows
    starts = np.empty_like(sequence)
    for epoch in np.unique(sequence // count):
        here = sequence // count == epoch
        *rounds, last = _keys(seed, int(epoch))
        starts[here] = permute(sequence[here] % count, count, rounds) * split.block_size + last % room
    return starts


def permute(indices: np.ndarray, count: int, keys: list[int]) -> np.ndarray:
    """Apply a pseudo-random permutation of [0, count) to `indices`; the keys, one for each round, select it.

    A Feistel network permutes [0, 4^k), the smallest such range that contains [0, count). A result of `count` or more
    is permuted again until it is smaller, so the results are a permutation of [0, count) (cycle walking, Black and
    Rogaway 2002).
    """
    half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))  # k: the bits of half a number
    places = indices.astype(np.uint64)
    todo = np.ones(len(places), bool)
    while todo.any():
        places[todo] = _feistel(places[todo], half, keys)
        todo = places >= count
    return places.astype(np.int64)


def _feistel(numbers: np.ndarray, half: np.uint64, keys: list[int]) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = numbers >> half, numbers & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ np.uint64(key)) & mask)
    return left << half | right


def _mixed(x: np.ndarray) -> np.ndarray:
    """The 64-bit finaliser of SplitMix64 (Steele, Lea and Flood 2014): each output bit depends on every input bit."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


def _keys(seed: int, epoch: int) -> list[int]:
    """Return eight pseudo-random 64-bit numbers for this seed and epoch."""
    return np.frombuffer(hashlib.blake2b(f"{seed} {epoch}".encode()).digest(), "<u8").tolist()
