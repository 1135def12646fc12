"""Structured pruning: whole MLP neurons and attention heads, so that `make shrink` can remove them from the model.

A unit is a neuron or a head. A neuron is its row of c_fc with its bias, and its column of c_proj. A head is its rows of
q, k and v with their biases, and its columns of the projection. A criterion scores single weights; a unit is worth
their sum. With magnitude this is the L1 norm by which Li et al. (arXiv 1608.08710, section 3.1) rank filters.

A criterion with a `gate` scores units directly. See `lib.prune.score.gradient` for the score of Michel et al.
(arXiv 1905.10650). Their code divides the scores of a layer by their L2 norm; PRUNING_DISTRIBUTION=global-rms divides
by the root mean square, which also makes layers of different sizes comparable.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lib.prune.kinds import Group, Part, room, together
from lib.prune.limits import MaskOptions, count
from lib.prune.outlook import Whole
from lib.prune.pruner import Pruner
from lib.prune.scale import Scales, Score
from lib.prune.score.magnitude import magnitude
from lib.prune.select import PruningError
from lib.prune.weight import Weight


def parameters(model: nn.Module, groups: Sequence[Group]) -> dict[str, nn.Parameter]:
    """Name -> parameter of those that the groups name, in the model's order."""
    names = {name for group in groups for name in group.parts}
    return {name: parameter for name, parameter in model.named_parameters() if name in names}


# ---- between weights and units ---------------------------------------------------------------------------------------


def along(values: Tensor, part: Part, size: int) -> Tensor:
    """The sum over the weights of each unit: values of the parameter's shape -> float64 (size,), on the CPU."""
    others = [dim for dim in range(values.dim()) if dim != part.dim]
    sums = values.sum(others) if others else values
    return sums.cpu().double().view(part.stack, size, -1).sum((0, 2))


def spread(flags: Tensor, part: Part, shape: Sequence[int]) -> Tensor:
    """The flag of its unit at each weight: (size,) -> a tensor of the parameter's shape."""
    each = shape[part.dim] // (part.stack * len(flags))
    line = flags[None, :, None].expand(part.stack, len(flags), each).reshape(-1)
    return line.view([-1 if dim == part.dim else 1 for dim in range(len(shape))]).expand(shape).contiguous()


def summed(group: Group, weights: Mapping[str, Weight], score: Score) -> Tensor:
    """What each unit is worth, float64 (size,): the sum of the scores of its weights."""
    return sum(along(score(weights[name]), part, group.size) for name, part in group.parts.items())


def alive(group: Group, weights: Mapping[str, Weight]) -> Tensor:
    """uint8 (size,): whether some weight of the unit is kept."""
    kept = sum(along(weights[name].mask, part, group.size) for name, part in group.parts.items())
    return (kept > 0).to(torch.uint8)


def weights_of(group: Group, weights: Mapping[str, Weight]) -> int:
    """How many weights a unit has. It is the same in all layers, because their widths are."""
    return sum(weights[name].mask.numel() for name in group.parts) // group.size


# ---- which units are pruned ------------------------------------------------------------------------------------------


