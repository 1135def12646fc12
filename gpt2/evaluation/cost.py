"""What sparsity buys: the size on disk, and the speed of inference."""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from gpt2.evaluation.result import Result
from lib.machine.device import Machine


def measure(
    model: nn.Module, state: Mapping[str, Tensor], masks: Mapping[str, Tensor], machine: Machine
) -> Iterator[Result]:
    """The Results `size` and `speed` of a pruned model; `state` and `masks` are those of `Weights`.

    `details["notes"]` are sentences to print.
    """
    raise NotImplementedError
