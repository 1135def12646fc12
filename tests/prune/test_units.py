"""Whole neurons and heads: scores against loops in float64, exact counts at every update, caps, ties, resuming."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gpt2.model import GPT2
from gpt2.shape import ModelOptions, ShapeOptions
from lib import optim, prune
from lib.base.errors import UsageError, UserError
from lib.prune import kinds, units
from lib.prune.kinds import Group
from lib.prune.mask import MaskOptions
from lib.prune.units import UnitPruner
from tests.prune.test_prune import YES, schema

LAYERS, HEADS, WIDTH, NEURONS = 2, 4, 16, 64
SHAPE = ModelOptions("custom", LAYERS, HEADS, WIDTH, 8, 0.0, "gelu-tanh")
EACH = {"neurons": 2 * WIDTH + 1, "heads": 4 * (3 * (WIDTH + 1) + WIDTH)}  # weights: 33 and 268
BASE = {"PRUNING_SCOPE": None, "PRUNING_STRUCTURE": "both", "TARGET_SPARSITY": "0.4"}


class Trained:
    """A tiny GPT-2 that is trained on random tokens, one step at a time, as the loop does it."""

    def __init__(self, shape=SHAPE, kind="adamw", **values):
        torch.manual_seed(0)
        made = schema(**BASE | values)
        made.override([("OPTIMIZER", kind, "test"), ("LEARNING_RATE", "0.01", "test")])
        self.model = GPT2(shape, 64)
        self.optimizer = optim.build(self.model, made.bind)
        self.pruner = prune.build(self.model, self.optimizer, made.bind)
        self.done = 0

    def backward(self):
        tokens = torch.randint(64, (4, 9), generator=torch.Generator().manual_seed(self.done))
        self.model(tokens[:, :-1], tokens[:, 1:]).backward()

    def step(self, healthy=YES):
        self.done += 1
        self.optimizer.zero_grad()
        self.backward()
        self.pruner.step(self.done, healthy)
        optim.skip_if(self.optimizer, torch.zeros(()))
        self.optimizer.step()

    def left(self):
        """Kind -> the units of each layer of which some weight is not zero, counted in the weights."""
        weights = dict(self.model.named_parameters())
        found = {"neurons": [], "heads": []}
        for n in range(LAYERS):
            fc, out = weights[f"h.{n}.mlp.c_fc.weight"], weights[f"h.{n}.mlp.c_proj.weight"]
            found["neurons"].append(int(((fc != 0).any(1) | (out != 0).any(0)).sum()))
            qkv, out = weights[f"h.{n}.attn.c_attn.weight"], weights[f"h.{n}.attn.c_proj.weight"]
            rows = (qkv != 0).any(1).view(3, HEADS, -1).any(2).any(0)
            found["heads"].append(int((rows | (out != 0).any(0).view(HEADS, -1).any(1)).sum()))
        return found


# ---- scores ----------------------------------------------------------------------------------------------------------


def by_hand(state, score):
    """(kind, layer, unit) -> the sum of `score(name, row, column)` over its weights, in plain loops."""
    found, size = {}, WIDTH // HEADS
    for n, unit in itertools.product(range(LAYERS), range(NEURONS)):
        mlp = f"h.{n}.mlp."
        row = [score(f"{mlp}c_fc.weight", unit, i) for i in range(WIDTH)]
        column = [score(f"{mlp}c_proj.weight", i, unit) for i in range(WIDTH)]
        found["neurons", n, unit] = sum(row) + sum(column) + score(f"{mlp}c_fc.bias", unit)
    for n, head in itertools.product(range(LAYERS), range(HEADS)):
        attn, total = f"h.{n}.attn.", 0.0
        for part, inner in itertools.product(range(3), range(size)):
            row = part * WIDTH + head * size + inner
            total += sum(score(f"{attn}c_attn.weight", row, i) for i in range(WIDTH))
            total += score(f"{attn}c_attn.bias", row)
        for inner in range(size):
            total += sum(score(f"{attn}c_proj.weight", i, head * size + inner) for i in range(WIDTH))
        found["heads", n, head] = total
    return found


def scores(trained):
    """(kind, layer, unit) -> the score that the pruner computes."""
    layers = {"neurons": itertools.count(), "heads": itertools.count()}
    found = {}
    for group in trained.pruner.groups:
        layer = next(layers[group.kind])
        found |= {(group.kind, layer, i): x for i, x in enumerate(trained.pruner._worth(group).tolist())}
    return found


def values(trained):
    return {name: p.detach().double().numpy() for name, p in trained.model.named_parameters()}


def test_magnitude_is_the_l1_norm_of_the_weights_of_a_unit():
    trained = Trained()
    with torch.no_grad():
        for p in trained.model.parameters():
            p.add_(torch.randn(p.shape))  # biases too
    w = values(trained)
    assert scores(trained) == pytest.approx(by_hand(w, lambda name, *at: abs(w[name][at])), rel=1e-6)


def test_movement_sums_minus_g_w_over_steps_and_weights():
    trained = Trained(PRUNING_METHOD="movement", PRUNING_WARMUP="30")
    total = {name: 0 for name, _ in trained.model.named_parameters()}
    for _ in range(3):
        trained.optimizer.zero_grad()
        trained.backward()
        for name, p in trained.model.named_parameters():
            total[name] = total[name] - (p.grad.double() * p.detach().double()).numpy()
        trained.pruner.criterion.observe(trained.pruner.weights, YES)
        optim.skip_if(trained.optimizer, torch.zeros(()))
        trained.optimizer.step()
    expected = by_hand(total, lambda name, *at: total[name][at])
    assert scores(trained) == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_gradient_is_the_derivative_by_a_gate_on_the_output_of_a_unit():
    """Michel et al. (arXiv 1905.10650): |dL/dxi|, here by autograd through gates, in float64."""
    trained = Trained(PRUNING_METHOD="gradient")
    trained.backward()
    model = GPT2(SHAPE, 64).double()
    model.load_state_dict({name: value.double() for name, value in trained.model.state_dict().items()})
    gates = {}
    for n, block in enumerate(model.h):
        gates["heads", n] = torch.ones(HEADS, dtype=torch.float64, requires_grad=True)
        gates["neurons", n] = torch.ones(NEURONS, dtype=torch.float64, requires_grad=True)
        block.attn.c_proj.register_forward_pre_hook(
            lambda module, x, n=n: x[0] * gates["heads", n].repeat_interleave(WIDTH // HEADS)
        )
        block.mlp.c_proj.register_forward_pre_hook(lambda module, x, n=n: x[0] * gates["neurons", n])
    tokens = torch.randint(64, (4, 9), generator=torch.Generator().manual_seed(0))
    logits = model(tokens[:, :-1])
    nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    expected = {(*key, i): abs(x) for key, gate in gates.items() for i, x in enumerate(gate.grad.tolist())}
    assert scores(trained) == pytest.approx(expected, rel=1e-3, abs=1e-8)


# ---- counts ----------------------------------------------------------------------------------------------------------

CASES = {
    "layer": {},
    "global": {"PRUNING_DISTRIBUTION": "global"},
    "global-rms": {"PRUNING_DISTRIBUTION": "global-rms"},
    "gradient": {"PRUNING_METHOD": "gradient"},
    "state": {"PRUNING_METHOD": "state"},
    "random": {"PRUNING_METHOD": "random"},
    "movement": {"PRUNING_METHOD": "movement", "PRUNING_DISTRIBUTION": "global-rms"},
    "static": {"PRUNING_DYNAMICS": "static", "PRUNING_INTERVAL": None},
    "neurons": {"PRUNING_STRUCTURE": "neurons"},
    "heads": {"PRUNING_STRUCTURE": "heads"},
}


def due(trained, sizes):
    """round(s n) of each of these numbers of units at the last update, with the schedule written out."""
    plan = trained.pruner.plan
    last = max([s for s in range(trained.done + 1) if plan.due(s)], default=None)
    x = ((last or 0) - plan.start) / max(1, plan.end - plan.start)
    share = 1.0 if plan.curve == "one-shot" else 1 - (1 - min(1.0, x)) ** 3
    return [0 if last is None else round(0.4 * share * n) for n in sizes]


@pytest.mark.parametrize("name", CASES)
def test_counts_are_exact_at_every_update_and_units_never_return(name):
    trained = Trained(**CASES[name])
    wanted, before = {"neurons": NEURONS, "heads": HEADS}, None
    if trained.pruner.distribution.pruning_distribution == "layer":
        wanted = {kind: [n] * LAYERS for kind, n in wanted.items()}
    else:
        wanted = {kind: [n * LAYERS] for kind, n in wanted.items()}
    kinds = {group.kind for group in trained.pruner.groups}
    for _ in range(40):
        trained.step()
        left, expected_gone = trained.left(), 0
        for kind, sizes in wanted.items():
            gone = due(trained, sizes) if kind in kinds else [0] * len(sizes)
            found = left[kind] if len(sizes) == LAYERS else [sum(left[kind])]
            assert found == [n - k for n, k in zip(sizes, gone, strict=True)], (kind, trained.done)
            expected_gone += sum(gone) * EACH[kind]
        pruner = trained.pruner
        last = pruner.plan.last(trained.done)
        assert (
            pruner.kept
            == pruner.total - expected_gone
            == pruner.planned(0 if last is None else pruner.plan.share(last))
        )
        assert pruner.sparsity() == expected_gone / pruner.total
        masks = torch.cat([weight.mask.flatten() for weight in pruner.weights])
        assert before is None or bool((masks <= before).all())
        before = masks
    metrics, sizes = trained.pruner.metrics(40), {"neurons": NEURONS, "heads": HEADS}
    assert {kind: metrics[f"empty_{kind}"] for kind in kinds} == {k: LAYERS * sizes[k] - sum(left[k]) for k in kinds}
    assert trained.pruner.goal() == metrics["sparsity"]


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamwspam", "muon"])
def test_pruned_units_stay_zero_under_other_optimizers(kind):
    trained = Trained(kind=kind)
    for _ in range(40):
        trained.step()
        for weight in trained.pruner.weights:
            assert torch.count_nonzero(weight.value[weight.mask == 0]) == 0
    assert trained.left() == {"neurons": [38, 38], "heads": [2, 2]}


def test_a_resumed_run_ends_with_the_same_weights():
    whole, cut = Trained(), Trained()
    for _ in range(40):
        whole.step()
    for _ in range(20):
        cut.step()
    again = Trained()
    again.pruner.check(cut.pruner.state_dict())
    again.model.load_state_dict(cut.model.state_dict())
    again.optimizer.load_state_dict(cut.optimizer.state_dict())
    again.pruner.load_state_dict(cut.pruner.state_dict())
    again.done = 20
    for _ in range(20):
        again.step()
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert whole.pruner.metrics(40)["average_nonzeros"] == again.pruner.metrics(40)["average_nonzeros"]


def test_a_skipped_step_prunes_at_the_next_one():
    trained = Trained(PRUNING_SCHEDULE="one-shot", PRUNING_WARMUP="3", PRUNING_INTERVAL=None)
    for step in range(1, 6):
        trained.step(lambda step=step: torch.tensor(step != 3))
        assert trained.left()["neurons"] == [64 if step < 4 else 38] * 2


def test_a_model_that_has_lost_units_is_pruned_on():
    shape = ShapeOptions("custom", LAYERS, HEADS, WIDTH, 8, 0.0, "gelu-tanh", "10,30", "3")
    trained = Trained(shape, PRUNING_WARMUP="0", PRUNING_SCHEDULE="one-shot", PRUNING_INTERVAL=None)
    assert [group.size for group in trained.pruner.groups] == [3, 10, 3, 30]
    assert [int(units.alive(group, trained.pruner.named).sum()) for group in trained.pruner.groups] == [2, 6, 2, 18]


# ---- which units -----------------------------------------------------------------------------------------------------


def options(distribution, cap=0.99):
    return MaskOptions(distribution, None if distribution == "layer" else cap, None, None, None, None, "magnitude")


def flags(groups, scores, sparsity, how, kept=None):
    kept = kept or [torch.ones(group.size, dtype=torch.uint8) for group in groups]
    scores = [torch.tensor(one, dtype=torch.float64) for one in scores]
    return [one.tolist() for one in units.choose(groups, scores, kept, sparsity, how)]


def test_units_compete_within_a_layer_or_with_all_of_their_kind():
    groups = [Group("neurons", 4, {}), Group("heads", 2, {}), Group("neurons", 4, {})]
    worth = [[1.0, 2, 3, 4], [0.5, 0.6], [10.0, 40, 30, 20]]
    assert flags(groups, worth, 0.5, options("layer")) == [[0, 0, 1, 1], [0, 1], [0, 1, 1, 0]]
    assert flags(groups, worth, 0.5, options("global", 1)) == [[0, 0, 0, 1], [0, 1], [0, 1, 1, 1]]  # one stays
    assert flags(groups, worth, 0.5, options("global", 0.5)) == [[0, 0, 1, 1], [0, 1], [0, 1, 1, 0]]
    assert flags(groups, worth, 0.5, options("global-rms", 1)) == [[0, 0, 1, 1], [0, 1], [0, 1, 1, 0]]


def test_ties_go_by_layer_then_by_index_and_infinite_scores_are_allowed():
    groups = [Group("heads", 3, {}), Group("heads", 3, {})]
    assert flags(groups, [[0.0, 0, 0], [0.0, -0.0, 0]], 0.5, options("global", 0.67)) == [[0, 0, 1], [0, 1, 1]]
    infinite = [[float("inf"), float("-inf"), 1.0], [float("inf"), float("inf"), 0.0]]
    assert flags(groups, infinite, 0.5, options("global", 1)) == [[1, 0, 0], [1, 1, 0]]


def test_global_rms_does_not_depend_on_how_often_units_were_pruned():
    """Of layers whose scores have short and long tails; frozen scores give the same units after 1 and 19 updates."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(100, generator=generator, dtype=torch.float64)
    worth = [uniform.tolist(), (10 * uniform.flip(0) ** 4).tolist()]
    groups, how = [Group("neurons", 100, {}), Group("neurons", 100, {})], options("global-rms", 1)
    kept, scales = [torch.ones(100, dtype=torch.uint8)] * 2, units.UnitScales()
    tensors = [torch.tensor(one, dtype=torch.float64) for one in worth]
    for step in range(1, 20):
        kept = units.choose(groups, tensors, kept, step * 0.05, how, scales)
        scales.took(tensors, kept)
    assert [one.tolist() for one in kept] == flags(groups, worth, 0.95, how)


