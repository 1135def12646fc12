"""SPAM against float64 transcriptions: of the paper's equations, and of the published code's update rule."""

import math

import pytest
import torch

from lib import optim
from lib.base.errors import UsageError
from lib.optim import skippable
from lib.optim.adamwspam import clip_spikes, clip_spikes_on_cpu
from tests.optim.test_optim import Small, gradients, make_steps, one_thread, same, schema, trained  # noqa: F401


def reference_step(w, g, state, *, official, lr, decay, clip=True, theta=5000.0, interval=500, warmup=150, free=20):
    """One update of one tensor; the paper's preset."""
    b1, b2, eps = 0.9, 0.999, 1e-6
    state["t"] += 1
    t, since_reset = state["t"], state["t"] % interval
    first = t < interval
    if since_reset == 0:
        state["m"], state["v"] = torch.zeros_like(w), torch.zeros_like(w)
    if official:
        clips, n = t >= free and since_reset >= free, t
    else:
        n = t if first else since_reset + 1
        clips = n > free
    if clip and clips:
        spikes = g**2 > theta * state["v"]
        if not official:
            spikes &= state["v"] > 0
        g = torch.where(spikes, g.sign() * (theta * state["v"]).sqrt(), g)
        state["clipped"] += int(spikes.sum())
    state["m"] = b1 * state["m"] + (1 - b1) * g
    state["v"] = b2 * state["v"] + (1 - b2) * g**2
    scale = 1.0
    if not first and since_reset < warmup:
        scale = 1 - 0.99 * (1 + math.cos(math.pi * since_reset / (warmup + 1))) / 2
    size = lr * scale * math.sqrt(1 - b2**n) / (1 - b1**n)
    w = w - size * state["m"] / (state["v"].sqrt() + eps)
    return w - lr * decay * w


@pytest.mark.parametrize("compat", ["paper", "official"])
@pytest.mark.parametrize(("theta", "host"), [("5000", True), ("20", True), ("20", False)])
def test_1200_steps_with_resets_agree_in_float64(compat, theta, host, monkeypatch):
    monkeypatch.setattr(skippable, "on_host", lambda _: host)
    model = Small()
    optimizer = optim.build(model, schema(OPTIMIZER="adamwspam", SPAM_COMPAT=compat, SPAM_THETA=theta).bind)
    expected = {name: p.detach().double() for name, p in model.named_parameters()}
    states = {
        name: {"t": 0, "clipped": 0, "m": torch.zeros_like(w), "v": torch.zeros_like(w)} for name, w in expected.items()
    }
    for step in range(1200):
        for (name, p), grad in zip(model.named_parameters(), gradients(model, step), strict=True):
            settings = {"lr": 1e-2 / (1 + step), "decay": 0.1 if p.dim() > 1 else 0.0}
            settings |= {"official": compat == "official", "theta": float(theta)}
            expected[name] = reference_step(expected[name], grad.double(), states[name], **settings)
        make_steps(model, optimizer, [step])
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach().double(), expected[name], atol=2e-5, rtol=2e-5)
    clipped = sum(state["clipped"] for state in states.values())
    assert clipped > 100
    elements = sum(p.numel() for p in model.parameters())
    assert optim.metrics(optimizer) == {"spam_clipped_fraction": clipped / (1200 * elements), "spam_resets": 2}
    assert optim.metrics(optimizer) == {"spam_clipped_fraction": 0.0, "spam_resets": 2}


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("piece", [3, 2**16])
def test_spikes_are_the_same_in_pieces_bit_for_bit(learns, piece, monkeypatch):
    """Also with squares that underflow, at the threshold itself, and with zeros, infinity and NaN."""
    monkeypatch.setattr(skippable, "_PIECE", piece)
    gradients = [0.0, -0.0, 1e-30, -1e-30, 3.0, -3.0, 2.0, -2.0, math.inf, -math.inf, math.nan]
    moments = [0.0, 1e-45, 1e-38, 0.5, 1.0, math.inf]
    grad, exp_avg_sq = torch.meshgrid(torch.tensor(gradients), torch.tensor(moments), indexing="ij")
    expected, found = grad.contiguous(), grad.clone(memory_format=torch.contiguous_format)
    clipped = clip_spikes(expected, exp_avg_sq, torch.tensor(4.0), learns)
    assert clip_spikes_on_cpu(found, exp_avg_sq.contiguous(), 4.0, learns) == int(clipped) > 5
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize(("rate", "decay"), [("0", "0.1"), ("0.5", "2"), ("0.5", "4")])
def test_the_decay_after_the_update_has_no_special_rates(rate, decay):
    """At no learning rate nothing moves; where the decay takes all or more, as the formula says."""
    model = OneMatrix(1, 1, value=3.0)
    optimizer = optim.build(model, schema(OPTIMIZER="adamwspam", WEIGHT_DECAY=decay).bind)
    optim.set_learning_rate(optimizer, float(rate))
    push(model, optimizer, torch.ones(1, 1))
    expected = (3.0 - float(rate)) * (1 - float(rate) * float(decay))
    assert model.matrix.item() == pytest.approx(expected, abs=1e-4)


