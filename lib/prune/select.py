"""The exact threshold: the k smallest of many tensors' scores, without joining or sorting them.

Floats are mapped to integers of the same order, and histograms of those are narrowed until one value is left. A sample
says where to look, so that usually a single pass over all scores is enough; whatever the sample says, the answer is
exact. Counts are integers: they add up over ranks that hold different tensors, and every rank finds the same threshold.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lib.base.errors import UserError

FIRST = -(2**31)  # a key that no score has: what has to go before all else
LAST = 2**31 - 1  # a key that no score has: what has to stay
_INFINITY = 0x7F800000  # the key of infinity
_DIGITS = ((21, 2048), (10, 2048), (0, 1024))  # of a key, highest first: (position, values)
_STRIDE = 127  # of the sample; a prime, so that it meets all columns of a matrix
_DEVIATIONS = 3  # of the sample's error; a window that wide misses once in 370 times, which costs a second search
_ROOM = 16  # at most this part of the keys may lie in the window and be set aside
_PIECE = 2**16  # keys that stay in a CPU core's cache between operations: 1.5 x faster than a tensor at once

Source = Callable[[], Tensor]  # yields a tensor's int32 keys, at each call the same; used up before another is called
AllReduce = Callable[[Tensor], Tensor]  # yields the sum over ranks of an int64 tensor, which it may overwrite


class PruningError(UserError):
    """Scores that cannot be compared."""


class Cut(NamedTuple):
    """What goes: all below `key`, and the first `ties` (by tensor, then by flat index) of those equal to it.

    Of sharded weights it is the same on every rank; there ties go by rank, so a rank applies it with `ties` less the
    number of keys equal to `key` on the ranks before it.
    """

    key: int
    ties: int


def alone(tensor: Tensor) -> Tensor:
    """The all-reduce of a single process."""
    return tensor


def keys(scores: Tensor, name: str) -> Tensor:
    """int32 keys in the order of float32 `scores`; -0.0 and 0.0 are equal, infinities are allowed.

    They may share the memory of `scores`, so do not write to them. Raises PruningError if a score is NaN; `name` is the
    tensor's, for the message.
    """
    found = scores.detach().contiguous().view(torch.int32)
    lowest, highest = _range(found)
    if lowest < 0:  # floats are sign and magnitude
        signs = found >> 31
        found = (found & LAST).bitwise_xor_(signs).sub_(signs)
        lowest, highest = _range(found)
    if lowest < -_INFINITY or highest > _INFINITY:
        raise PruningError(
            f"the scores of {name} are not numbers (NaN); lower LEARNING_RATE or choose another PRUNING_METHOD"
        )
    return found


def hold(keys: Tensor, mask: Tensor, out: Tensor) -> Tensor:
    """`out` (which may be `keys`): the keys where `mask` (uint8) is 1, and FIRST where it is 0."""
    for part, bits, new, (ones,) in _pieces(keys, mask, out, scratch=1):
        torch.bitwise_xor(part, FIRST, out=new).mul_(ones.copy_(bits)).bitwise_xor_(FIRST)
    return out


def _range(keys: Tensor) -> tuple[int, int]:
    lowest, highest = torch.stack(torch.aminmax(keys)).tolist()
    return lowest, highest


def smallest(sources: Sequence[Source], k: int, all_reduce: AllReduce = alone) -> Cut:
    """The cut that takes exactly `k` (0 to all) of the keys that `sources` yield.

    With `all_reduce`, `k` counts over all ranks, each of which passes the sources it holds (one at least). It is called
    equally often, with equal shapes, on every rank. Memory: the keys of one tensor and 1/16 of all, usually far less.
    """
    if k <= 0:
        return Cut(FIRST, 0)
    sample, held = _sample(sources)
    low, high = _window(sample, held, k, all_reduce)
    return _search_window(sources, k, low, high, held // _ROOM, all_reduce) or _search(sources, k, all_reduce)


def apply(cut: Cut, keys: Tensor) -> tuple[Tensor, Cut]:
    """A tensor's mask, uint8 of the shape of its `keys` with 0 for what goes; and the cut for the next tensor."""
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


