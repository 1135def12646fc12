"""OWL: blocks with many outliers among their scores lose fewer weights (Yin et al., arXiv 2310.05175).

A weight's score is Wanda's, |W_ij| ||X_j||, on the model as it is. An outlier's score is above M times the mean of its
block.
"""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lib.prune.score.wanda import INPUTS, wanda
from lib.prune.select import PruningError, few_rows
from lib.prune.weight import Weight

_DIGITS = 10**15  # densities become integers of so many digits, so that `mask.apportion` divides exactly


def shares(weights: Sequence[Weight], sparsity: float, threshold: float, spread: float) -> list[int]:
    """What the number of weights that each tensor keeps is proportional to: its block's density, times its size.

    The memory of each weight has the squared norms of its inputs. `threshold` is the paper's M, `spread` its lambda.
    Raises PruningError for scores that are NaN or infinite.
    """
    blocks: dict[str, list[Callable[[], Tensor]]] = {}
    for weight in weights:
        parts = (weight.part(rows) for rows in few_rows(weight.mask.shape, weight.mask.device))
        blocks.setdefault(_block(weight), []).extend(functools.partial(_score, part) for part in parts)
    outliers = [outlier_share(scores, threshold) for scores in blocks.values()]
    density = dict(zip(blocks, densities(outliers, sparsity, spread), strict=True))
    return [_whole(density[_block(weight)]) * weight.mask.numel() for weight in weights]


def outlier_share(scores: Sequence[Callable[[], Tensor]], threshold: float) -> float:
    """The share of outliers among the scores of a block, in parts (section 3.2); `threshold` is M."""
    total, outliers, size = 0.0, 0, 0
    for score in scores:
        found = score()
        total += float(found.sum(dtype=torch.float64))
        size += found.numel()
    if not math.isfinite(total):
        raise PruningError(
            "PRUNING_DISTRIBUTION=owl: weights times the norms of their inputs are NaN or infinite; lower "
            "LEARNING_RATE or choose another PRUNING_DISTRIBUTION"
        )
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


def _block(weight: Weight) -> str:
    """The block of a tensor: h.0 of h.0.attn.c_attn.weight."""
    return ".".join(weight.name.split(".")[:2])


def _score(weight: Weight) -> Tensor:
    return wanda(weight.value, weight.memory[INPUTS])


def _whole(density: float) -> int:
    """A density as an integer: at most all, and 1 at least, so that a tensor takes what is left if others are full."""
    return max(1, round(min(density, 1.0) * _DIGITS))
