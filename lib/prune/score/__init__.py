"""Criteria, one file each: the value of the option PRUNING_METHOD names the module, which has `build(bind)`."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from lib.prune.weight import Weight


class Criterion:
    """What a weight is worth: elementwise, deterministic, the same on every rank whatever its random state."""

    reads_state = False  # of an Adam-like optimizer: there is nothing to read before the second step
    reads_step = False  # the gradients or inputs of a step: there is nothing to read before the first step
    is_magnitude = False  # its choice need not be compared with magnitude's

    def attach(self, weights: Sequence[Weight], modules: Sequence[nn.Module]) -> None:
        """Called once, with the modules that compute with the weights: allocate `weight.memory`, register hooks."""

    def observe(self, weights: Sequence[Weight], healthy: Callable[[], Tensor]) -> None:
        """Called at every step with its dense gradients, before they are masked and before the weights move.

        What is remembered must not change where `healthy()` (a bool scalar on the device) is false: a step that is
        skipped counts for nothing.
        """

    def score(self, weight: Weight) -> Tensor:
        """Float32 of the weight's shape: the higher, the more worth keeping. Called when masks are chosen, any number
        of times with the same result. To be read only: it may be memory.

        Masks are chosen at the same moment of a step as `observe`; under the straight-through dynamics when the weights
        have moved, and before the first step where the plan says so.
        """
        raise NotImplementedError

    def chosen(self, weights: Sequence[Weight]) -> None:
        """Called after masks were chosen."""


class Module(Protocol):
    """What a file of this folder defines."""

    build: Callable[[Callable[[type], Any]], Criterion]
