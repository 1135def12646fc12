"""CHTs draws as the exact probabilities say, replaces the published number, and depends on no random state.

tests/prune/test_prune.py and test_ranks.py have resumes, skipped steps and ranks, as for every method.
"""

import itertools
import math
from collections import Counter

import pytest
import torch
from torch import nn

from lib import prune
from lib.base.errors import UsageError
from lib.prune.chts import draw, relative_importance
from lib.prune.select import PruningError
from tests.prune.test_prune import Trained, schema
from tests.prune.test_topology import by_paths


def sets(weights, k):
    """{indices} -> the probability that k draws without replacement give them, summed over all orders."""
    found = Counter()
    for order in itertools.permutations(weights, k):
        left, chance = sum(weights.values()), 1.0
        for item in order:
            chance *= weights[item] / left
            left -= weights[item]
        found[frozenset(order)] += chance
    return found


def close(seen, expected, number):
    """Whether counts of `number` trials are within 4.5 standard deviations of the expected shares."""
    assert seen.keys() <= expected.keys()
    assert sum(expected.values()) == pytest.approx(1)
    for item, share in expected.items():
        assert abs(seen[item] - share * number) <= 4.5 * math.sqrt(share * (1 - share) * number) + 1e-9, item


def chosen(scores, power, k, number=100_000):
    """{indices} -> how often they have the k highest ranks."""
    chance = torch.rand(number, len(scores), generator=torch.Generator().manual_seed(0))
    highest = draw(torch.tensor(scores).expand(number, -1), power, chance).topk(k).indices
    return Counter(frozenset(row) for row in highest.tolist())


# ---- draws -----------------------------------------------------------------------------------------------------------


def test_the_reference_draws_by_hand():
    """Of 1 : 1 : 2, two at once: {0, 1} is 1/4 x 1/3, twice; {0, 2} is 1/4 x 2/3 + 2/4 x 1/2."""
    assert sets({0: 1, 1: 1, 2: 2}, 2) == {
        frozenset({0, 1}): pytest.approx(1 / 6),
        frozenset({0, 2}): pytest.approx(5 / 12),
        frozenset({1, 2}): pytest.approx(5 / 12),
    }


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_draws_have_the_probabilities_of_a_multinomial_without_replacement(k, power):
    scores = [0.5, 0.1, 0.3, 0.7]
    close(chosen(scores, power, k), sets({i: score**power for i, score in enumerate(scores)}, k), 100_000)


def test_power_zero_draws_evenly():
    close(chosen([5.0, 1e-3, 0.0], 0.0, 1), {frozenset({i}): 1 / 3 for i in range(3)}, 100_000)


def test_a_score_of_zero_is_drawn_last_and_at_random():
    assert chosen([0.0, 1e-3, 0.0, 7.0], 1.0, 2, 1000) == {frozenset({1, 3}): 1000}
    close(chosen([0.0, 1e-3, 0.0, 7.0], 1.0, 3), {frozenset({0, 1, 3}): 0.5, frozenset({1, 2, 3}): 0.5}, 100_000)


def test_powers_do_not_underflow():
    """1e-6 to the power 9 is no float32, but 1e-6 to 5e-7 is 2^9 to 1."""
    close(chosen([1e-6, 5e-7], 9.0, 1), {frozenset({0}): 512 / 513, frozenset({1}): 1 / 513}, 100_000)


def test_chance_zero_is_no_nan():
    assert draw(torch.tensor([0.0, 1.0]), 1.0, torch.zeros(2)).tolist() == [-math.inf, -math.inf]


def test_relative_importance_by_hand():
    w = torch.tensor([[1.0, -1.0], [3.0, 0.0]])
    assert relative_importance(w).tolist() == [[1 / 2 + 1 / 4, 1 / 2 + 1], [3 / 3 + 3 / 4, 0.0]]
    assert relative_importance(torch.tensor([[0.0, 2.0], [0.0, 0.0]])).tolist() == [[0.0, 2.0], [0.0, 0.0]]


# ---- an update -------------------------------------------------------------------------------------------------------


def layer(mask, w, **options):
    """The pruner of a single matrix, with this mask and these weights."""
    model = nn.Sequential(nn.Linear(w.shape[1], w.shape[0], bias=False))
    model.prunable = lambda: [model[0].weight]
    made = schema(PRUNING_DYNAMICS="chts", **options)
    pruner = prune.build(model, torch.optim.SGD(model.parameters()), made.bind)
    pruner.weights[0].mask.copy_(mask)
    pruner.weights[0].value.copy_(w * mask)
    pruner.kept = int(mask.sum())
    return pruner


