"""One-shot pruning: a finished model is pruned block by block, by the inputs that its pruned blocks give.

First it is decided how many weights each tensor loses. Then each tensor loses this number when its block is reached.
Weights that are zero already count. The mask of a `Weight` has these zeros until its tensor is pruned.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from gpt2.model import GPT2
from gpt2.oneshot import owl, sparsegpt
from gpt2.oneshot.inputs import SQUARES, Inputs
from lib.base.errors import UsageError
from lib.config.kconf import Options
from lib.machine.device import Machine
from lib.prune import mask, scope
from lib.prune.score.magnitude import Magnitude
from lib.prune.score.random import Random
from lib.prune.score.wanda import wanda
from lib.prune.weight import Weight

_BY_INPUTS = ("wanda", "sparsegpt")  # methods that measure the inputs of layers
_GLOBAL = ("global", "global-rms")

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class OneshotOptions(Options):
    """How to prune a finished model. An option is None where the method or the distribution does not use it."""

    pruning_method: str
    pruning_distribution: str | None
    pruning_n: int | None
    pruning_m: int | None
    target_sparsity: float | None  # None: n:m implies it
    pruning_scope: str | None
    pruning_layer_cap: float | None
    calibration_samples: int | None
    sparsegpt_damping: float | None
    sparsegpt_block: int | None
    owl_threshold: float | None
    owl_lambda: float | None
    seed: int

    @property
    def sparsity(self) -> float:
        """The share of the weights in scope that is pruned."""
        return 1 - self.pruning_n / self.pruning_m if self.target_sparsity is None else self.target_sparsity

    def compared(self, distribution: str) -> mask.MaskOptions:
        """Masks by this distribution."""
        return mask.MaskOptions(distribution, self.pruning_layer_cap, self.pruning_n, self.pruning_m)


@torch.no_grad()
def prune(
    model: GPT2,
    windows: Tensor | None,
    machine: Machine,
    options: OneshotOptions,
    done: Callable[[int], None],
    asked: Callable[[], bool],
) -> dict[str, Tensor]:
    """Prune `model` in place; return the uint8 mask of each tensor in scope, without the vocabulary's padding.

    `windows` (N, T) are token ids, None if CALIBRATION_SAMPLES is. `done(k)` is called after block k (1 to n_layer).
    Inputs are computed in float32, whatever DTYPE is. Memory beyond the model: the hidden states of all windows, and
    what one block needs. The model is in evaluation mode afterwards.

    Raises UsageError before any weight changes if the options do not fit the model, UserError for inputs that are NaN
    or a Hessian that cannot be inverted, and KeyboardInterrupt if `asked()` is true.
    """
    model.eval()
    weights = _weights(model, options)
    layers = _layers(model, weights)
    _check(weights, layers, options)

    def inputs() -> Inputs:
        return Inputs(model, windows.to(machine.device), asked)

    budgets = _budgets(model, weights, layers, inputs, options)
    before = inputs() if options.pruning_method in _BY_INPUTS else None

    def cut(names: Iterable[str], measured: Mapping[str, Tensor]) -> None:
        for name in names:
            if asked():
                raise KeyboardInterrupt
            if options.pruning_method == "sparsegpt":
                _prune_by_hessian(weights[name], budgets[name], measured[name], len(windows), options)
            else:
                _prune_by_score(weights[name], budgets[name], _score(options, measured), options)

    statistic = sparsegpt.PRODUCTS if options.pruning_method == "sparsegpt" else SQUARES
    cut([name for name in weights if not name.startswith("h.")], {})
    for number, block in enumerate(model.h):
        inside = _of_block(layers, number)
        cut(inside, before.measure(block, inside, statistic) if before and inside else {})
        if before and number + 1 < len(model.h):
            before.advance(block)
        done(number + 1)
    return {name: weight.mask for name, weight in weights.items()}


def check(model: GPT2, options: OneshotOptions) -> None:
    """Raise UsageError for options that do not fit the tensors in scope."""
    weights = _weights(model, options)
    _check(weights, _layers(model, weights), options)


def _layers(model: GPT2, names: Iterable[str]) -> dict[str, nn.Module]:
    """The module of each parameter."""
    return {name: model.get_submodule(name.rpartition(".")[0]) for name in names}


def _weights(model: GPT2, options: OneshotOptions) -> dict[str, Weight]:
    parameters, used = scope.select(model, options.pruning_scope), model.used_rows()
    nothing = torch.optim.SGD(parameters.values())  # has no state, and never steps
    return {
        name: Weight(name, p, (p.detach()[: used.get(p)] != 0).to(torch.uint8), nothing)
        for name, p in parameters.items()
    }


def _check(weights: Mapping[str, Weight], layers: Mapping[str, nn.Module], options: OneshotOptions) -> None:
    method, distribution = options.pruning_method, options.pruning_distribution
    for name, weight in weights.items():
        if isinstance(layers[name], nn.Linear) and layers[name].weight is weight.parameter:
            continue
        if method in _BY_INPUTS or distribution == "owl":
            option = f"PRUNING_METHOD={method}" if method in _BY_INPUTS else "PRUNING_DISTRIBUTION=owl"
            raise UsageError(
                f"{option} measures the inputs of linear layers, and {name} is not the weight of one; leave it out of "
                "PRUNING_SCOPE"
            )
    if method == "sparsegpt" and options.pruning_m is not None and options.sparsegpt_block % options.pruning_m:
        raise UsageError(
            f"SPARSEGPT_BLOCK={options.sparsegpt_block} must be a multiple of PRUNING_M={options.pruning_m}, because a "
            "group does not cross blocks"
        )
    shapes = {name: weight.mask.shape for name, weight in weights.items()}
    mask.check(options.compared(distribution), shapes, options.sparsity)


def _budgets(
    model: GPT2,
    weights: Mapping[str, Weight],
    layers: Mapping[str, nn.Linear],
    inputs: Callable[[], Inputs],
    options: OneshotOptions,
) -> dict[str, int]:
    """Name -> how many weights the tensor loses.

    They add up to the target, or to the weights that are zero already if these are more. n:m prunes every tensor alike,
    so zeros beyond its pattern come on top.

    owl, and Wanda with a global distribution, compare blocks, so they measure the inputs in the dense model for this.
    """
    distribution, compared = options.pruning_distribution, options.compared(options.pruning_distribution)
    shapes = {name: weight.mask.shape for name, weight in weights.items()}
    if distribution == "n-m":
        return mask.budgets(compared, shapes, options.sparsity)
    gone = [weight.mask.numel() - mask.ones(weight.mask) for weight in weights.values()]
    sparsity = max(options.sparsity, sum(gone) / sum(weight.mask.numel() for weight in weights.values()))
    if distribution not in ("owl", *_GLOBAL):
        return mask.budgets(compared, shapes, sparsity, gone)
    dense = distribution == "owl" or options.pruning_method in _BY_INPUTS
    measured = _survey(model, layers, inputs()) if dense else {}
    if distribution == "owl":
        return owl.budgets(shapes, _densities(weights, measured, options), sparsity, gone)
    masks = mask.choose(list(weights.values()), _score(options, measured), sparsity, compared, monotone=True)
    return {name: new.numel() - mask.ones(new) for name, new in zip(weights, masks, strict=True)}


def _survey(model: GPT2, layers: Mapping[str, nn.Linear], inputs: Inputs) -> dict[str, Tensor]:
    """The squared norms of the inputs of all `layers` in the model as it is."""
    measured = {}
    for number, block in enumerate(model.h):
        if inside := _of_block(layers, number):
            measured |= inputs.measure(block, inside, SQUARES)
        if number + 1 < len(model.h):
            inputs.advance(block)
    return measured


def _densities(
    weights: Mapping[str, Weight], measured: Mapping[str, Tensor], options: OneshotOptions
) -> dict[str, float]:
    """Name -> OWL's density of the tensor's block."""
    blocks: dict[str, list[Weight]] = {}
    for name, weight in weights.items():
        blocks.setdefault(name.split(".")[1], []).append(weight)
    outliers = [
        owl.outlier_share([functools.partial(wanda, w.value, measured[w.name]) for w in inside], options.owl_threshold)
        for inside in blocks.values()
    ]
    found = owl.densities(outliers, options.sparsity, options.owl_lambda)
    return {w.name: density for inside, density in zip(blocks.values(), found, strict=True) for w in inside}


def _of_block(items: Mapping[str, Item], number: int) -> dict[str, Item]:
    """Those of `items` whose parameter is in block `number`, counted from 0."""
    return {name: item for name, item in items.items() if name.startswith(f"h.{number}.")}


def _score(options: OneshotOptions, squares: Mapping[str, Tensor]) -> Callable[[Weight], Tensor]:
    """What a weight is worth; `squares` are the squared norms of the inputs, which only Wanda reads."""
    if options.pruning_method == "wanda":
        return lambda weight: wanda(weight.value, squares[weight.name])
    if options.pruning_method == "random":  # weights that are zero already go first, as with the other scores
        random = Random(options.seed)
        return lambda weight: random.score(weight).masked_fill(weight.value == 0, -torch.inf)
    return Magnitude().score


def _prune_by_score(weight: Weight, budget: int, score: Callable[[Weight], Tensor], options: OneshotOptions) -> None:
    """Zero the `budget` lowest scores, by row or by group where the distribution says so; zeros go first.

    Wanda with OWL's shares compares within a row, as OWL's authors do.
    """
    within = options.pruning_distribution
    if within == "owl" and options.pruning_method == "wanda":
        within = "row"
    elif within not in ("row", "n-m"):
        within = "layer"
    share, zeros_stay = budget / weight.mask.numel(), within != "n-m"  # a group may have more zeros than n:m asks for
    weight.mask.copy_(mask.choose([weight], score, share, options.compared(within), monotone=zeros_stay)[0])
    weight.value.mul_(weight.mask)


def _prune_by_hessian(weight: Weight, budget: int, products: Tensor, windows: int, options: OneshotOptions) -> None:
    plan = sparsegpt.Plan(options.sparsegpt_damping, options.sparsegpt_block, options.pruning_n, options.pruning_m)
    weight.mask.copy_(sparsegpt.prune(weight.value, products, windows, budget, plan, weight.name))
