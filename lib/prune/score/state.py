"""State pruning: scores from |w| and from moments that Adam keeps anyway, so the criterion needs no memory."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lib.config.kconf import Options
from lib.prune.score import Criterion
from lib.prune.select import PruningError
from lib.prune.weight import Weight

Formula = Callable[[Tensor, Tensor, Tensor], Tensor]  # of w, m = exp_avg, v = exp_avg_sq


@dataclasses.dataclass(frozen=True)
class StateOptions(Options):
    """The name of the formula."""

    pruning_state: str


# ---- formulas whose ranking does not depend on the gradients' scale --------------------------------------------------
#
# If all gradients are multiplied by c, m is multiplied by c and v by c^2. Every score is then multiplied by the same
# power of c, so the ranking stays the same, within a tensor and between tensors. An epsilon would break this: with
# gradients clipped to norm 1, the mean of v is below 1e-8 in a model of 1e8 weights. sqrt(v + 1e-8) then hardly
# depends on v.
#
# Bias correction divides all m of a step by one number, and all v by another. It is left out, since no order changes.
#
# hybrid and fisher are the square roots of the products in their descriptions. The order is the same, but the products
# would leave float32's range: w = 1e-6 and v = 1e-30 give w^2 v = 1e-42, which has 3 digits. With the roots all four
# are |w| times a function of the moments, like magnitude. This matters for global-rms: dividing by a tensor's root mean
# square does not commute with taking a root.


def _root(x: Tensor) -> Tensor:
    """The square root of x >= 0, in place.

    MKL takes 40 times as long for 0 as for other numbers, and half of all weights may be pruned. So zeros become 1 for
    a moment; no bit of another number changes.
    """
    zeros = torch.eq(x, 0, out=torch.empty_like(x))
    return x.add_(zeros).sqrt_().sub_(zeros)


def hybrid(w: Tensor, m: Tensor, v: Tensor) -> Tensor:
    """sqrt(w^2 |m| / sqrt(v)): favours large weights whose gradient keeps its sign; 0 without any gradient so far."""
    ratio = v.rsqrt().mul_(m).nan_to_num_(0.0, 0.0, 0.0)  # m / sqrt(v) is undefined where v is 0 or underflowed
    return _root(ratio.abs_()).mul_(w).abs_()


def variance(w: Tensor, m: Tensor, v: Tensor) -> Tensor:
    """|w| v^(1/4): a compromise between magnitude and fisher."""
    return _root(_root(v.clone())).mul_(w).abs_()


def momentum(w: Tensor, m: Tensor, v: Tensor) -> Tensor:
    """|w| sqrt(|m|): the square root of |w| times the first-order change |w m| of the loss."""
    return _root(m.abs()).mul_(w).abs_()


def fisher(w: Tensor, m: Tensor, v: Tensor) -> Tensor:
    """sqrt(w^2 v): the second-order change of the loss, estimated with the diagonal of the empirical Fisher matrix.

    LeCun et al., Optimal Brain Damage, 1990, section 2, with v in place of the second derivatives.
    """
    return _root(v.clone()).mul_(w).abs_()


# ---- formulas as published, with their effect on the ranking ---------------------------------------------------------


def bitter5(w: Tensor, m: Tensor, v: Tensor) -> Tensor:
    """Keeps the weights that move towards zero, against its intention.

    A score may be negative, so a pruned weight, whose score is 0, can rank above a kept one.
    """
    return w.sign() * m / (v.sqrt() + 1e-8) + 0.1 * w.abs()


def bitter8(w: Tensor, m: Tensor, v: Tensor) -> Tensor:
    """|w| (v + 1e-5)^(1/4) in float16, where v below 6e-8 becomes 0: usually the same as magnitude."""
    v = v.half().clamp_max(torch.finfo(torch.float16).max)  # 0 times infinity would be NaN
    return (w.half().abs() * torch.rsqrt(torch.rsqrt(v + 1e-5))).float()


FORMULAS: dict[str, Formula] = {
    "hybrid": hybrid,
    "variance": variance,
    "momentum": momentum,
    "fisher": fisher,
    "bitter0": lambda w, m, v: (w * m).abs() * (w.abs() / (v.sqrt() + 1e-8)),
    "bitter1": lambda w, m, v: w.abs(),
    "bitter2": lambda w, m, v: w.abs(),
    "bitter3": lambda w, m, v: w.abs() * (m.abs() + 1e-8).sqrt(),
    "bitter4": lambda w, m, v: w.abs() * (m.abs() + 1e-8).sqrt(),
    "bitter5": bitter5,
    "bitter6": lambda w, m, v: w.abs() * (m.abs() + 1e-8).sqrt() * (m.square() / (v + 1e-8)).sqrt(),
    "bitter7": lambda w, m, v: w.abs() * (v + 1e-8) ** 0.25,
    "bitter8": bitter8,
    "bitter9": bitter8,
}


class State(Criterion):
    """Reads exp_avg and exp_avg_sq as of the previous step."""

    reads_state = by_rows = silent = True

    def __init__(self, formula: Formula):
        self.formula = formula

    def score(self, weight: Weight) -> Tensor:
        """By the formula; raises PruningError if the optimizer has no moments."""
        state = weight.state
        if "exp_avg" not in state or "exp_avg_sq" not in state:
            raise PruningError(
                f"PRUNING_METHOD=state needs exp_avg and exp_avg_sq, but the optimizer has none for {weight.name}; "
                "choose an Adam-like OPTIMIZER, and prune after its first step"
            )
        return self.formula(weight.value, state["exp_avg"], state["exp_avg_sq"])


def build(bind: Callable[[type], Any]) -> Criterion:
    """State pruning with the formula of PRUNING_STATE."""
    return State(FORMULAS[bind(StateOptions).pruning_state])
