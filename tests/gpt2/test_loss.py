"""The loss in chunks against F.cross_entropy on all logits, in values, gradients and precision."""

import pytest
import torch
import torch.nn.functional as F

from gpt2 import loss
from gpt2.loss import linear_cross_entropy

N, C, VOCABULARY, PADDED = 13, 8, 50, 64


@pytest.fixture(params=[1024, 5, 1], ids=lambda rows: f"{rows} rows")
def data(request, monkeypatch):
    """Inputs, head and targets; in one chunk, in three of which the last is shorter, in thirteen."""
    monkeypatch.setattr(loss, "_ROWS", {"cpu": request.param})
    torch.manual_seed(0)
    x, weight = torch.randn(N, C, requires_grad=True), torch.randn(PADDED, C, requires_grad=True)
    return x, weight, torch.randint(VOCABULARY, (N,))


def reference(x, weight, targets):
    """In float64, with the padding cut off."""
    x, weight = (tensor.detach().double().requires_grad_() for tensor in (x, weight))
    value = F.cross_entropy(x @ weight[:VOCABULARY].T, targets)
    value.backward()
    return value, x.grad, weight.grad


def test_value_and_gradients_are_those_of_cross_entropy(data):
    x, weight, targets = data
    expected, x_grad, weight_grad = reference(*data)
    value = linear_cross_entropy(x, weight, targets, VOCABULARY)
    assert value.dtype == torch.float32 and value.shape == ()
    torch.testing.assert_close(value, expected.float(), rtol=1e-6, atol=0)
    (value * 0.25).backward()
    torch.testing.assert_close(x.grad, x_grad.float() / 4, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(weight.grad, weight_grad.float() / 4, rtol=1e-5, atol=1e-7)
    assert torch.count_nonzero(weight.grad[VOCABULARY:]) == 0
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(x, weight, targets, VOCABULARY), value, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_under_autocast_gradients_are_float32_of_16_bit_products(data, dtype, tolerance):
    x, weight, targets = data
    expected, x_grad, weight_grad = reference(*data)
    with torch.autocast("cpu", dtype):
        value = linear_cross_entropy(x, weight, targets, VOCABULARY)
    value.backward()
    assert (value.dtype, x.grad.dtype, weight.grad.dtype) == (torch.float32,) * 3
    assert value.item() == pytest.approx(expected.item(), rel=tolerance)
    for found, wanted in ((x.grad, x_grad), (weight.grad, weight_grad)):
        assert (found - wanted).norm() < tolerance * wanted.norm()


def test_float16_gradients_of_large_batches_neither_overflow_nor_vanish():
    """The same target everywhere sums up most; a token that is never the target has the smallest gradients."""
    n, vocabulary = 20_000, 1000
    x = torch.full((n, 4), 20.0, requires_grad=True)
    weight = torch.zeros(vocabulary, 4, requires_grad=True)
    with torch.autocast("cpu", torch.float16):
        linear_cross_entropy(x, weight, torch.zeros(n, dtype=torch.long), vocabulary).backward()
    # softmax is 1/1000 everywhere: the mean of (softmax - one-hot) x is 20 (0.001 - 1) and 20 * 0.001
    torch.testing.assert_close(weight.grad[0], torch.full((4,), -19.98), rtol=2e-3, atol=0)
    torch.testing.assert_close(weight.grad[1:], torch.full((999, 4), 0.02), rtol=2e-2, atol=0)


def test_float16_keeps_the_gradient_of_tokens_of_little_probability():
    n, p = 32_768, 8.3e-7
    x = torch.full((n, 1), 1.0, requires_grad=True)
    weight = torch.tensor([[0.0], [-14.0]], requires_grad=True)  # e^-14 = 8.3e-7
    with torch.autocast("cpu", torch.float16):
        linear_cross_entropy(x, weight, torch.zeros(n, dtype=torch.long), 2).backward()
    assert weight.grad[1].item() == pytest.approx(p, rel=0.05)


def test_a_confident_prediction_keeps_its_small_gradient_in_bfloat16():
    """1 - p is taken before rounding: p = 0.9990 would round to 1."""
    x = torch.tensor([[7.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.0]], requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        linear_cross_entropy(x, weight, torch.tensor([0]), 2).backward()
    # p = 1 / (1 + e^-7) = 0.99908895, (p - 1) x = -0.0063774
    assert weight.grad[0].item() == pytest.approx(-0.0063774, rel=1e-2)


def test_gradients_agree_with_finite_differences():
    torch.manual_seed(1)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 2, 4, 4])
    assert torch.autograd.gradcheck(
        lambda x, w: linear_cross_entropy(x, w, targets, 5), (x, weight), eps=1e-3, atol=1e-3, rtol=1e-3
    )
