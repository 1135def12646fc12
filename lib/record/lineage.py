"""What was trained on the way to a run: the runs that its first weights and its masks came from, and their tokens.

The start event of a run has `init` (from, kind, path, sha256, revision, step, ancestors) if INIT_FROM names its first
weights, and `masks` (from, sha256, ancestors) if INIT_MASKS names a source. `ancestors` is run id, or the name of a
foreign model -> tokens that were trained for it; None where nobody knows. A run that is reached twice counts once, with
the larger number.
"""

from pathlib import Path

Ancestors = dict[str, int | None]


def ancestors(folder: Path) -> Ancestors:
    """The ancestors of the run in `folder`, without itself; {} for a run that began with random weights."""
    raise NotImplementedError


def merged(*several: Ancestors) -> Ancestors:
    """The union, each with its larger number; None (unknown) is larger than every number."""
    raise NotImplementedError


def own_tokens(folder: Path, step: int) -> int:
    """The tokens that the run in `folder` itself trained on in its first `step` steps. One-shot pruning trains none."""
    raise NotImplementedError


def total_tokens(folder: Path, step: int) -> int | None:
    """The tokens of the whole chain up to `step` of this run; None if an ancestor's are unknown."""
    raise NotImplementedError
