"""The pruner of a one-shot run: it holds the masks that the algorithms chose, for metrics and checkpoints."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gpt2.model import GPT2
from gpt2.oneshot.blocks import OneshotOptions
from lib.base.errors import UsageError
from lib.prune import units
from lib.prune.limits import MaskOptions
from lib.prune.mask import ones
from lib.prune.pruner import SPARSITY, Pruner
from lib.prune.schedule import Plan
from lib.prune.score import Criterion
from lib.prune.select import where
from lib.prune.weight import Weight

_NEAR = 1e-3  # a target this far below the present sparsity is the same: a few weights may be zero by chance


class Pruned(Pruner):
    """The masks of a model that is pruned at once. Until `take` has them, zeros are counted in the weights."""

    def __init__(self, weights: Sequence[Weight], target: float, distribution: MaskOptions):
        super().__init__(weights, Criterion(), Plan(0, 0, 1, "one-shot"), target, distribution)

    @torch.no_grad()
    def take(self, masks: Mapping[str, Tensor]) -> None:
        """Keep the masks with which the weights were pruned. Weights that were zero before count as pruned too."""
        for weight in self.weights:
            torch.mul(masks[weight.name], weight.value != 0, out=weight.mask)
            self.forget(weight, where(weight.mask ^ 1))
        self.kept = sum(ones(weight.mask) for weight in self.weights)

    def layers(self) -> dict[str, float]:
        """The sparsity of the model and of each tensor: no training event records the former in such a run."""
        return {SPARSITY: self.sparsity(), **super().layers()}


def build(model: GPT2, optimizer: torch.optim.Optimizer, options: OneshotOptions, distribution: MaskOptions) -> Pruned:
    """The pruner of `model`. Raises UsageError for a target below the sparsity that its weights have: zeros stay."""
    used = model.used_rows()
    weights = [
        Weight(name, parameter, torch.ones_like(parameter[: used.get(parameter)], dtype=torch.uint8), optimizer)
        for name, parameter in options.parameters(model).items()
    ]
    if groups := options.groups(model):
        named = {weight.name: weight for weight in weights}
        gone = units.pruned_weights(groups, named, options.sparsity, distribution)
        return Pruned(weights, gone / sum(weight.mask.numel() for weight in weights), distribution)
    pruner = Pruned(weights, options.sparsity, distribution)
    present = pruner.sparsity()
    if options.target_sparsity is not None and present > options.target_sparsity + _NEAR:
        raise UsageError(
            f"TARGET_SPARSITY={options.target_sparsity:g}: {present:.2%} of the weights in scope are zero already, and "
            "zeros stay; raise it"
        )
    return pruner
