"""Neurons and heads: which are chosen and compete, and how many a layer can lose."""

import pytest

from lib.base.errors import UsageError
from lib.prune import kinds
from lib.prune.kinds import Group, Part
from lib.prune.limits import MaskOptions

HEADS, NEURONS = Group("heads", 4, {}), Group("neurons", 64, {"in": Part(0), "out": Part(1)})


def options(distribution, cap=None):
    return MaskOptions(distribution, cap, None, None, None, None, "magnitude")


def test_a_structure_chooses_its_kinds():
    both = [HEADS, NEURONS]
    assert kinds.chosen(both, "heads") == [HEADS]
    assert kinds.chosen(both, "neurons") == [NEURONS]
    assert kinds.chosen(both, "both") == both
    assert NEURONS.behind == "out"


def test_units_compete_within_a_layer_or_with_all_of_their_kind():
    groups = [HEADS, NEURONS, HEADS, NEURONS]
    assert kinds.together(groups, options("layer")) == [[one] for one in groups]
    assert kinds.together(groups, options("global")) == [[HEADS, HEADS], [NEURONS, NEURONS]]


@pytest.mark.parametrize(
    ("distribution", "cap", "sparsity", "wanted"),
    [("layer", None, 0.9, "4 of 4 heads"), ("global", 0.5, 0.7, "6 of 8 heads")],
)
def test_a_layer_keeps_one_unit_and_what_its_cap_says(distribution, cap, sparsity, wanted):
    groups, compared = [HEADS, HEADS], options(distribution, cap)
    kinds.check(groups, compared, 0.5)
    with pytest.raises(UsageError, match=f"^TARGET_SPARSITY={sparsity} prunes {wanted}, and each layer keeps at least"):
        kinds.check(groups, compared, sparsity)
