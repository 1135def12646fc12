"""Turns scores into masks. The number of pruned weights is exact; the distribution says which weights are compared."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lib.base.errors import UsageError
from lib.prune import owl, select
from lib.prune.limits import GLOBAL, MaskOptions, Shapes, check, count, limits
from lib.prune.scale import Scales
from lib.prune.select import ones
from lib.prune.weight import Weight

_PAIRWISE = 16  # up to this group size, comparing all pairs takes half the time of sorting
# The number of weights that a tensor keeps is proportional to this function of its shape. ERK's density (RigL, arXiv
# 1911.11134, section 3) is c (inputs + outputs) / (inputs * outputs), so a tensor keeps c (inputs + outputs) weights.
_SHARES = {"layer": math.prod, "row": math.prod, "n-m": math.prod, "erk": sum}


def shapes_of(weights: Sequence[Weight]) -> Shapes:
    """The shapes of these weights, without padding."""
    return {weight.name: weight.mask.shape for weight in weights}


# ---- how much of each tensor -----------------------------------------------------------------------------------------


def budgets(
    options: MaskOptions,
    shapes: Shapes,
    sparsity: float,
    gone: Sequence[int] | None = None,
    shares: Sequence[int] | None = None,
) -> dict[str, int]:
    """How many weights each tensor loses. Global distributions have no such numbers.

    They add up to `count`. A tensor loses at least as many as are `gone` from it already; the others then lose fewer.
    What a tensor keeps is proportional to its part of `shares`, which owl measures and the others know from its shape.
    """
    numels = [math.prod(shape) for shape in shapes.values()]
    if shares is None:
        shares = [_SHARES[options.pruning_distribution](shape) for shape in shapes.values()]
    rooms = [numel - less for numel, less in zip(numels, gone or [0] * len(numels), strict=True)]
    kept = apportion(shares, rooms, sum(numels) - count(sparsity, sum(numels)))
    return {name: numel - keeps for name, numel, keeps in zip(shapes, numels, kept, strict=True)}


def apportion(shares: Sequence[int], rooms: Sequence[int], amount: int) -> list[int]:
    """Divide `amount` (up to the sum of `rooms`) in proportion to `shares`; no part exceeds its room.

    Parts are integers by the largest remainder; of equal remainders the last is rounded up first. What is left for
    parts with a share of 0 is divided in proportion to their rooms.
    """
    parts = list(rooms)
    rest = list(range(len(parts)))
    while True:
        whole = sum(shares[i] for i in rest)
        if not whole:
            shares, whole = rooms, sum(rooms[i] for i in rest)
        full = {i for i in rest if amount * shares[i] >= rooms[i] * whole}
        amount -= sum(rooms[i] for i in full)
        rest = [i for i in rest if i not in full]
        if not full or not rest:
            break
    remainders = {}
    for i in rest:
        parts[i], remainders[i] = divmod(amount * shares[i], whole)
    left = amount - sum(parts[i] for i in rest)
    for i in sorted(rest, key=lambda i: (remainders[i], i), reverse=True)[:left]:
        parts[i] += 1
    return parts


# ---- masks -----------------------------------------------------------------------------------------------------------


def choose(
    weights: Sequence[Weight],
    score: Callable[[Weight], Tensor],
    sparsity: float,
    options: MaskOptions,
    monotone: bool,
    by_rows: bool = False,
    scales: Scales | None = None,
) -> list[Tensor]:
    """New uint8 masks, one for each weight: 0 for the `count(sparsity, total)` lowest scores, ties broken by index.

    `score` returns float32 of the weight's shape, and the same at every call. With `by_rows` it may be called for some
    rows of a weight. With `monotone`, weights that `weight.mask` has pruned stay pruned. `scales` are those of
    global-rms that remember earlier updates; None: there were none. Ranks with the same weights and scores choose the
    same masks. Memory beyond the masks: a few copies of the largest tensor, of a few rows with `by_rows`.

    Raises what `check` raises, PruningError for scores that are NaN, and UsageError if more weights are pruned already
    than `sparsity` allows.
    """
    shapes = shapes_of(weights)
    check(options, shapes, sparsity)
    gone = [_zeros(weight.mask) if monotone else 0 for weight in weights]
    k = count(sparsity, sum(map(math.prod, shapes.values())))
    if k < sum(gone):
        raise UsageError(
            f"a sparsity of {sparsity:g} prunes {k:,} weights, but {sum(gone):,} are pruned already and cannot return; "
            "start a new run"
        )
    if k == sum(gone):
        return [weight.mask.clone() if monotone else torch.ones_like(weight.mask) for weight in weights]
    scales = (scales or Scales()) if options.pruning_distribution == "global-rms" else None
    sources = [_source(weight, score, less, scales, by_rows) for weight, less in zip(weights, gone, strict=True)]
    if options.pruning_distribution in GLOBAL:
        most = limits(options, [weight.mask.numel() for weight in weights])
        masks = _jointly(sources, k, gone, most)
    else:
        measured = options.pruning_distribution == "owl"
        shares = owl.shares(weights, sparsity, options.owl_threshold, options.owl_lambda) if measured else None
        each = budgets(options, shapes, sparsity, gone, shares).values()
        masks = [
            _alone(weight, source, budget, less, options)
            for weight, source, budget, less in zip(weights, sources, each, gone, strict=True)
        ]
    return [mask.view(weight.mask.shape) for mask, weight in zip(masks, weights, strict=True)]


def _source(
    weight: Weight, score: Callable[[Weight], Tensor], gone: int, scales: Scales | None, by_rows: bool
) -> select.Source:
    """Returns the keys of the scores. `gone` weights are pruned already and do not compete."""
    scale, kept = None, weight.mask if gone else None

    def keys(rows: slice) -> Tensor:
        nonlocal scale
        if scales:
            scale = scale or scales.of(weight, score, by_rows, kept)
        scores = score(weight.part(rows) if by_rows else weight)
        return select.keys(scores / scale if scale else scores, weight.name)

    return select.Source(weight.mask.shape, weight.mask.device, keys, kept, by_rows, gone)


def _jointly(sources: Sequence[select.Source], k: int, gone: Sequence[int], limits: Sequence[int]) -> list[Tensor]:
    """All tensors compete. A tensor that would exceed its limit is pruned to that limit; the others compete again.

    `gone` are the weights of each tensor that are pruned already, which count among the `k`.
    """
    masks: dict[int, Tensor] = {}
    free = list(range(len(sources)))
    k -= sum(gone)
    while free:
        masks |= dict(zip(free, select.prune([sources[i] for i in free], k), strict=True))
        capped = [i for i in free if limits[i] < masks[i].numel()]
        over = [i for i in capped if _zeros(masks[i]) > max(limits[i], gone[i])]
        for i in over:
            room = max(limits[i], gone[i]) - gone[i]
            masks[i] = select.prune([sources[i]], room)[0]
            k -= room
        free = [i for i in free if i not in over] if over else []
    return [masks[i] for i in range(len(sources))]


def _alone(weight: Weight, source: select.Source, budget: int, gone: int, options: MaskOptions) -> Tensor:
    if options.within not in ("row", "n-m"):
        return select.prune([source], budget - gone)[0]
    keys = source.read(slice(0, len(weight.mask)))
    if gone:
        keys = select.hold(keys, weight.mask)
    if options.within == "row":
        return _by_row(keys, budget)
    return _by_group(keys, budget, options.pruning_n, options.pruning_m, weight.name)


def _by_row(keys: Tensor, budget: int) -> Tensor:
    """Prunes the same number in every row; the first rows lose the remainder, one each.

    If a row has already lost more than this number, the other rows keep more.
    """
    rows, width = keys.shape
    each, more = divmod(budget, rows)
    counts = each + (torch.arange(rows, device=keys.device) < more)
    gone = (keys == select.FIRST).sum(1)
    if bool((gone > counts).any()):
        kept = apportion([1] * rows, (width - gone).tolist(), rows * width - budget)
        counts = width - torch.tensor(kept, device=keys.device)
    stays = (torch.arange(width, device=keys.device) >= counts[:, None]).to(torch.uint8)
    return torch.empty_like(stays).scatter_(1, keys.argsort(dim=1, stable=True), stays)


def _by_group(keys: Tensor, budget: int, n: int, m: int, name: str) -> Tensor:
    """Prunes only among the m - n lowest of each m neighbours; all of them if the budget is that large."""
    stays = highest(keys, n, m)
    if bool((keys == select.FIRST).logical_and_(stays).any()):
        raise UsageError(
            f"{name}: more than {m - n} of {m} neighbours are pruned already and cannot return, but PRUNING_N={n} of "
            f"PRUNING_M={m} are to be kept; start a new run"
        )
    if budget == keys.numel() // m * (m - n):
        return stays
    return select.prune([select.of(keys, kept=stays ^ 1)], budget)[0].view(keys.shape) | stays


def highest(keys: Tensor, n: int, m: int) -> Tensor:
    """uint8 of the shape of `keys`: 1 at the n highest of each group of m in a row; of equal keys the last are kept."""
    if m > _PAIRWISE:
        order = keys.view(-1, m).argsort(dim=1, stable=True)
        ranks = (torch.arange(m, device=keys.device) >= m - n).to(torch.uint8).expand(order.shape)
        return torch.empty_like(ranks, memory_format=torch.contiguous_format).scatter_(1, order, ranks).view(keys.shape)
    columns = keys.reshape(-1, m).T.contiguous()  # (m, groups)
    lower = torch.arange(m - 1, -1, -1, dtype=torch.uint8, device=keys.device)[:, None].repeat(1, columns.shape[1])
    for j in range(m):
        for i in range(j):
            first = (columns[i] <= columns[j]).view(torch.uint8)
            lower[j] += first
            lower[i] -= first  # lower[i] starts as the number of keys that follow in the group
    return (lower >= m - n).view(torch.uint8).T.contiguous().view(keys.shape)


def _zeros(mask: Tensor) -> int:
    return mask.numel() - ones(mask)
