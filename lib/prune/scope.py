"""Which tensors pruning may touch."""

import fnmatch

from torch import nn

from lib.base.errors import UsageError


def select(model: nn.Module, patterns: str) -> dict[str, nn.Parameter]:
    """Name -> parameter, in the model's order, of every parameter that one of the comma-separated `patterns` matches.

    A tied parameter has one name and is counted once. Raises UsageError for a pattern that matches nothing.
    """
    parameters = dict(model.named_parameters())
    wanted: set[str] = set()
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        matches = fnmatch.filter(parameters, pattern)
        if not matches:
            raise UsageError(f"PRUNING_SCOPE: {pattern!r} matches no parameter; names look like {_examples(model)}")
        wanted.update(matches)
    if not wanted:
        raise UsageError(f"PRUNING_SCOPE is empty; name parameters such as {_examples(model)}, or do not prune")
    return {name: parameter for name, parameter in parameters.items() if name in wanted}


def _examples(model: nn.Module) -> str:
    names = [name for name, parameter in model.named_parameters() if parameter.dim() >= 2]
    return " and ".join(names[i] for i in sorted({0, min(2, len(names) - 1)}))
