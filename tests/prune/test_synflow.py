"""SynFlow's scores against literal values and plain loops in float64; flow is conserved, and never overflows."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gpt2.model import GPT2
from gpt2.shape import ModelOptions
from lib import prune
from lib.base.errors import UsageError
from lib.prune.score import synflow
from lib.prune.select import PruningError
from lib.prune.weight import Weight
from tests.prune.test_prune import schema

VOCABULARY = 11


def gpt2(layers=2, heads=2, width=4, seed=0, scale=1.0):
    """A GPT-2 whose weights, norms and biases are all random."""
    torch.manual_seed(seed)
    options = ModelOptions("custom", layers, heads, width, 3, 0.0, "gelu-tanh")
    model = GPT2(options, VOCABULARY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=scale)
    return model


def weights_of(model, names):
    found = dict(model.named_parameters())
    return [Weight(name, found[name], torch.ones_like(found[name], dtype=torch.uint8), None) for name in names]


def test_flow_through_two_layers():
    """R = (2, 1) (1 + 2, 3 + 0.5)^T = 9.5."""
    first = nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
    second = nn.Parameter(torch.tensor([[2.0, -1.0]]))
    ones = torch.ones(2, dtype=torch.float64)
    found = dict(synflow.flows(lambda product: product(second, product(first, ones)).sum()))
    assert found[first].tolist() == [[2 / 9.5, 4 / 9.5], [3 / 9.5, 0.5 / 9.5]]
    assert found[second].tolist() == [[6 / 9.5, 3.5 / 9.5]]


def test_a_weight_that_is_used_twice_has_both_flows():
    """R = 1^T |W| |W|^T 1 = (1 + 3)^2 + (2 + 4)^2 = 52, and each w appears in both factors."""
    weight = nn.Parameter(torch.tensor([[1.0, -2.0], [-3.0, 4.0]]))
    ones = torch.ones(2, dtype=torch.float64)
    found = dict(synflow.flows(lambda product: product(weight, product(weight, ones, transposed=True)).sum()))
    assert (found[weight] * 52).tolist() == pytest.approx(np.array([[8, 24], [24, 48]]))


def plain_flow(model):
    """R of GPT-2's linear network in loops over numpy numbers, as docs/methods.md describes it."""
    a = {name: np.abs(p.detach().double().numpy()) for name, p in model.named_parameters()}
    width = a["wpe.weight"].shape[1]

    def times(name, x):
        return [sum(w * v for w, v in zip(row, x, strict=True)) for row in a[name]]

    x = [sum(a["wte.weight"][:VOCABULARY, c]) + sum(a["wpe.weight"][:, c]) for c in range(width)]
    for n in range(len(model.h)):
        qkv = times(f"h.{n}.attn.c_attn.weight", a[f"h.{n}.ln_1.weight"] * x)
        third = len(qkv) // 3
        heads = [qkv[i] + qkv[third + i] + qkv[2 * third + i] for i in range(third)]
        x = np.add(x, times(f"h.{n}.attn.c_proj.weight", heads))
        inner = times(f"h.{n}.mlp.c_fc.weight", a[f"h.{n}.ln_2.weight"] * x)
        x = np.add(x, times(f"h.{n}.mlp.c_proj.weight", inner))
    return sum(times("wte.weight", a["ln_f.weight"] * x)[:VOCABULARY])


def test_a_score_is_the_flow_that_stops_without_the_weight():
    """R is linear in each weight of a block, so the score is what R loses when the weight is zero."""
    model = gpt2()
    scores = {id(p): s for p, s in synflow.flows(model.flow)}
    whole = plain_flow(model)
    for name, parameter in model.named_parameters():
        if not name.startswith("h.") or parameter.dim() < 2:
            continue
        for place in itertools.product(*(range(0, size, 3) for size in parameter.shape)):
            value = parameter[place].item()
            with torch.no_grad():
                parameter[place] = 0
                lost = 1 - plain_flow(model) / whole
                parameter[place] = value
            assert scores[id(parameter)][place].item() == pytest.approx(lost, rel=1e-9), (name, place)