@pytest.mark.parametrize("importance", ["magnitude", "relative"])
def test_masks_have_exactly_the_probabilities_of_their_draws(importance):
    """Every outcome of dropping 1 of 5 weights and growing 1 of the 5 others, over 1,500 seeds."""
    mask = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 0]], dtype=torch.uint8)
    w = torch.tensor([[0.5, -0.2, 0.0], [0.0, 0.3, 0.4], [-0.1, 0.0, 0.0]])
    options = {"CHTS_IMPORTANCE": importance, "CHTS_POWER": "1", "CHTS_FINAL_POWER": "3"}
    pruner = layer(mask, w, RIGL_DROP_FRACTION="0.5", PRUNING_END="40", **options)
    step, power = 20, 2.0  # half of the way from 1 to 3; a quarter of 5 weights is 1
    size = w.abs()
    if importance == "relative":
        size = size / size.sum(1, keepdim=True) + size / size.sum(0)
    weights = {(u, v): size[u, v].item() ** power for u, v in mask.nonzero().tolist()}
    expected = Counter()
    for stays, chance in sets(weights, 4).items():
        left = torch.zeros_like(mask)
        for place in stays:
            left[place] = 1
        scores = by_paths(left)
        if not any(scores.values()):  # the only middle link is gone: no path of three links is left
            scores = dict.fromkeys(scores, 1.0)
        for place, score in scores.items():
            expected[stays | {place}] += chance * score / sum(scores.values())
    expected = Counter({places: chance for places, chance in expected.items() if chance})
    assert len(expected) > 8
    seen = Counter()
    for seed in range(1500):
        pruner.seed = seed
        (chosen,) = pruner.masks(step)
        seen[frozenset(map(tuple, chosen.nonzero().tolist()))] += 1
    close(seen, expected, 1500)


def test_a_high_power_drops_the_smallest():
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(20, 30, generator=generator) < 0.5).byte()
    w = 1.1 ** torch.randperm(600, generator=generator).view(20, 30).sub(300)
    pruner = layer(mask, w, RIGL_DROP_FRACTION="0.5", PRUNING_END="40", CHTS_FINAL_POWER="1000", CHTS_POWER="1000")
    count = int(0.25 * int(mask.sum()))
    (chosen,) = pruner.masks(20)
    lowest = w[mask == 1].sort().values[count]
    assert chosen[(mask == 1) & (w >= lowest)].all()
    assert chosen.sum() == mask.sum()


def test_every_update_replaces_the_published_number():
    trained = Trained(schema(PRUNING_DYNAMICS="chts", RIGL_DROP_FRACTION="0.4", PRUNING_END="30", PRUNING_INTERVAL="5"))
    kept = [int(weight.mask.sum()) for weight in trained.pruner.weights]
    assert kept == [57, 29]  # two thirds and one third of 86
    moved = 0
    while trained.done < 40:
        before = [weight.mask.clone() for weight in trained.pruner.weights]
        trained.step()
        t = trained.done
        assert [int(weight.mask.sum()) for weight in trained.pruner.weights] == kept
        for weight, mask, count in zip(trained.pruner.weights, before, kept, strict=True):
            grown = int(((weight.mask == 1) & (mask == 0)).sum())
            due = t <= 30 and t % 5 == 0
            assert grown <= (int(0.4 / 2 * (1 + math.cos(math.pi * t / 30)) * count) if due else 0)
            moved += grown
    assert moved > 50


def test_draws_read_no_random_state_and_change_none():
    pruner = layer(torch.tensor([[1, 0, 1], [0, 1, 1]]).byte(), torch.rand(2, 3), RIGL_DROP_FRACTION="1")
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        found.append(pruner.masks(4)[0])
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*found)
    assert any(not torch.equal(pruner.masks(step)[0], found[0]) for step in range(5, 12))


def test_scores_that_are_nan_are_an_error():
    mask, w = torch.ones(2, 3).byte(), torch.rand(2, 3)
    mask[0, 0], w[1, 1] = 0, torch.nan
    with pytest.raises(PruningError, match=r"the scores of 0.weight are NaN"):
        layer(mask, w, RIGL_DROP_FRACTION="1").masks(4)


def test_only_matrices_have_links():
    with pytest.raises(UsageError) as error:
        Trained(schema(PRUNING_DYNAMICS="chts", PRUNING_SCOPE="0.*"))
    assert str(error.value) == (
        "PRUNING_DYNAMICS=chts needs matrices, but 0.bias has 1 dimension(s); leave it out of PRUNING_SCOPE"
    )
