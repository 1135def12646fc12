"""Sparse training from the first step: each update drops small weights and grows as many others from zero."""

import math
from collections.abc import Sequence

from torch import Tensor

from lib.prune import mask, select
from lib.prune.mask import MaskOptions, ones
from lib.prune.pruner import Pruner
from lib.prune.schedule import Plan
from lib.prune.score import Criterion
from lib.prune.score.magnitude import magnitude
from lib.prune.score.random import uniform
from lib.prune.weight import Weight


class Rewiring(Pruner):
    """RigL (Evci et al., arXiv 1911.11134, algorithm 1) and SET (Mocanu et al., arXiv 1707.04780).

    The first masks are random. At every update each tensor drops a share f(t) of its kept weights, the smallest, and
    then grows as many of the weights that are not kept. RigL grows those with the largest dense gradient, SET random
    ones. A weight that is dropped and grown in the same update keeps its value.
    """

    regrows = True

    def __init__(
        self,
        weights: Sequence[Weight],
        criterion: Criterion,
        plan: Plan,
        target: float,
        distribution: MaskOptions,
        *,
        fraction: float,
        by_gradient: bool,
        seed: int,
    ):
        """`fraction` is the paper's alpha, the share replaced at the start; `by_gradient`: RigL, else SET."""
        super().__init__(weights, criterion, plan, target, distribution)
        self.fraction, self.by_gradient, self.seed = fraction, by_gradient, seed

    def behind(self, step: int) -> bool:
        """Whether the first masks are not drawn yet. To draw them again would lose the weights that training chose."""
        return self.kept == self.total and super().behind(step)

    def masks(self, step: int) -> list[Tensor]:
        """The first masks follow the distribution; later ones keep as many weights in each tensor."""
        if self.behind(step):
            return mask.choose(
                self.weights, lambda weight: self._chance(weight, 0), self.target, self.distribution, monotone=False
            )
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
    """A uint8 mask: 0 at the `count` lowest scores where `among` is 1 (ties by index), 1 everywhere else."""

    def keys() -> Tensor:  # where `among` is 0: LAST, which no score has, so it is never selected
        return select.keys(scores, name).bitwise_xor(select.LAST).mul_(among).bitwise_xor_(select.LAST)

    found, _ = select.apply(select.smallest([keys], count), keys())
    return found
