"""The CPU's own linear layers and attention against torch's."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from gpt2 import cpu
from gpt2.cpu import Linear
from gpt2.model import GPT2, ModelOptions


@pytest.fixture
def compiling(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


@pytest.mark.parametrize("shape", [(5, 8), (2, 5, 8), (1, 1, 8)])
def test_linear_layers_have_the_value_and_gradients_of_torchs(compiling, shape):
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


def test_without_a_compiler_linear_layers_are_torchs_own():
    assert type(Linear(8, 12)(torch.randn(5, 8)).grad_fn).__name__ == "AddmmBackward0"


def test_products_of_other_dtypes_are_left_to_torch(compiling):
    layer, x = Linear(8, 12), torch.randn(5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert type(y.grad_fn).__name__ == "AddmmBackward0"
    assert Linear(8, 12).double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_attention_in_its_parts_is_torchs(dropout):
    """In float32, so that only rounding differs; with dropout what is kept is doubled."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 24, 8)
    mask = torch.full((24, 24), -math.inf).triu(1)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    many = torch.stack([cpu._in_parts(q, k, v, mask, dropout) for _ in range(4000 if dropout else 1)])
    torch.testing.assert_close(many.mean(0), expected, atol=0.1 if dropout else 1e-6, rtol=1e-5)


def test_attention_in_its_parts_is_taken_for_short_contexts_in_16_bits(monkeypatch):
    taken, in_parts = [], cpu._in_parts
    monkeypatch.setattr(cpu, "_in_parts", lambda *given: taken.append(given) or in_parts(*given))
    short = ModelOptions("custom", n_layer=3, n_head=4, n_embd=32, block_size=24, dropout=0.0, activation="gelu-tanh")
    long = dataclasses.replace(short, block_size=257)
    for options, dtype in [(short, torch.bfloat16), (short, torch.float32), (long, torch.bfloat16)]:
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            GPT2(options, 256)(torch.zeros(1, 5, dtype=torch.long))
    assert len(taken) == 3  # one per layer of the first
    assert taken[0][3].shape == (5, 5)