def test_embeddings_have_the_flow_at_both_ends():
    """wte is used twice, so R is quadratic in it: S = w dR/dw, by a central difference, which is exact here."""
    model = gpt2()
    scores = {id(p): s for p, s in synflow.flows(model.flow)}
    for parameter in (model.wte.weight, model.wpe.weight):
        for place in ((0, 0), (2, 3)):
            value = parameter[place].item()
            ends = []
            for factor in (1.5, 0.5):
                with torch.no_grad():
                    parameter[place] = value * factor
                ends.append(plain_flow(model))
            with torch.no_grad():
                parameter[place] = value
            slope = (ends[0] - ends[1]) / plain_flow(model)
            assert scores[id(parameter)][place].item() == pytest.approx(slope, rel=1e-6)
    assert torch.count_nonzero(scores[id(model.wte.weight)][VOCABULARY:]) == 0


@given(st.integers(1, 4), st.sampled_from([(1, 3), (2, 4), (3, 6)]), st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_flow_is_conserved(layers, size, seed):
    """What flows into a neuron or a head's channel flows out of it; and all of R flows through the embeddings."""
    model = gpt2(layers, *size, seed=seed)
    scores = {id(p): s for p, s in synflow.flows(model.flow)}
    of = lambda module: scores[id(module.weight)]  # noqa: E731
    for block in model.h:
        into = of(block.attn.c_attn).sum(1).view(3, -1).sum(0)
        torch.testing.assert_close(into, of(block.attn.c_proj).sum(0))
        torch.testing.assert_close(of(block.mlp.c_fc).sum(1), of(block.mlp.c_proj).sum(0))
        for module in (block.attn, block.mlp):
            assert 0 < of(module.c_proj).sum() < 1  # the rest flows through the residual connection
    ends = of(model.wte).sum() + of(model.wpe).sum()
    assert ends.item() == pytest.approx(2)  # wte and wpe let R in, and wte lets it out again


def test_deep_networks_do_not_overflow():
    """Without a scale, R would be above (2 (400 x 100)^2)^200."""
    model = gpt2(layers=200, width=4, scale=100.0)
    scores = {id(p): s for p, s in synflow.flows(model.flow)}
    assert all(torch.isfinite(found).all() for found in scores.values())
    for block in (model.h[0], model.h[-1]):
        assert scores[id(block.mlp.c_fc.weight)].sum().item() == pytest.approx(1, abs=1e-3)


def test_the_scores_of_a_published_size_fit_in_float32():
    """12 layers of width 768, as they are initialised: each matrix has about all of the flow."""
    torch.manual_seed(0)
    model = GPT2(ModelOptions("custom", 12, 12, 768, 16, 0.0, "gelu-tanh"), 64)
    weights = weights_of(model, [f"h.{n}.mlp.c_fc.weight" for n in (0, 11)])
    criterion = synflow.SynFlow()
    criterion.measure(weights, model, None)
    for weight in weights:
        scores = criterion.score(weight)
        assert scores.dtype == torch.float32 and scores.shape == weight.mask.shape
        assert torch.isfinite(scores).all() and scores.min() > 1e-12 and 1.9 < scores.mean() < 2


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_no_flow_is_an_error(value):
    model = gpt2()
    with torch.no_grad():
        model.ln_f.weight.fill_(value)
    with pytest.raises(PruningError, match=r"^PRUNING_METHOD=synflow: the flow through the network is "):
        list(synflow.flows(model.flow))


def test_what_is_no_matrix_has_no_score():
    made = schema(
        PRUNING_METHOD="synflow", PRUNING_DYNAMICS="static", PRUNING_INTERVAL=None, PRUNING_SCOPE="h.0.mlp.c_fc.*"
    )
    with pytest.raises(UsageError, match=r"^PRUNING_METHOD=synflow scores matrices, and h\.0\.mlp\.c_fc\.bias is none"):
        prune.build(gpt2(), None, made.bind)
