"""Pruning: `build` makes the pruner that the options describe, from four parts that know nothing of each other.

score: what a weight is worth; mask: which weights are pruned; schedule: when, and how many; scope: in which tensors.
"""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import nn

from lib.base.errors import UsageError
from lib.config.kconf import Options
from lib.optim import use_masks
from lib.prune import mask, masked_linear, schedule, scope
from lib.prune.dense import NoPruning
from lib.prune.given import GivenMasks, Masks, check_given, fitted
from lib.prune.hidden import MovementPruner, SoftMovementPruner, StraightThrough
from lib.prune.pruner import Pruner
from lib.prune.rewire import Rewiring
from lib.prune.score import Criterion
from lib.prune.weight import Weight


@dataclasses.dataclass(frozen=True)
class PruningOptions(Options):
    """Which pruner. An option is None where the method or the dynamics do not use it."""

    pruning_method: str
    pruning_dynamics: str | None
    pruning_movement: str | None
    init_masks: str | None
    pruning_scope: str | None
    target_sparsity: float | None  # None: n:m implies it, or there is no target (soft movement)
    rigl_drop_fraction: float | None
    sr_ste_decay: float | None
    spam_density: float | None
    seed: int


AnyPruner: TypeAlias = NoPruning | Pruner


def build(
    model: nn.Module, optimizer: torch.optim.Optimizer, bind: Callable[[type], Any], masks: Masks | None = None
) -> AnyPruner:
    """The pruner that the options describe; `bind` returns the options that a dataclass declares.

    `masks` are those of PRUNING_METHOD=given. Without them a checkpoint must be loaded before the first step.

    Masks that are due before the first step are chosen here. On the device "meta" no masks are chosen, because there
    are no values to compare. Methods that keep the values of pruned weights replace the linear layers of `model` by
    masked layers.

    A model may have `used_rows()`: parameter -> number of rows in use. The rows after them are padding, which is
    neither counted nor pruned. Raises UsageError for an impossible combination, before any weight changes.
    """
    options = bind(PruningOptions)
    if options.pruning_method == "none":
        return NoPruning(model.prunable())
    parameters = scope.select(model, options.pruning_scope)
    own = {name: torch.ones_like(parameter, dtype=torch.uint8) for name, parameter in parameters.items()}
    used = model.used_rows() if hasattr(model, "used_rows") else {}
    weights = [
        Weight(name, parameter, own[name][: used.get(parameter)], optimizer) for name, parameter in parameters.items()
    ]
    if options.pruning_method == "given":
        names = [name for name, _ in model.named_parameters()]
        kept = None if masks is None else fitted(masks, weights, names)
        if kept is not None:
            check_given(kept, options.init_masks)
        pruner = GivenMasks(weights, kept)
    else:
        pruner = _chooser(weights, options, bind)
    if not pruner.zeroes_weights:
        masked_linear.install(model, own)
    # After the masked layers are installed, because a criterion may put hooks on the layers.
    pruner.criterion.attach(weights, [model.get_submodule(name.rpartition(".")[0]) for name in parameters])
    if not isinstance(pruner, StraightThrough):
        use_masks(optimizer, {parameter: own[name] for name, parameter in parameters.items()})
    if not weights[0].mask.is_meta:
        pruner.begin()
    return pruner


def _chooser(weights: list[Weight], options: PruningOptions, bind: Callable[[type], Any]) -> Pruner:
    """A pruner that chooses its masks."""
    if options.pruning_dynamics == "oneshot":
        raise UsageError(
            f"PRUNING_METHOD={options.pruning_method} with PRUNING_DYNAMICS=oneshot prunes a finished model, by make "
            "oneshot; to train the result, name its run as INIT_FROM and set PRUNING_METHOD=given"
        )
    distribution = bind(mask.MaskOptions)
    target = _target(options, distribution)
    mask.check(distribution, {weight.name: weight.mask.shape for weight in weights}, target)
    criterion = _criterion(options, bind)
    plan = _plan(options, bind(schedule.PruningScheduleOptions), criterion)
    return _pruner(options, (weights, criterion, plan, target, distribution))


def _target(options: PruningOptions, distribution: mask.MaskOptions) -> float:
    if distribution.pruning_distribution == "n-m":
        return 1 - distribution.pruning_n / distribution.pruning_m
    return options.target_sparsity or 0.0  # soft movement has no target


def _criterion(options: PruningOptions, bind: Callable[[type], Any]) -> Criterion:
    module = importlib.import_module(f"lib.prune.score.{options.pruning_method.replace('-', '_')}")
    criterion = module.build(bind)
    if criterion.reads_state and options.spam_density is not None and options.spam_density < 1:
        raise UsageError(
            f"PRUNING_METHOD={options.pruning_method} reads the optimizer's moments, but with "
            f"SPAM_DENSITY={options.spam_density:g} some weights have none; set SPAM_DENSITY to 1 or choose another "
            "method"
        )
    return criterion


def _plan(options: PruningOptions, times: schedule.PruningScheduleOptions, criterion: Criterion) -> schedule.Plan:
    plan = schedule.plan(times)
    if criterion.reads_state and plan.start < 2:
        raise UsageError(
            f"PRUNING_WARMUP: {options.pruning_method} pruning reads the optimizer's moments, which exist from step 2 "
            f"on; start pruning later than step {plan.start}"
        )
    return plan.not_before(1) if criterion.reads_step else plan


def _pruner(options: PruningOptions, parts: tuple) -> Pruner:
    """`parts` are what every pruner is made of."""
    if options.pruning_method == "movement":
        return SoftMovementPruner(*parts) if options.pruning_movement == "soft" else MovementPruner(*parts)
    if options.pruning_dynamics in ("ste", "sr-ste"):
        return StraightThrough(*parts, decay=options.sr_ste_decay or 0.0)
    if options.pruning_dynamics in ("rigl", "set"):
        by_gradient = options.pruning_dynamics == "rigl"
        return Rewiring(*parts, fraction=options.rigl_drop_fraction, by_gradient=by_gradient, seed=options.seed)
    return Pruner(*parts)
