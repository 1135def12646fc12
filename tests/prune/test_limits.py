"""What a distribution cannot prune is refused, from shapes alone."""

import pytest

from lib.base.errors import UsageError
from lib.prune.limits import MaskOptions, check


def options(distribution, cap=1.0, n=2, m=4):
    return MaskOptions(distribution, cap, n, m, None, None, "magnitude")


@pytest.mark.parametrize(
    "chosen, shapes, sparsity, message",
    [
        (options("global"), {"w": (2, 2)}, 1.5, "TARGET_SPARSITY must be from 0 to 1; got 1.5"),
        (options("layer"), {"w": (2, 2)}, -0.5, "TARGET_SPARSITY must be from 0 to 1; got -0.5"),
        (
            options("global", cap=0.4),
            {"w": (10, 10)},
            0.5,
            "PRUNING_LAYER_CAP=0.4 of every tensor does not allow a sparsity",
        ),
        (
            options("global-rms", cap=0.9),
            {"w": (1, 1)},
            0.9,
            "PRUNING_LAYER_CAP=0.9 of every tensor does not allow",
        ),
        (options("erk"), {"w": (2, 2), "b": (7,)}, 0.5, r"DISTRIBUTION=erk needs matrices, but b has 1 dimension\(s\)"),
        (options("row"), {"b": (7,)}, 0.5, "PRUNING_DISTRIBUTION=row needs matrices, but b has 1"),
        (options("n-m"), {"b": (8,)}, 0.5, "PRUNING_DISTRIBUTION=n-m needs matrices, but b has 1"),
        (options("n-m"), {"a": (3, 8), "c": (8, 6)}, 0.5, "PRUNING_M=4 must divide .* but c has 6 inputs"),
        (options("n-m", n=4), {"a": (3, 8)}, 0.0, "PRUNING_N=4 must be less than PRUNING_M=4"),
        (
            options("n-m"),
            {"a": (3, 8)},
            0.6,
            "keeping PRUNING_N=2 of PRUNING_M=4 weights does not allow a sparsity of 0.6",
        ),
    ],
)
def test_what_cannot_be_is_refused(chosen, shapes, sparsity, message):
    with pytest.raises(UsageError, match=message) as caught:
        check(chosen, shapes, sparsity)
    assert "\n" not in str(caught.value)


def test_caps_are_read_as_written():
    check(options("global", cap=0.29), {"w": (10, 10)}, 0.29)
    with pytest.raises(UsageError, match="of every tensor does not allow"):
        check(options("global", cap=0.29), {"w": (10, 10)}, 0.3)