@given(
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=9), min_size=1, max_size=4),
    st.floats(0, 1),
    st.sampled_from(["layer", "global", "global-rms"]),
    st.sampled_from([0.3, 0.6, 1.0]),
)
def test_counts_caps_and_order_hold_for_all_scores(worth, sparsity, distribution, cap):
    groups, how = [Group("neurons", len(one), {}) for one in worth], options(distribution, cap)
    try:
        kinds.check(groups, how, sparsity)
    except UsageError:
        return
    found = flags(groups, worth, sparsity, how)
    gone = [one.count(0) for one in found]
    sizes = [group.size for group in groups]
    if distribution == "layer":
        assert gone == [round(sparsity * size) for size in sizes]
    else:
        assert sum(gone) == round(sparsity * sum(sizes))
        assert all(k <= cap * size for k, size in zip(gone, sizes, strict=True))
    assert all(k < size for k, size in zip(gone, sizes, strict=True))
    for one, stays in zip(worth, found, strict=True):  # within a layer the lowest go first
        lowest = sorted(range(len(one)), key=lambda i: (one[i], i))[: stays.count(0)]
        assert sorted(i for i, flag in enumerate(stays) if not flag) == sorted(lowest)


def test_what_no_layer_can_lose_is_refused():
    sentence = (
        r"^TARGET_SPARSITY=0\.9 prunes 4 of 4 heads, and each layer keeps at least one of them, or more with "
        r"PRUNING_LAYER_CAP; lower TARGET_SPARSITY$"
    )
    with pytest.raises(UsageError, match=sentence):
        Trained(TARGET_SPARSITY="0.9")
    with pytest.raises(UsageError, match="prunes 102 of 128 neurons"):
        Trained(
            TARGET_SPARSITY="0.8", PRUNING_STRUCTURE="neurons", PRUNING_DISTRIBUTION="global", PRUNING_LAYER_CAP="0.7"
        )


@pytest.mark.parametrize(
    "words",
    [
        {"PRUNING_DYNAMICS": "rigl"},
        {"PRUNING_DYNAMICS": "ste"},
        {"PRUNING_DISTRIBUTION": "n-m"},
        {"PRUNING_DISTRIBUTION": "erk"},
        {"PRUNING_SCOPE": "*.weight"},
        {"PRUNING_METHOD": "sparsegpt"},
        {"PRUNING_METHOD": "given"},
        {"PRUNING_METHOD": "wanda", "PRUNING_DYNAMICS": "gradual"},
    ],
)
def test_the_menu_forbids_what_does_not_go_together(words):
    with pytest.raises(UserError, match="has no effect: it needs"):
        Trained(**{"TARGET_SPARSITY": None, "PRUNING_INTERVAL": None} | words)


def test_the_pruner_is_one_for_units():
    assert isinstance(Trained().pruner, UnitPruner)
    names = [weight.name for weight in Trained(PRUNING_STRUCTURE="neurons").pruner.weights]
    assert names == [f"h.{n}.mlp.{name}" for n in (0, 1) for name in ("c_fc.weight", "c_fc.bias", "c_proj.weight")]
