"""Perplexity on fixed windows of a text, as the papers on pruning report it."""

from collections.abc import Iterator

from torch import nn

from gpt2.data.tokenizer import Tokenizer
from gpt2.evaluation.result import Result
from lib.machine.device import Machine


def check(names: str, local: str) -> None:
    """Raise UsageError for names that are neither known nor files; before a model is loaded."""
    raise NotImplementedError


def measure(
    names: str, local: str, model: nn.Module, tokenizer: Tokenizer, machine: Machine, batch_size: int
) -> Iterator[Result]:
    """A Result for each of the comma-separated `names` (PERPLEXITY=); `local` is TASK_DATA.

    `details["notes"]` are sentences to print.
    """
    raise NotImplementedError
