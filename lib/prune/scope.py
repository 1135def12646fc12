"""Which tensors pruning may touch."""

import fnmatch
from typing import TYPE_CHECKING

from lib.base.errors import UsageError
from lib.prune.limits import Shapes

if TYPE_CHECKING:
    from torch import nn


def select(model: "nn.Module", patterns: str) -> "dict[str, nn.Parameter]":
    """Name -> parameter of those that `names` finds. A tied parameter has one name and is counted once."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name] for name in names({name: p.shape for name, p in parameters.items()}, patterns)}


def names(shapes: Shapes, patterns: str) -> list[str]:
    """Those parameters of a model, in its order, that one of the comma-separated `patterns` matches.

    Raises UsageError for a pattern that matches nothing.
    """
    wanted: set[str] = set()
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        matches = fnmatch.filter(shapes, pattern)
        if not matches:
            raise UsageError(f"PRUNING_SCOPE: {pattern!r} matches no parameter; names look like {_examples(shapes)}")
        wanted.update(matches)
    if not wanted:
        raise UsageError(f"PRUNING_SCOPE is empty; name parameters such as {_examples(shapes)}, or do not prune")
    return [name for name in shapes if name in wanted]


def _examples(shapes: Shapes) -> str:
    names = [name for name, shape in shapes.items() if len(shape) >= 2]
    return " and ".join(names[i] for i in sorted({0, min(2, len(names) - 1)}))
