"""The exact threshold: prunes the k smallest of many tensors' scores, without concatenating or sorting them.

Scores are mapped to integers of the same order, the keys. A sample tells in which window the k-th smallest key
probably lies. One pass over all keys then prunes what lies below the window, keeps what lies above, and copies the few
keys inside, among which a search finds the cut. If the window misses, histograms of all keys find it, digit by digit.
The result is exact whether or not the window is right.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.base.errors import UserError

FIRST = -(2**31)  # below the key of every score: pruned before all others
LAST = 2**31 - 1  # above the key of every score: kept
_INFINITY = 0x7F800000  # the key of infinity
_DIGITS = ((21, 2048), (10, 2048), (0, 1024))  # of a key, highest first: (bit position, number of values)
_STRIDE = 17  # of the sample, along the sampled rows; a prime, so that all columns of a matrix are sampled
_ROWS = 8  # of a large model, one row in 8 is sampled, so that the sample costs an eighth of a pass
_ALL_ROWS = 2**19  # up to twice this number of keys all rows are sampled
# Half the window, in standard deviations of a sample of independent keys. Keys of a row are not independent: in trained
# models the share of a row below the threshold differs by row. A miss costs a second search.
_DEVIATIONS = 5
_ROOM = 16  # the keys in the window are copied if they are at most 1/16 of all keys
_PIECE = 2**18  # keys that fit in a CPU core's cache: several times as fast as a tensor at once


class PruningError(UserError):
    """Scores that cannot be compared."""


class Cut(NamedTuple):
    """Prunes all keys below `key`, and the first `ties` (by tensor, then by flat index) of those equal to `key`."""

    key: int
    ties: int


class Source:
    """The keys of one tensor. They are computed a few rows at a time, so that they stay in the caches of a CPU."""

    def __init__(
        self,
        shape: Sequence[int],
        device: torch.device,
        read: Callable[[slice], Tensor],
        kept: Tensor | None = None,
        by_rows: bool = True,
        gone: int | None = None,
    ):
        """`read` returns the int32 keys of some rows of the tensor, the same at each call.

        `kept` (uint8 of the tensor's shape): only keys where it is 1 are compared; the others are pruned. Without
        `by_rows`, `read` is always asked for all rows, because it computes all anyway. `gone` is the number of zeros in
        `kept`, where it is known.
        """
        self.shape, self.device, self.numel, self.read = shape, device, math.prod(shape), read
        self.parts = few_rows(shape, device) if by_rows else [slice(0, shape[0])]
        self.kept, self.by_rows = kept, by_rows
        self.flags = None if kept is None else kept.reshape(-1)
        if gone is None:
            gone = 0 if kept is None else self.numel - ones(kept)
        self.total = self.numel - gone  # the number of keys that are compared

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """(flat indices, keys) of all keys, in their order and in pieces that fit in the caches.

        Delete the keys before the next piece, whose keys then take their place in the cache: half as slow.
        """
        start = 0
        for rows in self.parts:
            for keys in self.read(rows).reshape(-1).split(_piece(self.device) or self.numel):
                yield slice(start, start + len(keys)), keys
                start += len(keys)
            del keys

    def compared(self) -> Iterator[Tensor]:
        """All keys that are compared, in pieces."""
        for piece, keys in self.pieces():
            yield keys if self.flags is None else keys[self.flags[piece] == 1]

    def sample(self, stride: int) -> Tensor:
        """Every 17th of the keys in every `stride`-th row, without those that are not compared."""
        rows = slice(0, self.shape[0], stride)
        keys = (self.read(rows) if self.by_rows else self.read(self.parts[0])[rows]).reshape(-1)[::_STRIDE]
        return keys.clone() if self.kept is None else keys[self.kept[rows].reshape(-1)[::_STRIDE] == 1]


def few_rows(shape: Sequence[int], device: torch.device) -> list[slice]:
    """Parts of a tensor that fit in the caches of a CPU; on other devices one part is everything."""
    rows, size = shape[0], _piece(device)
    step = max(1, size // max(1, math.prod(shape[1:]))) if size else max(1, rows)
    return [slice(row, min(row + step, rows)) for row in range(0, rows, step)]


def _piece(device: torch.device) -> int:
    """How many keys fit in the caches of the cores that are used; 0 for all on other devices."""
    return _PIECE * torch.get_num_threads() if device.type == "cpu" else 0


def of(keys: Tensor, kept: Tensor | None = None) -> Source:
    """The source of a tensor of keys."""
    return Source(keys.shape, keys.device, lambda rows: keys[rows], kept)


def keys(scores: Tensor, name: str) -> Tensor:
    """int32 keys in the order of float32 `scores`; -0.0 equals 0.0, and infinities are allowed.

    The keys may share the memory of `scores`, so do not write to them. Raises PruningError, with the `name` of the
    tensor, if a score is NaN.
    """
    found = scores.detach().contiguous().view(torch.int32)
    lowest, highest = _range(found)
    if lowest < 0:  # a negative float is a sign and a magnitude: turn it into two's complement
        signs = found >> 31
        found = (found & LAST).bitwise_xor_(signs).sub_(signs)
        lowest, highest = _range(found)
    if lowest < -_INFINITY or highest > _INFINITY:
        raise PruningError(f"the scores of {name} are NaN; lower LEARNING_RATE or choose another PRUNING_METHOD")
    return found


def hold(keys: Tensor, mask: Tensor) -> Tensor:
    """The keys where `mask` (uint8) is 1, FIRST where it is 0."""
    return keys.bitwise_xor(FIRST).mul_(mask).bitwise_xor_(FIRST)


def _range(keys: Tensor) -> tuple[int, int]:
    lowest, highest = torch.aminmax(keys)
    return int(lowest), int(highest)


def prune(sources: Sequence[Source], k: int) -> list[Tensor]:
    """Flat uint8 masks, one for each source: 0 at what is not compared and at the `k` smallest keys of all others.

    Of equal keys the first are pruned, by source and then by flat index. `k` is from 0 to the number of keys that are
    compared. Memory: the masks, the keys of a few rows, and at most 1/16 of all keys, usually far less.
    """
    masks = [torch.empty(source.numel, dtype=torch.uint8, device=source.device) for source in sources]
    if k <= 0:
        _prune_by_cut(sources, Cut(FIRST, 0), masks)
        return masks
    stride = min(_ROWS, max(1, sum(source.numel for source in sources) // _ALL_ROWS))
    sample = torch.cat([source.sample(stride) for source in sources])
    total = sum(source.total for source in sources)
    if not _prune_by_window(sources, k, total, _window(sample, total, k), masks):
        _prune_by_cut(sources, _search([source.compared for source in sources], k), masks)
    return masks


def ones(mask: Tensor) -> int:
    """The number of ones in a uint8 mask."""
    if mask.device.type == "cpu":  # numpy counts 3 times as fast as torch on two cores
        return int(np.count_nonzero(mask.view(torch.bool).numpy()))
    return int(torch.count_nonzero(mask.view(torch.bool)))  # 4 times as fast as for uint8


def where(flags: Tensor) -> Tensor:
    """The flat indices of the ones in a uint8 tensor."""
    if flags.device.type == "cpu":  # numpy skips runs of zeros, which are most; torch takes 5 times as long
        return torch.from_numpy(np.flatnonzero(flags.view(torch.bool).numpy()))
    return flags.reshape(-1).nonzero().view(-1)


def _above(keys: Tensor, key: int, out: Tensor | None = None) -> Tensor:
    """uint8: 1 where `keys` are above `key`. `out` is written and returned."""
    out = torch.empty(keys.shape, dtype=torch.uint8, device=keys.device) if out is None else out
    if keys.device.type == "cpu":  # torch takes 4 times as long to write bytes, on two cores
        np.greater(keys.numpy(), key, out=out.view(torch.bool).numpy())
    else:
        torch.gt(keys, key, out=out.view(torch.bool))
    return out


def _shared(flags: Tensor) -> np.ndarray | Tensor:
    """The same memory, as numpy sees it on a CPU: between numpy's passes it stays in the cache of one core."""
    return flags.numpy() if flags.device.type == "cpu" else flags


def _smallest(keys: Tensor, *ks: int) -> list[int]:
    """The `k`-th smallest key, from 1, for each of `ks`."""
    if keys.device.type == "cpu":  # half the time of counting digits
        parts = np.partition(keys.numpy(), [k - 1 for k in ks])
        return [int(parts[k - 1]) for k in ks]
    return [_search([lambda: [keys]], k).key for k in ks]


# ---- the search in all keys ------------------------------------------------------------------------------------------


def _search(readers: Sequence[Callable[[], Iterator[Tensor]]], k: int) -> Cut:
    """Radix select: one pass over all keys for each digit. Each reader returns all keys of a source, in pieces."""
    key, below = FIRST, 0
    for position, values in _DIGITS:
        first = key >> position
        counts = sum(_histogram(keys, position, first, values) for reader in readers for keys in reader())
        counts[0] -= below  # keys below the range were counted in the first bin
        counts = counts.cumsum(0)
        digit = int((counts < k - below).sum())
        key = (first + digit) << position
        below += int(counts[digit - 1]) if digit else 0
    return Cut(key, k - below)


def _histogram(keys: Tensor, position: int, first: int, values: int) -> Tensor:
    """Counts of the digits first ... first + values - 1 at a bit position; keys outside count in the end bins."""
    digits = (keys >> position).clamp_(first, first + values - 1).sub_(first)
    return torch.bincount(digits, minlength=values)


def _prune_by_cut(sources: Sequence[Source], cut: Cut, masks: Sequence[Tensor]) -> None:
    """Write the masks that a cut gives."""
    ties = cut.ties
    for source, mask in zip(sources, masks, strict=True):
        for piece, keys in source.pieces():
            above, equal = mask[piece], (keys == cut.key).to(torch.uint8)
            above.copy_(keys > cut.key)
            if source.flags is not None:
                above &= source.flags[piece]
                equal &= source.flags[piece]
            found = where(equal)
            above[found[ties:]] = 1
            ties = max(0, ties - len(found))


# ---- the window that a sample suggests -------------------------------------------------------------------------------


class Window(NamedTuple):
    """The keys above `low`, or all if it is None, up to and including `high`."""

    low: int | None
    high: int


def _window(sample: Tensor, total: int, k: int) -> Window:
    """The interval in which the k-th smallest key probably lies: order statistics of the sample.

    A small share of pruned keys is all in the window, so that nothing is compared with its lower end.
    """
    size, share = len(sample), k / total
    margin = 1 + _DEVIATIONS * math.sqrt(size * share * (1 - share))
    first, last = math.floor(size * share - margin), math.ceil(size * share + margin)
    if last > size:  # `low` is not in the window: it is an unlikely answer, but many keys, such as zeros, may equal it
        return Window(_smallest(sample, first)[0] if first > 0 else FIRST, LAST)
    if last <= size / (2 * _ROOM):
        return Window(None, _smallest(sample, last)[0])
    return Window(*_smallest(sample, first, last)) if first > 0 else Window(FIRST, _smallest(sample, last)[0])


def _prune_by_window(sources: Sequence[Source], k: int, total: int, window: Window, masks: Sequence[Tensor]) -> bool:
    """One pass: write the masks and copy the keys in the window; then find the cut among these.

    False if the k-th smallest key is not in the window, or if it holds more than 1/16 of all keys.
    """
    numel, longest = sum(source.numel for source in sources), max(source.numel for source in sources)
    scratch = torch.empty(_piece(sources[0].device) or longest, dtype=torch.uint8, device=sources[0].device)
    room, higher, found, inside = numel // _ROOM, 0, [], []
    for source, mask in zip(sources, masks, strict=True):
        for piece, keys in source.pieces():
            kept = _shared(_above(keys, window.high, mask[piece]))
            near = scratch[: len(keys)]
            inner = _shared(near)
            if window.low is None:
                inner[:] = 1
            else:
                _above(keys, window.low, near)
            if source.flags is not None:
                flags = _shared(source.flags[piece])
                kept &= flags
                inner &= flags
            if window.low is not None:
                higher += ones(near)
            inner ^= kept
            indices = where(near)
            found.append((mask[piece], indices))
            inside.append(keys[indices])
            del keys
            room -= len(indices)
            if room < 0:
                return False
    copied = torch.cat(inside)
    below = 0 if window.low is None else total - higher
    if not below < k <= below + len(copied):
        return False
    key = _smallest(copied, k - below)[0]
    survives, ties = _above(copied, key), where((copied == key).view(torch.uint8))
    survives[ties[len(ties) - (below + len(copied) - k - ones(survives)) :]] = 1
    for (mask, indices), stays in zip(found, survives.split([len(keys) for keys in inside]), strict=True):
        mask[indices[where(stays)]] = 1
    return True