def _search(sources: Sequence[Source], k: int, all_reduce: AllReduce) -> Cut:
    """Radix select: a pass over all keys for each digit."""
    key, below = FIRST, 0
    for position, values in _DIGITS:
        first = key >> position
        counts = all_reduce(sum(_histogram(source(), position, first, values) for source in sources))
        counts[0] -= below  # those below the range were counted as its first
        counts = counts.cumsum(0)
        digit = int((counts < k - below).sum())
        key = (first + digit) << position
        below += int(counts[digit - 1]) if digit else 0
    return Cut(key, k - below)


def _histogram(keys: Tensor, position: int, first: int, values: int) -> Tensor:
    """How often each of `values` digits from `first` on occurs at `position`; what lies outside counts as its ends."""
    digits = (keys.reshape(-1) >> position).clamp_(first, first + values - 1).sub_(first)
    return torch.bincount(digits, minlength=values)


# ---- the search where a sample points to -----------------------------------------------------------------------------


def _sample(sources: Sequence[Source]) -> tuple[Tensor, int]:
    """Every 127th key of each tensor, and how many keys there are."""
    parts, held = [], 0
    for source in sources:
        flat = source().reshape(-1)
        parts.append(flat[::_STRIDE].clone())
        held += flat.numel()
    return torch.cat(parts), held


def _window(sample: Tensor, held: int, k: int, all_reduce: AllReduce) -> tuple[int, int]:
    """Two keys between which, both included, the k-th smallest probably lies: order statistics of the sample."""
    size, total = all_reduce(torch.tensor([len(sample), held], device=sample.device)).tolist()
    share = k / total
    margin = 1 + _DEVIATIONS * math.sqrt(size * share * (1 - share))
    first, last = math.floor(size * share - margin), math.ceil(size * share + margin)
    low = _search([lambda: sample], first, all_reduce).key if first > 0 else FIRST
    high = _search([lambda: sample], last, all_reduce).key if last <= size else LAST
    return min(low + 1, LAST), high  # many keys may equal `low`, zeros for instance, and it is not among the likely


def _search_window(
    sources: Sequence[Source], k: int, low: int, high: int, room: int, all_reduce: AllReduce
) -> Cut | None:
    """One pass that counts the keys below the window and sets those within aside; None if the answer is not there."""
    below, inside = 0, []
    for source in sources:
        under, within = _split(source().reshape(-1), low, high)
        below += under
        inside.append(within)
        room -= within.numel()
        if room < 0:
            break
    counts = torch.tensor([below, sum(map(len, inside)), room < 0], device=inside[0].device)
    below, within, crowded = all_reduce(counts).tolist()
    if crowded or not below < k <= below + within:
        return None
    aside = torch.cat(inside)
    return _search([lambda: aside], k - below, all_reduce)


def _split(keys: Tensor, low: int, high: int) -> tuple[int, Tensor]:
    """How many keys are below low, and those from low to high."""
    below, inside = [], _flags(keys)
    for part, flags, (under, within) in _pieces(keys, inside[: len(keys)], scratch=2):
        torch.lt(part, low, out=under)
        below.append(under.sum(dtype=torch.int32))
        flags.copy_(torch.le(part, high, out=within).sub_(under))
    whole = len(keys) // 8 * 8
    near = torch.cat([keys[:whole].view(-1, 8)[_words(inside[:whole])].view(-1), keys[whole:]])
    return int(torch.stack(below).sum()), near[(near >= low) & (near <= high)]


def _flags(keys: Tensor) -> Tensor:
    """A 0 for each key, padded to whole words of eight."""
    return torch.zeros(-(-keys.numel() // 8) * 8, dtype=torch.uint8, device=keys.device)


def _words(flags: Tensor) -> Tensor:
    """Which words of eight flags have one, in order: few do, and a search for single flags takes five times as long."""
    return flags.view(torch.int64).nonzero().view(-1)


def _pieces(*tensors: Tensor, scratch: int) -> Iterator[tuple]:
    """Equal parts of the tensors, flat, for a CPU's caches (a GPU takes them whole), and new tensors like the first's.

    Those share memory from part to part: fresh pages would cost more than the arithmetic.
    """
    size = _PIECE * torch.get_num_threads() if tensors[0].device.type == "cpu" else max(1, tensors[0].numel())
    parts = [tensor.reshape(-1).split(size) for tensor in tensors]
    buffers = [torch.empty_like(parts[0][0]) for _ in range(scratch)]
    for group in zip(*parts, strict=True):
        yield *group, [buffer[: len(group[0])] for buffer in buffers]
