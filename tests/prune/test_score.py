"""Criteria against their formulas in float64 and autograd through explicit masks; skipped steps and resuming."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lib.base.errors import UsageError
from lib.config.kconf import Schema
from lib.prune.score import gradient, magnitude, movement, random, state, wanda
from lib.prune.select import PruningError
from lib.prune.weight import Weight
from tests import forked

YES, NO = lambda: torch.tensor(True), lambda: torch.tensor(False)
MODULES = {"magnitude": magnitude, "gradient": gradient, "random": random, "wanda": wanda, "state": state}
SCALE_FREE = ("hybrid", "variance", "momentum", "fisher")


def schema(**values):
    made = Schema()
    made.override([(name, text, "test") for name, text in values.items()])
    return made


def criterion(method, **values):
    """As the options build it."""
    module = MODULES.get(method, movement)
    return module.build(schema(PRUNING_METHOD=method, **values).bind)


def weight_of(value, grad=None, name="h.0.weight", **moments):
    parameter = nn.Parameter(torch.as_tensor(value, dtype=torch.float32))
    parameter.grad = None if grad is None else torch.as_tensor(grad, dtype=torch.float32)
    states = {parameter: {key: torch.as_tensor(v, dtype=torch.float32) for key, v in moments.items()}}
    return Weight(name, parameter, torch.ones_like(parameter, dtype=torch.uint8), SimpleNamespace(state=states))


def memory_bytes(weights):
    return [{key: value.numpy().tobytes() for key, value in weight.memory.items()} for weight in weights]


# ---- magnitude, gradient, random -------------------------------------------------------------------------------------


def test_magnitude_is_the_absolute_value():
    scores = criterion("magnitude").score(weight_of([[-2.0, 0.0], [0.5, -0.0]]))
    assert scores.tolist() == [[2.0, 0.0], [0.5, 0.0]]


def test_gradient_is_the_first_order_change_of_the_loss():
    scores = criterion("gradient").score(weight_of([[-2.0, 3.0], [0.5, 0.0]], [[4.0, 0.5], [-2.0, 9.0]]))
    assert scores.tolist() == [[8.0, 1.5], [1.0, 0.0]]


def test_gradient_predicts_what_zeroing_a_small_weight_does_to_the_loss():
    torch.manual_seed(0)
    x, y = torch.randn(32, 3, dtype=torch.float64), torch.randn(32, dtype=torch.float64)
    w = (1e-5 * torch.randn(3, dtype=torch.float64)).requires_grad_()
    loss = lambda values: F.mse_loss(x @ values, y)  # noqa: E731
    loss(w).backward()
    scores = gradient.first_order_change(w.detach(), w.grad)
    for i in range(3):
        zeroed = w.detach().clone()
        zeroed[i] = 0
        assert scores[i].item() == pytest.approx(abs(loss(zeroed) - loss(w)).item(), rel=1e-3)


def test_random_scores_depend_on_seed_and_name_alone():
    def draw(seed, name, local):
        torch.manual_seed(local)
        return criterion("random", SEED=str(seed)).score(weight_of(torch.zeros(7, 5), name=name))

    scores = draw(1, "a", 0)
    assert torch.equal(scores, draw(1, "a", 99))
    assert not torch.equal(scores, draw(2, "a", 0))
    assert not torch.equal(scores, draw(1, "b", 0))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    draw_nothing = criterion("random").score(weight_of(torch.zeros(7, 5)))
    assert draw_nothing.shape == (7, 5)
    assert torch.equal(torch.rand(3), expected)


def test_random_scores_are_pinned_and_uniform():
    scores = random.uniform(1337, "h.0.attn.c_attn.weight", torch.Size([200, 500]))
    assert scores.dtype == torch.float32
    counts = torch.histc(scores, 10, 0, 1)
    assert (counts - 10_000).abs().max() < 500  # five standard deviations
    other = random.uniform(1337, "h.1.attn.c_attn.weight", torch.Size([200, 500]))
    assert abs(np.corrcoef(scores.flatten(), other.flatten())[0, 1]) < 0.02
    assert scores[0, :3].tolist() == pytest.approx([0.4982846, 0.8280513, 0.494569], abs=1e-6)


# ---- wanda -----------------------------------------------------------------------------------------------------------


def linear_pair():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 3))
    modules = [model[0], model[2]]
    weights = [Weight(f"{i}.weight", m.weight, torch.ones(m.weight.shape), {}) for i, m in enumerate(modules)]
    made = criterion("wanda")
    made.attach(weights, modules)
    return model, weights, made


def inputs_of_second(model, x):
    return model[1](model[0](x))


def test_wanda_is_weight_times_norm_of_its_input():
    model, weights, made = linear_pair()
    batches = [torch.randn(2, 5, 6), torch.randn(3, 6)]  # any leading dimensions
    for x in batches:
        model(x).sum().backward()
    made.observe(weights, YES)
    rows = [x.flatten(0, -2) for x in batches]
    for weight, seen in zip(weights, (torch.cat(rows), inputs_of_second(model, torch.cat(rows))), strict=True):
        expected = weight.value.double().abs() * torch.linalg.vector_norm(seen.detach().double(), dim=0)
        torch.testing.assert_close(made.score(weight).double(), expected, rtol=1e-5, atol=0)
    assert [list(weight.memory) for weight in weights] == [["input_square_sum"]] * 2


def test_wanda_counts_from_choice_to_choice():
    model, weights, made = linear_pair()
    for value in (1.0, 2.0):
        model(torch.full((1, 6), value))
        made.observe(weights, YES)
    assert weights[0].memory["input_square_sum"].tolist() == [5.0] * 6
    made.chosen(weights)
    assert weights[0].memory["input_square_sum"].tolist() == [0.0] * 6
    model(torch.full((1, 6), 3.0))
    made.observe(weights, YES)
    assert weights[0].memory["input_square_sum"].tolist() == [9.0] * 6


def test_wanda_counts_neither_evaluation_nor_skipped_steps():
    model, weights, made = linear_pair()
    model(torch.ones(2, 6))
    made.observe(weights, YES)
    before = memory_bytes(weights)
    model.eval()
    model(torch.ones(2, 6))
    made.observe(weights, YES)
    model.train()
    model(torch.full((2, 6), math.nan))
    made.observe(weights, NO)
    assert memory_bytes(weights) == before
    model(torch.ones(2, 6))
    made.observe(weights, YES)
    assert weights[0].memory["input_square_sum"].tolist() == [4.0] * 6


def test_wanda_sums_in_float32_under_autocast():
    model, weights, made = linear_pair()
    x = torch.randn(512, 6)
    with torch.autocast("cpu", torch.bfloat16):
        model(x)
        seen = inputs_of_second(model, x)
    assert seen.dtype == torch.bfloat16
    made.observe(weights, YES)
    total = weights[1].memory["input_square_sum"]
    assert total.dtype == torch.float32
    # The model ran twice: once for the criterion, once for the reference, whose layers count too.
    expected = x.double().square().sum(0)
    torch.testing.assert_close(weights[0].memory["input_square_sum"].double(), 2 * expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(total.double(), seen.detach().double().square().sum(0), rtol=1e-5, atol=0)


def test_wanda_counts_in_a_compiled_model():
    """Traced as for inductor; whole runs that are compiled, in test_train.py, prune by what its code counts."""
    model, weights, made = linear_pair()
    compiled = torch.compile(model, dynamic=False, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 6)
    for _ in range(2):
        compiled(x).sum().backward()
        compiled(x).sum().backward()
        made.observe(weights, YES)
    for weight, seen in zip(weights, (x, inputs_of_second(model, x)), strict=True):
        expected = 4 * seen.detach().double().square().sum(0)
        torch.testing.assert_close(weight.memory["input_square_sum"].double(), expected, rtol=1e-5, atol=0)


def test_wanda_does_not_count_the_evaluation_of_a_compiled_model():
    model, weights, made = linear_pair()
    compiled = torch.compile(model, dynamic=False, fullgraph=True, backend="eager")  # to compile again is not free
    for evaluates in (False, True):
        model.train(not evaluates)
        compiled(torch.ones(1, 6))
    made.observe(weights, YES)
    assert weights[0].memory["input_square_sum"].tolist() == [1.0] * 6


@pytest.mark.parametrize("kind", ["embedding", "bias"])
def test_wanda_refuses_what_has_no_input(kind):
    module = nn.Embedding(4, 3) if kind == "embedding" else nn.Linear(4, 3)
    parameter = module.weight if kind == "embedding" else module.bias
    with pytest.raises(UsageError) as caught:
        criterion("wanda").attach([Weight("wte.weight", parameter, torch.ones(parameter.shape), {})], [module])
    assert str(caught.value) == (
        "PRUNING_METHOD=wanda measures the inputs of linear layers, and wte.weight is not the weight of one; leave it "
        "out of PRUNING_SCOPE"
    )


def _count_on_rank(rank, folder):
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    model, weights, made = linear_pair()
    model(torch.full((1, 6), 1.0 + rank))
    made.observe(weights, YES)
    torch.save([weight.memory["input_square_sum"] for weight in weights], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_wanda_sees_the_inputs_of_all_ranks(tmp_path):
    ranks = [forked.process(_count_on_rank, rank, str(tmp_path)) for rank in (0, 1)]
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first[0].tolist() == [5.0] * 6
    assert all(map(torch.equal, first, second))


# ---- state -----------------------------------------------------------------------------------------------------------

WMV = ([[-2.0, 0.5, 4.0]], [[0.25, -1.0, 0.0]], [[0.0625, 16.0, 1.0]])
LITERAL = {
    "hybrid": [2.0, 0.25, 0.0],
    "variance": [1.0, 1.0, 4.0],
    "momentum": [1.0, 0.5, 0.0],
    "fisher": [0.5, 2.0, 4.0],
    "bitter0": [4.0, 0.0625, 0.0],
    "bitter1": [2.0, 0.5, 4.0],
    "bitter2": [2.0, 0.5, 4.0],
    "bitter3": [1.0, 0.5, 0.0004],
    "bitter4": [1.0, 0.5, 0.0004],
    "bitter5": [-0.8, -0.2, 0.4],
    "bitter6": [1.0, 0.125, 0.0],
    "bitter7": [1.0, 1.0, 4.0],
    "bitter8": [1.0, 1.0, 4.0],
    "bitter9": [1.0, 1.0, 4.0],
}
# Where the epsilons are all that counts: w = 2, m = 1e-10, v = 1e-20; float64 by hand.
TINY_MOMENTS = {
    "bitter0": 4 * 1e-10 / (1e-10 + 1e-8),
    "bitter1": 2.0,
    "bitter2": 2.0,
    "bitter3": 2 * math.sqrt(1e-10 + 1e-8),
    "bitter4": 2 * math.sqrt(1e-10 + 1e-8),
    "bitter5": 1e-10 / (1e-10 + 1e-8) + 0.2,
    "bitter6": 2 * math.sqrt(1e-10 + 1e-8) * math.sqrt(1e-20 / (1e-20 + 1e-8)),
    "bitter7": 2 * (1e-20 + 1e-8) ** 0.25,
    "bitter8": 2 * 1e-5**0.25,
    "bitter9": 2 * 1e-5**0.25,
    "hybrid": 2.0,
    "variance": 2e-5,
    "momentum": 2e-5,
    "fisher": 2e-10,
}


def test_the_menu_offers_the_formulas_of_the_table():
    assert list(Schema().options["PRUNING_STATE"].members) == list(state.FORMULAS)
    assert LITERAL.keys() == TINY_MOMENTS.keys() == state.FORMULAS.keys()


@pytest.mark.parametrize("name", state.FORMULAS)
def test_state_formulas_have_literal_values(name):
    made = criterion("state", PRUNING_STATE=name)
    w, m, v = WMV
    scores = made.score(weight_of(w, exp_avg=m, exp_avg_sq=v))
    assert scores.dtype == torch.float32
    half = name in ("bitter8", "bitter9")
    assert scores.tolist()[0] == pytest.approx(LITERAL[name], rel=2e-3 if half else 1e-5)
    (score,) = made.score(weight_of([2.0], exp_avg=[1e-10], exp_avg_sq=[1e-20])).tolist()
    assert score == pytest.approx(TINY_MOMENTS[name], rel=3e-2 if half else 1e-5)
    assert made.reads_state


@pytest.mark.parametrize("name", SCALE_FREE)
def test_a_weight_without_gradient_or_pruned_is_worth_nothing(name):
    w, m, v = [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]
    scores = criterion("state", PRUNING_STATE=name).score(weight_of(w, exp_avg=m, exp_avg_sq=v))
    assert scores.tolist() == [0.0, 0.0, 0.0]


_GRADIENTS = st.sampled_from([0.0, 1e-38, -1e-30, 1e-22, 1e-12, -1e-8, 1e-3, 1.0, -300.0, 1e10, 1e18])
_WEIGHTS = st.sampled_from([0.0, -0.0, 1e-38, -1e-20, 1e-6, 0.02, -1.0, 300.0])


@pytest.mark.parametrize("name", state.FORMULAS)
@given(weights=st.lists(_WEIGHTS, min_size=8, max_size=8), gradients=st.lists(_GRADIENTS, min_size=24, max_size=24))
@settings(max_examples=30)
def test_no_score_is_nan_whatever_weights_and_gradients_are_zero(name, weights, gradients):
    """With the moments that three steps of Adam leave, of gradients whose norm is finite."""
    w, m, v = torch.tensor(weights), torch.zeros(8), torch.zeros(8)
    for g in torch.tensor(gradients).view(3, 8):
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
    scores = state.FORMULAS[name](w, m, v)
    assert not scores.isnan().any()
    assert name == "bitter5" or (scores >= 0).all()


def test_a_second_moment_that_underflowed_is_no_infinite_worth():
    scores = criterion("state", PRUNING_STATE="hybrid").score(weight_of([1.0], exp_avg=[1e-24], exp_avg_sq=[0.0]))
    assert scores.tolist() == [0.0]


def float64_score(name, w, m, v):
    """The products of the menu, in float64, whose range they do not leave."""
    w, m, v = (np.asarray(part, dtype=np.float64) for part in (w, m, v))
    return {
        "hybrid": w * w * np.abs(m) / np.sqrt(v),
        "variance": np.abs(w) * v**0.25,
        "momentum": np.abs(w) * np.sqrt(np.abs(m)),
        "fisher": w * w * v,
    }[name]


def realistic(seed, n=300):
    """Weights and moments as Adam has them: |m| up to about sqrt(v), v over 30 orders of magnitude, down to 1e-36."""
    rng = np.random.default_rng(seed)
    w = 0.02 * rng.standard_normal(n) * 10.0 ** rng.uniform(-4, 1, n)
    v = 10.0 ** rng.uniform(-36, -6, n)
    m = np.sqrt(v) * rng.uniform(-2, 2, n)
    return tuple(part.astype(np.float32) for part in (w, m, v))


def clear_order_is_kept(scores, exact):
    """Whether `scores` order all pairs as `exact` does, but for those closer than float32 can tell."""
    order = np.argsort(exact, kind="stable")
    scores, exact = np.asarray(scores)[order], exact[order]
    clear = exact[1:] > exact[:-1] * (1 + 1e-5)
    return bool(np.all(np.diff(scores)[clear] > 0)) and clear.sum() > len(exact) // 2


@pytest.mark.parametrize("name", SCALE_FREE)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e4, 2.0**13]))
def test_the_scale_of_gradients_changes_no_rank_and_nothing_underflows(name, seed, scale):
    """Read backwards it is 1e-4; v itself would leave float32's range if the small end were scaled down."""
    w, m, v = realistic(seed)
    unscaled, scaled = (
        state.FORMULAS[name](torch.tensor(w), torch.tensor(m * c), torch.tensor(v * c * c)).numpy()
        for c in (np.float32(1.0), np.float32(scale))
    )
    exact = float64_score(name, w, m, v)
    assert clear_order_is_kept(unscaled, exact)
    assert clear_order_is_kept(scaled, exact)
    if math.log2(scale).is_integer():  # then scaling rounds nothing
        assert np.array_equal(np.argsort(unscaled, kind="stable"), np.argsort(scaled, kind="stable"))


