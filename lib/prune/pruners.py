"""Makes pruners from their four parts: see lib/prune/__init__.py, whose `build` calls the one here."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import nn

from lib.base.errors import UsageError
from lib.config.kconf import Options
from lib.optim import use_masks
from lib.prune import chts, feasible, kinds, mask, rewire, schedule, scope
from lib.prune import units as whole
from lib.prune.census import Units
from lib.prune.dense import NoPruning
from lib.prune.given import GivenMasks, Masks, check_given, fitted
from lib.prune.hidden import MovementPruner, Smooth, SoftMovementPruner, StraightThrough
from lib.prune.kinds import Group
from lib.prune.limits import MaskOptions
from lib.prune.passes import PassPruner
from lib.prune.pruner import Pruner
from lib.prune.score import Criterion, Losses
from lib.prune.thresholds import LearnedThresholds
from lib.prune.topkast import TopKast
from lib.prune.units import UnitPruner
from lib.prune.weight import Weight


@dataclasses.dataclass(frozen=True)
class PruningOptions(Options):
    """Which pruner. An option is None where the method or the dynamics do not use it."""

    pruning_method: str
    pruning_dynamics: str | None
    pruning_movement: str | None
    init_masks: str | None
    pruning_structure: str | None
    pruning_passes: int | None  # None: masks are not chosen in passes before the first step
    pruning_batches: int | None  # read by each pass; None: nothing is read
    distill_from: str | None
    pruning_scope: str | None  # None: the structure names the tensors
    sr_ste_decay: float | None
    topkast_backward: float | None
    topkast_penalty: float | None


AnyPruner: TypeAlias = NoPruning | Pruner


def build(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    bind: Callable[[type], Any],
    masks: Masks | None = None,
    losses: Losses | None = None,
) -> AnyPruner:
    """See `lib.prune.build`."""
    options = bind(PruningOptions)
    if options.pruning_method == "none":
        return NoPruning(model.prunable())
    if options.pruning_dynamics == "oneshot":
        if options.pruning_method == "shrink":
            raise UsageError(
                "PRUNING_METHOD=shrink removes neurons and heads from a finished model, by make shrink; to train the "
                "result, name its run as INIT_FROM"
            )
        raise UsageError(
            f"PRUNING_METHOD={options.pruning_method} with PRUNING_DYNAMICS=oneshot prunes a finished model, by make "
            "oneshot; to train the result, name its run as INIT_FROM and set PRUNING_METHOD=given"
        )
    groups = _groups(model, options.pruning_structure)
    parameters = whole.parameters(model, groups) if groups else scope.select(model, options.pruning_scope)
    own = {name: torch.ones_like(parameter, dtype=torch.uint8) for name, parameter in parameters.items()}
    used = model.used_rows() if hasattr(model, "used_rows") else {}
    units = model.units() if hasattr(model, "units") else []
    weights = [
        Weight(name, parameter, own[name][: used.get(parameter)], optimizer) for name, parameter in parameters.items()
    ]
    if options.pruning_method == "given":
        names = [name for name, _ in model.named_parameters()]
        kept = None if masks is None else fitted(masks, weights, names)
        if kept is not None:
            check_given(kept, options.init_masks)
        pruner = GivenMasks(weights, kept, units)
    else:
        pruner = _chooser(weights, groups, options, bind, units)
    pruner.install(model, own)
    # After the masked layers are installed, because a criterion may put hooks on the layers.
    pruner.criterion.attach(weights, [model.get_submodule(name.rpartition(".")[0]) for name in parameters])
    if moved := pruner.trained(own):
        use_masks(optimizer, moved)
    if not weights[0].mask.is_meta:
        pruner.begin()
        if losses and isinstance(pruner, PassPruner):
            pruner.choose(model, losses)
    return pruner


def _groups(model: nn.Module, structure: str | None) -> list[Group]:
    """The neurons and heads that are pruned as a whole; none if single weights are pruned."""
    return [] if structure in (None, "none") else kinds.chosen(model.groups(), structure)


def _chooser(
    weights: list[Weight],
    groups: list[Group],
    options: PruningOptions,
    bind: Callable[[type], Any],
    units: list[Units],
) -> Pruner:
    """A pruner that chooses its masks."""
    distribution, checked = bind(MaskOptions), bind(feasible.FeasibleOptions)
    target = feasible.target(checked, distribution)
    feasible.check_shapes(checked, distribution, mask.shapes_of(weights), groups)
    feasible.check_start(checked)
    criterion, plan = _criterion(options, bind), schedule.plan(bind(schedule.PruningScheduleOptions))
    feasible.check_state(checked, plan, criterion.reads_state)
    if criterion.reads_step and not _in_passes(options):
        plan = plan.not_before(1)
    if groups:
        return UnitPruner(weights, criterion, plan, target, distribution, units, groups=groups)
    return _pruner(options, bind, (weights, criterion, plan, target, distribution, units))


def _criterion(options: PruningOptions, bind: Callable[[type], Any]) -> Criterion:
    module = importlib.import_module(f"lib.prune.score.{options.pruning_method.replace('-', '_')}")
    return module.build(bind)


def _in_passes(options: PruningOptions) -> bool:
    """Whether masks are chosen in passes before the first step. Step 1 can make one pass of gradient over its batch.

    With a teacher its gradient is another one, and exactly 0 for a student that is still the teacher.
    """
    once = options.pruning_passes == options.pruning_batches == 1
    by_step = options.pruning_method == "gradient" and once and not options.distill_from
    return options.pruning_passes is not None and not by_step


def _pruner(options: PruningOptions, bind: Callable[[type], Any], parts: tuple) -> Pruner:
    """`parts` are what every pruner is made of."""
    if options.pruning_method == "movement":
        return SoftMovementPruner(*parts) if options.pruning_movement == "soft" else MovementPruner(*parts)
    if options.pruning_method == "str":
        return LearnedThresholds(*parts)
    if options.pruning_dynamics in ("ste", "sr-ste"):
        return StraightThrough(*parts, decay=options.sr_ste_decay or 0.0)
    if options.pruning_dynamics == "s-ste":
        return Smooth(*parts)
    if options.pruning_dynamics == "topkast":
        return TopKast(*parts, backward=options.topkast_backward, penalty=options.topkast_penalty)
    if options.pruning_dynamics in rewire.DYNAMICS:
        return rewire.build(parts, bind(rewire.RewireOptions))
    if options.pruning_dynamics == "chts":
        return chts.build(parts, bind(chts.ChtsOptions))
    if _in_passes(options):
        return PassPruner(*parts, passes=options.pruning_passes, batches=options.pruning_batches)
    return Pruner(*parts)
