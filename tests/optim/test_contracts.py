"""What the loop and the pruner rely on, of every optimizer: skipped steps, checkpoints, masks, the learning rate."""

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from lib import optim
from lib.config.config_file import ConfigError
from lib.optim import skippable
from tests.optim.test_optim import (
    BUSY,
    KINDS,
    Small,
    gradients,
    make_steps,
    same,
    schema,
    trained,
)


@pytest.mark.parametrize(
    ("kind", "host"), [*((kind, True) for kind in KINDS), ("adamwspam", False), ("stablespam", False), ("muon", False)]
)
def test_a_step_that_must_be_skipped_was_never_made(kind, host, monkeypatch):
    """At the first step, right before, at and after resets (at 8 and 16), several in a row, with NaN and infinity."""
    monkeypatch.setattr(skippable, "on_host", lambda _: host)
    options = {"OPTIMIZER": kind} | BUSY.get(kind, {})
    model = Small()
    optimizer = optim.build(model, schema(**options).bind)
    for seed in range(20):
        for _ in range(2 if seed in (0, 3, 7, 8, 15) else 0):
            before = [p.detach().clone() for p in model.parameters()]
            for p, value in zip(model.parameters(), (torch.nan, torch.inf, 1.0, -torch.inf), strict=True):
                p.grad = torch.full_like(p, value)
            optim.skip_if(optimizer, torch.tensor(1.0))
            optimizer.step()
            assert same(before, [p.detach() for p in model.parameters()])
        make_steps(model, optimizer, [seed])
    weights, twin = trained(20, **options)
    assert same([p.detach() for p in model.parameters()], weights)
    assert same(optimizer.state_dict()["state"], twin.state_dict()["state"])


@pytest.mark.parametrize("kind", ["adamwspam", "stablespam", "muon"])
def test_a_loss_scaler_skips_by_the_same_means(kind):
    model, scaler = Small(), torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = optim.build(model, schema(OPTIMIZER=kind).bind)
    for factor, moves in ((1.0, True), (torch.inf, False), (1.0, True)):
        before = [p.detach().clone() for p in model.parameters()]
        scaler.scale(sum((factor * p).sum() for p in model.parameters())).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert same(before, [p.detach() for p in model.parameters()]) != moves
    steps = {float(state["step"]) for state in optimizer.state.values() if "step" in state}
    assert steps == {2.0}


@pytest.mark.parametrize("kind", ["adamwspam", "stablespam", "muon"])
def test_a_step_never_waits_for_the_device(kind, monkeypatch):
    """Tensors without data can't be looked at: whatever would wait for a GPU raises."""
    monkeypatch.setattr(skippable, "on_host", lambda _: False)
    with FakeTensorMode():
        model = Small()
        optimizer = optim.build(model, schema(OPTIMIZER=kind).bind)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optim.skip_if(optimizer, torch.zeros(()))
        optimizer.step()


@pytest.mark.parametrize("kind", [*KINDS, "sparse"])
def test_a_checkpoint_in_the_middle_of_a_cycle_continues_bit_for_bit(kind):
    options = {"OPTIMIZER": kind} | BUSY.get(kind, {})
    if kind == "sparse":
        options = {"OPTIMIZER": "adamwspam", "SPAM_DENSITY": "0.5"} | BUSY["adamwspam"]
    model = Small()
    optimizer = optim.build(model, schema(**options).bind)
    make_steps(model, optimizer, range(13))
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    resumed = Small()
    resumed.load_state_dict(weights)
    other = optim.build(resumed, schema(**options).bind)
    other.load_state_dict(state)
    for m, o in ((model, optimizer), (resumed, other)):
        make_steps(m, o, range(13, 30))
    assert same(model.state_dict(), resumed.state_dict())
    assert same(optimizer.state_dict(), other.state_dict())
    assert optim.metrics(optimizer) == optim.metrics(other)


@pytest.mark.parametrize("kind", KINDS)
def test_the_learning_rate_is_the_schedules(kind):
    """Warm-up after a reset and the scale of muon's updates are no business of the group's."""
    _, optimizer = trained(10, OPTIMIZER=kind, **BUSY.get(kind, {}))
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_pruned_weights_stay_exactly_zero(kind):
    """Pruned after some steps, as lib.prune does it: weights, and all state of their shape, then every gradient."""
    model = Small()
    optimizer = optim.build(model, schema(OPTIMIZER=kind, **BUSY.get(kind, {})).bind)
    make_steps(model, optimizer, range(5))
    masks = {p: (torch.rand(p.shape) < 0.5).to(torch.uint8) for p in model.prunable()}
    optim.use_masks(optimizer, masks)
    for p, mask in masks.items():
        p.data.mul_(mask)
        for value in optimizer.state[p].values():
            if value.shape == p.shape:
                value.mul_(mask)
    for seed in range(5, 25):
        for p, grad in zip(model.parameters(), gradients(model, seed), strict=True):
            p.grad = grad * masks[p] if p in masks else grad
        optim.skip_if(optimizer, torch.tensor(0.0))
        optimizer.step()
    for p, mask in masks.items():
        assert torch.equal(p != 0, mask.bool())
        for value in optimizer.state[p].values():
            assert value.shape != p.shape or not value[mask == 0].any()


def adam_like(kind):
    """The options of an optimizer of Adam's kind with the smallest epsilon that there is."""
    return {"OPTIMIZER": kind, "ADAM_EPSILON": "1e-20", "WEIGHT_DECAY": "0"} | BUSY.get(kind, {})


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_no_gradient_does_not_move_even_at_the_smallest_epsilon(kind):
    model = Small()
    optimizer = optim.build(
        model, schema(**({"OPTIMIZER": kind, "WEIGHT_DECAY": "0"} if kind == "sgd" else adam_like(kind))).bind
    )
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(20):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert same(before, [p.detach() for p in model.parameters()])


def test_an_epsilon_that_makes_nan_is_refused():
    for text in ("0", "1e-30"):
        with pytest.raises(ConfigError, match=f"ADAM_EPSILON must lie between 1e-20 and 1; got {text}"):
            schema(OPTIMIZER="adamw", ADAM_EPSILON=text)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sgd"])
@given(exponents=st.lists(st.integers(-45, 10), min_size=5, max_size=5), zero=st.booleans())
@settings(max_examples=20)
def test_no_gradient_however_small_moves_a_weight_far(kind, exponents, zero):
    """Also one whose square is 0 in float32, where epsilon is all that its average is divided by."""
    model = Small()
    optimizer = optim.build(model, schema(**adam_like(kind)).bind)
    optim.set_learning_rate(optimizer, 1e-3)
    for exponent in exponents:
        before = [p.detach().clone() for p in model.parameters()]
        for p in model.parameters():
            p.grad = torch.full_like(p, 10.0**exponent)
            p.grad.view(-1)[0] = 0 if zero else 1e-3
        optimizer.step()
        moved = [(p.detach() - b).abs().max().item() for p, b in zip(model.parameters(), before, strict=True)]
        # m / sqrt(v) is at most (1 - b1) / sqrt((1 - b2) (1 - b1^2 / b2)): 1.1 at the betas of adamw, 7.3 of SPAM.
        assert max(moved) < 1e-3 * 8, (exponents, moved)


def test_only_spam_has_something_to_tell():
    assert [kind for kind in KINDS if optim.metrics(trained(3, OPTIMIZER=kind)[1])] == ["adamwspam"]