@given(seed=st.integers(0, 10**6))
def test_the_scale_of_gradients_changes_no_rank_between_tensors(seed):
    """Scores of two tensors of different scale, each divided by its root mean square, are compared."""

    def joint(formula, c):
        parts = []
        for i, size in enumerate((1.0, 1e-3)):
            w, m, v = (torch.tensor(part, dtype=torch.float32) for part in realistic(seed + i))
            score = formula(w * size, m * c, v * c * c).double()
            parts.append(score / score.square().mean().sqrt())
        return torch.cat(parts).argsort(stable=True)

    for name in SCALE_FREE:
        assert torch.equal(joint(state.FORMULAS[name], 1.0), joint(state.FORMULAS[name], 2.0**14)), name


def test_the_published_eighth_formula_is_magnitude_in_disguise_and_fisher_is_not():
    torch.manual_seed(0)
    w = 0.02 * torch.randn(10_000)
    v = 8e-9 * torch.rand(10_000).square()
    m = v.sqrt() * torch.randn(10_000)
    pruned = {name: set(state.FORMULAS[name](w, m, v).topk(5000, largest=False).indices.tolist()) for name in LITERAL}
    differing = {name: 1 - len(pruned[name] & pruned["bitter1"]) / 5000 for name in LITERAL}
    assert differing["bitter8"] < 0.005
    assert differing["bitter7"] < 0.05
    assert min(differing[name] for name in SCALE_FREE) > 0.05


