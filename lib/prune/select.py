"""The exact threshold: the k smallest of many tensors' scores, without concatenating or sorting them.

Scores are mapped to integers of the same order, the keys. A search with histograms, digit by digit, finds the k-th
smallest key. A sample first tells in which window this key probably lies, so one pass over all scores is usually
enough. The result is exact whether or not the window is right.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lib.base.errors import UserError

FIRST = -(2**31)  # below the key of every score: pruned before all others
LAST = 2**31 - 1  # above the key of every score: kept
_INFINITY = 0x7F800000  # the key of infinity
_DIGITS = ((21, 2048), (10, 2048), (0, 1024))  # of a key, highest first: (bit position, number of values)
_STRIDE = 127  # of the sample; a prime, so that all columns of a matrix are sampled
_DEVIATIONS = 3  # half the window, in standard deviations; 1 window in 370 misses, which costs a second search
_ROOM = 16  # the keys in the window are copied if they are at most 1/16 of all keys
_PIECE = 2**16  # keys that fit in a CPU core's cache: 1.5 times as fast as a tensor at once

# Returns a tensor's int32 keys, the same at each call; a call of another source may overwrite them.
Source = Callable[[], Tensor]


class PruningError(UserError):
    """Scores that cannot be compared."""


class Cut(NamedTuple):
    """Prunes all keys below `key`, and the first `ties` (by tensor, then by flat index) of those equal to `key`."""

    key: int
    ties: int


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


def hold(keys: Tensor, mask: Tensor, out: Tensor) -> Tensor:
    """Write into `out` the keys where `mask` (uint8) is 1, FIRST where it is 0; return it. `out` may be `keys`."""
    for part, bits, new, (ones,) in _pieces(keys, mask, out, scratch=1):
        torch.bitwise_xor(part, FIRST, out=new).mul_(ones.copy_(bits)).bitwise_xor_(FIRST)
    return out


def _range(keys: Tensor) -> tuple[int, int]:
    lowest, highest = torch.stack(torch.aminmax(keys)).tolist()
    return lowest, highest


def smallest(sources: Sequence[Source], k: int) -> Cut:
    """The cut that prunes exactly the `k` (0 to all) smallest keys of all `sources`.

    Memory: the keys of one tensor and at most 1/16 of all keys, usually far less.
    """
    if k <= 0:
        return Cut(FIRST, 0)
    sample, total = _sample(sources)
    low, high = _window(sample, total, k)
    return _search_window(sources, k, low, high, total // _ROOM) or _search(sources, k)


def apply(cut: Cut, keys: Tensor) -> tuple[Tensor, Cut]:
    """A tensor's uint8 mask, 0 where its `keys` are pruned, and the cut for the next tensor, with the ties left."""
    mask = torch.empty(keys.shape, dtype=torch.uint8, device=keys.device)
    equal = _flags(keys)
    for part, above, same, (scratch,) in _pieces(keys, mask, equal[: keys.numel()], scratch=1):
        above.copy_(torch.gt(part, cut.key, out=scratch))
        same.copy_(torch.eq(part, cut.key, out=scratch))
    indices = (_words(equal)[:, None] * 8 + torch.arange(8, device=keys.device)).view(-1)
    indices = indices[equal[indices] == 1]
    mask.view(-1)[indices[cut.ties :]] = 1
    return mask, Cut(cut.key, max(0, cut.ties - len(indices)))


# ---- the search in all keys ------------------------------------------------------------------------------------------


def _search(sources: Sequence[Source], k: int) -> Cut:
    """Radix select: one pass over all keys for each digit."""
    key, below = FIRST, 0
    for position, values in _DIGITS:
        first = key >> position
        counts = sum(_histogram(source(), position, first, values) for source in sources)
        counts[0] -= below  # keys below the range were counted in the first bin
        counts = counts.cumsum(0)
        digit = int((counts < k - below).sum())
        key = (first + digit) << position
        below += int(counts[digit - 1]) if digit else 0
    return Cut(key, k - below)


