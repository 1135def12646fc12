"""Sparse training with weights that return: RigL, SET, GraNet and MEST are four settings of one loop."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lib.config.kconf import Options
from lib.prune import mask, select
from lib.prune.limits import MaskOptions, count
from lib.prune.mask import apportion, ones
from lib.prune.outlook import percent
from lib.prune.pruner import Pruner
from lib.prune.regrowth import Warmup
from lib.prune.scale import Scales, Score
from lib.prune.schedule import Plan
from lib.prune.score.magnitude import magnitude
from lib.prune.score.random import uniform
from lib.prune.weight import Weight

DYNAMICS = ("rigl", "set", "granet", "mest")  # values of PRUNING_DYNAMICS
_LEAST = 0.005  # the share that GraNet replaces at the end of the run, `eta_min` of the authors' CosineDecay


@dataclasses.dataclass(frozen=True)
class RewireOptions(Options):
    """Which method, and its numbers. An option is None where the method does not use it."""

    pruning_dynamics: str | None
    rigl_drop_fraction: float | None
    granet_start_sparsity: float | None
    mest_lambda: float | None
    mest_soft_bound: bool | None
    regrow_warmup: int | None
    max_iters: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Rules:
    """What distinguishes the methods."""

    start: float  # sparsity of the masks before the first step; 0: dense
    by_chance: bool  # these masks are random, else by magnitude
    score: Score  # an update drops the lowest
    share: Callable[[int], float]  # step -> share of the kept weights that is replaced, or kept beyond the target
    rounded: Callable[[float], int]  # how this share becomes a number of weights
    by_gradient: bool  # the weights with the largest gradient grow, else random ones
    from_zero: bool = False  # what is dropped and grown in the same update starts from zero, else it keeps its value
    scheduled: bool = False  # sparsity rises along the schedule
    soft: bool = False  # between updates, `share` more weights are kept than the target says


def rules_of(options: RewireOptions, plan: Plan, target: float) -> Rules:
    """The settings of a method.

    - RigL: Evci et al., arXiv 1911.11134, algorithm 1.
    - SET: Mocanu et al., arXiv 1707.04780.
    - GraNet: Liu et al., arXiv 2106.10404, as in `pruning` and `truncate_weights` of CIFAR/sparselearning/core.py in
      github.com/VITA-Group/GraNet.
    - MEST: Yuan et al., arXiv 2110.14032, as in `update_mask` of prune_utils/retrain.py in
      github.com/boone891214/MEST.
    """
    fraction, name = options.rigl_drop_fraction, options.pruning_dynamics
    if name == "granet":
        share = cosine(fraction, options.max_iters, min(fraction, _LEAST))
        return Rules(options.granet_start_sparsity, True, _magnitude, share, math.ceil, True, scheduled=True)
    if name == "mest":
        score, share = _with_gradient(options.mest_lambda), halved(fraction, plan.end)
        return Rules(target, False, score, share, round, False, from_zero=True, soft=options.mest_soft_bound)
    return Rules(target, True, _magnitude, cosine(fraction, plan.end), int, name == "rigl")


def cosine(first: float, end: int, least: float = 0.0) -> Callable[[int], float]:
    """A share that falls from `first` at step 0 to `least` at step `end`."""
    return lambda step: least + (first - least) / 2 * (1 + math.cos(math.pi * step / end))


def halved(first: float, end: int) -> Callable[[int], float]:
    """A share that falls to its half after three quarters of the way to `end`, and to 0 there (MEST's scripts)."""
    return lambda step: 0.0 if step >= end else first / 2 if 4 * step >= 3 * end else first


def _magnitude(weight: Weight) -> Tensor:
    return magnitude(weight.value)


def _with_gradient(factor: float) -> Score:
    """|w| + factor |g|: `imp_temp` of `weight_pruning` in MEST's prune_utils/utils_pr.py."""
    if not factor:
        return _magnitude
    return lambda weight: magnitude(weight.value).add_(weight.grad.abs(), alpha=factor)


class Rewiring(Pruner):
    """Four methods of dynamic sparse training, which differ in their `Rules`; docs/methods.md compares them.

    GraNet first prunes what the schedule asks for. Then each tensor drops a share of its kept weights, those with the
    lowest scores, and grows as many of the weights that are not kept. With MEST's soft bound it drops what it keeps
    beyond the target, and grows what it may keep beyond it now.
    """

    regrows = True

    def __init__(self, *parts: Any, rules: Rules, seed: int, warmup: Warmup):
        """`parts` are those of Pruner."""
        super().__init__(*parts)
        self.rules, self.seed, self.warmup = rules, seed, warmup
        self.first = self.total - count(rules.start, self.total)  # how many weights the first masks keep
        if rules.scheduled:
            self.scales = {"own": Scales(silent=True), "magnitude": Scales(silent=True)}
        self.bases: dict[str, int] = {}  # of a soft bound: how many weights each tensor keeps by the target
        self.cleared: dict[str, Tensor] = {}  # flat indices that start from zero if they grow in the present update

    # ---- at every step -----------------------------------------------------------------------------------------------

    def step(self, step: int, healthy: Callable[[], Tensor]) -> None:
        super().step(step, healthy)
        self.warmup.remember(self.weights, step)

    def moved(self, step: int) -> None:
        """Shorten the steps of weights that grew lately."""
        self.warmup.take_back(self.weights, step)

    def grew(self, weight: Weight, grown: Tensor, step: int) -> None:
        cleared = self.cleared.pop(weight.name, None)
        if cleared is not None:
            grown = torch.cat([grown, cleared[weight.mask.view(-1)[cleared] == 1]])
        self.warmup.grow(weight, grown, max(1, step))  # step 1 is the first that updates weights

    # ---- how many weights are kept -----------------------------------------------------------------------------------

    def starts_sparse(self) -> bool:
        return self.first < self.total

    def behind(self, step: int) -> bool:
        """Whether more weights are kept than the masks that were due should keep.

        rigl, set and mest keep a number that they once have. To draw the first masks again would lose the weights that
        training chose.
        """
        varies = self.rules.scheduled or self.rules.soft
        return super().behind(step) and (varies or self.kept == self.total)

    def planned(self, share: float) -> int:
        return self.total - count(self._sparsity(share), self.total)

    def _sparsity(self, share: float) -> float:
        """Along GraNet's schedule, sparsity rises from that of the first masks."""
        return self.target if share == 1 else self.rules.start + (self.target - self.rules.start) * share

    def kept_at(self, step: int) -> int:
        if not self.rules.soft:
            return super().kept_at(step)
        base = self.planned(1.0)
        return base + min(self.rules.rounded(self.rules.share(step) * base), self.total - base)

    # ---- masks -------------------------------------------------------------------------------------------------------

    def masks(self, step: int) -> list[Tensor]:
        """The first masks, or those after pruning, dropping and growing."""
        # A soft bound may always keep all weights.
        if first := not self.bases if self.rules.soft else self.kept == self.total > self.first:
            stays = self._drawn()
        else:
            stays = self._scheduled(step) if self.rules.scheduled else [weight.mask for weight in self.weights]
        sizes = [ones(kept) for kept in stays]
        if self.rules.soft:
            if first:
                self.bases = {weight.name: size for weight, size in zip(self.weights, sizes, strict=True)}
            drops = [size - self.bases[weight.name] for weight, size in zip(self.weights, sizes, strict=True)]
            grows = self._beyond(step)
        elif first:
            return stays
        else:
            share = self.rules.share(step)
            drops = grows = [self.rules.rounded(share * size) for size in sizes]
        stays = [
            kept if first else without(self.rules.score(weight), kept, drop, weight.name)
            for weight, kept, drop in zip(self.weights, stays, drops, strict=True)
        ]
        for weight, kept, grow in zip(self.weights, stays, grows, strict=True):
            if self.rules.from_zero:
                self._clear(weight, select.where(weight.mask & (kept ^ 1)))
            worth = weight.grad.abs() if self.rules.by_gradient else self._chance(weight, step)
            others = kept ^ 1
            kept.bitwise_or_(others ^ without(-worth, others, grow, weight.name))
        return stays

    def _drawn(self) -> list[Tensor]:
        if self.rules.scheduled:
            for weight in self.weights:  # so that global-rms divides by the root mean square of the dense tensor
                self.scales["own"].of(weight, _magnitude, True, None)
        return mask.choose(self.weights, self._first_score, self.rules.start, self.drawn_by(), monotone=False)

    def drawn_by(self) -> MaskOptions:
        """The first masks follow the distribution, GraNet's always ERK, as its authors' do."""
        if not self.rules.scheduled:
            return self.distribution
        return dataclasses.replace(self.distribution, pruning_distribution="erk")

    def _first_score(self, weight: Weight) -> Tensor:
        return self._chance(weight, 0) if self.rules.by_chance else _magnitude(weight)

    def _scheduled(self, step: int) -> list[Tensor]:
        """Prune as the schedule asks. What grows again in this update starts from zero, as in the authors' code."""
        sparsity = max(self._sparsity(self.plan.share(step)), 1 - self.kept / self.total)
        masks = mask.choose(
            self.weights, _magnitude, sparsity, self.distribution, True, by_rows=True, scales=self.scales["own"]
        )
        for weight, kept in zip(self.weights, masks, strict=True):
            gone = select.where(weight.mask ^ kept)
            self.scales["own"].take(weight, _magnitude, True, kept, gone)
            self._clear(weight, gone)
        return masks

    def _beyond(self, step: int) -> list[int]:
        """How many weights each tensor keeps beyond the target from this step on: never more than before."""
        bases = list(self.bases.values())
        rooms = [weight.mask.numel() - base for weight, base in zip(self.weights, bases, strict=True)]
        return apportion(bases, rooms, min(self.kept_at(step), self.kept) - sum(bases))

    def _clear(self, weight: Weight, gone: Tensor) -> None:
        """Zero the weights at these flat indices, even if they grow again in this update."""
        self.cleared[weight.name] = gone
        self.forget(weight, gone)

    def _chance(self, weight: Weight, step: int) -> Tensor:
        return uniform(self.seed, f"{weight.name} {step}", weight.value.shape).to(weight.value.device)

    # ---- the outlook -------------------------------------------------------------------------------------------------

    def gone_at_first(self) -> list[int] | None:
        """Of GraNet, whose weights return only in place of others."""
        if not self.rules.scheduled:
            return None
        return list(mask.budgets(self.drawn_by(), mask.shapes_of(self.weights), self.rules.start).values())

    def timetable(self, steps: int) -> dict[str, str]:
        plan, share = self.plan, self.rules.share
        first, last = plan.start or min(plan.interval, plan.end), plan.last(steps)
        words = f"{percent(share(first))} of the kept weights at the first update, {percent(share(last))} at the last"
        found = super().timetable(steps) | {"beyond the target" if self.rules.soft else "replaced": words}
        if plan.start and self.starts_sparse():
            found["before the start"] = f"{percent(1 - self.first / self.total)} is pruned at random"
        return found

    def ranking(self) -> str:
        twice = "ranks every weight twice, tensor by tensor: to drop and to grow"
        return f"{super().ranking()}.\nThen it {twice}" if self.rules.scheduled else twice

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"warmup": self.warmup.state_dict(), "bases": dict(self.bases)}

    def load_state_dict(self, state: dict[str, Any]) -> str:
        self.warmup.load_state_dict(state.get("warmup", {}), self.weights)
        self.bases = dict(state.get("bases", {}))
        return super().load_state_dict(state)


def build(parts: tuple, options: RewireOptions) -> Rewiring:
    """`parts` are what every pruner is made of."""
    _, _, plan, target, *_ = parts
    rules = rules_of(options, plan, target)
    return Rewiring(*parts, rules=rules, seed=options.seed, warmup=Warmup(options.regrow_warmup))


def without(scores: Tensor, among: Tensor, number: int, name: str) -> Tensor:
    """A new uint8 mask: `among` without the `number` lowest scores where it is 1; ties by index."""
    return select.prune([select.of(select.keys(scores, name), kept=among)], number)[0].view(among.shape)
