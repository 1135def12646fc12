"""Top-KAST: sparse from the first step; some weights that the forward pass does not use are trained too, to explore."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from lib.prune import bits, mask
from lib.prune.hidden import StraightThrough
from lib.prune.outlook import Held, Traffic
from lib.prune.pruner import Pruner
from lib.prune.score.magnitude import magnitude
from lib.prune.select import where
from lib.prune.weight import Weight

_TRAINED = "trained"  # uint8 of the weight's shape: 1 in B
_RESERVE = "reserve"  # the values outside B; 0 in B


class TopKast(StraightThrough):
    """Top-KAST (Jayakumar et al., arXiv 2106.03517).

    The forward pass uses the weights of largest magnitude, set A, a share D of all. A larger set B around it, the share
    D + M of largest magnitude, gets the gradient of W * A. All other weights keep their value until they are in B.
    Masks are chosen after the optimizer's update, like those of ste.

    The optimizer sees zeros outside B, so neither weight decay nor moments move what is there: its values are in a
    reserve, and come back when masks are chosen. At the end of the plan A is fixed and B becomes A: what the forward
    pass will never use need not be trained.
    """

    def __init__(self, *parts: Any, backward: float, penalty: float):
        """`backward` is (D + M) / D, `penalty` the coefficient of the regularisation; `parts` are those of Pruner."""
        super().__init__(*parts, decay=0.0)
        self.backward, self.penalty = backward, penalty
        for weight in self.weights:
            weight.memory |= {_TRAINED: torch.ones_like(weight.mask), _RESERVE: torch.zeros_like(weight.value)}

    def trained(self, masks: dict[str, Tensor]) -> dict[nn.Parameter, Tensor]:
        """Set B."""
        return {weight.parameter: weight.memory[_TRAINED] for weight in self.weights}

    def gradients(self) -> float:
        """Before the end of the plan; afterwards it is 0."""
        kept = self.planned(1.0)
        return (self._larger(kept) - kept) / max(1, self.total - kept)

    def behind(self, step: int) -> bool:
        """Whether the last masks that were due were due at a step that was skipped."""
        last = self.plan.last(step)
        return last is not None and self.changed_at < last

    @torch.no_grad()
    def hold(self) -> None:
        """Zero the gradients outside B, and add those of the penalty.

        The penalty is an L2 norm with a coefficient c: c / 2 times the sum of w^2 over A, and of w^2 / D over the rest
        of B. So weights in B shrink and others get their turn, and weights near the edge of A do not come and go.
        """
        more = self.penalty * (1 / (1 - self.target) - 1)  # beside that of A
        for weight in self.weights:
            grad, value = weight.grad, weight.value
            grad.mul_(weight.memory[_TRAINED])
            if self.penalty:  # values outside B are 0
                grad.add_(value, alpha=self.penalty).addcmul_(value, weight.mask ^ 1, value=more)

    @torch.no_grad()
    def _update(self, step: int, used: int) -> None:
        """Choose B among all weights, then A in B, so that each weight of A is in B whatever is compared with what."""
        kept = self.planned(1.0)
        share = (kept if step >= self.plan.end else self._larger(kept)) / self.total
        chosen = mask.choose(self.weights, _dense_magnitude, 1 - share, self.distribution, monotone=False, by_rows=True)
        for weight, trained in zip(self.weights, chosen, strict=True):
            Pruner.forget(self, weight, where(weight.memory[_TRAINED] & (trained ^ 1)))
            _divide(weight, trained)
        super()._update(step, used)

    def masks(self, step: int) -> list[Tensor]:
        """A: the largest weights in B."""
        within = [dataclasses.replace(weight, mask=weight.memory[_TRAINED]) for weight in self.weights]
        return mask.choose(within, _dense_magnitude, self.target, self.distribution, monotone=True, by_rows=True)

    def _larger(self, kept: int) -> int:
        """How many weights B has when A has `kept`."""
        return min(self.total, round(self.backward * kept))

    # ---- the outlook -------------------------------------------------------------------------------------------------

    def held(self) -> list[Held]:
        masks, own, *others = super().held()
        return [masks, Held("which are trained, and a reserve", own.memory, masks.saved), *others]

    def holding(self) -> Traffic:
        """The penalty twice reads and writes a gradient and reads a weight, and once a mask too."""
        penalty = [("penalty", 25)] if self.penalty else []
        return [("zeroing gradients that are not trained", 9), *penalty]

    def scoring(self) -> Traffic:
        """Nothing: magnitude observes no step."""
        return []

    def ranking(self) -> str:
        return "ranks every weight, and then those that are trained among themselves"

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Values outside A, whether in B or in reserve, are hidden; B takes a bit for each weight."""
        return super().state_dict() | {
            "memory": {weight.name: {} for weight in self.weights},
            "hidden": {weight.name: _dense(weight)[weight.mask == 0] for weight in self.weights},
            "trained": {weight.name: bits.pack(weight.memory[_TRAINED]) for weight in self.weights},
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> str:
        note = super().load_state_dict(state)  # all values are in the parameters now
        for weight in self.weights:
            weight.memory[_RESERVE].zero_()
            packed = state["trained"][weight.name]
            _divide(weight, bits.unpack(packed, weight.mask.shape).to(weight.mask.device))
        return note


def _dense(weight: Weight) -> Tensor:
    """All values of a weight: those in B and those in reserve."""
    return weight.value + weight.memory[_RESERVE]


def _dense_magnitude(weight: Weight) -> Tensor:
    return magnitude(_dense(weight))


def _divide(weight: Weight, trained: Tensor) -> None:
    """Make `trained` (uint8) the set B: put the values outside into the reserve, and zeros in their place."""
    dense = _dense(weight)
    weight.memory[_TRAINED].copy_(trained)
    torch.mul(dense, trained ^ 1, out=weight.memory[_RESERVE])
    torch.mul(dense, trained, out=weight.value)
