"""Pruning asks four questions in four places, and a pruner puts the answers together.

What a weight is worth (score), which weights go (mask), when and how much (schedule), where (scope). Without pruning
there is a pruner that leaves all weights alone.
"""

import dataclasses
import importlib
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lib.base.errors import UsageError
from lib.config.kconf import Options
from lib.optim import use_masks
from lib.prune import mask, masked_linear, schedule, scope
from lib.prune.pruner import Movement, Pruner, StraightThrough
from lib.prune.rewire import Rewiring
from lib.prune.score import Criterion
from lib.prune.weight import Weight


@dataclasses.dataclass(frozen=True)
class PruningOptions(Options):
    """Which pruner; None where the method or the dynamics leave no choice."""

    pruning_method: str
    pruning_dynamics: str | None
    pruning_movement: str | None
    pruning_scope: str | None
    target_sparsity: float | None  # None: the distribution n:m says it, or nothing does
    rigl_drop_fraction: float | None
    sr_ste_decay: float | None
    spam_density: float | None
    seed: int


class NoPruning:
    """A pruner that prunes nothing; the loop calls it like any other."""

    def __init__(self, weights: Iterable[Tensor]):
        """`weights` are those whose zeros are counted."""
        self.weights = list(weights)
        self.total = sum(weight.numel() for weight in self.weights)

    def begin(self) -> None:
        """Keep all weights."""

    def step(self, step: int, healthy: Callable[[], Tensor]) -> None:
        """Keep all weights."""

    def moved(self, step: int) -> None:
        """Keep all weights."""

    def goal(self) -> float:
        """No sparsity is the end of it."""
        return math.inf

    def sparsity(self) -> float:
        """Share of the weights that are exactly zero, counted from the weights."""
        zeros = sum(weight.numel() - torch.count_nonzero(weight) for weight in self.weights)
        return float(zeros) / self.total

    def metrics(self, step: int) -> dict[str, float]:
        """What a log line says of pruning."""
        return {"sparsity": self.sparsity(), "average_nonzeros": self.total}

    def layers(self) -> dict[str, float]:
        """Nothing to say of single tensors."""
        return {}

    def model_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A model's state, as it is."""
        return state

    def state_dict(self) -> dict[str, Any]:
        """Nothing to remember."""
        return {}

    def check(self, state: dict[str, Any]) -> None:
        """Any state will do."""

    def load_state_dict(self, state: dict[str, Any]) -> str:
        """Nothing to continue from, and nothing to say of it."""
        return ""


AnyPruner: TypeAlias = NoPruning | Pruner


def build(model: nn.Module, optimizer: torch.optim.Optimizer, bind: Callable[[type], Any]) -> AnyPruner:
    """The pruner that the options describe; raises UsageError for what cannot be, before any weight changes.

    For methods whose pruned weights live on it puts masked layers into `model`. A model may have `used_rows()`:
    parameter -> how many of its rows are used; the others are no weights, and are neither counted nor pruned.
    """
    options = bind(PruningOptions)
    if options.pruning_method == "none":
        return NoPruning(model.prunable())
    parameters = scope.select(model, options.pruning_scope)
    masks = {name: torch.ones_like(parameter, dtype=torch.uint8) for name, parameter in parameters.items()}
    used = model.used_rows() if hasattr(model, "used_rows") else {}
    weights = [
        Weight(name, parameter, masks[name][: used.get(parameter)], optimizer) for name, parameter in parameters.items()
    ]
    shapes = {weight.name: weight.mask.shape for weight in weights}
    where = bind(mask.MaskOptions)
    target = _target(options, where)
    mask.check(where, shapes, target)
    criterion = _criterion(options, bind)
    plan = _plan(options, bind(schedule.PruningScheduleOptions), criterion)

    def choose(score: Callable[[Weight], Tensor], sparsity: float, monotone: bool) -> list[Tensor]:
        return mask.choose(weights, score, sparsity, where, monotone)

    pruner = _pruner(options, (weights, criterion, plan, target, choose))
    if not pruner.zeroes_weights:
        masked_linear.install(model, masks)
    # Only now: a criterion listens to the layers that compute, which may be masked ones.
    criterion.attach(weights, [model.get_submodule(name.rpartition(".")[0]) for name in parameters])
    if not isinstance(pruner, StraightThrough):
        use_masks(optimizer, {parameter: masks[name] for name, parameter in parameters.items()})
    return pruner


def _target(options: PruningOptions, where: mask.MaskOptions) -> float:
    if where.pruning_distribution == "n-m":
        return 1 - where.pruning_n / where.pruning_m
    return options.target_sparsity or 0.0  # soft movement has none


def _plan(options: PruningOptions, times: schedule.PruningScheduleOptions, criterion: Criterion) -> schedule.Plan:
    plan = schedule.plan(times)
    if criterion.reads_state and plan.start < 2:
        raise UsageError(
            f"PRUNING_WARMUP: {options.pruning_method} pruning reads the optimizer's moments, which are there from "
            f"step 2 on; start pruning later than step {plan.start}"
        )
    return plan.not_before(1) if criterion.reads_step else plan


def _criterion(options: PruningOptions, bind: Callable[[type], Any]) -> Criterion:
    module = importlib.import_module(f"lib.prune.score.{options.pruning_method.replace('-', '_')}")
    criterion = module.build(bind)
    if criterion.reads_state and options.spam_density is not None and options.spam_density < 1:
        raise UsageError(
            f"SPAM_DENSITY={options.spam_density:g}: weights without momentum have no moments that "
            f"PRUNING_METHOD={options.pruning_method} could read; set it to 1 or choose another method"
        )
    return criterion


def _pruner(options: PruningOptions, parts: tuple) -> Pruner:
    if options.pruning_method == "movement":
        pruner = Movement(*parts)
        pruner.penalised = options.pruning_movement == "soft"
    elif options.pruning_dynamics in ("ste", "sr-ste"):
        pruner = StraightThrough(*parts)
        pruner.decay = options.sr_ste_decay or 0.0
    elif options.pruning_dynamics in ("rigl", "set"):
        pruner = Rewiring(*parts)
        pruner.fraction, pruner.by_gradient = options.rigl_drop_fraction, options.pruning_dynamics == "rigl"
        pruner.seed = options.seed
    else:
        pruner = Pruner(*parts)
    return pruner
