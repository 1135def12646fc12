"""What a configuration alone says about a run that cannot be: told before data are prepared, which may take hours.

Each check lives beside what it is about. This is the one place that calls them all.
"""

from collections.abc import Callable
from typing import TypeVar

from gpt2 import shape
from lib import schedule
from lib.base.errors import UsageError
from lib.config.kconf import Schema

T = TypeVar("T")


class Problems(list[str]):
    """The sentences of the checks that failed."""

    def of(self, check: Callable[[], T]) -> T | None:
        """What `check` returns; None if it raises UsageError, whose sentences are added."""
        try:
            return check()
        except UsageError as error:
            self.extend(error.args)
            return None

    def tell(self) -> None:
        """Raise UsageError with all sentences, if there are any."""
        if self:
            raise UsageError(*dict.fromkeys(self))


def quick(schema: Schema) -> list[str]:
    """What to warn of; raises UsageError for what cannot be, as far as it can be told without importing PyTorch."""
    problems = Problems()
    problems.of(lambda: shape.check(schema.bind(shape.ModelOptions)))
    warnings = problems.of(lambda: schedule.warnings(schema))
    problems.tell()
    return warnings


def check(schema: Schema, ranks: int = 1) -> None:
    """Raise UsageError with everything that keeps the configuration from being trained by so many ranks.

    The model is built of shapes without memory, so this takes milliseconds once PyTorch is imported.
    """
    quick(schema)
    import torch

    from gpt2 import footprint, model
    from gpt2.data import tokenizer
    from gpt2.data import windows as data
    from gpt2.unfilled import Unfilled
    from lib import optim, prune

    problems = Problems()
    problems.of(lambda: data.check_shares(schema.bind(data.DataOptions), ranks))
    options = schema.bind(shape.ModelOptions)
    problems.of(lambda: optim.build(footprint.small(options), schema.bind))
    with torch.device("meta"), Unfilled():
        planned = model.GPT2(options, tokenizer.vocab_size(schema["TOKENIZER"]))
        # A pruner needs to know the parameters of its optimizer. PyTorch's fused ones take none without memory.
        problems.of(lambda: prune.build(planned, torch.optim.SGD(planned.parameters()), schema.bind))
    problems.tell()
