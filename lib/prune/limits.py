"""How much can be pruned: what a distribution allows of tensors of some shapes. Needs no PyTorch."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from lib.base.errors import UsageError
from lib.config.kconf import Options

Shapes = Mapping[str, Sequence[int]]  # of the weights in scope, by name
GLOBAL = ("global", "global-rms")
_MATRICES = ("erk", "row", "n-m")  # distributions that need rows and columns


@dataclasses.dataclass(frozen=True)
class MaskOptions(Options):
    """Which weights are compared. An option is None where the method does not use it."""

    pruning_distribution: str | None
    pruning_layer_cap: float | None  # the largest sparsity of a tensor in a global comparison
    pruning_n: int | None  # weights kept
    pruning_m: int | None  # of this many neighbours along the input
    owl_threshold: float | None
    owl_lambda: float | None
    pruning_method: str

    @property
    def within(self) -> str | None:
        """Where the weights of a tensor compete. OWL's authors compare those with Wanda's scores in rows."""
        if self.pruning_distribution != "owl":
            return self.pruning_distribution
        return "row" if self.pruning_method == "wanda" else "layer"


def count(sparsity: float, total: int) -> int:
    """How many of `total` weights are pruned."""
    return round(sparsity * total)


def check(options: MaskOptions, shapes: Shapes, sparsity: float) -> None:
    """Raise UsageError if tensors of these shapes cannot have this sparsity."""
    check_numbers(options)
    if not 0 <= sparsity <= 1:
        raise UsageError(f"TARGET_SPARSITY must be from 0 to 1; got {sparsity}")
    if options.pruning_distribution in _MATRICES:
        check_matrices(shapes, f"PRUNING_DISTRIBUTION={options.pruning_distribution} needs matrices")
    if options.pruning_distribution == "n-m":
        _check_groups(options, shapes, sparsity)
    if options.pruning_distribution in GLOBAL:
        numels = [math.prod(shape) for shape in shapes.values()]
        if count(sparsity, sum(numels)) > sum(limits(options, numels)):
            raise UsageError(
                f"PRUNING_LAYER_CAP={options.pruning_layer_cap:g} of every tensor does not allow a sparsity of "
                f"{sparsity:g}; raise PRUNING_LAYER_CAP or lower TARGET_SPARSITY"
            )


def check_matrices(shapes: Shapes, why: str, otherwise: str = "") -> None:
    """Raise UsageError for what is no matrix. `why` says what needs matrices, `otherwise` what else would help."""
    for name, shape in shapes.items():
        if len(shape) != 2:
            raise UsageError(
                f"{why}, but {name} has {len(shape)} dimension(s); leave it out of PRUNING_SCOPE{otherwise}"
            )


def check_numbers(options: MaskOptions) -> None:
    """Raise UsageError for groups of which nothing is pruned."""
    if options.pruning_distribution == "n-m" and options.pruning_n >= options.pruning_m:
        raise UsageError(f"PRUNING_N={options.pruning_n} must be less than PRUNING_M={options.pruning_m}")


def _check_groups(options: MaskOptions, shapes: Shapes, sparsity: float) -> None:
    n, m = options.pruning_n, options.pruning_m
    for name, (_, inputs) in shapes.items():
        if inputs % m:
            raise UsageError(
                f"PRUNING_M={m} must divide the input dimension of every tensor, but {name} has {inputs} inputs; "
                "change PRUNING_M or PRUNING_SCOPE"
            )
    total = sum(map(math.prod, shapes.values()))
    if count(sparsity, total) > total // m * (m - n):
        raise UsageError(f"keeping PRUNING_N={n} of PRUNING_M={m} weights does not allow a sparsity of {sparsity:g}")


def limits(options: MaskOptions, numels: Sequence[int]) -> list[int]:
    """The most weights that tensors of so many may lose."""
    if options.pruning_layer_cap is None:
        return list(numels)
    cap = Fraction(str(options.pruning_layer_cap))  # the decimal text, because floats make 28 of 0.29 * 100
    return [math.floor(cap * numel) for numel in numels]