@pytest.mark.parametrize("moments", [{}, {"exp_avg": [1.0]}, {"momentum_buffer": [1.0]}])
def test_missing_moments_are_one_sentence(moments):
    with pytest.raises(PruningError) as caught:
        criterion("state").score(weight_of([1.0], name="h.0.mlp.c_fc.weight", **moments))
    assert str(caught.value) == (
        "PRUNING_METHOD=state needs exp_avg and exp_avg_sq, but the optimizer has none for h.0.mlp.c_fc.weight; "
        "choose an Adam-like OPTIMIZER, and prune after its first step"
    )


def test_state_reads_what_adam_keeps():
    weight = weight_of([3.0, -2.0])
    optimizer = torch.optim.AdamW([weight.parameter], lr=0.0, betas=(0.5, 0.75), fused=True)
    weight.optimizer = optimizer
    weight.parameter.grad = torch.tensor([2.0, -4.0])
    optimizer.step()  # m = g / 2, v = g^2 / 4
    assert criterion("state", PRUNING_STATE="fisher").score(weight).tolist() == [3.0, 4.0]


# ---- movement --------------------------------------------------------------------------------------------------------


class MaskWithIdentityGradient(torch.autograd.Function):
    """A mask of S whose gradient goes to S as it is: the straight-through estimator of the paper."""

    @staticmethod
    def forward(ctx, s, mask):
        return mask.to(s.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def regression(steps):
    """Batches of a small linear problem, in float64."""
    generator = torch.Generator().manual_seed(3)
    true = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    for _ in range(steps):
        x = torch.randn(16, 4, generator=generator, dtype=torch.float64)
        yield x, x @ true.T + 0.1 * torch.randn(16, 5, generator=generator, dtype=torch.float64)


def top(s, k):
    mask = torch.zeros(s.numel(), dtype=torch.bool)
    mask[s.flatten().sort(descending=True, stable=True).indices[:k]] = True
    return mask.view(s.shape)


def test_hard_movement_is_what_autograd_gives_a_score_that_sgd_learns():
    start = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    w, s = start.clone().requires_grad_(), torch.zeros(5, 4, dtype=torch.float64, requires_grad=True)
    reference = torch.optim.SGD([s], lr=1.0)
    made, weight = criterion("movement", PRUNING_MOVEMENT="hard"), weight_of(start)
    made.attach([weight], [None])
    assert made.score(weight).tolist() == [[0.0] * 4] * 5
    for x, y in regression(8):
        mask = top(s.detach(), 12)
        loss = F.mse_loss(x @ (w * MaskWithIdentityGradient.apply(s, mask)).T, y)
        w.grad, s.grad = torch.autograd.grad(loss, (w, s))

        shown = (weight.value.double() * mask).requires_grad_()  # ours: the dense gradient of the masked weight
        (dense,) = torch.autograd.grad(F.mse_loss(x @ shown.T, y), shown)
        weight.parameter.grad = dense.float()
        made.observe([weight], YES)

        reference.step()
        with torch.no_grad():
            w -= 0.1 * w.grad
            weight.value.sub_(0.1 * dense.float() * mask)
        torch.testing.assert_close(made.score(weight).double(), s.detach(), rtol=1e-4, atol=1e-6)
        assert torch.equal(top(made.score(weight), 12), top(s.detach(), 12))
    assert s.detach().abs().min() > 1e-4


def test_hard_movement_keeps_four_bytes_per_weight():
    weight = weight_of(torch.ones(6, 5))
    criterion("movement").attach([weight], [None])
    assert {name: (value.dtype, value.shape) for name, value in weight.memory.items()} == {
        "movement": (torch.float32, (6, 5))
    }


def test_hard_movement_rises_for_weights_that_move_away_from_zero():
    made, weight = criterion("movement"), weight_of([2.0, -2.0, 2.0, -2.0], [-1.0, 1.0, 1.0, -1.0])
    made.attach([weight], [None])
    made.observe([weight], YES)
    assert made.score(weight).tolist() == [2.0, 2.0, -2.0, -2.0]


SOFT = {"PRUNING_MOVEMENT": "soft", "MOVEMENT_THRESHOLD": "0.4", "MOVEMENT_PENALTY": "3"}


def adam_reference(p, grad, kept, lr):
    """Kingma & Ba, algorithm 1, in float64."""
    kept["t"] += 1
    kept["m"] = 0.9 * kept["m"] + 0.1 * grad
    kept["v"] = 0.999 * kept["v"] + 0.001 * grad * grad
    return p - lr * kept["m"] / (1 - 0.9 ** kept["t"]) / ((kept["v"] / (1 - 0.999 ** kept["t"])).sqrt() + 1e-8)


def test_soft_movement_agrees_with_autograd_and_adam_in_float64():
    generator = torch.Generator().manual_seed(1)
    starts = [torch.randn(rows, 4, generator=generator, dtype=torch.float64) for rows in (5, 2)]
    made = criterion("movement", **SOFT, MOVEMENT_LEARNING_RATE="0.2")
    weights = [weight_of(start, name=str(i)) for i, start in enumerate(starts)]
    made.attach(weights, [None, None])
    scores = [torch.zeros_like(start) for start in starts]
    adams = [{"t": 0, "m": 0.0, "v": 0.0} for _ in starts]
    sizes = set()
    for step, (x, y) in enumerate(regression(25)):
        share = step / 24
        leaves = [s.clone().requires_grad_() for s in scores]
        masks = [torch.sigmoid(s) > 0.4 * share for s in scores]
        loss = sum(
            F.mse_loss(x @ (w * MaskWithIdentityGradient.apply(s, mask)).T, y[:, : len(w)])
            for w, s, mask in zip(starts, leaves, masks, strict=True)
        )
        penalty = 3 * share * (torch.sigmoid(leaves[0]).mean() + torch.sigmoid(leaves[1]).mean()) / 2
        grads = torch.autograd.grad(loss + penalty, leaves)
        for weight, start, mask in zip(weights, starts, masks, strict=True):
            assert torch.equal(made.mask(weight, share), mask.to(torch.uint8))
            shown = (start * mask).requires_grad_()
            weight.parameter.grad = torch.autograd.grad(F.mse_loss(x @ shown.T, y[:, : len(start)]), shown)[0].float()
        made.advance(share)
        made.observe(weights, YES)
        scores = [adam_reference(*parts, 0.2) for parts in zip(scores, grads, adams, strict=True)]
        for weight, s in zip(weights, scores, strict=True):
            torch.testing.assert_close(made.score(weight).double(), s, rtol=1e-4, atol=1e-5)
        sizes.add(int(sum(mask.sum() for mask in masks)))
    assert len(sizes) > 2  # masks did change
    assert made.score(weights[0]).shape == (5, 4)


def test_soft_movement_keeps_all_at_first_and_half_a_percent_at_least():
    made, weight = criterion("movement", **SOFT), weight_of(torch.ones(20, 50))
    made.attach([weight], [None])
    assert made.mask(weight, 0.0).sum() == 1000
    assert made.mask(weight, 1.0).sum() == 1000  # sigmoid(0) = 0.5 > 0.4
    scores = weight.memory["movement"]
    scores.copy_(torch.linspace(-20, -10, 1000).view(20, 50))
    mask = made.mask(weight, 1.0)
    assert mask.dtype == torch.uint8
    assert mask.flatten().nonzero().flatten().tolist() == [995, 996, 997, 998, 999]
    scores.fill_(-20.0)
    assert made.mask(weight, 1.0).sum() == 5
    scores[0, :7] = 1.0
    assert made.mask(weight, 1.0).sum() == 7


def test_soft_movement_keeps_one_weight_of_a_small_tensor():
    made, weight = criterion("movement", **SOFT), weight_of([1.0, 1.0, 1.0])
    made.attach([weight], [None])
    weight.memory["movement"].copy_(torch.tensor([-9.0, -5.0, -7.0]))
    assert made.mask(weight, 1.0).tolist() == [0, 1, 0]


def test_the_penalty_alone_pushes_scores_down_as_far_as_the_schedule_is():
    s = torch.tensor([0.0, 2.0])
    grad = movement.score_gradient(s, torch.zeros(2), torch.ones(2), slope=4.0)
    assert grad.tolist() == pytest.approx([1.0, 4 * 0.104993585], rel=1e-6)


@pytest.mark.parametrize("values", [{"PRUNING_MOVEMENT": "hard"}, SOFT], ids=["hard", "soft"])
def test_a_step_that_is_skipped_leaves_movement_bit_for_bit(values):
    torch.manual_seed(0)
    made, weights = criterion("movement", **values), [weight_of(torch.randn(4, 3)) for _ in range(2)]
    made.attach(weights, [None, None])
    if values is SOFT:
        made.advance(0.5)
    for bad in (False, True, False, True):
        for weight in weights:
            weight.parameter.grad = torch.full((4, 3), math.nan if bad else 0.5)
        before = memory_bytes(weights)
        made.observe(weights, NO if bad else YES)
        assert (memory_bytes(weights) == before) == bad
    for weight in weights:
        assert all(torch.isfinite(value).all() for value in weight.memory.values())


@pytest.mark.parametrize("values", [{"PRUNING_MOVEMENT": "hard"}, SOFT], ids=["hard", "soft"])
def test_movement_goes_on_bit_for_bit_from_its_memory(values):
    """A checkpoint copies the memory of another session into that of a new one."""

    def session():
        made, weight = criterion("movement", **values), weight_of([[0.5, -1.0, 2.0]])
        made.attach([weight], [None])
        if values is SOFT:
            made.advance(0.75)
        return made, weight

    def go(made, weight, steps):
        for step in steps:
            weight.parameter.grad = torch.tensor([[0.1, -0.3, 0.2]]) * math.cos(step)
            made.observe([weight], YES)

    one, whole = session()
    go(one, whole, range(10))
    two, first = session()
    go(two, first, range(6))
    three, second = session()
    for name, value in first.memory.items():
        second.memory[name].copy_(value)
    go(three, second, range(6, 10))
    assert memory_bytes([second]) == memory_bytes([whole])