class OneMatrix(torch.nn.Module):
    def __init__(self, rows, columns, value=0.0):
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.full((rows, columns), value))

    def prunable(self):
        return [self.matrix]


def push(model, optimizer, grad):
    """A step; returns how far the weights moved."""
    before = model.matrix.detach().clone()
    model.matrix.grad = grad.clone()
    optimizer.step()
    return model.matrix.detach() - before


def spam(model, **options):
    return optim.build(model, schema(OPTIMIZER="adamwspam", LEARNING_RATE="0.5", WEIGHT_DECAY="0", **options).bind)


@pytest.mark.parametrize(("compat", "learns"), [("paper", True), ("official", False)])
def test_a_row_first_seen_after_the_steps_without_clipping_learns(compat, learns):
    model = OneMatrix(2, 3)
    optimizer = spam(model, SPAM_COMPAT=compat, SPAM_INTERVAL="60", SPAM_WARMUP_STEPS="5")
    grad = torch.ones(2, 3)
    for step in range(1, 60):
        grad[1] = 1.0 if step > 25 else 0.0
        push(model, optimizer, grad)
    assert bool(model.matrix[1].abs().min() > 1) == learns
    assert bool((model.matrix[1] == 0).all()) != learns
    push(model, optimizer, grad)  # step 60 resets, and what follows isn't clipped
    assert (model.matrix[1] != 0).all()


def test_resets_come_at_multiples_of_the_interval_and_zero_both_moments():
    model = OneMatrix(1, 2)
    optimizer = spam(model, SPAM_INTERVAL="10", SPAM_WARMUP_STEPS="0", SPAM_CLIP_FREE_STEPS="0")
    resets, fresh = {}, []
    for step in range(1, 32):
        push(model, optimizer, torch.full((1, 2), 2.0))
        resets[step] = optim.metrics(optimizer)["spam_resets"]
        state = optimizer.state[model.matrix]
        if math.isclose(state["exp_avg"][0, 0], 0.2, rel_tol=1e-6):
            assert math.isclose(state["exp_avg_sq"][0, 0], 0.004, rel_tol=1e-6)
            fresh.append(step)
    assert fresh == [1, 10, 20, 30]
    assert [resets[step] for step in (1, 9, 10, 19, 20, 31)] == [0, 0, 1, 1, 2, 3]


def test_without_an_interval_there_are_no_resets():
    weights, optimizer = trained(OPTIMIZER="adamwspam", SPAM_INTERVAL="0", SPAM_WARMUP_STEPS="9")
    assert optim.metrics(optimizer)["spam_resets"] == 0
    same_weights, _ = trained(OPTIMIZER="adamwspam", SPAM_INTERVAL="1000")
    assert same(weights, same_weights)


def test_updates_warm_up_after_a_reset_and_not_before():
    """Under a constant gradient Adam's update is the learning rate, and by default so is that of each cycle's start."""
    model = OneMatrix(1, 1)
    optimizer = spam(model)
    moves = {step: -push(model, optimizer, torch.full((1, 1), 3.0)).item() for step in range(1, 660)}
    expected = {1: 0.5, 499: 0.5, 500: 0.005, 501: 0.0050535, 575: 0.2499256, 649: 0.4999464, 650: 0.5}
    assert {step: moves[step] for step in expected} == pytest.approx(expected, rel=2e-3)


def test_the_published_code_takes_too_large_steps_after_a_reset():
    model = OneMatrix(1, 1)
    optimizer = spam(model, SPAM_COMPAT="official", SPAM_WARMUP_STEPS="0")
    moves = {step: -push(model, optimizer, torch.full((1, 1), 3.0)).item() for step in range(1, 520)}
    assert moves[499] == pytest.approx(0.5, rel=1e-4)
    assert moves[500] / moves[499] == pytest.approx(3.162278 * math.sqrt(1 - 0.999**500), rel=1e-3)