def _histogram(keys: Tensor, position: int, first: int, values: int) -> Tensor:
    """Counts of the digits first ... first + values - 1 at a bit position; keys outside count in the end bins."""
    digits = (keys.reshape(-1) >> position).clamp_(first, first + values - 1).sub_(first)
    return torch.bincount(digits, minlength=values)


# ---- the search in the window that a sample suggests -----------------------------------------------------------------


def _sample(sources: Sequence[Source]) -> tuple[Tensor, int]:
    """Every 127th key of each tensor, and the number of all keys."""
    parts, total = [], 0
    for source in sources:
        flat = source().reshape(-1)
        parts.append(flat[::_STRIDE].clone())
        total += flat.numel()
    return torch.cat(parts), total


def _window(sample: Tensor, total: int, k: int) -> tuple[int, int]:
    """The interval of keys, ends included, in which the k-th smallest probably lies: order statistics of the sample."""
    size, share = len(sample), k / total
    margin = 1 + _DEVIATIONS * math.sqrt(size * share * (1 - share))
    first, last = math.floor(size * share - margin), math.ceil(size * share + margin)
    low = _search([lambda: sample], first).key if first > 0 else FIRST
    high = _search([lambda: sample], last).key if last <= size else LAST
    return min(
        low + 1, LAST
    ), high  # without `low`: it is an unlikely answer, but many keys, such as zeros, may equal it


def _search_window(sources: Sequence[Source], k: int, low: int, high: int, room: int) -> Cut | None:
    """One pass: count the keys below the window, and copy those inside.

    None if the k-th smallest key is not in the window, or if it holds more than `room` keys.
    """
    below, inside = 0, []
    for source in sources:
        under, within = _split(source().reshape(-1), low, high)
        below += under
        inside.append(within)
        room -= within.numel()
        if room < 0:
            return None
    copied = torch.cat(inside)
    if not below < k <= below + len(copied):
        return None
    return _search([lambda: copied], k - below)


def _split(keys: Tensor, low: int, high: int) -> tuple[int, Tensor]:
    """The number of keys below `low`, and the keys from `low` to `high`."""
    below, inside = [], _flags(keys)
    for part, flags, (under, within) in _pieces(keys, inside[: len(keys)], scratch=2):
        torch.lt(part, low, out=under)
        below.append(under.sum(dtype=torch.int32))
        flags.copy_(torch.le(part, high, out=within).sub_(under))
    whole = len(keys) // 8 * 8
    near = torch.cat([keys[:whole].view(-1, 8)[_words(inside[:whole])].view(-1), keys[whole:]])
    return int(torch.stack(below).sum()), near[(near >= low) & (near <= high)]


def _flags(keys: Tensor) -> Tensor:
    """One zero byte for each key, padded to a multiple of eight."""
    return torch.zeros(-(-keys.numel() // 8) * 8, dtype=torch.uint8, device=keys.device)


def _words(flags: Tensor) -> Tensor:
    """Indices of the words of eight flags that contain a 1.

    Few words do, so this is five times as fast as a search for single flags.
    """
    return flags.view(torch.int64).nonzero().view(-1)


def _pieces(*tensors: Tensor, scratch: int) -> Iterator[tuple]:
    """Equal flat parts of the tensors, and a list of `scratch` buffers like the first tensor's part.

    Parts fit in a CPU's caches; on a GPU one part is everything. All parts use the same buffers, because to allocate
    memory for each would take longer than the arithmetic.
    """
    size = _PIECE * torch.get_num_threads() if tensors[0].device.type == "cpu" else max(1, tensors[0].numel())
    parts = [tensor.reshape(-1).split(size) for tensor in tensors]
    buffers = [torch.empty_like(parts[0][0]) for _ in range(scratch)]
    for group in zip(*parts, strict=True):
        yield *group, [buffer[: len(group[0])] for buffer in buffers]
