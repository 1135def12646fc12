"""State pruning: |w| and the moments that Adam keeps anyway, so that a criterion costs no memory of its own."""

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
    """Which formula."""

    pruning_state: str


# ---- formulas without a scale of their own ---------------------------------------------------------------------------
#
# Multiplying all gradients by c multiplies m by c and v by c^2, hence every score of the run by the same power of c: no
# order changes, within a tensor or between tensors. No epsilon may enter, for it would be such a scale: with gradients
# clipped to norm 1, v averages below 1e-8 in a model of 1e8 weights, and sqrt(v + 1e-8) says nothing about v.
#
# Bias correction divides all m, and all v, of a step by the same number and is left out for the same reason.
#
# hybrid and fisher are the square roots of the products that name them. The order is the same, but the products leave
# float32's range: w = 1e-6 and v = 1e-30 give w^2 v = 1e-42, where 3 digits are left. And all four are then |w| times a
# function of the moments, so that a comparison of scores divided by each tensor's root mean square (which is no longer
# the same for a power of the score) starts from the same |w| for all of them as for magnitude.


def hybrid(w: Tensor, m: Tensor, v: Tensor) -> Tensor:
    """sqrt(w^2 |m| / sqrt(v)): large weights with a gradient of constant sign; 0 where there never was a gradient."""
    ratio = v.rsqrt().mul_(m).nan_to_num_(0.0, 0.0, 0.0)  # v that is 0, or underflowed to it, says nothing
    return ratio.abs_().sqrt_().mul_(w).abs_()


def variance(w: Tensor, m: Tensor, v: Tensor) -> Tensor:
    """|w| v^(1/4): between magnitude and fisher."""
    return v.sqrt().sqrt_().mul_(w).abs_()


def momentum(w: Tensor, m: Tensor, v: Tensor) -> Tensor:
    """|w| sqrt(|m|): the square root of |w| times the first-order change |w m| of the loss."""
    return m.abs().sqrt_().mul_(w).abs_()


def fisher(w: Tensor, m: Tensor, v: Tensor) -> Tensor:
    """sqrt(w^2 v): the change of the loss to second order, by the diagonal of the empirical Fisher matrix.

    LeCun et al., Optimal Brain Damage, 1990, section 2, with v in the place of the second derivatives.
    """
    return v.sqrt().mul_(w).abs_()


# ---- formulas as published, with what they do to the ranks -----------------------------------------------------------


def bitter5(w: Tensor, m: Tensor, v: Tensor) -> Tensor:
    """Keeps the weights that move to zero, against its intention; may be negative, so that pruned weights outrank."""
    return w.sign() * m / (v.sqrt() + 1e-8) + 0.1 * w.abs()


def bitter8(w: Tensor, m: Tensor, v: Tensor) -> Tensor:
    """|w| (v + 1e-5)^(1/4) in float16, where v below 6e-8 is 0: magnitude, as a rule."""
    v = v.half().clamp_max(torch.finfo(torch.float16).max)  # infinite, it would make NaN of a weight that is 0
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
    """Reads exp_avg and exp_avg_sq as the steps before this one left them."""

    reads_state = True

    def __init__(self, formula: Formula):
        self.formula = formula

    def score(self, weight: Weight) -> Tensor:
        """The formula's; raises PruningError where the optimizer keeps no moments."""
        state = weight.state
        if "exp_avg" not in state or "exp_avg_sq" not in state:
            raise PruningError(
                f"PRUNING_METHOD=state finds no exp_avg and exp_avg_sq of {weight.name}: let an Adam-like OPTIMIZER "
                "make a step before masks are chosen"
            )
        return self.formula(weight.value, state["exp_avg"], state["exp_avg_sq"])


def build(bind: Callable[[type], Any]) -> Criterion:
    """With the formula of PRUNING_STATE."""
    return State(FORMULAS[bind(StateOptions).pruning_state])
