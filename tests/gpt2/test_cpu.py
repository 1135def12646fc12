"""The CPU's own linear layers and attention against torch's."""

import pytest
import torch
import torch.nn.functional as F

from gpt2 import cpu
from gpt2.cpu import Linear
from gpt2.model import GPT2, ModelOptions


def onednn():
    cpu.use(layer := Linear(8, 12), ("onednn",))
    return layer


@pytest.mark.parametrize("shape", [(5, 8), (2, 5, 8), (1, 1, 8)])
def test_linear_layers_have_the_value_and_gradients_of_torchs(shape):
    torch.manual_seed(0)
    layer = onednn()
    x = torch.randn(*shape, requires_grad=True)
    y = layer(x)
    assert "linear" in type(y.grad_fn).__name__
    expected = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(y, expected)
    grad = torch.randn_like(y)
    inputs = (x, layer.weight, layer.bias)
    for found, wanted in zip(
        torch.autograd.grad(y, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        torch.testing.assert_close(found, wanted)


def test_linear_layers_are_torchs_own_unless_chosen():
    assert type(Linear(8, 12)(torch.randn(5, 8)).grad_fn).__name__ == "AddmmBackward0"


def test_products_of_other_dtypes_are_left_to_torch():
    layer, x = onednn(), torch.randn(5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert type(y.grad_fn).__name__ == "AddmmBackward0"
    assert onednn().double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_attention_in_its_parts_is_torchs(dropout):
    """In float32, so that only rounding differs; with dropout what is kept is doubled."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 24, 8)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    many = torch.stack([cpu._in_parts(q, k, v, dropout) for _ in range(4000 if dropout else 1)])
    torch.testing.assert_close(many.mean(0), expected, atol=0.1 if dropout else 1e-6, rtol=1e-5)


def test_attention_in_its_parts_is_taken_where_it_is_chosen_and_the_scores_fit(monkeypatch):
    taken, in_parts = [], cpu._in_parts
    monkeypatch.setattr(cpu, "_in_parts", lambda *given: taken.append(given) or in_parts(*given))
    options = ModelOptions("custom", n_layer=3, n_head=4, n_embd=32, block_size=24, dropout=0.0, activation="gelu-tanh")
    model, tokens = GPT2(options, 256), torch.zeros(1, 5, dtype=torch.long)
    model(tokens)
    assert not taken
    cpu.use(model, ("attention",))
    model(tokens)
    assert len(taken) == 3  # one per layer
    assert taken[0][0].shape == (1, 4, 5, 8)
    monkeypatch.setattr(cpu, "_MOST_SCORES", 99)  # there are 100
    model(tokens)
    assert len(taken) == 3
