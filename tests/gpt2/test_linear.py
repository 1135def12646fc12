"""Linear layers by oneDNN against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from gpt2.linear import Linear


@pytest.fixture(autouse=True)
def compiling(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


@pytest.mark.parametrize("shape", [(5, 8), (2, 5, 8), (1, 1, 8)])
def test_value_and_gradients_are_those_of_torch(shape):
    torch.manual_seed(0)
    layer = Linear(8, 12)
    x = torch.randn(*shape, requires_grad=True)
    y = layer(x)
    assert type(y.grad_fn).__name__ == "_OneDNNBackward"
    expected = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(y, expected)
    grad = torch.randn_like(y)
    inputs = (x, layer.weight, layer.bias)
    for found, wanted in zip(
        torch.autograd.grad(y, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        torch.testing.assert_close(found, wanted)


def test_without_a_compiler_it_is_torchs_own(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: False)
    assert type(Linear(8, 12)(torch.randn(5, 8)).grad_fn).__name__ == "AddmmBackward0"


def test_other_arithmetic_is_left_to_torch():
    layer, x = Linear(8, 12), torch.randn(5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert type(y.grad_fn).__name__ == "AddmmBackward0"
    assert Linear(8, 12).double()(x.double()).dtype == torch.float64
