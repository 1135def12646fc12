"""What global-rms divides scores by: the root mean square that the scores of each tensor had if it were dense."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lib.prune import select
from lib.prune.weight import Weight

Score = Callable[[Weight], Tensor]
_SMALL = 1e-6  # share of the squares
_TINY = torch.finfo(torch.float32).tiny  # below it float32 loses digits


class Scales:
    """The scale of each tensor, which does not depend on how often masks were updated.

    A root mean square of what is left depends on the past. Counting the pruned weights as zeros, the one of a tensor
    with short tails falls faster. Leaving them out, the one of a tensor with long tails grows faster, so it loses more,
    so it grows again: of a normal and a Laplace tensor, fifty updates to 95 % took 91.6 and 98.4 %, one update 95.7 and
    94.3 %. So the root mean square of what is left is multiplied by what each update so far has taken from it. With
    scores that stand still this is the root mean square of the dense tensor. With others it follows the scores of the
    weights that are left, whose unit may change from step to step.
    """

    def __init__(self, silent: bool = False) -> None:
        """Without a history all scores count, those of zeros that a model came with too.

        `silent`: pruned weights have the score 0, so nothing has to leave them out of a sum.
        """
        self.silent = silent
        self.taken: dict[str, float] = {}  # by tensor, after its first update; checkpoints have it
        # Before the update that is going on: the root mean square, and whether it is that of all scores.
        self._left: dict[str, tuple[float, bool]] = {}

    def of(self, weight: Weight, score: Score, by_rows: bool, left: Tensor | None) -> float:
        """The scale of a weight of which `left` (uint8) remains, None for all. Scores as in lib.prune.mask.choose."""
        if weight.name not in self.taken:
            left = None
        self._left[weight.name] = _over_all(weight, score, by_rows, None if self.silent else left), left is None
        return (self._left[weight.name][0] or 1.0) * self.taken.get(weight.name, 1.0)

    def take(self, weight: Weight, score: Score, by_rows: bool, chosen: Tensor, gone: Tensor) -> None:
        """Learn what the mask `chosen` takes from a weight whose scale was asked for and whose score is still the same.

        `chosen` keeps no weight that `weight.mask` does not keep; `gone` are the flat indices of those that it prunes
        now. Does nothing if no scale was asked for, or if no positive score is left.
        """
        before, counted_all = self._left.pop(weight.name, (0.0, False))
        if not before:
            return
        if counted_all:
            gone = select.where(1 - chosen)
        left = before**2 - _squares(weight, score, by_rows, gone) / weight.mask.numel()
        # A difference that is this small has lost too many digits.
        after = math.sqrt(left) if left > _SMALL * before**2 else _over_all(weight, score, by_rows, chosen)
        if after:
            self.taken[weight.name] = self.taken.get(weight.name, 1.0) * before / after


def _squares(weight: Weight, score: Score, by_rows: bool, places: Tensor) -> float:
    """The sum of the squares of the finite scores at these flat indices, which rise; in float64."""
    width = weight.mask[0].numel()
    parts = select.few_rows(weight.mask.shape, weight.mask.device) if by_rows else [slice(0, len(weight.mask))]
    ends = torch.searchsorted(places, torch.tensor([part.stop * width for part in parts], device=places.device))
    total, start = 0.0, 0
    for part, end in zip(parts, ends.tolist(), strict=True):
        if start < end:
            scores = score(weight.part(part) if by_rows else weight).reshape(-1)
            found = scores[places[start:end] - part.start * width].double()
            found = found[torch.isfinite(found)]
            total += float(torch.dot(found, found))
        start = end
    return total


def _over_all(weight: Weight, score: Score, by_rows: bool, left: Tensor | None) -> float:
    """The root of the squared scores where `left` is 1, summed in float64 and divided by the number of all weights.

    0 if it is so small that float32 loses digits. Scores that are infinite or NaN are left out.
    """

    def whole() -> float:
        return root_mean_square(score(weight) if left is None else score(weight) * left)

    if not by_rows:
        return whole()
    squares, memory = [], None
    for rows in select.few_rows(weight.mask.shape, weight.mask.device):
        scores = score(weight.part(rows)).reshape(-1)
        if memory is None:  # once, because new memory for each part takes as long as the arithmetic
            memory = torch.empty(len(scores), dtype=torch.float64, device=scores.device)
        exact = memory[: len(scores)].copy_(scores)
        if left is not None:
            exact.mul_(left[rows].reshape(-1))
        squares.append(torch.dot(exact, exact))
    value = math.sqrt(float(torch.stack(squares).sum()) / weight.mask.numel())
    return value if _TINY <= value < math.inf else whole()


def root_mean_square(scores: Tensor) -> float:
    """The root mean square of the finite scores, in float64; 0 if it is so small that float32 loses digits."""
    size, norm = scores.numel(), torch.linalg.vector_norm(scores, dtype=torch.float64).item()
    if not math.isfinite(norm):
        finite = scores[torch.isfinite(scores)]
        size, norm = max(1, finite.numel()), torch.linalg.vector_norm(finite, dtype=torch.float64).item()
    value = norm / math.sqrt(size)
    return value if value >= _TINY else 0.0
