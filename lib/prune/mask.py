"""Turns scores into masks. The number of pruned weights is exact; the distribution says which weights are compared."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from lib.base.errors import UsageError
from lib.config.kconf import Options
from lib.prune import select
from lib.prune.weight import Weight

Shapes = Mapping[str, Sequence[int]]  # of the weights in scope, by name
_GLOBAL = ("global", "global-rms", None)  # None: soft movement, which needs masks only to compare with magnitude
_PAIRWISE = 16  # up to this group size, comparing all pairs takes half the time of sorting
_MATRICES = ("erk", "row", "n-m")  # distributions that need rows and columns
# The number of weights that a tensor keeps is proportional to this function of its shape. ERK's density (RigL, arXiv
# 1911.11134, section 3) is c (inputs + outputs) / (inputs * outputs), so a tensor keeps c (inputs + outputs) weights.
_SHARES = {"layer": math.prod, "row": math.prod, "n-m": math.prod, "erk": sum}


@dataclasses.dataclass(frozen=True)
class MaskOptions(Options):
    """Which weights are compared. An option is None where the method does not use it."""

    pruning_distribution: str | None
    pruning_layer_cap: float | None  # the largest sparsity of a tensor in a global comparison
    pruning_n: int | None  # weights kept
    pruning_m: int | None  # of this many neighbours along the input


def count(sparsity: float, total: int) -> int:
    """How many of `total` weights are pruned."""
    return round(sparsity * total)


def check(options: MaskOptions, shapes: Shapes, sparsity: float) -> None:
    """Raise UsageError if tensors of these shapes cannot have this sparsity."""
    if options.pruning_distribution == "n-m" and options.pruning_n >= options.pruning_m:
        raise UsageError(f"PRUNING_N={options.pruning_n} must be less than PRUNING_M={options.pruning_m}")
    if not 0 <= sparsity <= 1:
        raise UsageError(f"TARGET_SPARSITY must be from 0 to 1; got {sparsity}")
    if options.pruning_distribution in _MATRICES:
        for name, shape in shapes.items():
            if len(shape) != 2:
                raise UsageError(
                    f"PRUNING_DISTRIBUTION={options.pruning_distribution} needs matrices, but {name} has {len(shape)} "
                    "dimension(s); leave it out of PRUNING_SCOPE"
                )
    if options.pruning_distribution == "n-m":
        _check_groups(options, shapes, sparsity)
    if options.pruning_distribution in _GLOBAL:
        numels = [math.prod(shape) for shape in shapes.values()]
        if count(sparsity, sum(numels)) > sum(_limits(options, numels)):
            raise UsageError(
                f"PRUNING_LAYER_CAP={options.pruning_layer_cap:g} of every tensor does not allow a sparsity of "
                f"{sparsity:g}; raise PRUNING_LAYER_CAP or lower TARGET_SPARSITY"
            )


def _check_groups(options: MaskOptions, shapes: Shapes, sparsity: float) -> None:
    n, m = options.pruning_n, options.pruning_m
    for name, (_, inputs) in shapes.items():
        if inputs % m:
            raise UsageError(
                f"PRUNING_M={m} must divide the input dimension of every tensor, but {name} has {inputs} inputs; "
                "change PRUNING_M or PRUNING_SCOPE"
            )
    total = sum(map(math.prod, shapes.values()))
    if count(sparsity, total) > total // m * (m - n):
        raise UsageError(f"keeping PRUNING_N={n} of PRUNING_M={m} weights does not allow a sparsity of {sparsity:g}")


# ---- how much of each tensor -----------------------------------------------------------------------------------------


def budgets(options: MaskOptions, shapes: Shapes, sparsity: float, gone: Sequence[int] | None = None) -> dict[str, int]:
    """How many weights each tensor loses. Global distributions have no such numbers.

    They add up to `count`. A tensor loses at least as many as are `gone` from it already; the others then lose fewer.
    """
    numels = [math.prod(shape) for shape in shapes.values()]
    shares = [_SHARES[options.pruning_distribution](shape) for shape in shapes.values()]
    rooms = [numel - less for numel, less in zip(numels, gone or [0] * len(numels), strict=True)]
    kept = apportion(shares, rooms, sum(numels) - count(sparsity, sum(numels)))
    return {name: numel - keeps for name, numel, keeps in zip(shapes, numels, kept, strict=True)}


def apportion(shares: Sequence[int], rooms: Sequence[int], amount: int) -> list[int]:
    """Divide `amount` (up to the sum of `rooms`) in proportion to `shares`; no part exceeds its room.

    Parts are integers by the largest remainder; of equal remainders the last is rounded up first.
    """
    parts = list(rooms)
    rest = list(range(len(parts)))
    while True:
        whole = sum(shares[i] for i in rest)
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


def _limits(options: MaskOptions, numels: Sequence[int]) -> list[int]:
    if options.pruning_layer_cap is None:
        return list(numels)
    cap = Fraction(str(options.pruning_layer_cap))  # the decimal text, because floats make 28 of 0.29 * 100
    return [math.floor(cap * numel) for numel in numels]


# ---- masks -----------------------------------------------------------------------------------------------------------


def choose(
    weights: Sequence[Weight],
    score: Callable[[Weight], Tensor],
    sparsity: float,
    options: MaskOptions,
    monotone: bool,
) -> list[Tensor]:
    """New uint8 masks, one for each weight: 0 for the `count(sparsity, total)` lowest scores, ties broken by index.

    `score` returns float32 of the weight's shape, and the same at every call. With `monotone`, weights that
    `weight.mask` has pruned stay pruned. Ranks with the same weights and scores choose the same masks. Memory beyond
    the masks: a few copies of the largest tensor.

    Raises what `check` raises, PruningError for scores that are NaN, and UsageError if more weights are pruned already
    than `sparsity` allows.
    """
    shapes = {weight.name: weight.mask.shape for weight in weights}
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
    scaled = options.pruning_distribution == "global-rms"
    largest = max(weight.mask.numel() for weight in weights)
    # One buffer for all tensors: to allocate memory for each would take longer than the arithmetic.
    room = torch.empty(largest, dtype=torch.int32, device=weights[0].mask.device)
    sources = [_source(weight, score, monotone, scaled, room) for weight in weights]
    if options.pruning_distribution in _GLOBAL:
        limits = _limits(options, [weight.mask.numel() for weight in weights])
        return _jointly(sources, k, [max(limit, less) for limit, less in zip(limits, gone, strict=True)])
    return [
        _alone(source(), budget, options, name)
        for source, (name, budget) in zip(sources, budgets(options, shapes, sparsity, gone).items(), strict=True)
    ]


def _source(
    weight: Weight, score: Callable[[Weight], Tensor], monotone: bool, scaled: bool, room: Tensor
) -> select.Source:
    """Returns the keys of the scores; weights that must stay pruned come first. Each call overwrites `room`."""
    own = room[: weight.mask.numel()].view(weight.mask.shape)
    scale = None

    def keys() -> Tensor:
        nonlocal scale
        scores = score(weight)
        if scaled:
            scale = scale or root_mean_square(scores)
            scores = torch.div(scores, scale, out=own.view(torch.float32))
        found = select.keys(scores, weight.name)
        return select.hold(found, weight.mask, out=own) if monotone else found

    return keys


def root_mean_square(scores: Tensor) -> float:
    """The root mean square of the finite scores, in float64; 1 if it is 0 or so small that float32 loses digits."""
    size, norm = scores.numel(), torch.linalg.vector_norm(scores, dtype=torch.float64).item()
    if not math.isfinite(norm):
        finite = scores[torch.isfinite(scores)]
        size, norm = max(1, finite.numel()), torch.linalg.vector_norm(finite, dtype=torch.float64).item()
    value = norm / math.sqrt(size)
    return value if value >= torch.finfo(torch.float32).tiny else 1.0


def _jointly(sources: Sequence[select.Source], k: int, limits: Sequence[int]) -> list[Tensor]:
    """All tensors compete. A tensor that would exceed its limit is pruned to that limit; the others compete again."""
    masks: dict[int, Tensor] = {}
    free = list(range(len(sources)))
    while free:
        cut = select.smallest([sources[i] for i in free], k)
        for i in free:
            masks[i], cut = select.apply(cut, sources[i]())
        over = [i for i in free if _zeros(masks[i]) > limits[i]]
        for i in over:
            masks[i] = _lowest(sources[i](), limits[i])
            k -= limits[i]
        free = [i for i in free if i not in over] if over else []
    return [masks[i] for i in range(len(sources))]


def _alone(keys: Tensor, budget: int, options: MaskOptions, name: str) -> Tensor:
    if options.pruning_distribution == "row":
        return _by_row(keys, budget)
    if options.pruning_distribution == "n-m":
        return _by_group(keys, budget, options.pruning_n, options.pruning_m, name)
    return _lowest(keys, budget)


def _lowest(keys: Tensor, k: int) -> Tensor:
    mask, _ = select.apply(select.smallest([lambda: keys], k), keys)
    return mask


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
    return _lowest(keys.bitwise_xor(select.LAST).mul_(stays ^ 1).bitwise_xor_(select.LAST), budget)


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


def ones(mask: Tensor) -> int:
    """The number of ones in a uint8 mask."""
    return int(torch.count_nonzero(mask.view(torch.bool)))  # 4 times as fast as for uint8


def _zeros(mask: Tensor) -> int:
    return mask.numel() - ones(mask)