@pytest.mark.parametrize(("spike", "kept"), [(70.0, 70.0), (500.0, math.sqrt(5000))])
def test_theta_bounds_the_square_over_the_second_moment_as_it_is(spike, kept):
    """A second moment of 1, at step 30: its bias, were it corrected, would make it 33 times as large."""
    model = OneMatrix(1, 2)
    optimizer = spam(model, SPAM_INTERVAL="0")
    push(model, optimizer, torch.ones(1, 2))
    state = optimizer.state[model.matrix]
    state["step"].fill_(30)
    state["exp_avg"].zero_()
    state["exp_avg_sq"].fill_(1.0)
    optim.metrics(optimizer)
    push(model, optimizer, torch.tensor([[1.0, -spike]]))
    assert state["exp_avg"][0].tolist() == pytest.approx([0.1, -0.1 * kept])
    assert state["exp_avg_sq"][0].tolist() == pytest.approx([1.0, 0.999 + 0.001 * kept**2])
    assert optim.metrics(optimizer)["spam_clipped_fraction"] == (0.5 if spike > kept else 0.0)


@pytest.mark.parametrize("compat", ["paper", "official"])
def test_sparse_momentum_moves_a_random_share_of_the_blocks_alone(compat):
    model = Small()
    model.wide = torch.nn.Parameter(torch.randn(100, 80))
    before = [p.detach().clone() for p in model.parameters()]
    options = {"SPAM_DENSITY": "0.25", "SPAM_COMPAT": compat, "SPAM_INTERVAL": "30", "SPAM_WARMUP_STEPS": "0"}
    optimizer = optim.build(model, schema(OPTIMIZER="adamwspam", WEIGHT_DECAY="0", **options).bind)
    make_steps(model, optimizer, range(29))
    moved = [(p != b) for p, b in zip(model.parameters(), before, strict=True)]
    shares = dict(zip(("wide", "tall", "embedding", "bias"), (m.float().mean().item() for m in moved), strict=True))
    assert shares["wide"] == pytest.approx(0.25, abs=0.02)
    assert 0 < shares["tall"] < 0.6
    assert (shares["embedding"], shares["bias"]) == (1, 1)
    middle = model.wide.detach().clone()
    make_steps(model, optimizer, range(29, 31))  # step 30 resets
    again = model.wide != middle
    assert again.float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert (again & moved[0]).float().mean().item() == pytest.approx(0.0625, abs=0.02)  # drawn anew


@pytest.mark.parametrize(("compat", "share"), [("paper", 1.0), ("official", 0.0)])
def test_weight_decay_acts_under_sparse_momentum(compat, share):
    model = OneMatrix(20, 20, value=1.0)
    options = {"SPAM_DENSITY": "0.5", "SPAM_COMPAT": compat, "WEIGHT_DECAY": "0.1", "LEARNING_RATE": "0.5"}
    optimizer = optim.build(model, schema(OPTIMIZER="adamwspam", **options).bind)
    moved = push(model, optimizer, torch.zeros(20, 20))
    assert torch.allclose(moved, torch.full((20, 20), -0.05 * share), atol=1e-7)


def test_sparse_momentum_is_drawn_from_the_seed_and_from_nothing_else():
    options = {"OPTIMIZER": "adamwspam", "SPAM_DENSITY": "0.5", "SPAM_INTERVAL": "25", "SPAM_WARMUP_STEPS": "3"}
    weights = []
    for local, seed in ((1, "7"), (2, "7"), (1, "8")):
        model = Small()
        optimizer = optim.build(model, schema(SEED=seed, **options).bind)
        torch.manual_seed(local)
        before = torch.random.get_rng_state()
        make_steps(model, optimizer, range(30))
        assert torch.equal(before, torch.random.get_rng_state())
        weights.append([p.detach() for p in model.parameters()])
    assert same(weights[0], weights[1])
    assert not same(weights[0], weights[2])


@pytest.mark.parametrize("name", ["SPAM_WARMUP_STEPS", "SPAM_CLIP_FREE_STEPS"])
def test_a_cycle_too_short_for_what_it_should_hold_is_refused(name):
    """Updates would never reach full size, or nothing ever be clipped."""
    values = {"SPAM_INTERVAL": "40", "SPAM_WARMUP_STEPS": "0", "SPAM_CLIP_FREE_STEPS": "0"}
    with pytest.raises(UsageError, match=f"{name}=40 does not end before the next reset; choose less than SPAM_INT"):
        spam(Small(), **values | {name: "40"})
    spam(Small(), **values | {name: "39"})
