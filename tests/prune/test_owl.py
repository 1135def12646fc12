"""OWL's shares against the formulas in plain loops, and while training: exact counts, and what is gone stays gone."""

import dataclasses
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.model import GPT2
from gpt2.shape import ModelOptions
from lib import optim, prune
from lib.config.config_file import ConfigError
from lib.prune import owl
from lib.prune.mask import MaskOptions, budgets, choose
from lib.prune.score.wanda import INPUTS
from lib.prune.select import PruningError
from lib.prune.weight import Weight
from tests.gpt2.oneshot import cases
from tests.prune.test_mask import water
from tests.prune.test_prune import YES, schema

BY_OWL = {"PRUNING_DISTRIBUTION": "owl", "OWL_THRESHOLD": "3", "TARGET_SPARSITY": "0.6"}
BY_OWL |= {"PRUNING_SCOPE": cases.MATRICES}
SHAPE = ModelOptions("custom", n_layer=3, n_head=2, n_embd=16, block_size=8, dropout=0.0, activation="gelu-tanh")
TOTAL = 3 * 12 * 16 * 16


def options(method="magnitude", threshold=2.0, spread=0.1):
    return MaskOptions("owl", None, None, None, threshold, spread, method)


def test_outliers_are_counted_above_the_mean_of_the_block():
    first = torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 12.0]])
    second = torch.tensor([[2.0, 7.0]])
    # The mean of the 8 scores is 25 / 8 = 3.125: above 2 times that are 12 and 7.
    assert owl.outlier_share([lambda: first, lambda: second], 2.0) == 2 / 8
    assert owl.outlier_share([lambda: first, lambda: second], 3.0) == 1 / 8


def test_densities_span_twice_lambda_and_keep_the_mean():
    # Scaled to 0 ... 0.16: 0, 0.16, 0.04; their mean is 0.2 / 3.
    expected = [0.4 - 0.2 / 3, 0.56 - 0.2 / 3, 0.44 - 0.2 / 3]
    assert owl.densities([0.01, 0.05, 0.02], 0.6, 0.08) == pytest.approx(expected)
    assert owl.densities([0.02, 0.02], 0.6, 0.08) == [0.4, 0.4]


def test_budgets_add_up_and_keep_within_their_tensor():
    shapes = {"a": (10, 10), "b": (10, 10), "c": (20, 10)}

    def losses(densities, sparsity, gone):
        shares = [round(density * 10**15) * math.prod(shapes[name]) for name, density in densities.items()]
        return budgets(options(), shapes, sparsity, gone, shares)

    assert losses({"a": 0.3, "b": 0.5, "c": 0.4}, 0.6, [0, 0, 0]) == {"a": 70, "b": 50, "c": 120}
    # 0.97 is too dense for the rest: 12 weights are divided in the proportion of 2, 10 and next to nothing.
    assert losses({"a": 0.02, "b": 0.1, "c": 1e-15}, 0.97, [0, 0, 0]) == {"a": 98, "b": 90, "c": 200}
    # b has lost 80 already, so it keeps 20 of 160; a and c divide the other 140 in the proportion of 30 and 80.
    assert losses({"a": 0.3, "b": 0.5, "c": 0.4}, 0.6, [0, 80, 0]) == {"a": 62, "b": 80, "c": 98}
    # a keeps the 2 that it has and b the 4, so c, with next to no density, keeps the other 6 of 12.
    assert losses({"a": 0.02, "b": 0.1, "c": 1e-15}, 0.97, [98, 96, 0]) == {"a": 98, "b": 96, "c": 194}


def weight_of(name, value, squares, mask=None):
    made = Weight(name, torch.nn.Parameter(value), torch.ones_like(value, dtype=torch.uint8), {})
    if mask is not None:
        made.mask.copy_(mask)
    made.memory[INPUTS] = squares
    return made


