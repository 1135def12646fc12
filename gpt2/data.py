"""Data: which windows of the prepared tokens make up each training batch and the validation set.

The training windows are an endless sequence, and each step takes the next batch_size x gradient_accumulation of them.
Window g of the sequence belongs to epoch g // N. An epoch cuts the tokens into N windows that do not overlap, at an
offset of its own, and visits them in an order of its own; both are computed from the seed and the epoch, and nothing is
stored. So a batch depends on nothing but the seed and its step: not on how it is divided into micro-batches, nor on
restarts.

Letters: B batch, T time (the context length), N windows in an epoch.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gpt2 import shards
from gpt2 import tokenizer as tokenizers
from gpt2.sources import DataError
from lib.errors import UsageError

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


def load(options: DataOptions, pin: bool = False) -> "Data":
    """Open the prepared dataset or the bins that the options name; `pin` puts batches into page-locked memory.

    Raises DataError or UsageError when they are missing, damaged, made with other settings or too small.
    """
    folder, tokenizer = options.folder, tokenizers.load(options.tokenizer)
    if options.dataset == "bins":
        return Data(options, shards.open_bins(folder, tokenizer.vocab_size), tokenizer, pin)
    meta = shards.read_meta(folder)
    if meta is None:
        raise DataError(
            f"{folder}: this dataset is not prepared; prepare it with the same options: python gpt2/prepare_data.py "
            f"--dataset {options.dataset} --tokenizer {options.tokenizer} --data-dir {options.data_dir}"
        )
    shards.check_settings(options, meta)
    if meta.get("vocab_size") != tokenizer.vocab_size:
        raise DataError(
            f"{folder}: meta.json says {meta.get('vocab_size')} token ids, the tokenizer {options.tokenizer} has "
            f"{tokenizer.vocab_size}; delete {folder} and prepare it again"
        )
    return Data(options, shards.open_prepared(folder, meta), tokenizer, pin)


class Split:
    """The tokens of one split, on disk in one or more shards and read as one long text."""

    def __init__(self, name: str, parts: list[np.ndarray], block_size: int):
        """Raise DataError unless there is one window at least."""
        self.parts, self.block_size = [part for part in parts if len(part)], block_size
        self.ends = np.cumsum([len(part) for part in self.parts], dtype=np.int64)
        self.tokens = int(self.ends[-1]) if self.parts else 0
        if self.tokens <= block_size:
            raise DataError(
                f"the {name} split has {self.tokens} tokens, and a window takes BLOCK_SIZE + 1 = {block_size + 1}; "
                "choose a smaller BLOCK_SIZE or a larger dataset"
            )

    def windows(self, starts: np.ndarray) -> np.ndarray:
        """The T + 1 tokens from each of `starts` (B,) on: (B, T + 1)."""
        if len(self.parts) == 1:
            return np.lib.stride_tricks.sliding_window_view(self.parts[0], self.block_size + 1)[starts]
        return np.stack([self._window(int(start)) for start in starts])

    def _window(self, start: int) -> np.ndarray:
        """One window, wherever shards begin and end."""
        stop, pieces = start + self.block_size + 1, []
        first, last = np.searchsorted(self.ends, [start, stop - 1], side="right")
        for part, end in zip(self.parts[first : last + 1], self.ends[first : last + 1], strict=True):
            begin = int(end) - len(part)
            pieces.append(part[max(0, start - begin) : stop - begin])
        return np.concatenate(pieces)


class Data:
    """Batches of a dataset, and the tokenizer that made it."""

    def __init__(
        self, options: DataOptions, parts: dict[str, list[np.ndarray]], tokenizer: tokenizers.Tokenizer, pin: bool
    ):
        self.options, self.tokenizer, self.pin = options, tokenizer, pin
        self.train = Split("training", parts["train"], options.block_size)
        self.val = Split("validation", parts["val"], options.block_size)
        self.vocab_size = tokenizer.vocab_size

    @property
    def folder(self) -> Path:
        """Where the tokens are."""
        return self.options.folder

    @property
    def fingerprint(self) -> str:
        """Tells these tokens from others: a hash of the sizes of both splits and of their first and last million."""
        digest = hashlib.sha256()
        for split in (self.train, self.val):
            digest.update(str(split.tokens).encode())
            for part in (split.parts[0][:1_000_000], split.parts[-1][-1_000_000:]):
                digest.update(part.tobytes())
        return digest.hexdigest()

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
