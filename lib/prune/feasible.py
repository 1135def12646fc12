"""What cannot be pruned as the options say, in any model and in a model of some shapes. Needs no PyTorch.

So a configuration is checked without it, and `lib.prune.build` asks the same before any weight changes. What a
criterion cannot prune is beside the criterion.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from lib.base.errors import UsageError
from lib.config.kconf import Options
from lib.prune import kinds, limits, schedule, scope
from lib.prune.kinds import Group
from lib.prune.limits import MaskOptions, Shapes
from lib.prune.schedule import Plan

_UNCHOSEN = ("none", "given", "shrink")  # values of PRUNING_METHOD that choose no masks

Bind = Callable[[type], Any]


@dataclasses.dataclass(frozen=True)
class FeasibleOptions(Options):
    """Options that may contradict each other. One is None where the method or the dynamics do not use it."""

    pruning_method: str
    pruning_dynamics: str | None
    pruning_structure: str | None
    pruning_scope: str | None  # None: the structure names the tensors
    target_sparsity: float | None  # None: n:m implies it, or there is no target (soft movement, str)
    granet_start_sparsity: float | None
    spam_density: float | None


def check(bind: Bind) -> None:
    """Raise UsageError for settings that contradict each other whatever the model is."""
    options = bind(FeasibleOptions)
    limits.check_numbers(bind(MaskOptions))
    if options.pruning_method in _UNCHOSEN or options.pruning_dynamics == "oneshot":
        return
    check_state(options, schedule.plan(bind(schedule.PruningScheduleOptions)))
    check_start(options)


def check_model(bind: Bind, shapes: Shapes, groups: Sequence[Group]) -> list[str]:
    """Raise UsageError if a model of these shapes cannot be pruned so; returns warnings.

    `shapes` are those of all its parameters, in its order, and `groups` its neurons and heads.
    """
    options, compared = bind(FeasibleOptions), bind(MaskOptions)
    structure = options.pruning_structure
    units = [] if structure in (None, "none") else kinds.chosen(groups, structure)
    chosen = {}
    if options.pruning_scope is not None:
        chosen = {name: shapes[name] for name in scope.names(shapes, options.pruning_scope)}
    if options.pruning_method in _UNCHOSEN:
        return []
    check_shapes(options, compared, chosen, units)
    return _useless(options, compared, chosen, units)


def target(options: FeasibleOptions, compared: MaskOptions) -> float:
    """The sparsity in the end, of weights or of neurons and heads; 0.0 if it is a result."""
    if compared.pruning_distribution == "n-m":
        return 1 - compared.pruning_n / compared.pruning_m
    return options.target_sparsity or 0.0


def check_shapes(options: FeasibleOptions, compared: MaskOptions, shapes: Shapes, groups: Sequence[Group]) -> None:
    """Raise UsageError if the target cannot be reached in tensors in scope of these `shapes`, or in these `groups`."""
    if groups:
        kinds.check(groups, compared, target(options, compared))
        return
    limits.check(compared, shapes, target(options, compared))
    if options.pruning_dynamics == "chts":
        limits.check_matrices(shapes, "PRUNING_DYNAMICS=chts needs matrices")
    if first := options.granet_start_sparsity:
        why = f"GRANET_START_SPARSITY={first:g} prunes matrices at first"
        limits.check_matrices(shapes, why, otherwise=", or start with 0")


def check_state(options: FeasibleOptions, plan: Plan, reads_state: bool | None = None) -> None:
    """Raise UsageError if the criterion reads moments of the optimizer that do not exist.

    `reads_state` says whether it reads them; without it, the criterion of this name does.
    """
    if not (options.pruning_method == "state" if reads_state is None else reads_state):
        return
    if options.spam_density is not None and options.spam_density < 1:
        raise UsageError(
            f"PRUNING_METHOD={options.pruning_method} reads the optimizer's moments, but with "
            f"SPAM_DENSITY={options.spam_density:g} some weights have none; set SPAM_DENSITY to 1 or choose another "
            "method"
        )
    if plan.start < 2:
        raise UsageError(
            f"PRUNING_WARMUP: {options.pruning_method} pruning reads the optimizer's moments, which exist from step 2 "
            f"on; start pruning later than step {plan.start}"
        )


def check_start(options: FeasibleOptions) -> None:
    """Raise UsageError for a start that cannot lead to the target."""
    first, last = options.granet_start_sparsity, options.target_sparsity
    if first is not None and first > last:
        raise UsageError(
            f"GRANET_START_SPARSITY={first:g} exceeds TARGET_SPARSITY={last:g}, to which pruning raises it; lower it"
        )


def useless(bind: Bind) -> list[str]:
    """A warning about a target of 0, which is useless whatever the model is."""
    options = bind(FeasibleOptions)
    return [_dense(options)] if options.target_sparsity == 0 else []


def _useless(options: FeasibleOptions, compared: MaskOptions, shapes: Shapes, groups: Sequence[Group]) -> list[str]:
    """Warnings about a target of no weight, or of no neuron or head."""
    goal = options.target_sparsity
    if goal is None:
        return []
    if goal == 0 or not groups:
        return [] if limits.count(goal, sum(map(math.prod, shapes.values()))) else [_dense(options)]
    found = {}
    for members in kinds.together(groups, compared):
        total = sum(group.size for group in members)
        if not limits.count(goal, total):
            each = " of a layer" if compared.pruning_distribution == "layer" else ""
            found[f"TARGET_SPARSITY={goal:g} prunes none of the {total:,} {members[0].kind}{each}; raise it"] = None
    return list(found)


def _dense(options: FeasibleOptions) -> str:
    return f"TARGET_SPARSITY={options.target_sparsity:g} prunes nothing; raise it, or set PRUNING_METHOD=none"
