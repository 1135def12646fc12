"""The masked layer against autograd through an explicit mask."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.backends.debugging import aot_eager
from torch._functorch import config
from torch._functorch._aot_autograd.autograd_cache import check_cacheable

from lib.base.errors import UsageError
from lib.prune.hidden import smooth
from lib.prune.masked_linear import MaskedLinear, install, masked
from lib.prune.score.str import soft_threshold


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def layer_and_mask(bias=True):
    torch.manual_seed(0)
    layer = nn.Linear(6, 4, bias=bias)
    return layer, (torch.rand(4, 6) < 0.5).to(torch.uint8)


@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_with_masked_weights_and_their_dense_gradient(bias):
    layer, mask = layer_and_mask(bias)
    sparse = MaskedLinear(layer, masked, mask)
    x = torch.randn(3, 5, 6, requires_grad=True)
    upstream = torch.randn(3, 5, 4)
    effective = (layer.weight.detach().double() * mask).requires_grad_()  # dL/dW' is what the estimator hands to W
    x64 = x.detach().double().requires_grad_()
    b64 = layer.bias.detach().double().requires_grad_() if bias else None
    expected = F.linear(x64, effective, b64)
    expected.backward(upstream.double())
    got = sparse(x)
    got.backward(upstream)
    close(got.double(), expected)
    close(x.grad.double(), x64.grad)
    close(layer.weight.grad.double(), effective.grad)
    if bias:
        close(layer.bias.grad.double(), b64.grad)
    assert torch.count_nonzero(layer.weight.grad[mask == 0]) > 0


def test_under_autocast_it_is_as_close_as_a_plain_layer():
    layer, mask = layer_and_mask()
    x = torch.randn(8, 6)
    with torch.autocast("cpu", torch.bfloat16):
        got = MaskedLinear(layer, masked, mask)(x)
        expected = F.linear(x, layer.weight * mask, layer.bias)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, expected)
    got.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_it_shares_parameters_and_names_with_the_layer_it_replaces():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    before = dict(model.named_parameters())
    keys = list(model.state_dict())
    mask = torch.ones(4, 6, dtype=torch.uint8)
    install(model, masked, {"0.weight": [mask]})
    assert isinstance(model[0], MaskedLinear)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert list(model.state_dict()) == keys
    x = torch.randn(2, 6)
    dense = model(x)
    mask.zero_()  # the pruner's mask is the layer's
    assert not torch.equal(model(x), dense)


def test_what_is_no_linear_weight_is_refused():
    model = nn.Sequential(nn.Embedding(3, 4))
    with pytest.raises(UsageError, match=r"PRUNING_SCOPE: 0\.weight is not the weight of a linear layer"):
        install(model, masked, {"0.weight": [torch.ones(3, 4, dtype=torch.uint8)]})


@pytest.mark.parametrize("method", ["ste", "s-ste", "str"])
def test_it_is_compiled_once_and_to_the_same(method):
    """Traced as for inductor: what is given changes in place, so it is no constant of the compiled code."""
    (layer, mask), number, traced = layer_and_mask(), torch.tensor(-1.5), []
    given = {"ste": (masked, mask), "s-ste": (partial(smooth, m=3), mask, number), "str": (soft_threshold, number)}
    sparse = MaskedLinear(layer, *given[method])

    def backend(graph, inputs):
        traced.append(graph)
        return aot_eager(graph, inputs)

    compiled = torch.compile(sparse, dynamic=False, fullgraph=True, backend=backend)
    x = torch.randn(5, 6, requires_grad=True)
    for _ in range(3):
        results = []
        for forward in (sparse, compiled):
            loss = forward(x).square().sum()
            results.append((loss, *torch.autograd.grad(loss, (x, layer.weight, layer.bias))))
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected)
        number.sub_(1)
        mask.copy_(torch.rand(4, 6) < 0.5)
    assert len(traced) == 1
    with config.patch(autograd_cache_allow_custom_autograd_functions=True):
        check_cacheable(traced[0])  # so a resumed run need not trace it again
