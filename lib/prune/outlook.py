"""What a pruner says of a run that has not begun: what it will prune, when, and what that costs (make prune-report)."""

from collections.abc import Sequence
from typing import NamedTuple

from lib.prune import bits, mask
from lib.prune.limits import GLOBAL, MaskOptions
from lib.prune.schedule import Plan
from lib.prune.score import Criterion
from lib.prune.weight import Weight

Traffic = list[tuple[str, float]]  # what is done at every step, and bytes read and written for it per weight in scope
ZEROING = ("zeroing pruned gradients", 9)  # read and write a gradient, read a mask


class Held(NamedTuple):
    """What pruning keeps beside the weights."""

    what: str
    memory: int  # bytes
    saved: int  # bytes in a checkpoint


class Whole(NamedTuple):
    """Neurons or heads, which are pruned as a whole."""

    kind: str
    layers: int
    units: int  # in all layers together
    pruned: int  # of these, in the end
    weights: int  # of each unit


class Outlook:
    """What gradual and static pruning say. A pruner overrides what it does otherwise, so no program asks for its class.

    The weights have shapes, but may have no values. Texts are parts of the report, broken at 98 columns.
    """

    weights: Sequence[Weight]
    criterion: Criterion
    plan: Plan
    distribution: MaskOptions
    target: float
    total: int
    late = False  # whether masks are chosen after the optimizer's update, so that the next step is the first with them
    decided_by = ""  # what decides how sparse a tensor becomes if there is no target, such as "its scores"

    # ---- what is pruned ----------------------------------------------------------------------------------------------

    def shares(self) -> list[float]:
        """The sparsity of each tensor in the end, or the highest that it may have if scores decide it."""
        options = self.distribution
        if self.decided_by or options.pruning_distribution in GLOBAL:
            return [options.pruning_layer_cap or 1.0] * len(self.weights)
        if options.pruning_distribution == "owl":
            return [min(1.0, self.target + 2 * options.owl_lambda)] * len(self.weights)
        budgets = mask.budgets(options, mask.shapes_of(self.weights), self.target, self.gone_at_first())
        return [budgets[weight.name] / weight.mask.numel() for weight in self.weights]

    def gone_at_first(self) -> list[int] | None:
        """How many weights of each tensor are pruned before the schedule starts and stay so; None: none."""

    def scores_decide(self) -> bool:
        """Whether scores decide the sparsity of each tensor, within what `shares` says."""
        return self.distribution.pruning_distribution in (*GLOBAL, "owl")

    def wholes(self) -> list[Whole]:
        """The neurons and heads that are pruned as a whole."""
        return []

    # ---- when --------------------------------------------------------------------------------------------------------

    def timetable(self, steps: int) -> dict[str, str]:
        """Label -> words, of a run of `steps`."""
        plan = self.plan
        count = plan.updates(steps)
        rhythm = "at every step" if plan.interval == 1 else f"every {plan.interval:,} steps"
        if (plan.end - plan.start) % plan.interval:
            rhythm += " and at the end"
        if not plan.start:
            rhythm += " and before the first"
        return {
            "start": f"{_at(plan.start)} of {steps:,}",
            **({"at once": percent(self.target * plan.first)} if plan.first else {}),
            "end": _at(plan.end),
            "updates": f"masks are chosen {'once' if count == 1 else f'{count:,} times, {rhythm}'}",
        }

    def height(self, step: int) -> float:
        """How far pruning has come by the masks that are due at `step`, from 0 to 1."""
        return (1 - self.kept_at(step) / self.total) / (self.target or 1.0)

    def peak(self) -> str:
        """What a `height` of 1 is; "": there is nothing to plot."""
        return percent(self.target)

    # ---- what it costs -----------------------------------------------------------------------------------------------

    def held(self) -> list[Held]:
        """Masks first. The values under the masks are not among it."""
        packed = sum(bits.size(weight.mask.shape) for weight in self.weights)
        own = sum(value.nbytes for weight in self.weights for value in weight.memory.values())
        ever = [Held("which were ever active", self.total, packed)] if self.regrows and self.starts_sparse() else []
        return [Held("masks", self.total, packed), Held("criterion", own, own), *ever]

    def traffic(self, passes: int) -> Traffic:
        """What each step costs, with so many forward and backward passes."""
        return [*self.holding(), *self.scoring(), *self.masking(passes)]

    def holding(self) -> Traffic:
        """What `hold` costs."""
        return [ZEROING]

    def scoring(self) -> Traffic:
        """What it costs that the criterion observes the step."""
        one = self.weights[0]
        remembered = sum(value.nbytes for value in one.memory.values() if value.numel() == one.mask.numel())
        # It also reads the weight and its gradient.
        return [("scores", 8 + 2 * remembered / one.mask.numel())] if remembered else []

    def masking(self, passes: int) -> Traffic:
        """What passes cost more than those of a dense model."""
        # They read a weight and a mask, and write their product.
        return [] if self.zeroes_weights else [("masked weights, forward and backward", passes * 9)]

    def updating(self) -> str:
        """What choosing masks costs, in a sentence or two."""
        when = " at log lines" if self.regrows else ""
        compared = "" if self.criterion.is_magnitude else f".\nMagnitudes are ranked too{when}, for comparison"
        return f"An update of the masks {self.ranking()}{compared}."

    def ranking(self) -> str:
        """The rest of a sentence that begins with `An update of the masks`."""
        distribution = self.distribution.pruning_distribution
        if distribution == "global":
            return "computes every score 3 times: for a sample, the threshold and the masks"
        if distribution == "global-rms":
            number, scale = (5, "scale before and after") if self.scales else (4, "scale")
            what = f"for a sample, the threshold, the masks,\nand the tensor's {scale}"
            return f"computes every score {number} times: {what}"
        if distribution == "owl":
            return (
                "computes Wanda's scores twice, for the outliers of the blocks,\n"
                "and every score once, and ranks them tensor by tensor"
            )
        return "computes every score once and ranks them tensor by tensor"


def percent(share: float) -> str:
    """`12.50 %`."""
    return f"{share * 100:.2f} %"


def _at(step: int) -> str:
    return f"step {step:,}" if step else "before the first step"
