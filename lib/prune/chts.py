"""Sparse training that draws what it drops and grows: by the weights, and by the links that a layer has."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from lib.config.kconf import Options
from lib.prune.mask import ones
from lib.prune.regrowth import Warmup
from lib.prune.rewire import Rewiring, Rules, cosine, without
from lib.prune.score.magnitude import magnitude
from lib.prune.score.random import uniform
from lib.prune.topology import ch2_l3n, operations
from lib.prune.weight import Weight

_TINY = torch.finfo(torch.float32).tiny


@dataclasses.dataclass(frozen=True)
class ChtsOptions(Options):
    """How much is replaced, and how softly. With PRUNING_DYNAMICS=chts none of them is None."""

    rigl_drop_fraction: float | None
    regrow_warmup: int | None
    chts_importance: str | None  # magnitude or relative
    chts_power: float | None
    chts_final_power: float | None
    seed: int


class SoftRewiring(Rewiring):
    """CHTs: Cannistraci-Hebb training with the soft rule (Zhang et al., arXiv 2501.19107, section 3.1).

    The first masks are random, and the number of weights that a tensor replaces is RigL's. Which weights stay is drawn
    without replacement, with probabilities proportional to a power of their importance (equation 2). The power T rises
    linearly, so late in a run the least important go. What grows is drawn in proportion to CH2-L3n, which reads only
    where weights are, and no gradient.

    The paper gives a softness delta of 0.5 to 0.9. The authors' program has T = delta / (1 - delta), which is 1 to 9,
    and moves T linearly: github.com/biomedical-cybernetics/Cannistraci-Hebb-Training-Soft-Rule- (llm/dst_scheduler.py).
    """

    def __init__(self, *parts: Any, powers: tuple[float, float], **rewiring: Any):
        """`parts` and `rewiring` are those of Rewiring. `powers`: T before the first step and at the end of pruning."""
        super().__init__(*parts, **rewiring)
        self.powers = powers

    def masks(self, step: int) -> list[Tensor]:
        if self.kept == self.total:
            return super().masks(step)  # the first masks
        share = self.rules.share(step)
        return [self._rewired(weight, share, step) for weight in self.weights]

    def _rewired(self, weight: Weight, share: float, step: int) -> Tensor:
        count = self.rules.rounded(share * ones(weight.mask))
        first, last = self.powers
        power = first + (last - first) * step / self.plan.end
        staying = draw(self.rules.score(weight), power, self._draws(weight, step, "drop"))
        stays = without(staying, weight.mask, count, weight.name)
        others = stays ^ 1
        growing = draw(ch2_l3n(stays), 1.0, self._draws(weight, step, "grow"))
        return stays | (others ^ without(-growing, others, count, weight.name))

    def _draws(self, weight: Weight, step: int, what: str) -> Tensor:
        return uniform(self.seed, f"{weight.name} {step} {what}", weight.value.shape).to(weight.value.device)

    def ranking(self) -> str:
        products = sum(operations(weight.mask.shape) for weight in self.weights)
        return (
            "ranks draws of every weight twice, tensor by tensor: to drop and to grow.\n"
            f"What neurons share is counted by matrix products of {products:.3g} operations"
        )


def build(parts: tuple, options: ChtsOptions) -> SoftRewiring:
    """`parts` are what every pruner is made of."""
    _, _, plan, target, *_ = parts
    share = cosine(options.rigl_drop_fraction, plan.end)
    return SoftRewiring(
        *parts,
        powers=(options.chts_power, options.chts_final_power),
        rules=Rules(target, True, _IMPORTANCE[options.chts_importance], share, int, by_gradient=False),
        seed=options.seed,
        warmup=Warmup(options.regrow_warmup),
    )


def relative_importance(w: Tensor) -> Tensor:
    """|w| over the sum of its row, plus |w| over the sum of its column (equation 1); 0 where w is 0."""
    size = w.abs()
    return size / size.sum(1, keepdim=True).clamp_(min=_TINY) + size / size.sum(0).clamp_(min=_TINY)


def draw(scores: Tensor, power: float, chance: Tensor) -> Tensor:
    """Ranks: the k highest are k draws without replacement, with probabilities proportional to scores^power.

    Every draw is among what is left, as in torch.multinomial. `chance` is uniform in [0, 1). An exponential variable
    over its weight is the time at which an item arrives, and the first k to arrive are such draws (Efraimidis &
    Spirakis, Information Processing Letters 97, 2006). This is minus the logarithm of that time, because powers of
    scores underflow. A score of 0 counts as the smallest float32: such items come last, in random order.
    """
    return scores.clamp(min=_TINY).log_().mul_(power).sub_(chance.log().neg_().log_())


_IMPORTANCE = {
    "magnitude": lambda weight: magnitude(weight.value),
    "relative": lambda weight: relative_importance(weight.value),
}
