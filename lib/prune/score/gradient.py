"""Gradient pruning: the first-order estimate of how much the loss changes if a weight becomes zero.

Molchanov et al., arXiv 1611.06440, section 2.2, for single weights. With masks chosen in step 1 it is the connection
sensitivity of SNIP, arXiv 1810.02340, section 4. SNIP also divides by the sum of all scores, which changes no order.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lib.prune.score import Criterion
from lib.prune.weight import Weight


def first_order_change(w: Tensor, g: Tensor) -> Tensor:
    """|w g|."""
    return (w * g).abs_()


class Gradient(Criterion):
    """Reads the gradient of the step at which masks are chosen: that of a single batch."""

    reads_step = True

    def score(self, weight: Weight) -> Tensor:
        """|w g|."""
        return first_order_change(weight.value, weight.grad)


def build(bind: Callable[[type], Any]) -> Criterion:
    """Gradient pruning has no options."""
    return Gradient()
