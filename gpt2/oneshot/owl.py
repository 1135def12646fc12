"""OWL: blocks with many outliers among their scores lose fewer weights (Yin et al., arXiv 2310.05175).

A weight's score is Wanda's, |W_ij| ||X_j||, on the dense model. An outlier's score is above M times the mean of its
block.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lib.prune import mask

_DIGITS = 10**15  # densities become integers of so many digits, so that `apportion` divides exactly


def outlier_share(scores: Sequence[Callable[[], Tensor]], threshold: float) -> float:
    """The share of outliers among the scores of a block's tensors (section 3.2); `threshold` is M."""
    total, outliers, size = 0.0, 0, 0
    for score in scores:
        found = score()
        total += float(found.sum(dtype=torch.float64))
        size += found.numel()
    for score in scores:
        outliers += int(torch.count_nonzero(score() > threshold * total / size))
    return outliers / size


def densities(outliers: Sequence[float], sparsity: float, spread: float) -> list[float]:
    """The density of each block: its share of outliers, scaled to a range of 2 `spread`, with the mean 1 - sparsity.

    The paper calls `spread` lambda. If all blocks have the same share of outliers, they have the same density.
    """
    low, high = min(outliers), max(outliers)
    scaled = [2 * spread * (share - low) / (high - low) if high > low else 0.0 for share in outliers]
    mean = sum(scaled) / len(scaled)
    return [share - mean + 1 - sparsity for share in scaled]


def budgets(shapes: mask.Shapes, density: Mapping[str, float], sparsity: float, gone: Sequence[int]) -> dict[str, int]:
    """Name -> how many weights the tensor loses, at least those `gone` already; `density` is that of its block.

    The sum is exactly `mask.count`. Where a density is below 0 or above what is left, other tensors make up for it.
    """
    numels = [math.prod(shape) for shape in shapes.values()]
    wanted = [  # 1 at least, so that a tensor takes what is left if the others are full
        max(1, round(min(density[name], 1.0) * _DIGITS)) * numel for name, numel in zip(shapes, numels, strict=True)
    ]
    rooms = [numel - less for numel, less in zip(numels, gone, strict=True)]
    kept = mask.apportion(wanted, rooms, sum(numels) - mask.count(sparsity, sum(numels)))
    return {name: numel - keeps for name, numel, keeps in zip(shapes, numels, kept, strict=True)}
