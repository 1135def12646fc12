"""What one-shot pruning promises for every method: exact numbers, its order, its stops, and its refusals."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gpt2.model import GPT2
from gpt2.oneshot.blocks import prune
from lib.base.errors import UsageError, UserError
from lib.prune import mask
from tests.gpt2.oneshot import cases

COMBINATIONS = [
    *itertools.product(("magnitude", "random"), ("global-rms", "global", "layer", "erk", "row", "n-m")),
    ("magnitude", "owl"),
    *itertools.product(("wanda",), ("global-rms", "global", "layer", "erk", "row", "n-m", "owl")),
    *itertools.product(("sparsegpt",), ("layer", "erk", "n-m", "owl")),
]
TOTAL = 55_296  # two blocks, each with 12 x 48 x 48 weights


def zeros(model):
    return sum(int((parameter == 0).sum()) for parameter in model.prunable())


@pytest.mark.parametrize(("method", "distribution"), COMBINATIONS)
def test_the_number_of_zeros_is_exact_and_the_masks_are_those_of_the_weights(method, distribution):
    model, masks = cases.pruned(method, distribution)
    assert zeros(model) == (TOTAL // 2 if distribution == "n-m" else 33_178)  # round(0.6 x 55,296)
    weights = dict(model.named_parameters())
    assert list(masks) == [name for name in weights if name.startswith("h.") and weights[name].dim() == 2]
    for name, kept in masks.items():
        assert kept.dtype == torch.uint8
        torch.testing.assert_close(kept, (weights[name] != 0).to(torch.uint8), rtol=0, atol=0)
    others = {name: value for name, value in cases.trained().named_parameters() if name not in masks}
    assert all(torch.equal(weights[name], value) for name, value in others.items())
    if method != "sparsegpt":  # the weights that stay are as they were
        dense = dict(cases.trained().named_parameters())
        assert all(torch.equal(weights[name], dense[name] * kept) for name, kept in masks.items())


@pytest.mark.parametrize(("method", "distribution"), [pair for pair in COMBINATIONS if pair[1] != "n-m"])
def test_weights_that_are_zero_already_count_towards_the_target(method, distribution):
    model, before = cases.pruned("magnitude", "global", target_sparsity=0.5)

    assert zeros(model) == 27_648  # unevenly, in tensors and in rows
    _, after = cases.pruned(method, distribution, model)
    assert zeros(model) == sum(int((kept == 0).sum()) for kept in after.values()) == 33_178
    assert not any(bool(kept[before[name] == 0].any()) for name, kept in after.items())


def test_a_model_at_the_target_stays_as_it_is():
    model, before = cases.pruned("magnitude", "global", target_sparsity=0.5)
    for method, distribution in (("wanda", "row"), ("sparsegpt", "layer"), ("magnitude", "global")):
        _, after = cases.pruned(method, distribution, model, target_sparsity=0.5)
        assert all(torch.equal(after[name], kept) for name, kept in before.items())
    _, after = cases.pruned("wanda", "row", model, target_sparsity=0.4999)  # a few zeros more than the target
    assert zeros(model) == 27_648 and all(torch.equal(after[name], kept) for name, kept in before.items())


def test_rows_with_more_zeros_than_their_share_keep_them_and_others_lose_fewer():
    model = cases.trained()
    model.h[0].attn.c_proj.weight.data[0, :40] = 0
    _, masks = cases.pruned("wanda", "row", model, target_sparsity=0.5, pruning_scope="h.0.attn.c_proj.weight")
    gone = (masks["h.0.attn.c_proj.weight"] == 0).sum(1).tolist()
    assert gone[0] == 40 and sum(gone) == 1152  # half of 48 x 48
    assert sorted(gone[1:]) == [23] * 16 + [24] * 31  # 1112 / 47 = 23.66


def test_wanda_prunes_each_row_by_the_inputs_of_the_pruned_blocks():
    model = cases.trained().double()
    states = cases.embedded(model, cases.windows(24))
    _, masks = cases.pruned("wanda", "row")
    different = 0
    for number, block in enumerate(model.h):
        xs, _ = cases.inputs(block, states)
        for name, x in xs.items():
            weight = block.get_parameter(name).data
            norms = [sum(float(value) ** 2 for value in column) ** 0.5 for column in x.T]
            rows, width = weight.shape
            each, more = divmod(round(0.6 * rows * width), rows)
            for i in range(rows):
                scores = sorted((abs(float(weight[i, j])) * norms[j], j) for j in range(width))
                gone = {j for _, j in scores[: each + (i < more)]}
                kept = [int(j not in gone) for j in range(width)]
                different += int((masks[f"h.{number}.{name}"][i].numpy() != kept).sum())
                weight[i] *= torch.tensor(kept)
        with torch.no_grad():
            states = block(states)
    assert different <= 4  # ties, up to the rounding of float32


@pytest.mark.parametrize("distribution", ["global", "global-rms"])
def test_global_shares_of_wanda_are_those_of_the_dense_model(distribution):
    model = cases.trained()
    states, scores = cases.embedded(model, cases.windows(24)), {}
    for number, block in enumerate(model.h):
        xs, states = cases.inputs(block, states)
        for name, x in xs.items():
            norm = torch.tensor(np.linalg.norm(x.astype(np.float64), axis=0))
            scores[f"h.{number}.{name}"] = block.get_parameter(name).detach().abs() * norm
    if distribution == "global-rms":
        scores = {name: score / score.square().mean().sqrt() for name, score in scores.items()}
    cut = torch.cat([score.flatten() for score in scores.values()]).sort().values[33_178 - 1]
    _, masks = cases.pruned("wanda", distribution, pruning_layer_cap=1.0)
    for name, score in scores.items():
        assert abs(int((masks[name] == 0).sum()) - int((score <= cut).sum())) <= 1  # a tie by float32's rounding


def test_on_real_inputs_sparsegpt_errs_less_than_wanda_and_wanda_less_than_magnitude():
    dense = cases.trained()
    xs, _ = cases.inputs(dense.h[0], cases.embedded(dense, cases.windows(24)))
    errors = {}
    for method in ("sparsegpt", "wanda", "magnitude"):
        model, _ = cases.pruned(method, "layer")
        errors[method] = [
            np.linalg.norm(x @ (dense.h[0].get_parameter(name) - model.h[0].get_parameter(name)).detach().numpy().T)
            for name, x in xs.items()
        ]
    sparsegpt, wanda, magnitude = (np.array(found) for found in errors.values())
    assert (sparsegpt < 0.7 * wanda).all()
    assert (wanda < 1.05 * magnitude).all()  # about the same in c_attn of a model this small
    assert (wanda / magnitude).mean() < 0.95


def test_embeddings_and_norms_are_pruned_by_magnitude_without_the_padding():
    model, masks = cases.pruned("magnitude", "layer", GPT2(cases.SHAPE, 100), pruning_scope="wte.weight,h.0.ln_1.*")
    assert {name: tuple(kept.shape) for name, kept in masks.items()} == {
        "wte.weight": (100, 48),
        "h.0.ln_1.weight": (48,),
        "h.0.ln_1.bias": (48,),
    }
    # 60 % of 4,896 is 2,938. All 48 of the bias are zero already, so the others lose fewer than 60 %.
    assert [int((kept == 0).sum()) for kept in masks.values()] == [2861, 29, 48]
    assert int((model.wte.weight[:100] == 0).sum()) == 2861
    assert bool((model.wte.weight[100:] != 0).all())


@pytest.mark.parametrize(
    ("method", "distribution", "option"),
    [
        ("wanda", "layer", "PRUNING_METHOD=wanda"),
        ("sparsegpt", "layer", "PRUNING_METHOD=sparsegpt"),
        ("magnitude", "owl", "PRUNING_DISTRIBUTION=owl"),
    ],
)
def test_a_tensor_without_inputs_is_refused_before_any_weight_changes(method, distribution, option):
    model = cases.trained()
    with pytest.raises(UsageError) as error:
        cases.pruned(method, distribution, model, pruning_scope=f"{cases.MATRICES},wte.weight")
    assert str(error.value) == (
        f"{option} measures the inputs of linear layers, and wte.weight is not the weight of one; leave it out of "
        "PRUNING_SCOPE"
    )
    assert zeros(model) == 0


def test_groups_that_cross_blocks_of_columns_are_refused():
    with pytest.raises(UsageError) as error:
        cases.pruned("sparsegpt", "n-m", sparsegpt_block=30)
    assert str(error.value) == (
        "SPARSEGPT_BLOCK=30 must be a multiple of PRUNING_M=4, because a group does not cross blocks"
    )


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_inputs_that_are_nan_are_one_sentence(method):
    model = cases.trained()
    model.h[1].ln_1.weight.data[3] = float("nan")
    with pytest.raises(UserError) as error:
        cases.pruned(method, "layer", model)
    assert str(error.value) == (
        "h.1.attn.c_attn: its inputs on the calibration windows are NaN or infinite, or so large that their squares "
        "are; prune another checkpoint"
    )


def test_blocks_are_reported_in_order_when_they_are_pruned():
    model, reports = cases.trained(), []

    def done(number):
        reports.append((number, [int((block.mlp.c_fc.weight == 0).sum()) > 0 for block in model.h]))

    prune(model, cases.windows(8), cases.CPU, cases.options("wanda", "row"), done, lambda: False)
    assert reports == [(1, [True, False]), (2, [True, True])]


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_a_request_to_stop_is_heard_within_a_block(method):
    model, asked = cases.trained(), []

    def asks():
        asked.append(True)
        return len(asked) == 3

    with pytest.raises(KeyboardInterrupt):
        prune(model, cases.windows(8), cases.CPU, cases.options(method, "layer"), pytest.fail, asks)
    assert len(asked) == 3


def test_only_part_of_the_layers_may_be_in_scope():
    model, masks = cases.pruned("sparsegpt", "layer", pruning_scope="h.1.attn.c_proj.weight")
    assert [(name, int((kept == 0).sum())) for name, kept in masks.items()] == [("h.1.attn.c_proj.weight", 1382)]
    assert zeros(model) == 1382  # round(0.6 x 2304)


def test_magnitude_needs_no_windows():
    with_inputs = cases.pruned("magnitude", "global")[1]
    model = cases.trained()
    got = prune(model, None, cases.CPU, cases.options("magnitude", "global"), lambda k: None, lambda: False)
    assert all(torch.equal(got[name], kept) for name, kept in with_inputs.items())
    flat = torch.cat([p.detach().abs().flatten() for p in cases.trained().prunable()])
    expected = torch.ones_like(flat, dtype=torch.uint8).index_fill_(0, flat.argsort(stable=True)[:33_178], 0)
    torch.testing.assert_close(torch.cat([kept.flatten() for kept in got.values()]), expected, rtol=0, atol=0)


def test_the_order_of_the_batches_does_not_matter(monkeypatch):
    whole = cases.pruned("wanda", "row")[1]
    monkeypatch.setattr("gpt2.oneshot.inputs._TOKENS", 100)  # 3 windows of 32 tokens
    parts = cases.pruned("wanda", "row")[1]
    different = sum(mask.ones(whole[name] ^ parts[name]) for name in whole)
    assert different <= 4
    assert sum(map(mask.ones, whole.values())) == sum(map(mask.ones, parts.values()))


def test_the_pruned_model_still_speaks():
    """50 % by SparseGPT costs less than by magnitude, and both less than a model that learned nothing."""
    tokens, losses = cases.windows(32, seed=9), {}
    for method in ("magnitude", "wanda", "sparsegpt"):
        model, _ = cases.pruned(method, "row" if method == "wanda" else "layer", target_sparsity=0.5)
        with torch.no_grad():
            losses[method] = float(F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()))
    assert losses["sparsegpt"] < losses["wanda"] < losses["magnitude"] < np.log(256)
