"""GraSP's scores against literal values, and on GPT-2 against finite differences of gradients in float64."""

import itertools

import pytest
import torch
from torch import nn

from gpt2 import first_batches
from lib.prune.score import grasp
from lib.prune.weight import Weight
from tests.prune.test_passes import Tokens, machine
from tests.prune.test_prune import schema
from tests.prune.test_synflow import VOCABULARY, gpt2, weights_of

A = torch.tensor([[2.0, 1.0, 0.0], [1.0, 3.0, 1.0], [0.0, 1.0, 1.0]])


def quadratic(value, mask=(1, 1, 1)):
    """w (H g) of the loss w^T A w / 2, whose H is A and whose g is A w."""
    parameter = nn.Parameter(torch.tensor(value))
    weight = Weight("w", parameter, torch.tensor(mask, dtype=torch.uint8), None)
    asked = []

    def losses(batches, temperature):
        asked.append((batches, temperature))
        for _ in range(2):
            yield parameter @ A @ parameter / 4

    criterion = grasp.GraSP(batches=5)
    criterion.measure([weight], None, losses)
    assert asked == [(5, 200), (5, 200)]
    return criterion.score(weight).tolist()


def test_grasp_of_a_quadratic_loss():
    """A w = (0, -2, 1), and A of it (-2, -5, -1). Without the third weight |g|^2 rises most: it is pruned first."""
    assert quadratic([1.0, -2.0, 3.0]) == [-2, 10, -3]


def test_grasp_is_of_the_masked_network():
    """The gradient (2, 4, 3) of (1, 0, 3) has no second part under the mask, and A (2, 0, 3) is (4, 5, 3)."""
    assert quadratic([1.0, 0.0, 3.0], (1, 0, 1)) == [4, 0, 9]


def tokens():
    """Batches of two micro-batches, each of 3 windows of 3 tokens."""
    return Tokens(schema(GRADIENT_ACCUMULATION="2"), VOCABULARY, length=3)


def loss_of(model, data, temperature):
    """The mean over two batches of two micro-batches, in the model's dtype, by the model's logits."""
    total = 0.0
    for step, micro in itertools.product((0, 1), (0, 1)):
        x, y = data.batch(step, micro)
        total = total + nn.functional.cross_entropy(model(x).flatten(0, 1) / temperature, y.flatten()) / 4
    return total


def gradient_of(model, data, parameters, temperature):
    return [g.clone() for g in torch.autograd.grad(loss_of(model, data, temperature), parameters)]


def test_grasp_of_gpt2_is_that_of_a_finite_difference():
    """H g from (grad(w + e g) - grad(w - e g)) / 2 e, in float64."""
    model, data = gpt2(scale=0.5).double(), tokens()
    names = [name for name, p in model.named_parameters() if name.startswith("h.") and p.dim() == 2]
    weights = weights_of(model, names)
    criterion = grasp.GraSP(batches=2)
    criterion.measure(weights, model, first_batches.losses(model, data, machine()))
    parameters = [weight.parameter for weight in weights]
    slope = gradient_of(model, data, parameters, grasp.TEMPERATURE)
    size = 1e-3
    ends = []
    for sign in (1, -2, 1):
        torch._foreach_add_([p.data for p in parameters], slope, alpha=sign * size)
        ends.append(gradient_of(model, data, parameters, grasp.TEMPERATURE))
    for i, weight in enumerate(weights):
        product = (ends[0][i] - ends[1][i]) / (2 * size)
        score = criterion.score(weight)
        torch.testing.assert_close(score, weight.value * product, rtol=1e-6, atol=1e-6 * float(score.abs().max()))


@pytest.mark.parametrize("temperature", [None, 1.0])
def test_the_losses_are_those_that_training_computes(temperature):
    model, data = gpt2(scale=0.5), tokens()
    parts = list(first_batches.losses(model, data, machine())(2, temperature))
    assert len(parts) == (4 if temperature is None else 12)
    assert sum(parts).item() == pytest.approx(loss_of(model, data, 1.0).item(), rel=1e-6)
    assert model.training