def test_a_tensor_has_the_density_of_its_block_times_its_size():
    """h.0: scores 1 (7 of them) and 9, mean 2: one outlier of 8 above 4. h.1: scores 1, 1, 3, 3, mean 2: none."""
    ones = torch.ones(2)
    weights = [
        weight_of("h.0.attn.weight", torch.tensor([[1.0, -1.0], [1.0, 1.0]]), ones),
        weight_of("h.0.mlp.weight", torch.tensor([[1.0, 1.0], [-3.0, 1.0]]), torch.tensor([9.0, 1.0])),
        weight_of("h.1.mlp.weight", torch.tensor([[1.0, 3.0], [3.0, -1.0]]), ones),
    ]
    weights[1].parameter.data[0, 0] = 1 / 3  # times the norm 3 of its input
    # Scaled to 0.2 and 0, the mean taken off: 0.1 above and below a density of 0.5.
    shares = owl.shares(weights, 0.5, 2.0, 0.1)
    assert [share / 1e15 / 4 for share in shares] == pytest.approx([0.6, 0.6, 0.4], rel=1e-12)
    masks = choose(weights, lambda weight: weight.value.abs(), 0.5, options(), True)
    # 6 of 12 weights stay: 2.25 + 2.25 + 1.5 by the shares 6, 6 and 4, and the last of them is rounded up.
    assert [int(mask.sum()) for mask in masks] == [2, 2, 2]
    # At a density above 1 a tensor keeps all, and below 0 next to nothing.
    assert [round(share / 1e15 / 4, 6) for share in owl.shares(weights, 0.05, 2.0, 0.1)] == [1.0, 1.0, 0.85]
    assert owl.shares(weights, 0.95, 2.0, 0.1)[2] == 4


def test_scores_that_are_nan_or_infinite_are_one_sentence():
    for value in (math.inf, math.nan):
        with pytest.raises(PruningError, match="weights times the norms of their inputs are NaN or infinite"):
            owl.shares([weight_of("h.0.weight", torch.ones(2, 2), torch.tensor([1.0, value]))], 0.5, 5.0, 0.08)


# ---- while training --------------------------------------------------------------------------------------------------


class Trained:
    """A tiny GPT-2 of three blocks with outliers in the second, trained on random tokens as the loop does it."""

    def __init__(self, method, **values):
        torch.manual_seed(0)
        made = schema(PRUNING_METHOD=method, **BY_OWL | values)
        made.override([("LEARNING_RATE", "0.01", "test")])
        self.model = GPT2(SHAPE, 64)
        with torch.no_grad():
            self.model.h[1].mlp.c_fc.weight[:, :3] *= 8
            self.model.h[2].attn.c_attn.weight[:2] *= 6
        self.optimizer = optim.build(self.model, made.bind)
        self.pruner = prune.build(self.model, self.optimizer, made.bind)
        self.done, self.inputs = 0, {}
        for name in [weight.name for weight in self.pruner.weights]:
            layer = self.model.get_submodule(name.removesuffix(".weight"))
            layer.register_forward_pre_hook(lambda module, args, name=name: self.note(name, args[0]))

    def note(self, name, x):
        self.inputs.setdefault(name, []).extend(x.detach().double().flatten(0, -2).tolist())

    def step(self):
        self.done += 1
        self.optimizer.zero_grad()
        tokens = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(self.done))
        self.model(tokens[:, :-1], tokens[:, 1:]).backward()
        self.pruner.step(self.done, YES)
        self.optimizer.step()


