"""Optimizers against float64 transcriptions of their papers, and what the loop relies on."""

import pytest
import torch

from gpt2.model import GPT2, ModelOptions
from lib import optim
from lib.kconf import Schema


def schema(**values):
    made = Schema()
    made.override([(name, text, "test") for name, text in values.items()])
    return made


def reference_step(kind, w, g, state, lr, decay, b1=0.9, b2=0.95, eps=1e-8, momentum=0.9):
    """One update in float64, from the papers' formulas."""
    if kind == "adamw":
        w = w * (1 - lr * decay)
    else:
        g = g + decay * w
    if kind == "sgd":
        state["v"] = momentum * state["v"] + g if state["t"] else g
        state["t"] += 1
        return w - lr * state["v"]
    state["t"] += 1
    state["m"] = b1 * state["m"] + (1 - b1) * g
    state["v"] = b2 * state["v"] + (1 - b2) * g * g
    m_hat, v_hat = state["m"] / (1 - b1 ** state["t"]), state["v"] / (1 - b2 ** state["t"])
    return w - lr * m_hat / (v_hat.sqrt() + eps)


class OneMatrix(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix, self.bias = torch.nn.Parameter(torch.randn(7, 5)), torch.nn.Parameter(torch.randn(5))


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_update_agrees_with_the_paper_in_float64(kind):
    torch.manual_seed(0)
    model = OneMatrix()
    optimizer = optim.build(model, schema(OPTIMIZER=kind, WEIGHT_DECAY="0.3"))
    expected = {name: p.detach().double() for name, p in model.named_parameters()}
    states = {name: {"t": 0, "m": torch.zeros(()), "v": torch.zeros(())} for name in expected}
    for step in range(1, 60):
        lr = 1e-2 / step
        optim.set_learning_rate(optimizer, lr)
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn(parameter.shape)
            decay = 0.3 if parameter.dim() > 1 else 0.0  # matrices alone decay
            expected[name] = reference_step(kind, expected[name], parameter.grad.double(), states[name], lr, decay)
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), expected[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_a_step_that_must_be_skipped_changes_nothing(kind):
    torch.manual_seed(0)
    model = OneMatrix()
    optimizer = optim.build(model, schema(OPTIMIZER=kind))
    for bad in (0.0, 1.0, 0.0):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, torch.nan if bad else 1.0)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optim.skip_if(optimizer, torch.tensor(bad))
        optimizer.step()
        for name, parameter in model.named_parameters():
            assert torch.isfinite(parameter).all()
            assert torch.equal(parameter, before[name]) == bool(bad)
        assert all(torch.isfinite(value).all() for state in optimizer.state.values() for value in state.values())


def test_every_parameter_is_in_exactly_one_group_and_only_matrices_decay():
    model = GPT2(ModelOptions("custom", 2, 2, 16, 8, 0.0), 64)
    decayed, kept = optim.build(model, schema(WEIGHT_DECAY="0.25")).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.25, 0.0)
    assert {p.dim() for p in decayed["params"]} == {2}
    assert {p.dim() for p in kept["params"]} == {1}
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


def test_options_reach_the_optimizer():
    adam = optim.build(OneMatrix(), schema(OPTIMIZER="adam", ADAM_BETA1="0.8", ADAM_BETA2="0.7", ADAM_EPSILON="1e-3"))
    assert (adam.defaults["betas"], adam.defaults["eps"]) == ((0.8, 0.7), 1e-3)
    sgd = optim.build(OneMatrix(), schema(OPTIMIZER="sgd", SGD_MOMENTUM="0.5", LEARNING_RATE="0.25"))
    assert (sgd.defaults["momentum"], sgd.param_groups[0]["lr"]) == (0.5, 0.25)
