"""Stable-SPAM against a float64 transcription of its equations."""

import math

import pytest
import torch

from lib import optim
from lib.optim import skippable
from tests.optim.test_optim import Small, gradients, make_steps, one_thread, schema  # noqa: F401


def reference_step(w, g, s, *, lr, decay, interval=1000, total=0, gamma1=0.7, gamma2=0.9, theta=0.999):
    """One update of one tensor; returns the weights and the gradient that Adam saw."""
    b1, b2, eps = 0.9, 0.999, 1e-8
    s["t"] += 1
    t = s["t"]
    scale = 0.5 + 0.5 * (1 + math.cos(math.pi * t / (total + 1))) / 2 if total else 1.0
    largest = g.abs().max()
    s["max"] = theta * s["max"] + (1 - theta) * largest
    limit = s["max"] / (1 - theta**t)
    g = torch.where(g.abs() > limit, g / largest * limit, g)
    norm = g.norm()
    s["norm"] = gamma1 * scale * s["norm"] + (1 - gamma1 * scale) * norm
    s["square"] = gamma2 * s["square"] + (1 - gamma2) * norm**2
    mean, square = s["norm"] / (1 - (gamma1 * scale) ** t), s["square"] / (1 - gamma2**t)
    g = g / norm * (mean / (square.sqrt() + eps))
    if t % interval == 0:
        s["m"], s["v"], s["n"] = torch.zeros_like(w), torch.zeros_like(w), 0
    s["n"] += 1
    beta1 = b1 * scale
    s["m"] = beta1 * s["m"] + (1 - beta1) * g
    s["v"] = b2 * s["v"] + (1 - b2) * g**2
    w = w * (1 - lr * decay)
    m_hat, v_hat = s["m"] / (1 - beta1 ** s["n"]), s["v"] / (1 - b2 ** s["n"])
    return w - lr * m_hat / (v_hat.sqrt() + eps), g


@pytest.mark.parametrize(
    ("interval", "total", "piece", "host"),
    [(1000, 0, 2**16, True), (300, 0, 7, True), (300, 1200, 2**16, True), (300, 1200, 2**16, False)],
)
def test_1200_steps_with_resets_agree_in_float64(interval, total, piece, host, monkeypatch):
    monkeypatch.setattr(skippable, "on_host", lambda _: host)
    monkeypatch.setattr(skippable, "_PIECE", piece)
    model = Small()
    options = {"STABLESPAM_INTERVAL": str(interval), "STABLESPAM_TOTAL_STEPS": str(total)}
    optimizer = optim.build(model, schema(OPTIMIZER="stablespam", **options).bind)
    expected = {name: p.detach().double() for name, p in model.named_parameters()}
    names = ("t", "n", "max", "norm", "square", "m", "v")
    states = {name: dict.fromkeys(names, 0) | {"m": 0 * w, "v": 0 * w} for name, w in expected.items()}
    for step in range(1200):
        for (name, p), grad in zip(model.named_parameters(), gradients(model, step), strict=True):
            settings = {"lr": 1e-2 / (1 + step), "decay": 0.1 if p.dim() > 1 else 0.0}
            settings |= {"interval": interval, "total": total}
            expected[name], _ = reference_step(expected[name], grad.double(), states[name], **settings)
        make_steps(model, optimizer, [step])
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach().double(), expected[name], atol=2e-5, rtol=2e-5)


def test_elements_are_clipped_right_after_a_reset_too():
    """The averages outlive a reset, and so do their counters: M' stays 1 under elements of 1."""
    model = Small()
    optimizer = optim.build(model, schema(OPTIMIZER="stablespam", STABLESPAM_INTERVAL="50").bind)
    for step in range(1, 54):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        if step == 52:
            model.bias.grad[0] = 1000.0
        optimizer.step()
        if step == 52:  # M = 0.999 M + 0.001 * 1000, M' = M / (1 - 0.999^52); clipped by that, not by 500 times that
            limit = (0.999 * (1 - 0.999**51) + 1) / (1 - 0.999**52)
            relative = model.bias.grad / model.bias.grad[1]
            assert relative.tolist() == pytest.approx([limit, 1, 1, 1, 1], rel=1e-4)


def test_gradients_of_any_size_lead_to_the_same_weights():
    """Adam is like that anyway; here a gradient that suddenly is 1000 times as large also changes hardly anything."""
    moves = []
    for factor in (1.0, 1000.0):
        model = Small()
        optimizer = optim.build(model, schema(OPTIMIZER="stablespam", WEIGHT_DECAY="0").bind)
        make_steps(model, optimizer, range(30))
        before = model.wide.detach().clone()
        for p, grad in zip(model.parameters(), gradients(model, 30), strict=True):
            p.grad = grad * factor
        optimizer.step()
        moves.append((model.wide.detach() - before).norm().item())
    assert moves[1] < 3 * moves[0]
