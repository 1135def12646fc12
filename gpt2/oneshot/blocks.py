"""One-shot pruning: a finished model is pruned block by block, by the inputs that its pruned blocks give.

First it is decided how many weights each tensor loses. Then each tensor loses this number when its block is reached.
Weights that are zero already count. The mask of a `Weight` has these zeros until its tensor is pruned.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from gpt2.model import GPT2
from gpt2.oneshot import sparsegpt
from gpt2.oneshot.inputs import SQUARES, Inputs
from lib.base.errors import UsageError
from lib.config.kconf import Options
from lib.machine.device import Machine
from lib.prune import kinds, mask, owl, scope, units
from lib.prune.score.magnitude import Magnitude
from lib.prune.score.random import Random
from lib.prune.score.wanda import INPUTS, wanda
from lib.prune.weight import Weight

_BY_INPUTS = ("wanda", "sparsegpt")  # methods that measure the inputs of layers
_GLOBAL = ("global", "global-rms")

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class OneshotOptions(Options):
    """How to prune a finished model. An option is None where the method or the distribution does not use it."""

    pruning_method: str
    pruning_structure: str | None
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

    def groups(self, model: GPT2) -> list[kinds.Group]:
        """The neurons and heads that are pruned as a whole; none if single weights are pruned."""
        plain = self.pruning_structure in (None, "none")
        return [] if plain else kinds.chosen(model.groups(), self.pruning_structure)

    def parameters(self, model: GPT2) -> dict[str, nn.Parameter]:
        """Name -> parameter of those that are pruned."""
        groups = self.groups(model)
        return units.parameters(model, groups) if groups else scope.select(model, self.pruning_scope)

    def compared(self, distribution: str) -> mask.MaskOptions:
        """Masks by this distribution."""
        numbers = self.pruning_layer_cap, self.pruning_n, self.pruning_m, self.owl_threshold, self.owl_lambda
        return mask.MaskOptions(distribution, *numbers, self.pruning_method)


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
    _check(model, weights, layers, options)

    def inputs() -> Inputs:
        return Inputs(model, windows.to(machine.device), asked)

    if options.groups(model):
        return _prune_units(model, weights, inputs, options, done, asked)
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
    _check(model, weights, _layers(model, weights), options)


def _layers(model: GPT2, names: Iterable[str]) -> dict[str, nn.Module]:
    """The module of each parameter."""
    return {name: model.get_submodule(name.rpartition(".")[0]) for name in names}


def _weights(model: GPT2, options: OneshotOptions) -> dict[str, Weight]:
    parameters, used = options.parameters(model), model.used_rows()
    nothing = torch.optim.SGD(parameters.values())  # has no state, and never steps
    return {
        name: Weight(name, p, (p.detach()[: used.get(p)] != 0).to(torch.uint8), nothing)
        for name, p in parameters.items()
    }


def _check(
    model: GPT2, weights: Mapping[str, Weight], layers: Mapping[str, nn.Module], options: OneshotOptions
) -> None:
    if groups := options.groups(model):
        kinds.check(groups, options.compared(options.pruning_distribution), options.sparsity)
        return
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


def _prune_units(
    model: GPT2,
    weights: Mapping[str, Weight],
    inputs: Callable[[], Inputs],
    options: OneshotOptions,
    done: Callable[[int], None],
    asked: Callable[[], bool],
) -> dict[str, Tensor]:
    """Prune whole neurons and heads, which are all chosen in the dense model: they compete, or are few.

    Wanda's score of a bias is its magnitude by the norm of its input, which is 1 for every token.
    """
    groups, score = options.groups(model), Magnitude().score
    if options.pruning_method == "random":
        score = Random(options.seed).score
    if options.pruning_method == "wanda":
        before = inputs()
        tokens = before.states.shape[0] * before.states.shape[1]
        matrices = {name: layer for name, layer in _layers(model, weights).items() if name.endswith(".weight")}
        squares = _survey(model, matrices, before)

        def score(weight: Weight) -> Tensor:
            ones = torch.full_like(weight.value, tokens) if weight.mask.dim() == 1 else squares[weight.name]
            return wanda(weight.value, ones)

    scores = [units.summed(group, weights, score) for group in groups]
    kept = [units.alive(group, weights) for group in groups]
    flags = units.choose(groups, scores, kept, options.sparsity, options.compared(options.pruning_distribution))
    masks = units.spread_all(groups, flags, weights)
    for number in range(len(model.h)):
        if asked():
            raise KeyboardInterrupt
        for name, weight in _of_block(weights, number).items():
            weight.mask.copy_(masks[name])
            weight.value.mul_(masks[name])
        done(number + 1)
    return masks


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
        for name, weight in weights.items():
            weight.memory[INPUTS] = measured[name]
        shares = owl.shares(list(weights.values()), sparsity, options.owl_threshold, options.owl_lambda)
        return mask.budgets(compared, shapes, sparsity, gone, shares)
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
    """Zero the `budget` lowest scores, by row or by group where the distribution says so; zeros go first."""
    within = options.compared(options.pruning_distribution).within
    if within not in ("row", "n-m"):
        within = "layer"
    share, zeros_stay = budget / weight.mask.numel(), within != "n-m"  # a group may have more zeros than n:m asks for
    weight.mask.copy_(mask.choose([weight], score, share, options.compared(within), monotone=zeros_stay)[0])
    weight.value.mul_(weight.mask)


def _prune_by_hessian(weight: Weight, budget: int, products: Tensor, windows: int, options: OneshotOptions) -> None:
    plan = sparsegpt.Plan(options.sparsegpt_damping, options.sparsegpt_block, options.pruning_n, options.pruning_m)
    weight.mask.copy_(sparsegpt.prune(weight.value, products, windows, budget, plan, weight.name))
