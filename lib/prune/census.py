"""Masks over time, for the journal: how much they change, which weights were ever active, what has no weight left."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lib.base.metric import Metric
from lib.prune import bits
from lib.prune.select import ones
from lib.prune.weight import Weight

MASK_CHANGE = Metric("mask_change", form=".2%", row=7, chart=11)  # share of the bits that an update changed, mean
# Share of the weights that some mask has kept. Liu et al., arXiv 2102.02887, call it the exploration rate of in-time
# over-parameterisation.
EVER_ACTIVE = Metric("ever_active", form=".1%", row=8, chart=12)
_EMPTY = {
    kind: Metric(f"empty_{kind}", label=f"empty {kind}", form=",.0f", optional=True, row=9 + place, chart=13 + place)
    for place, kind in enumerate(("neurons", "heads"))
}


class Units(NamedTuple):
    """The neurons or heads of a layer: unit n reads by `width` rows of one parameter and writes by columns of another.

    Its rows of `into` begin at `first` + n `width`, its columns of `out` at n `width`.
    """

    kind: str  # neurons or heads
    layer: str
    into: nn.Parameter
    first: int
    out: nn.Parameter
    width: int


class Census:
    """Counts once for each mask, when the journal asks. All but the counters and `ever` follows from the masks."""

    def __init__(self, weights: Sequence[Weight], units: Sequence[Units]):
        """Units of which no parameter is in `weights` are left out."""
        self.weights = weights
        masks = {weight.parameter: weight for weight in weights}
        self.units = [
            (one, masks.get(one.into), masks.get(one.out)) for one in units if one.into in masks or one.out in masks
        ]
        self.updates, self.flips = 0, 0  # since the last log line
        self.ever: dict[str, Tensor] = {}  # uint8 of each mask's shape; empty: the first forward pass was dense
        self.told: set[str] = set()  # collapsed layers of which the user knows
        self._found: dict[str, int] | None = None  # None: the masks have changed since it was counted
        self._collapsed: list[str] = []

    def start(self, regrows: bool) -> None:
        """The first forward pass uses the present masks: they are no change. `regrows`: weights may return later."""
        self.updates = self.flips = 0
        self.ever = {weight.name: weight.mask.clone() for weight in self.weights} if regrows else {}

    def updated(self, flips: int) -> None:
        """The masks were updated, which changed so many bits."""
        self.updates += 1
        self.flips += flips
        self._found = None
        for weight in self.weights if self.ever else ():
            self.ever[weight.name] |= weight.mask

    def metrics(self, dynamic: bool) -> dict[str, float]:
        """For a log line; `dynamic`: weights may return."""
        total = sum(weight.mask.numel() for weight in self.weights)
        found: dict[str, float] = {"mask_flips": self.flips}
        if self.updates:
            found[MASK_CHANGE] = self.flips / (self.updates * total)
        if dynamic:
            found[EVER_ACTIVE] = sum(map(ones, self.ever.values())) / total if self.ever else 1.0
        self.updates = self.flips = 0
        self._count()
        return found | {_EMPTY[kind]: number for kind, number in self._found.items()}

    def tell(self, alert: Callable[[str, str, str, int], None], step: int) -> None:
        """Alert the user to layers that have collapsed since the last call."""
        self._count()
        if new := [layer for layer in self._collapsed if layer not in self.told]:
            text = f"{', '.join(new)}: no weight is left by which anything passes"
            alert("collapse", "warn", f"{text}; prune less, or by another PRUNING_METHOD or PRUNING_DISTRIBUTION", step)
        self.told = set(self._collapsed)

    def _count(self) -> None:
        if self._found is not None:
            return
        self._found = {one.kind: 0 for one, *_ in self.units}
        self._collapsed, inside = [], set()
        for one, into, out in self.units:
            empty = _empty(one, into and into.mask, out and out.mask)
            self._found[one.kind] += int(empty.sum())
            inside |= {weight.name for weight in (into, out) if weight}
            if bool(empty.all()):
                self._collapsed.append(one.layer)
        self._collapsed += [w.name for w in self.weights if w.name not in inside and not ones(w.mask)]

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The counters, the layers of which the user knows, and a bit per weight if weights may return."""
        ever = {name: bits.pack(active) for name, active in self.ever.items()}
        return {"updates": self.updates, "flips": self.flips, "ever": ever, "told": sorted(self.told)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state, after the masks are loaded. {}: an earlier version counted none of it."""
        self.updates, self.flips = state.get("updates", 0), state.get("flips", 0)
        for weight in self.weights if self.ever else ():
            packed, mask = state.get("ever", {}).get(weight.name), weight.mask
            self.ever[weight.name] = mask.clone() if packed is None else bits.unpack(packed, mask.shape).to(mask.device)
        self._found, self.told = None, set(state.get("told", []))


def _empty(units: Units, into: Tensor | None, out: Tensor | None) -> Tensor:
    """bool of each unit: whether all weights that it reads by are pruned, or all that it writes by; None: none is."""
    number = units.out.shape[1] // units.width
    found = torch.zeros(number, dtype=torch.bool, device=units.out.device)
    if into is not None:
        rows = into[units.first : units.first + number * units.width]
        found |= ~rows.view(torch.bool).reshape(number, -1).any(1)
    if out is not None:
        found |= ~out.view(torch.bool).any(0).view(number, -1).any(1)
    return found
