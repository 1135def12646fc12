"""The loss on the whole validation split, with its standard error, perplexity and bits per byte."""

from torch import nn

from gpt2.data.windows import Data
from gpt2.evaluation.result import Result
from lib.machine.device import Machine


def measure(model: nn.Module, data: Data, machine: Machine) -> Result:
    """The loss on every window of the validation split, named `validation`; `data` is from `windows.load`."""
    raise NotImplementedError
