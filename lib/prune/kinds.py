"""The neurons and heads of a model, and how many of them can be pruned. Needs no PyTorch."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from lib.base.errors import UsageError
from lib.prune.limits import MaskOptions, count

KINDS = {"neurons": ("neurons",), "heads": ("heads",), "both": ("neurons", "heads")}  # by PRUNING_STRUCTURE


@dataclasses.dataclass(frozen=True)
class Part:
    """How the units lie in a parameter."""

    dim: int  # along this dimension, one after another
    stack: int = 1  # all units that often: c_attn has the rows of q of all heads, then of k, then of v


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """All units of a kind in one layer."""

    kind: str  # neurons or heads
    size: int  # units
    parts: Mapping[str, Part]  # parameter name -> how the units lie in it

    @property
    def behind(self) -> str:
        """The parameter whose columns read what the units compute."""
        return next(name for name, part in self.parts.items() if part.dim == 1)


def chosen(groups: Sequence[Group], structure: str) -> list[Group]:
    """The groups that PRUNING_STRUCTURE names."""
    return [group for group in groups if group.kind in KINDS[structure]]


def check(groups: Sequence[Group], options: MaskOptions, sparsity: float) -> None:
    """Raise UsageError if so many units cannot be pruned: of each layer one stays, or the layer would be empty."""
    for members in together(groups, options):
        wanted = count(sparsity, sum(group.size for group in members))
        if wanted > sum(room(group, options) for group in members):
            kind = members[0].kind
            raise UsageError(
                f"TARGET_SPARSITY={sparsity:g} prunes {wanted:,} of {sum(g.size for g in members):,} {kind}, and each "
                "layer keeps at least one of them, or more with PRUNING_LAYER_CAP; lower TARGET_SPARSITY"
            )


def together(groups: Sequence[Group], options: MaskOptions) -> list[list[Group]]:
    """The groups whose units compete."""
    if options.pruning_distribution == "layer":
        return [[group] for group in groups]
    return [[group for group in groups if group.kind == kind] for kind in dict.fromkeys(g.kind for g in groups)]


def room(group: Group, options: MaskOptions) -> int:
    """The most units that a layer may lose."""
    cap = 1 if options.pruning_layer_cap is None else Fraction(str(options.pruning_layer_cap))
    return min(math.floor(cap * group.size), group.size - 1)