class UnitScales(Scales):
    """What global-rms divides the scores of each layer by: as `lib.prune.scale` has it for the weights of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self._before: list[float] = []  # the root mean square of each layer before the update that is going on

    def scaled(self, scores: Sequence[Tensor], kept: Sequence[Tensor]) -> list[Tensor]:
        """The scores (size,) of each layer over the root mean square that they had if all its units were there."""
        self._before = [
            _root_mean_square(worth, stays if str(i) in self.taken else torch.ones_like(stays))
            for i, (worth, stays) in enumerate(zip(scores, kept, strict=True))
        ]
        scales = [(before or 1.0) * self.taken.get(str(i), 1.0) for i, before in enumerate(self._before)]
        return [worth / scale for worth, scale in zip(scores, scales, strict=True)]

    def took(self, scores: Sequence[Tensor], kept: Sequence[Tensor]) -> None:
        """Learn what new flags take from the scores for which `scaled` was called last. Does nothing if it was not."""
        for i, before in enumerate(self._before):
            if after := before and _root_mean_square(scores[i], kept[i]):
                self.taken[str(i)] = self.taken.get(str(i), 1.0) * before / after
        self._before = []

    def take(self, weight: Weight, score: Score, by_rows: bool, chosen: Tensor, gone: Tensor) -> None:
        """Does nothing: `took` learns it from units."""


def _root_mean_square(scores: Tensor, kept: Tensor) -> float:
    """The root of the finite squared scores where `kept` is 1, divided by the number of all."""
    squares = scores.masked_fill(~scores.isfinite(), 0.0).square() * kept
    return math.sqrt(squares.sum().item() / len(squares))


def choose(
    groups: Sequence[Group],
    scores: Sequence[Tensor],
    kept: Sequence[Tensor],
    sparsity: float,
    options: MaskOptions,
    scales: UnitScales | None = None,
) -> list[Tensor]:
    """New uint8 flags (size,) for each group: 0 for the `count(sparsity, units)` lowest scores of units that compete.

    With the distribution `layer`, these are the units of a layer, otherwise those of a kind in all layers. Neurons do
    not compete with heads. Ties are broken by layer, then by index. Units that `kept` lacks stay pruned, and count.
    `scales` are those of earlier updates.
    """
    if options.pruning_distribution == "global-rms":
        scores = (scales or UnitScales()).scaled(scores, kept)
    found: dict[int, Tensor] = {}
    for members in together(groups, options):
        places = [groups.index(group) for group in members]
        worth = [scores[i] for i in places]
        limits = [room(group, options) for group in members]
        k = count(sparsity, sum(group.size for group in members))
        found |= dict(zip(places, _lowest(worth, [kept[i] for i in places], k, limits), strict=True))
    return [found[i] for i in range(len(groups))]


def pruned_weights(
    groups: Sequence[Group], weights: Mapping[str, Weight], sparsity: float, options: MaskOptions
) -> int:
    """How many weights are zero when this share of the units is pruned."""
    gone = 0
    for members in together(groups, options):
        units = count(sparsity, sum(group.size for group in members))
        gone += units * weights_of(members[0], weights)
    return gone


def _lowest(scores: Sequence[Tensor], kept: Sequence[Tensor], k: int, limits: Sequence[int]) -> Sequence[Tensor]:
    """Flags without the `k` lowest of all scores, of each layer at most its limit."""
    ranks = []  # 0: gone already, 1: competes, 2: beyond the limit of its layer
    for worth, stays, limit in zip(scores, kept, limits, strict=True):
        rank = stays.clone()
        order = worth.argsort(stable=True)
        order = order[rank[order].argsort(stable=True)]  # what is gone comes first
        late = order[max(limit, len(stays) - int(stays.sum())) :]
        rank[late] = 2
        ranks.append(rank)
    rank, order = torch.cat(ranks), torch.cat(list(scores)).argsort(stable=True)
    order = order[rank[order].argsort(stable=True)]
    flags = torch.ones_like(rank)
    flags[order[: max(k, int((rank == 0).sum()))]] = 0
    return flags.split([len(stays) for stays in kept])


# ---- while training --------------------------------------------------------------------------------------------------


class UnitPruner(Pruner):
    """Sets the weights of whole units to zero for good.

    Movement prunes for good here too. Under a mask a neuron's input and output would both be zero, so its weights would
    get no gradient by which it could return.
    """

    def __init__(self, *parts: Any, groups: Sequence[Group]):
        """`parts` are those of Pruner: the target is a share of the units, the weights are those of the `groups`."""
        super().__init__(*parts)
        self.scales = {"own": UnitScales(), "magnitude": UnitScales()}
        self.groups, self.named = groups, {weight.name: weight for weight in self.weights}
        self.due_share, self.flags = 0.0, []  # of the latest update: the share of units pruned, and which are kept

    def planned(self, share: float) -> int:
        """The number of weights that are kept when this share of the target is pruned."""
        return self.total - pruned_weights(self.groups, self.named, self.target * share, self.distribution)

    def masks(self, step: int) -> list[Tensor]:
        self.due_share = self.target * self.plan.share(step)
        worth = [self._worth(group) for group in self.groups]
        self.flags = self._lowest_out(worth, "own")
        self.scales["own"].took(worth, self.flags)
        return self._spread(self.flags)

    def _worth(self, group: Group) -> Tensor:
        if self.criterion.gate is None:
            return summed(group, self.named, self.criterion.score)
        return along(self.criterion.gate(self.named[group.behind]), group.parts[group.behind], group.size).abs()

    def _by_magnitude(self, masks: list[Tensor], kept: int) -> list[Tensor]:
        worth = [summed(group, self.named, lambda w: magnitude(w.value)) for group in self.groups]
        flags = self._lowest_out(worth, "magnitude")
        self.scales["magnitude"].took(worth, self.flags)
        return self._spread(flags)

    def _lowest_out(self, scores: list[Tensor], scales: str) -> list[Tensor]:
        """The flags of the units without those that are due by these scores."""
        for group, worth in zip(self.groups, scores, strict=True):
            if worth.isnan().any():
                raise PruningError(
                    f"the scores of the {group.kind} of {group.behind} are NaN; lower LEARNING_RATE or choose another "
                    "PRUNING_METHOD"
                )
        kept = [alive(group, self.named) for group in self.groups]
        return choose(self.groups, scores, kept, self.due_share, self.distribution, self.scales[scales])

    def _spread(self, flags: list[Tensor]) -> list[Tensor]:
        masks = spread_all(self.groups, flags, self.named)
        return [masks[weight.name] for weight in self.weights]

    def shares(self) -> list[float]:
        """Of the units of the layer in which a tensor lies."""
        exact = not self.scores_decide()
        most = {
            name: (count(self.target, group.size) if exact else room(group, self.distribution)) / group.size
            for group in self.groups
            for name in group.parts
        }
        return [most[weight.name] for weight in self.weights]

    def wholes(self) -> list[Whole]:
        found = []
        for kind in dict.fromkeys(group.kind for group in self.groups):
            groups = [group for group in self.groups if group.kind == kind]
            sizes = [sum(group.size for group in members) for members in together(groups, self.distribution)]
            pruned, each = sum(count(self.target, size) for size in sizes), weights_of(groups[0], self.named)
            found.append(Whole(kind, len(groups), sum(sizes), pruned, each))
        return found

    def ranking(self) -> str:
        return "computes every score once, sums them, and ranks the sums"

    def _zeros(self, weight: Weight) -> int:
        """Of a bias only what is pruned counts: all biases are zero before the first step."""
        if weight.mask.dim() > 1:
            return super()._zeros(weight)
        return int(torch.count_nonzero((weight.value == 0) & (weight.mask == 0)))


def spread_all(groups: Sequence[Group], flags: Sequence[Tensor], weights: Mapping[str, Weight]) -> dict[str, Tensor]:
    """Parameter name -> its mask, on the parameter's device."""
    return {
        name: spread(units.to(weights[name].mask.device), part, weights[name].mask.shape)
        for group, units in zip(groups, flags, strict=True)
        for name, part in group.parts.items()
    }
