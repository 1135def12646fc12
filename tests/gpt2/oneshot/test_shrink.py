"""What make shrink removes, that the logits stay, and how whole units are pruned at once."""

import numpy as np
import pytest
import torch

from gpt2.model import GPT2
from gpt2.oneshot import shrink, side_by_side
from gpt2.oneshot.blocks import prune
from gpt2.shape import ShapeOptions
from lib.base.errors import UsageError, UserError
from lib.config.kconf import Schema
from lib.machine import turns
from lib.prune.kinds import chosen
from tests.gpt2.oneshot import cases


def zeroed(model, neurons=(), heads=()):
    """`model` without the units of these (layer, index), by zeros in the weights that read them."""
    with torch.no_grad():
        for layer, index in neurons:
            model.h[layer].mlp.c_proj.weight[:, index] = 0
        for layer, index in heads:
            model.h[layer].attn.c_proj.weight[:, index * 24 : (index + 1) * 24] = 0
    return model


def test_zero_units_are_removed_and_the_logits_stay():
    model = zeroed(cases.trained(), neurons=[(0, 0), (0, 191), (1, 7)], heads=[(1, 0)])
    before = model.state_dict()
    left = shrink.staying(model)
    small = shrink.smaller(model, left)
    assert small.options == ShapeOptions("custom", 2, 2, 48, 32, 0.1, "gelu-tanh", "190,191", "2,1")
    assert small.h[0].mlp.c_fc.weight.shape == (190, 48)
    assert small.h[1].attn.c_attn.weight.shape == (72, 48)
    assert small.h[1].attn.c_proj.weight.shape == (48, 24)
    assert torch.equal(small.h[1].attn.c_attn.weight[:24], before["h.1.attn.c_attn.weight"][24:48])  # q of head 1
    assert torch.equal(small.h[1].attn.c_attn.bias[48:], before["h.1.attn.c_attn.bias"][120:144])  # its v
    assert small.count_parameters() == model.count_parameters() - 3 * 97 - 24 * (4 * 48 + 3)
    assert shrink.gap(model, small) < 1e-12
    tokens = cases.windows(4)
    with torch.no_grad():
        torch.testing.assert_close(small(tokens), model.eval()(tokens), rtol=0, atol=1e-5)
    small(tokens, tokens).backward()  # it can be trained
    again = GPT2(small.options, 256)
    again.load_state_dict(small.state_dict())


def test_a_unit_whose_own_weights_are_zero_is_removed_and_one_with_a_bias_is_not():
    model = cases.trained()
    with torch.no_grad():
        model.h[0].mlp.c_fc.weight[3:5] = 0
        model.h[0].mlp.c_fc.bias[3], model.h[0].mlp.c_fc.bias[4] = 0, 1  # the activation of 1 is not 0
        model.h[1].attn.c_attn.weight[96:120] = 0  # v of head 0
        model.h[1].attn.c_attn.bias[96:120] = 0
        model.h[1].attn.c_attn.weight[:24] = 0  # without q a head attends to everything alike
        model.h[0].attn.c_attn.weight[:24] = 0
        model.h[0].attn.c_attn.bias[:24] = 0
    left = shrink.staying(model)
    assert [len(units) for units in left] == [2, 191, 1, 192]
    assert 3 not in left[1]
    assert shrink.gap(model, shrink.smaller(model, left)) < 1e-12


def test_one_unit_of_each_layer_stays_and_nothing_to_remove_is_an_error():
    model = zeroed(cases.trained(), heads=[(0, 0), (0, 1)])
    left = shrink.staying(model)
    assert [units.tolist()[:2] for units in left] == [[0], [0, 1], [0, 1], [0, 1]]
    assert shrink.gap(model, shrink.smaller(model, left)) < 1e-12
    with pytest.raises(UsageError, match=r"^no neuron and no head of this model is zero, so nothing can be "):
        shrink.staying(cases.trained())


def test_other_logits_are_refused():
    model = cases.trained()
    with pytest.raises(UserError, match=r"^the logits of the smaller model differ by .* more than 1e-05, so nothing"):
        shrink.gap(model, zeroed(cases.trained(), neurons=[(0, 0)]))


def test_models_are_timed_side_by_side_and_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(turns, "_SECONDS", 0.0)
    models = [cases.trained(), shrink.smaller(cases.trained(), shrink.staying(zeroed(cases.trained(), [(0, 0)])))]
    before = [{name: value.clone() for name, value in model.state_dict().items()} for model in models]
    found = side_by_side.measure(models, cases.CPU, 4, Schema().bind)
    assert list(found) == [
        "token of make sample", "evaluation of 4 x 32 tokens", "training step of 4 x 32 tokens", "the MLPs of that step"
    ]  # fmt: skip
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in found.values())
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


# ---- whole units at once ---------------------------------------------------------------------------------------------


def pruned(method, structure="both", distribution="layer", **changes):
    model, cap = cases.trained(), None if distribution == "layer" else 0.99
    how = cases.options(
        method, distribution, pruning_structure=structure, pruning_scope=None, target_sparsity=0.3,
        pruning_layer_cap=cap, **changes,
    )  # fmt: skip
    masks = prune(model, cases.windows(24), cases.CPU, how, lambda k: None, lambda: False)
    return model, masks


@pytest.mark.parametrize("method", ["magnitude", "wanda", "random"])
@pytest.mark.parametrize("distribution", ["layer", "global-rms"])
def test_exactly_so_many_units_go_at_once(method, distribution):
    model, masks = pruned(method, "both", distribution)
    found = {"heads": 0, "neurons": 0}
    for group, left in zip(model.groups(), shrink.staying(model), strict=True):
        found[group.kind] += group.size - len(left)
    assert found == ({"heads": 2, "neurons": 116} if distribution == "layer" else {"heads": 1, "neurons": 115})
    weights = dict(model.named_parameters())
    assert list(masks) and all(not bool(weights[name][mask == 0].any()) for name, mask in masks.items())
    assert {name for group in chosen(model.groups(), "both") for name in group.parts} == set(masks)


def test_wanda_sums_the_scores_of_the_dense_model():
    """|w| by the norm of its input over all tokens, in float64; the input of a bias is 1 for every token."""
    dense = cases.trained().double()
    states, expected = cases.embedded(dense, cases.windows(24)), []
    for block in dense.h:
        inputs, states = cases.inputs(block, states)
        norms = {name: np.sqrt((x**2).sum(0)) for name, x in inputs.items()}
        mlp = {name: p.detach().abs().numpy() for name, p in block.mlp.named_parameters()}
        expected.append(
            (mlp["c_fc.weight"] * norms["mlp.c_fc.weight"]).sum(1)
            + mlp["c_fc.bias"] * np.sqrt(24 * 32)
            + (mlp["c_proj.weight"] * norms["mlp.c_proj.weight"]).sum(0)
        )
    model, _ = pruned("wanda", "neurons")
    for n, worth in enumerate(expected):
        gone = (model.h[n].mlp.c_proj.weight == 0).all(0).numpy()
        assert gone.sum() == 58  # round(0.3 x 192)
        assert set(np.flatnonzero(gone)) == set(np.argsort(worth)[:58])
