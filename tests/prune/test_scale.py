"""global-rms divides by a scale that does not depend on how often masks were updated."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.prune.mask import MaskOptions, choose
from lib.prune.pruner import Pruner
from lib.prune.scale import Scales, root_mean_square
from lib.prune.schedule import Plan
from lib.prune.score.magnitude import Magnitude
from lib.prune.score.random import Random
from lib.prune.score.state import State, variance
from lib.prune.select import few_rows, where
from lib.prune.weight import Weight
from tests.prune.test_mask import FLOATS

RMS = MaskOptions("global-rms", 1.0, None, None, None, None, "magnitude")


def quantiles(kind, count=2000):
    """A matrix whose values are evenly spaced quantiles of a distribution; both have a mean square of about 1 and 2."""
    p = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    values = torch.special.ndtri(p) if kind == "normal" else torch.where(p < 0.5, (2 * p).log(), -(2 - 2 * p).log())
    return values.float().view(20, -1)[:, torch.randperm(count // 20, generator=torch.Generator().manual_seed(0))]


def pruner(updates, criterion=None, optimizer=None):
    """A normal and a Laplace tensor that are pruned to 95 % in so many updates along the cubic schedule."""
    parameters = {f"h.{i}.weight": torch.nn.Parameter(quantiles(kind)) for i, kind in enumerate(("normal", "laplace"))}
    optimizer = optimizer or torch.optim.SGD(parameters.values())
    weights = [Weight(n, p, torch.ones_like(p, dtype=torch.uint8), optimizer) for n, p in parameters.items()]
    return Pruner(weights, criterion or Magnitude(), Plan(0, updates, 1, "cubic"), 0.95, RMS)


def pruned(one, first, last, before_each=lambda weight: None):
    """Prune frozen weights at these steps; returns how many of each tensor are gone."""
    for step in range(first, last + 1):
        for weight in one.weights:
            before_each(weight)
            weight.parameter.grad = torch.zeros_like(weight.parameter)
        one.step(step, lambda: torch.tensor(True))
    return [int((weight.mask == 0).sum()) for weight in one.weights]


@pytest.mark.parametrize("updates", [1, 2, 10, 50])
def test_frozen_weights_are_pruned_as_at_once(updates):
    """Counting zeros, fifty updates took 1889 and 1911; counting only what is left, 1832 and 1968."""
    one, once = pruner(updates), pruner(1)
    assert pruned(one, 1, updates) == pruned(once, 1, 1) == [1914, 1886]
    assert all(torch.equal(a.mask, b.mask) for a, b in zip(one.weights, once.weights, strict=True))


def test_a_resume_continues_with_the_scales():
    whole, first, second = pruner(10), pruner(10), pruner(10)
    pruned(first, 1, 5)
    for weight, other in zip(second.weights, first.weights, strict=True):
        weight.parameter.data.copy_(other.value)
    second.load_state_dict(first.state_dict())
    assert pruned(second, 6, 10) == pruned(whole, 1, 10)
    assert second.scales["own"].taken == whole.scales["own"].taken


def test_a_state_without_scales_counts_its_zeros():
    """That of an earlier version: the root mean square over all weights, as that version had it."""
    one = pruner(10)
    pruned(one, 1, 5)
    state = one.state_dict()
    del state["scales"]
    one.load_state_dict(state)
    weight = one.weights[1]
    found = one.scales["own"].of(weight, one.criterion.score, True, weight.mask)
    assert found == pytest.approx(weight.value.double().square().mean().sqrt().item(), rel=1e-12)


def test_scores_in_another_unit_at_each_update_are_pruned_as_at_once():
    """State pruning whose second moments all grow twentyfold from update to update, in one of the tensors."""

    def one(updates):
        parameters = [torch.nn.Parameter(torch.zeros(20, 100)) for _ in range(2)]
        optimizer = torch.optim.AdamW(parameters)
        made = pruner(updates, State(variance), optimizer)
        for weight in made.weights:
            ones = torch.ones_like(weight.parameter)
            optimizer.state[weight.parameter] = {"exp_avg": ones.clone(), "exp_avg_sq": ones.clone()}

        def grow(weight):
            if weight.name == "h.1.weight":
                weight.state["exp_avg_sq"].mul_(20)

        return pruned(made, 1, updates, grow)

    assert one(10) == one(1) == [1914, 1886]


def test_scores_that_do_not_depend_on_the_weights():
    """Random scores of what is pruned are not zero, and count for nothing."""
    one, once = pruner(50, Random(1)), pruner(1, Random(1))
    assert pruned(one, 1, 50) == pruned(once, 1, 1)
    found = one.scales["own"].of(one.weights[0], one.criterion.score, False, one.weights[0].mask)
    score = one.criterion.score(one.weights[0])
    assert found == pytest.approx(score.double().square().mean().sqrt().item(), rel=1e-5)


def test_zeros_that_a_model_came_with_count():
    weight = Weight("w", torch.nn.Parameter(torch.tensor([[3.0, 0.0, 4.0, 0.0]])), torch.ones(1, 4).byte(), {})
    weight.mask[0, 1::2] = 0
    score = lambda weight: weight.value  # noqa: E731
    assert Scales().of(weight, score, True, weight.mask) == 2.5
    assert [one.tolist() for one in choose([weight], score, 0.75, RMS, True, True)] == [[[0, 0, 1, 0]]]


def take(scales, weight, score, by_rows, chosen):
    scales.take(weight, score, by_rows, chosen, where(weight.mask ^ chosen))


def test_what_was_taken():
    """sqrt((9 + 16) / 4) of four scores, sqrt(16 / 4) when the second is gone too."""
    weight = Weight("w", torch.nn.Parameter(torch.tensor([[4.0, 3.0, 0.0, 0.0]])), torch.ones(1, 4).byte(), {})
    score, scales = (lambda weight: weight.value), Scales()
    take(scales, weight, score, True, weight.mask)
    assert scales.taken == {}  # no scale was asked for
    assert scales.of(weight, score, True, None) == 2.5
    chosen = torch.tensor([[1, 0, 0, 0]], dtype=torch.uint8)
    take(scales, weight, score, True, chosen)
    weight.mask.copy_(chosen)
    assert scales.taken == {"w": 1.25}
    assert scales.of(weight, score, True, weight.mask) == 2.5
    take(scales, weight, score, True, torch.zeros(1, 4).byte())
    assert scales.taken == {"w": 1.25}  # nothing is left that could be divided


@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize("keeps", [(0.9, 0.5), (0.5, 0.001), (1.0, 1.0)])
def test_what_two_updates_take_is_what_is_missing(by_rows, keeps):
    """Against sums over all scores; few parts are as small as those of a CPU's cache, so the tensor is larger."""
    generator = torch.Generator().manual_seed(1)
    value = torch.randn(3000, 200, generator=generator)
    weight = Weight("w", torch.nn.Parameter(value), torch.ones(3000, 200).byte(), {})
    assert len(few_rows(value.shape, value.device)) > 1
    score, scales, whole = (lambda weight: weight.value), Scales(), value.double().square()
    for share in keeps:
        scales.of(weight, score, by_rows, weight.mask)
        chosen = weight.mask * (torch.rand(3000, 200, generator=generator) < share)
        take(scales, weight, score, by_rows, chosen)
        weight.mask.copy_(chosen)
    expected = math.sqrt(whole.sum() / (whole * weight.mask).sum())
    assert scales.taken["w"] == pytest.approx(expected, rel=1e-9)


@given(st.lists(FLOATS, min_size=1, max_size=30))
def test_root_mean_square(values):
    finite = np.array([value for value in np.float32(values) if np.isfinite(value)], np.float64)
    rms = math.sqrt((finite**2).sum() / max(1, len(finite)))
    expected = rms if rms >= np.finfo(np.float32).tiny else 0.0
    assert root_mean_square(torch.tensor(values)) == pytest.approx(expected, rel=1e-12)
