"""Sparse from the first step on: small weights are dropped now and then, and as many others grow from zero."""

import math

from torch import Tensor

from lib.prune import select
from lib.prune.mask import ones
from lib.prune.pruner import Pruner
from lib.prune.score.magnitude import magnitude
from lib.prune.score.random import uniform
from lib.prune.weight import Weight


class Rewiring(Pruner):
    """RigL (Evci et al., arXiv 1911.11134, algorithm 1) and SET (Mocanu et al., arXiv 1707.04780).

    The first masks are drawn by chance. At every update each tensor drops the smallest share f(t) of its kept weights
    and grows as many of all that are then not kept: RigL where the dense gradient is largest, SET by chance. A weight
    that is dropped and grown at once keeps its value.
    """

    regrows = True
    fraction: float  # alpha: the share replaced at the start
    by_gradient: bool
    seed: int

    def behind(self, step: int) -> bool:
        """Whether the first masks are still to be drawn, which would undo what was learned were it done again."""
        return self.kept == self.total and super().behind(step)

    def masks(self, step: int) -> list[Tensor]:
        """Keep as many in every tensor as before, but at first, when the distribution says how many."""
        if self.behind(step):
            return self.choose(lambda weight: self._chance(weight, 0), self.target, False)
        share = self.fraction / 2 * (1 + math.cos(math.pi * step / self.plan.end))
        return [self._rewired(weight, share, step) for weight in self.weights]

    def _rewired(self, weight: Weight, share: float, step: int) -> Tensor:
        count = int(share * ones(weight.mask))
        stays = weight.mask & lowest(magnitude(weight.value), weight.mask, count, weight.name)
        worth = weight.grad.abs() if self.by_gradient else self._chance(weight, step)
        return stays | (lowest(-worth, stays ^ 1, count, weight.name) ^ 1)

    def _chance(self, weight: Weight, step: int) -> Tensor:
        return uniform(self.seed, f"{weight.name} {step}", weight.value.shape).to(weight.value.device)


def lowest(scores: Tensor, among: Tensor, count: int, name: str) -> Tensor:
    """A uint8 mask that is 0 at the `count` lowest scores where `among` is 1, ties by index, and 1 elsewhere."""

    def keys() -> Tensor:  # LAST, which no score has, where `among` is 0
        return select.keys(scores, name).bitwise_xor(select.LAST).mul_(among).bitwise_xor_(select.LAST)

    mask, _ = select.apply(select.smallest([keys], count), keys())
    return mask
