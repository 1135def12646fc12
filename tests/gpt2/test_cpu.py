"""The CPU's own linear layers and attention against torch's."""

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from gpt2 import cpu
from gpt2.cpu import CausalAttention, Linear
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


def attention(kernels, qkv, heads):
    """What it computes, and the gradient of its input for a fixed gradient of its output."""
    cpu.use(attend := CausalAttention(), kernels)
    qkv = qkv.clone().requires_grad_()
    y = attend(qkv, heads, 0.0)
    torch.manual_seed(1)
    y.backward(torch.randn(y.shape).to(y.dtype))
    return y.detach(), qkv.grad


@pytest.mark.parametrize("B, H, T, D", [(2, 4, 24, 8), (1, 1, 1, 3), (3, 2, 65, 16), (1, 12, 7, 64)])
def test_attention_in_its_parts_has_the_value_and_gradient_of_torchs(B, H, T, D):
    torch.manual_seed(0)
    qkv = torch.randn(B, T, 3 * H * D)
    for found, wanted in zip(attention(("attention",), qkv, H), attention((), qkv, H), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_attention_in_its_parts_is_the_formula():
    """In float64, head by head, with autograd's gradient of the formula."""
    torch.manual_seed(0)
    qkv = torch.randn(2, 5, 3 * 2 * 4, dtype=torch.float64)
    y, grad = attention(("attention",), qkv, 2)
    torch.manual_seed(1)
    slope = torch.randn(2, 5, 8).double()
    x = qkv.clone().requires_grad_()
    q, k, v = x.split(8, dim=2)  # (B, T, H D) each
    out = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = q[..., head] @ k[..., head].transpose(1, 2) / 2  # sqrt(4)
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
        out.append(torch.softmax(scores, dim=2) @ v[..., head])
    expected = torch.cat(out, dim=2)
    expected.backward(slope)
    torch.testing.assert_close(y, expected.detach(), atol=1e-14, rtol=0)
    torch.testing.assert_close(grad, x.grad, atol=1e-14, rtol=0)


def test_attention_in_its_parts_is_off_by_rounding_in_16_bits():
    torch.manual_seed(0)
    qkv = torch.randn(2, 64, 3 * 64)
    with torch.autocast("cpu", torch.bfloat16):
        found = attention(("attention",), qkv.bfloat16(), 4)
    assert found[0].dtype == torch.bfloat16
    for value, wanted in zip(found, attention((), qkv.bfloat16().double(), 4), strict=True):
        assert (value.double() - wanted).norm() < 0.006 * wanted.norm()


def test_the_operators_are_what_the_compiler_is_told():
    """Shapes and strides of results, and gradients, in a graph as without one."""
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        torch.library.opcheck(torch.ops.espalier.attention, (torch.randn(2, 6, 24, dtype=dtype, requires_grad=True), 2))
    inputs = tuple(torch.randn(size, requires_grad=True) for size in ((2, 5, 8), (12, 8), (12,)))
    torch.library.opcheck(torch.ops.espalier.linear, inputs)


def test_attention_in_its_parts_is_taken_in_training_where_it_is_chosen_and_the_scores_fit(monkeypatch):
    def parts():
        """How many layers took it."""
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            model(tokens)
        return sum(event.count for event in profiler.key_averages() if event.key == "espalier::attention")

    options = ModelOptions("custom", n_layer=3, n_head=4, n_embd=32, block_size=24, dropout=0.0, activation="gelu-tanh")
    model, tokens = GPT2(options, 256), torch.zeros(1, 5, dtype=torch.long)
    assert parts() == 0
    cpu.use(model, ("attention",))
    assert parts() == 3
    model.eval()
    assert parts() == 0
    model.train()
    monkeypatch.setattr(cpu, "_MOST_SCORES", 99)  # there are 100
    assert parts() == 0
    monkeypatch.setattr(cpu, "_MOST_SCORES", 100)
    assert parts() == 3
    for block in model.h:
        block.attn.dropout = 0.5
    assert parts() == 0
