"""Warms up what grows: the updates of a weight that returns rise from 0 over its first steps.

A grown weight has zero moments while Adam's count of steps goes on, so its first updates have another size than those
of other weights. Xiao et al., arXiv 2606.00888 (SMET), report spikes of the loss, and warm up over W steps. Here the
update in a weight's step k = 1, ..., W is multiplied by k / W, whatever the optimizer is.

Their code (github.com/QiaoXiao7282/SMET) multiplies the first moment by k / W in place, so earlier factors count again
in later steps; here each counts once. It also counts the steps of Adam's bias correction from the growth on, for blocks
of weights; here the weights of a tensor share one count.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lib.prune.weight import Weight


class Warmup:
    """Takes back a part of each update of the weights that grew lately, whatever the optimizer is."""

    def __init__(self, steps: int):
        """`steps` is W; up to 1 it changes nothing and costs nothing. Otherwise 16 bytes for each weight that grew."""
        self.steps = steps
        self.places: dict[str, Tensor] = {}  # flat indices of the weights that grew, by tensor
        self.born: dict[str, Tensor] = {}  # the step at which each of them grew
        self.last = 0  # the step at which the last of them grew
        self.before: dict[str, Tensor] = {}  # their values before the optimizer's update

    def grow(self, weight: Weight, grown: Tensor, step: int) -> None:
        """Weights at the flat indices `grown` have just grown, and `weight.mask` is the new one."""
        if self.steps <= 1:
            return
        born = torch.full_like(grown, step)
        if (places := self.places.get(weight.name)) is not None:
            stays = (weight.mask.view(-1)[places] == 1) & ~torch.isin(places, grown)  # those start anew
            grown = torch.cat([places[stays], grown])
            born = torch.cat([self.born[weight.name][stays], born])
        self.places[weight.name], self.born[weight.name], self.last = grown, born, step

    def remember(self, weights: Sequence[Weight], step: int) -> None:
        """Before the optimizer's update."""
        if step - self.last + 1 >= self.steps:  # all of them have warmed up
            self.places.clear()
            self.born.clear()
        self.before = {w.name: w.value.view(-1)[self.places[w.name]] for w in weights if w.name in self.places}

    @torch.no_grad()
    def take_back(self, weights: Sequence[Weight], step: int) -> None:
        """After the optimizer's update: leave k / W of it."""
        for weight in weights:
            if (before := self.before.get(weight.name)) is not None:
                values, places = weight.value.view(-1), self.places[weight.name]
                share = ((step + 1 - self.born[weight.name]) / self.steps).clamp_(max=1)
                values[places] = torch.lerp(before, values[places], share.to(before.dtype))
        self.before = {}

    def state_dict(self) -> dict[str, Any]:
        """What a run continues from."""
        return {"places": dict(self.places), "born": dict(self.born), "last": self.last}

    def load_state_dict(self, state: dict[str, Any], weights: Sequence[Weight]) -> None:
        """Continue from a saved state; {} is that of an earlier version, where nothing warmed up."""
        self.last = state.get("last", 0)
        for name, own in (("places", self.places), ("born", self.born)):
            own.clear()
            own |= {w.name: state[name][w.name].to(w.mask.device) for w in weights if w.name in state.get(name, {})}
