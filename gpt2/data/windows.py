"""Data: which windows of the prepared tokens make up each training batch and the validation set.

The training windows are an endless sequence, and each step takes the next batch_size x gradient_accumulation of them.
Window g of the sequence belongs to epoch g // N. An epoch cuts the tokens into N windows that do not overlap, at an
offset of its own, and visits them in an order of its own; both are computed from the seed and the epoch, and nothing is
stored. So a batch depends on nothing but the seed and its step: not on how it is divided into micro-batches, nor on
restarts.

Letters: B batch, T time (the context length), N windows in an epoch.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gpt2.data import bins, shards, tokens
from gpt2.data import tokenizer as tokenizers
from gpt2.data.sources import DataError
from gpt2.data.tokens import TOKEN, Seal, TokenFile
from lib.base.errors import UsageError
from lib.machine.dist import ALONE, Ranks
from lib.terminal.console import say

Batch = tuple[Tensor, Tensor]  # token ids and, for each, the id that follows it; (B, T) int64


@dataclass(frozen=True)
class DataOptions(shards.PreparedOptions):
    """Which data, and in what portions."""

    block_size: int  # tokens
    batch_size: int  # windows
    gradient_accumulation: int  # micro-batches
    seed: int
    eval_samples: int  # windows


def check_shares(options: DataOptions, ranks: int) -> None:
    """Raise UsageError unless every rank gets as many micro-batches of a step as the others."""
    micro, windows = options.gradient_accumulation, options.gradient_accumulation * options.batch_size
    if micro % ranks == 0:
        return
    same = [count for count in range(ranks, windows + 1, ranks) if windows % count == 0]
    count = min((n for n in same if n > micro), default=max(same, default=0))
    advice = (
        f"GRADIENT_ACCUMULATION={count} BATCH_SIZE={windows // count}, which learns the same"
        if count
        else f"a multiple of {ranks}, such as GRADIENT_ACCUMULATION={-(-micro // ranks) * ranks}"
    )
    raise UsageError(f"GRADIENT_ACCUMULATION={micro}: cannot be shared by {ranks} ranks evenly; set {advice}")


def load(options: DataOptions, ranks: Ranks = ALONE, pin: bool = False) -> "Data":
    """Open the prepared dataset or the bins that the options name; `pin` puts batches into page-locked memory.

    Rank 0 makes sure that the content is what it was, the others that theirs is the same. Raises DataError or
    UsageError when data are missing, damaged, changed, made with other settings or too small.
    """
    tokenizer, meta = tokenizers.load(options.tokenizer), None
    if options.dataset == "bins":
        files, known = bins.open_bins(options.folder), {}
    else:
        meta = _meta(options, tokenizer)
        files, known = shards.open_prepared(options.folder, meta), shards.seals(meta)
    data = Data(options, files, tokenizer, pin)
    seen = ranks.first(lambda: data.verify(known, shards.CHANGED))
    ranks.first(lambda: _say_notes(data, meta))
    data.verify(seen, "is not what rank 0 has; all ranks must have the same data")
    return data


def _say_notes(data: "Data", meta: dict | None) -> None:
    """Say what the user should know of data that can be trained on but may not be what they seem."""
    options = data.options
    if meta is None:
        notes = bins.notes(options.folder, data.files, options.tokenizer, data.vocab_size)
    else:
        notes = [shards.outdated(options, meta)]
    for note in filter(None, notes):
        say(f"note: {note}")


def _meta(options: DataOptions, tokenizer: tokenizers.Tokenizer) -> dict:
    """The meta.json of the prepared dataset, which fits the options."""
    folder = options.folder
    meta = shards.read_meta(folder)
    if meta is None:
        raise DataError(
            f"{folder}: this dataset is not prepared; prepare it with the same options: python gpt2/prepare_data.py "
            f"--dataset {options.dataset} --tokenizer {options.tokenizer} --data-dir {options.data_dir}"
        )
    shards.check_settings(options, meta)
    if meta["vocab_size"] != tokenizer.vocab_size:
        raise DataError(
            f"{folder}: meta.json says {meta['vocab_size']} token ids, the tokenizer {options.tokenizer} has "
            f"{tokenizer.vocab_size}; delete {folder} and prepare it again"
        )
    return meta


class Split:
    """The tokens of one split, on disk in one or more shards and read as one long text."""

    def __init__(self, name: str, parts: Sequence[TokenFile], block_size: int):
        """Raise UsageError unless there is one window at least."""
        self.name, self.parts, self.block_size = name, [part for part in parts if len(part)], block_size
        self.begins = np.cumsum([0, *map(len, self.parts)], dtype=np.int64)  # the last one is where the text ends
        self.tokens = int(self.begins[-1])
        if self.tokens <= block_size:
            raise UsageError(
                f"the {name} split has {self.tokens} tokens, and a window takes BLOCK_SIZE + 1 = {block_size + 1}; "
                "choose a smaller BLOCK_SIZE or a larger dataset"
            )

    def windows(self, starts: np.ndarray) -> np.ndarray:
        """The T + 1 tokens from each of `starts` (B,) on: (B, T + 1), wherever shards begin and end."""
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
    """Batches of a dataset, and the tokenizer that made it."""

    def __init__(
        self, options: DataOptions, files: dict[str, list[TokenFile]], tokenizer: tokenizers.Tokenizer, pin: bool
    ):
        self.options, self.files, self.tokenizer, self.pin = options, files, tokenizer, pin
        self.train = Split("training", files["train"], options.block_size)
        self.val = Split("validation", files["val"], options.block_size)
        self.vocab_size = tokenizer.vocab_size

    @property
    def folder(self) -> Path:
        """Where the tokens are."""
        return self.options.folder

    def verify(self, known: Mapping[str, Seal], otherwise: str) -> dict[str, Seal]:
        """Make sure that the files are what they are `known` as (see `tokens.verify`); returns what they are now."""
        files = [file for split in self.files.values() for file in split]
        tokens.verify(files, known, self.vocab_size, otherwise)
        return {file.path.name: file.seal for file in files}

    def sums(self) -> dict[str, dict[str, str]]:
        """split -> file -> its sha256: what a checkpoint knows the data by.

        Raises DataError when a file has changed since it was opened, so that no checkpoint learns from other tokens.
        """
        known = {file.path.name: file.seal for split in self.files.values() for file in split}
        self.verify(known, "was changed while it was being trained on; put it back, and go on from the last checkpoint")
        return {split: {file.path.name: file.seal.sha256 for file in files} for split, files in self.files.items()}

    @property
    def fingerprint(self) -> str:
        """Tells these tokens from others: a hash of all of them."""
        content = [[file.seal.sha256 for file in split] for split in self.files.values()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def tokens_per_step(self) -> int:
        """Tokens that an optimizer step learns from."""
        return self.options.batch_size * self.options.gradient_accumulation * self.options.block_size

    @property
    def description(self) -> str:
        """The dataset in a few words, for people."""
        sizes = f"{self.train.tokens:,} training and {self.val.tokens:,} validation tokens"
        return f"{self.options.dataset}-{self.options.tokenizer}: {sizes}"

    def batch(self, step: int, micro: int) -> Batch:
        """Micro-batch `micro` of optimizer step `step`, both from 0: a pure function of the seed, step and place."""
        size = self.options.batch_size
        first = (step * self.options.gradient_accumulation + micro) * size
        sequence = np.arange(first, first + size, dtype=np.int64)
        return self._tensors(self.train, training_starts(sequence, self.train, self.options.seed))

    @property
    def val_windows(self) -> int:
        """How many windows `val_batches` has: EVAL_SAMPLES, or all there are."""
        return min(self.options.eval_samples, (self.val.tokens - 1) // self.options.block_size)

    def val_batches(self, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
        """Windows spread evenly over the validation split, the same ones every time; `rank` has its share of them."""
        available, count = (self.val.tokens - 1) // self.options.block_size, self.val_windows
        starts = np.arange(count, dtype=np.int64) * available // count * self.options.block_size
        for first in range(rank * self.options.batch_size, count, ranks * self.options.batch_size):
            yield self._tensors(self.val, starts[first : first + self.options.batch_size])

    def _tensors(self, split: Split, starts: np.ndarray) -> Batch:
        windows = split.windows(starts)
        if (largest := int(windows.max())) >= self.vocab_size:
            raise DataError(
                f"{self.folder}: the {split.name} split holds token id {largest}, beyond the {self.vocab_size} ids of "
                f"the tokenizer {self.options.tokenizer}; delete the folder and prepare it again"
            )
        x, y = (torch.from_numpy(part.astype(np.int64)) for part in (windows[:, :-1], windows[:, 1:]))
        return (x.pin_memory(), y.pin_memory()) if self.pin else (x, y)


# ---- the order of training -------------------------------------------------------------------------------------------


def windows_per_epoch(split: Split) -> int:
    """N: windows in an epoch, with room to shift their cuts by up to a window."""
    return max(split.tokens // split.block_size - 1, 1)


def training_starts(sequence: np.ndarray, split: Split, seed: int) -> np.ndarray:
    """The tokens of `split` where the windows with these places in the endless sequence start; (B,) both."""
    count = windows_per_epoch(split)
    room = min(split.block_size, split.tokens - count * split.block_size)  # offsets that leave count windows
    starts = np.empty_like(sequence)
    for epoch in np.unique(sequence // count):
        here = sequence // count == epoch
        *rounds, last = _keys(seed, int(epoch))
        starts[here] = permute(sequence[here] % count, count, rounds) * split.block_size + last % room
    return starts


def permute(indices: np.ndarray, count: int, keys: list[int]) -> np.ndarray:
    """Where a pseudo-random permutation of [0, count) takes `indices`; the keys, one per round, choose it.

    A Feistel network permutes [0, 4^k), the smallest such range with `count` or more; an index that lands beyond
    `count` goes through again until it lands within, which keeps the whole a permutation (cycle walking, Black and
    Rogaway 2002).
    """
    half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))  # bits: k
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
    """Eight 64-bit numbers that nobody would tell from random ones."""
    return np.frombuffer(hashlib.blake2b(f"{seed} {epoch}".encode()).digest(), "<u8").tolist()
