"""The sample of masks in a journal: which weights, what a pruner puts into it, and the overlap of two samples."""

import numpy as np
import pytest
import torch

from lib.prune.dense import NoPruning
from lib.prune.sample import sampled_masks
from lib.record import mask_sample
from lib.record.mask_sample import FIELD, Overlap, decode, encode, overlap, positions
from tests.prune.test_prune import Trained, case

SMALL = {"a": (3, 2), "b": (4,)}
LARGE = {"h.0.attn.weight": (500, 300), "h.0.mlp.weight": (700, 400)}


def sample(bits, shapes=None):
    return decode(encode(shapes or {"w": (len(bits),)}, np.array(bits)))


def test_up_to_16384_weights_are_all_in_the_sample():
    assert positions(SMALL).tolist() == list(range(10))
    assert positions({"w": (128, 128)}).tolist() == list(range(16384))


def test_of_more_weights_the_same_16384_are_chosen_by_every_version():
    chosen = positions(LARGE)
    assert len(set(chosen.tolist())) == 16384
    assert (np.diff(chosen) > 0).all()
    parts = np.arange(16385) * 430000 // 16384
    assert ((parts[:-1] <= chosen) & (chosen < parts[1:])).all()  # one from each equal part
    assert chosen[[0, 1, 2, 9000, 16383]].tolist() == [5, 41, 74, 236210, 429989]
    assert positions({**LARGE, "h.0.mlp.weight": (400, 700)})[0] != 5


def test_the_bytes_are_a_checksum_the_number_of_weights_and_a_bit_for_each():
    assert encode(SMALL, np.array([1, 0, 1, 1, 0, 0, 0, 1, 1, 0])) == "yPrpAzTo1W4AAAAAAAAACrGA"
    found = decode("yPrpAzTo1W4AAAAAAAAACrGA")
    assert mask_sample.kept(found).tolist() == [True, False, True, True, False, False, False, True, True, False]


@pytest.mark.parametrize("text", [None, 7, "", "no base64", "yPrpAzTo1W4AAAAAAAAACrGAMA==", "yPrpAzTo1W4AAAAAAAAAALGA"])
def test_what_is_no_sample_is_none(text):
    assert decode(text) is None


def test_overlap_is_intersection_over_union_beside_that_of_random_masks():
    found = overlap(sample([1, 1, 1, 0, 0, 0, 0, 0]), sample([1, 1, 0, 1, 0, 0, 0, 0]))
    # 2 of 4; at densities 3/8 and 3/8: (9/64) / (48/64 - 9/64). Every weight is in the sample, so there is no error.
    assert found == Overlap(0.5, 0.0, pytest.approx(9 / 39))


def test_no_overlap_between_different_tensors_or_of_nothing():
    assert overlap(sample([1, 0]), sample([1, 0], {"v": (2,)})) is None
    assert overlap(sample([0, 0]), sample([0, 0])) is None


def test_the_standard_error_is_that_of_repeated_samples():
    random = np.random.default_rng(0)
    one, other = random.random((2, 430000)) < 0.2
    other |= one & (random.random(430000) < 0.5)
    found = []
    for n in range(300):
        shapes = {f"{n}": (430000,)}
        chosen = positions(shapes)
        found.append(overlap(sample(one[chosen], shapes), sample(other[chosen], shapes)))
    values = np.array([each.value for each in found])
    assert values.mean() == pytest.approx((one & other).sum() / (one | other).sum(), abs=0.001)
    assert values.std() == pytest.approx(found[0].error, rel=0.1)


@pytest.mark.parametrize("name", ["magnitude", "movement", "rigl"])
def test_a_pruner_puts_its_masks_into_the_sample(name):
    trained = Trained(case(name))
    for _ in range(40):
        trained.step()
    kept = mask_sample.kept(decode(sampled_masks(trained.pruner)[FIELD]))
    masks = torch.cat([weight.mask.flatten() for weight in trained.pruner.weights])
    assert kept.tolist() == masks.bool().tolist()
    assert 0 < kept.mean() < 1


def test_positions_count_through_all_tensors():
    trained = Trained(case("magnitude"))
    first, *_ = trained.pruner.weights
    masks = [torch.zeros(150, 90), torch.ones(40, 500)]
    trained.pruner.weights = [
        type(first)(name, first.parameter, mask.to(torch.uint8), first.optimizer)
        for name, mask in zip("ab", masks, strict=True)
    ]
    trained.pruner.total, trained.pruner.kept = 33500, 20000
    kept = mask_sample.kept(decode(sampled_masks(trained.pruner)[FIELD]))
    assert len(kept) == 16384
    assert kept.sum() == (positions({"a": (150, 90), "b": (40, 500)}) >= 13500).sum()


def test_a_run_without_pruning_has_no_sample():
    assert sampled_masks(NoPruning([torch.ones(3)])) == {}
