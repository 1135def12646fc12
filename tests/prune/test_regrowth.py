"""Weights that grow make a rising part of their update; nothing happens when it is off.

tests/prune/test_prune.py and test_ranks.py have resumes, skipped steps and ranks, as for every method.
"""

import copy

import pytest
import torch

from lib.prune.regrowth import Warmup
from lib.prune.weight import Weight
from tests.prune.test_prune import Trained, schema


def weight_of(*values):
    value = torch.tensor([values])
    return Weight("w", torch.nn.Parameter(value), torch.ones_like(value, dtype=torch.uint8), {})


def update(warmup, weight, step, *values):
    """A step of an optimizer to these values."""
    warmup.remember([weight], step)
    weight.value.copy_(torch.tensor([values]))
    warmup.take_back([weight], step)
    return weight.value[0].tolist()


def test_the_parts_of_four_steps():
    warmup, weight = Warmup(4), weight_of(0.0, 1.0)
    warmup.grow(weight, torch.tensor([0]), 7)
    assert update(warmup, weight, 7, 8.0, 2.0) == [2.0, 2.0]  # 1/4 of 8
    assert update(warmup, weight, 8, 4.0, 3.0) == [3.0, 3.0]  # 2/4 of 2
    assert update(warmup, weight, 9, -1.0, 4.0) == [0.0, 4.0]  # 3/4 of -4
    assert warmup.places
    assert update(warmup, weight, 10, 5.0, 5.0) == [5.0, 5.0]
    assert not warmup.places and not warmup.born


def test_weights_that_grew_at_different_steps_and_one_that_was_dropped_again():
    warmup, weight = Warmup(4), weight_of(0.0, 0.0, 0.0)
    warmup.grow(weight, torch.tensor([0, 1]), 1)
    assert update(warmup, weight, 1, 4.0, 4.0, 0.0) == [1.0, 1.0, 0.0]
    assert update(warmup, weight, 2, 1.0, 1.0, 0.0) == [1.0, 1.0, 0.0]
    weight.mask[0, 1] = 0  # dropped at step 3, where the third grows
    weight.value[0, 1] = 0
    warmup.grow(weight, torch.tensor([2]), 3)
    assert warmup.places["w"].tolist() == [0, 2]
    assert update(warmup, weight, 3, 5.0, 0.0, 4.0) == [4.0, 0.0, 1.0]
    assert update(warmup, weight, 4, 9.0, 0.0, 3.0) == [9.0, 0.0, 2.0]
    weight.mask[0, 1] = 1  # and grows again
    warmup.grow(weight, torch.tensor([1]), 5)
    assert update(warmup, weight, 5, 9.5, 4.0, 6.0) == [9.5, 1.0, 5.0]


@pytest.mark.parametrize("steps", [0, 1])
def test_off_it_keeps_nothing(steps):
    warmup, weight = Warmup(steps), weight_of(0.0)
    warmup.grow(weight, torch.tensor([0]), 1)
    assert update(warmup, weight, 1, 8.0) == [8.0]
    assert warmup.state_dict() == {"places": {}, "born": {}, "last": 0}


@pytest.mark.parametrize("kind", ["adamw", "muon", "sgd"])
@pytest.mark.parametrize("dynamics", ["rigl", "set"])
def test_only_what_grew_is_held_back_and_by_the_share_of_its_step(dynamics, kind):
    """Against a run without warm-up, whose step from the same state is the whole update."""
    rewired = {"PRUNING_INTERVAL": "20", "WEIGHT_DECAY": "0.1"}
    made = [schema(PRUNING_DYNAMICS=dynamics, PRUNING_END="40", MAX_ITERS="60", **rewired, **own) for own in (
        {"REGROW_WARMUP": "5"}, {})]  # fmt: skip
    slow, plain = (Trained(one, kind) for one in made)
    for trained in (slow, plain):
        while trained.done < 19:
            trained.step()
    before = [weight.mask.clone() for weight in slow.pruner.weights]
    for k in range(1, 7):
        state = copy.deepcopy(slow.state())
        plain.load({name: part for name, part in state.items() if name != "pruner"} | {
            "pruner": state["pruner"] | {"warmup": {}}})  # fmt: skip
        plain.done = slow.done
        values = [weight.value.clone() for weight in slow.pruner.weights]
        for trained in (slow, plain):
            trained.step()
        for w, p, value, old in zip(slow.pruner.weights, plain.pruner.weights, values, before, strict=True):
            assert torch.equal(w.mask, p.mask)
            grown = w.mask > old
            assert grown.any()
            value = torch.where(w.mask == 1, value, 0)
            torch.testing.assert_close(w.value[grown], value[grown].lerp(p.value[grown], min(1, k / 5)))
            assert torch.equal(w.value[~grown], p.value[~grown])
