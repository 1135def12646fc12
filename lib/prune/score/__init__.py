"""Criteria, one file each: the value of the option PRUNING_METHOD names the module, which has `build(bind)`."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from lib.prune.weight import Weight

# (batches, temperature) -> losses. Their sum over all ranks is the mean loss over the first batches of the run, in nats
# per token. With a temperature, logits are divided by it, and each loss can be differentiated twice; None: without.
Losses = Callable[[int, float | None], Iterator[Tensor]]


class Criterion:
    """Scores single weights. Scores are deterministic and equal on all ranks, whatever their random state."""

    reads_state = False  # reads the moments of an Adam-like optimizer, which do not exist before step 2
    reads_step = False  # reads gradients or inputs of layers, which do not exist before step 1
    by_rows = False  # whether the score of some rows of a weight is the same as that of these rows among all
    silent = False  # whether a weight of exactly 0, which pruned ones have, has the score 0
    is_magnitude = False  # prunes by magnitude, so its masks need not be compared with magnitude's
    # What a weight adds to the derivative of the loss by a factor on the output of its neuron or head. The absolute
    # value of the sum over the weights that read this output then scores the unit, in place of the sum of scores.
    gate: Callable[[Weight], Tensor] | None = None

    def attach(self, weights: Sequence[Weight], modules: Sequence[nn.Module]) -> None:
        """Called once: allocate `weight.memory` and register hooks. `modules` are the layers that use the weights."""

    def measure(self, weights: Sequence[Weight], model: nn.Module, losses: Losses) -> None:
        """Called before each pass before the first step, for what `score` then reads (lib.prune.passes).

        Pruned weights are zero.
        """

    def observe(self, weights: Sequence[Weight], healthy: Callable[[], Tensor]) -> None:
        """Called at every step with dense gradients, before they are masked and before the weights move.

        `healthy()` is a bool scalar on the device. If it is false, the step is skipped, and `weight.memory` must not
        change.
        """

    def score(self, weight: Weight) -> Tensor:
        """Float32 of the weight's shape; the lowest scores are pruned first.

        May be called several times while masks are chosen, and then returns the same result. The caller must not
        change the tensor, which may be part of `weight.memory`.

        Masks are chosen right after `observe`, and with the straight-through dynamics after the optimizer's update.
        If the plan begins at step 0, the first masks are chosen before any step.
        """
        raise NotImplementedError

    def chosen(self, weights: Sequence[Weight]) -> None:
        """Called after new masks were chosen, for instance to reset what was measured."""


class Module(Protocol):
    """What a file of this folder defines."""

    build: Callable[[Callable[[type], Any]], Criterion]