def kept_by_the_formulas(weights, inputs, gone, sparsity, threshold=3.0, spread=0.08):
    """The number of weights that each tensor keeps, as real numbers, by the formulas in plain loops."""
    scores = {}
    for name, value in weights.items():
        norms = [math.sqrt(sum(token[j] ** 2 for token in inputs[name])) for j in range(len(value[0]))]
        scores.setdefault(name[:3], []).extend(abs(w) * norms[j] for row in value for j, w in enumerate(row))
    outliers = {}
    for block, all_of_it in scores.items():
        mean = sum(all_of_it) / len(all_of_it)
        outliers[block] = sum(score > threshold * mean for score in all_of_it) / len(all_of_it)
    low, high = min(outliers.values()), max(outliers.values())
    scaled = {block: 2 * spread * (share - low) / (high - low) for block, share in outliers.items()}
    middle = sum(scaled.values()) / len(scaled)
    density = {block: min(1.0, value - middle + 1 - sparsity) for block, value in scaled.items()}
    sizes = {name: len(value) * len(value[0]) for name, value in weights.items()}
    shares = [round(density[name[:3]] * 10**15) * size for name, size in sizes.items()]
    rooms = [size - gone[name] for name, size in sizes.items()]
    return outliers, water(shares, rooms, Fraction(TOTAL - round(sparsity * TOTAL)))


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_every_update_follows_the_formulas_on_the_inputs_since_the_last(method):
    trained, updates = Trained(method), 0
    plan = trained.pruner.plan
    for step in range(1, 31):
        before = {weight.name: weight.value.double().tolist() for weight in trained.pruner.weights}
        masks = {weight.name: weight.mask.clone() for weight in trained.pruner.weights}
        trained.step()
        if not plan.due(step):
            continue
        updates += 1
        gone = {name: int((mask == 0).sum()) for name, mask in masks.items()}
        outliers, expected = kept_by_the_formulas(before, trained.inputs, gone, 0.6 * plan.share(step))
        assert len(set(outliers.values())) > 1
        for weight, amount in zip(trained.pruner.weights, expected, strict=True):
            assert abs(int(weight.mask.sum()) - float(amount)) < 1, weight.name
            assert not (weight.mask > masks[weight.name]).any()
            if method == "wanda" and step == 30:
                rows = (weight.mask == 0).sum(1)
                assert int(rows.max() - rows.min()) <= 1
        assert trained.pruner.kept == TOTAL - round(0.6 * plan.share(step) * TOTAL)
        trained.inputs.clear()
    assert (updates, trained.pruner.kept) == (6, TOTAL - 5530)  # round(0.6 x 9,216)
    ends = trained.pruner.layers().values()
    assert max(ends) - min(ends) > 0.05 and max(ends) <= 0.6 + 2 * 0.08  # as make prune-report says


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_the_first_masks_are_those_of_one_shot_pruning(method):
    """On the same weights and tokens. Static masks are chosen in step 1; magnitude would choose them before it."""
    tokens, shape = cases.windows(24), dataclasses.replace(cases.SHAPE, dropout=0.0)
    model = GPT2(shape, 256)
    model.load_state_dict(cases.trained().state_dict())
    made = schema(PRUNING_METHOD=method, **BY_OWL, PRUNING_DYNAMICS="static", PRUNING_INTERVAL=None)
    pruner = prune.build(model, optim.build(model, made.bind), made.bind)
    assert pruner.kept == pruner.total
    model(tokens, tokens).backward()
    pruner.step(1, YES)
    # One-shot Wanda measures the inputs of pruned blocks after the shares are decided, so only the numbers are equal.
    _, masks = cases.pruned(method, "owl", owl_threshold=3.0)
    for weight in pruner.weights:
        assert int(weight.mask.sum()) == int(masks[weight.name].sum())
        assert method == "wanda" or torch.equal(weight.mask, masks[weight.name])
    assert pruner.total - pruner.kept == 33_178


@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0.0, 0.5), st.sampled_from(["magnitude", "wanda"]))
@settings(deadline=None)
def test_counts_are_exact_and_nothing_returns(seed, more, spread, method):
    random = torch.Generator().manual_seed(seed)
    weights = []
    for name, rows in (("h.0.a", 3), ("h.0.b", 5), ("h.1.a", 4), ("h.2.a", 1)):
        mask = (torch.rand(rows, 6, generator=random) < torch.rand((), generator=random)).to(torch.uint8)
        value = torch.randn(rows, 6, generator=random) ** 3 * mask
        weights.append(weight_of(name, value, torch.rand(6, generator=random), mask))
    gone = [int((weight.mask == 0).sum()) for weight in weights]
    total = sum(weight.mask.numel() for weight in weights)
    sparsity = (sum(gone) + more * (total - sum(gone))) / total
    masks = choose(weights, lambda weight: weight.value.abs(), sparsity, options(method, 2.0, spread), True)
    assert sum(int((mask == 0).sum()) for mask in masks) == max(sum(gone), round(sparsity * total))
    assert not any(bool((mask > weight.mask).any()) for mask, weight in zip(masks, weights, strict=True))


@pytest.mark.parametrize(
    "values",
    [
        {"PRUNING_METHOD": "random"},
        {"PRUNING_METHOD": "state"},
        {"PRUNING_METHOD": "movement"},
        {"PRUNING_METHOD": "magnitude", "PRUNING_DYNAMICS": "ste"},
        {"PRUNING_METHOD": "magnitude", "PRUNING_DYNAMICS": "rigl"},
        {"PRUNING_METHOD": "magnitude", "PRUNING_STRUCTURE": "neurons", "PRUNING_SCOPE": None},
    ],
)
def test_what_does_not_go_with_owl_cannot_be_chosen(values):
    with pytest.raises(ConfigError, match="PRUNING_DISTRIBUTION=owl has no effect: it needs"):
        schema(**values, PRUNING_DISTRIBUTION="owl")
