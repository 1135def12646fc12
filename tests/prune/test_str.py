"""STR against its equation: autograd in float64, torch's SGD for s, whole runs by hand; what is saved and counted.

tests/prune/test_ranks.py has two ranks, and tests/gpt2/test_divergence.py runs with skipped steps.
"""

import math

import pytest
import torch
from torch import nn

from lib import prune
from lib.base.errors import UsageError
from lib.config.config_file import ConfigError
from lib.prune.masked_linear import MaskedLinear
from lib.prune.schedule import Plan
from lib.prune.score.str import StrOptions, gradient, soft_threshold
from lib.record import checkpoint
from tests.prune.test_prune import ONE, TOTAL, YES, Trained, schema

NONE = dict.fromkeys(["PRUNING_INTERVAL", "TARGET_SPARSITY"])
FAST = {"STR_INIT": "-4", "STR_DECAY": "0.005", "STR_LEARNING_RATE": "0.2"}


def learned(**values):
    return schema(PRUNING_METHOD="str", **NONE, **FAST | values)


def reference(w, s):
    """sign(w) relu(|w| - sigmoid(s)), as the paper writes it, with autograd's derivatives."""
    return torch.sign(w) * torch.relu(w.abs() - torch.sigmoid(s))


def test_values_by_hand():
    """sigmoid(-ln 3) is 1/4."""
    w, s = torch.tensor([1.0, -0.75, 0.25, -0.125, 0.0, -0.375]), torch.tensor(-math.log(3))
    torch.testing.assert_close(soft_threshold(w, s), torch.tensor([0.75, -0.5, 0.0, 0.0, 0.0, -0.125]))
    g = torch.tensor([1.0, 2.0, 100.0, 100.0, 100.0, 4.0])
    # - 1/4 3/4 (1 - 2 - 4)
    torch.testing.assert_close(gradient(s, w, g), torch.tensor(0.9375))
    assert torch.equal(soft_threshold(w, torch.tensor(-3200.0)), w)  # the sigmoid is 0
    assert soft_threshold(torch.tensor([math.nan]), s).isnan().all()


@pytest.mark.parametrize("s", [-3200.0, -6.0, -1.0, 0.5])
def test_values_and_gradients_are_those_of_the_equation(s):
    torch.manual_seed(0)
    w, g = torch.randn(64, 48) * 0.3, torch.randn(64, 48)
    w64, s64 = w.double().requires_grad_(), torch.tensor(s, dtype=torch.float64, requires_grad=True)
    made = reference(w64, s64)
    made.backward(g.double())
    torch.testing.assert_close(soft_threshold(w, torch.tensor(s)).double(), made, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gradient(torch.tensor(s), w, g).double(), s64.grad, rtol=1e-4, atol=1e-6)
    kept = w.abs() > torch.tensor(s).sigmoid()
    torch.testing.assert_close((g * kept).double(), w64.grad)


@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_hands_on_the_dense_gradient(bias):
    torch.manual_seed(0)
    layer, s = nn.Linear(6, 4, bias=bias), torch.tensor(-1.5)
    x, upstream = torch.randn(3, 5, 6, requires_grad=True), torch.randn(3, 5, 4)
    effective = reference(layer.weight.detach().double(), s.double()).requires_grad_()
    x64 = x.detach().double().requires_grad_()
    b64 = layer.bias.detach().double().requires_grad_() if bias else None
    nn.functional.linear(x64, effective, b64).backward(upstream.double())
    before = dict(layer.named_parameters())
    soft = MaskedLinear(layer, soft_threshold, s)
    assert list(soft.state_dict()) == list(before) and all(p is before[n] for n, p in soft.named_parameters())
    out = soft(x)
    out.backward(upstream)
    pairs = [(out, nn.functional.linear(x64, effective, b64)), (x.grad, x64.grad), (layer.weight.grad, effective.grad)]
    for got, expected in [*pairs, (layer.bias.grad, b64.grad)] if bias else pairs:
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert soft(x).dtype == torch.bfloat16


class ByHand(nn.Module):
    """The network of Trained with thresholds as parameters, as the authors' layers have them."""

    def __init__(self, like, s):
        super().__init__()
        self.w = nn.ParameterList(like[n].weight.detach().double().clone() for n in (0, 2))
        self.b = nn.ParameterList(like[n].bias.detach().double().clone() for n in (0, 2))
        self.s = nn.ParameterList(torch.tensor([[s]], dtype=torch.float64) for _ in range(2))

    def forward(self, x):
        w = [reference(*pair) for pair in zip(self.w, self.s, strict=True)]
        return torch.tanh(x @ w[0].T + self.b[0]) @ w[1].T + self.b[1]


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_run_is_that_of_the_equation(kind):
    """Autograd through the soft threshold in float64; torch's SGD for s, and torch's optimizer of the run for the rest.

    The rate halves in the middle, and that of s with it.
    """
    made = learned(WEIGHT_DECAY="0.01")
    trained = Trained(made, kind)
    hand = ByHand(trained.model, -4.0)
    groups = [{"params": hand.w, "weight_decay": 0.01}, {"params": hand.b, "weight_decay": 0.0}]
    learns = torch.optim.SGD(hand.s, lr=0.2, momentum=0.875, weight_decay=0.005)
    if kind == "sgd":
        others = torch.optim.SGD(groups, lr=0.01, momentum=made["SGD_MOMENTUM"])
    else:
        betas = (made["ADAM_BETA1"], made["ADAM_BETA2"])
        others = torch.optim.AdamW(groups, lr=0.01, betas=betas, eps=made["ADAM_EPSILON"])
    for step in range(1, 41):
        if step == 21:
            for group in [*others.param_groups, *learns.param_groups, *trained.optimizer.param_groups]:
                group["lr"] /= 2
        generator = torch.Generator().manual_seed(step)
        x, y = (torch.randn(20, n, generator=generator).double() for n in (16, 8))
        (hand(x) - y).square().mean().backward()
        learns.step()
        others.step()
        hand.zero_grad()
        trained.step()
        for weight, w, s in zip(trained.pruner.weights, hand.w, hand.s, strict=True):
            torch.testing.assert_close(weight.memory["s"].double(), s.detach().view(()), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(weight.value.double(), w.detach(), rtol=1e-3, atol=1e-4)
    assert 0.02 < trained.pruner.sparsity() < 0.98


def test_masks_counts_and_what_is_saved_are_of_the_weights_that_the_model_computes_with(tmp_path):
    trained, x = Trained(learned()), torch.randn(3, 16)
    assert trained.pruner.plan == Plan(0, 0, 1, "one-shot", continues=True)
    sparsities = []
    for _ in range(1, 41):
        trained.step()
        state = trained.pruner.model_state(trained.model.state_dict())
        zeros = 0
        for weight in trained.pruner.weights:
            expected = reference(weight.value, weight.memory["s"])
            torch.testing.assert_close(state[weight.name], expected, rtol=1e-6, atol=1e-8)
            assert torch.equal(weight.mask.bool(), state[weight.name] != 0)
            zeros += int((expected == 0).sum())
        assert trained.pruner.sparsity() == zeros / TOTAL
        assert trained.pruner.kept == TOTAL - zeros
        sparsities.append(zeros / TOTAL)
    assert sparsities[-1] > sparsities[0] and 0.05 < sparsities[-1] < 0.98
    plain = nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 8))
    plain.load_state_dict(checkpoint.load(checkpoint.save(tmp_path, 40, trained.state(), ONE, {}))["model"])
    assert torch.equal(plain(x), trained.model(x))  # so a sample or an export needs no threshold
    average = sum(round((1 - s) * TOTAL) for s in [1 - first_kept() / TOTAL, *sparsities[:-1]]) / 40
    metrics = trained.pruner.metrics(40)
    assert metrics["average_nonzeros"] == pytest.approx(average)
    assert "mask_overlap_magnitude" not in metrics
    assert (trained.pruner.goal(), trained.pruner.ends(), trained.pruner.gradients()) == (math.inf, math.inf, 0.0)


def first_kept():
    """How many weights the first forward pass uses."""
    return Trained(learned()).pruner.kept


def test_decay_of_s_decides_how_sparse_it_becomes():
    found = []
    for decay in ("0", "0.002", "0.005", "0.02"):
        trained = Trained(learned(STR_DECAY=decay))
        for _ in range(40):
            trained.step()
        found.append(trained.pruner.sparsity())
    assert found == sorted(found) and found[0] < 0.3 < 0.6 < found[-1]


def test_a_checkpoint_continues_bit_for_bit_in_values_and_thresholds(tmp_path):
    whole, first, second = (Trained(learned()) for _ in range(3))
    for _ in range(40):
        whole.step()
    for _ in range(21):
        first.step()
    second.load(checkpoint.load(checkpoint.save(tmp_path, 21, first.state(), ONE, {})))
    second.done = 21
    for _ in range(19):
        second.step()
    for one, other in zip(whole.pruner.weights, second.pruner.weights, strict=True):
        assert torch.equal(one.value, other.value)
        assert all(torch.equal(one.memory[name], other.memory[name]) for name in ("s", "momentum"))
    assert whole.pruner.metrics(40) == second.pruner.metrics(40)


def test_a_skipped_step_moves_no_threshold():
    trained = Trained(learned())
    for _ in range(5):
        trained.step()
    before = [{name: value.clone() for name, value in weight.memory.items()} for weight in trained.pruner.weights]
    trained.optimizer.zero_grad()
    trained.backward()
    for weight in trained.pruner.weights:
        weight.parameter.grad.fill_(torch.nan)
    trained.pruner.step(6, lambda: torch.tensor(False))
    for weight, memory in zip(trained.pruner.weights, before, strict=True):
        assert all(torch.equal(weight.memory[name], memory[name]) for name in memory)


@pytest.mark.parametrize("kind", ["muon", "sgd"])
def test_without_decay_a_weight_below_its_threshold_stays_where_it_is(kind):
    """Muon's update is not element by element: without masks it would move them by whole steps."""
    trained = Trained(learned(WEIGHT_DECAY="0"), kind)
    before = [weight.value.clone() for weight in trained.pruner.weights]
    below = [weight.mask == 0 for weight in trained.pruner.weights]
    trained.step()
    for weight, value, out in zip(trained.pruner.weights, before, below, strict=True):
        assert out.any() and torch.equal(weight.value[out], value[out])
        assert not torch.equal(weight.value[~out], value[~out])


def test_a_learning_rate_of_0_trains_no_threshold():
    trained = Trained(learned())
    for made in (StrOptions(-4.0, 0.1, 0.2, 0.0), StrOptions(-4.0, 0.1, 0.2, 0.01)):
        assert made.rate(0.0) == 0
    assert StrOptions(-4.0, 0.1, 0.2, 0.01).rate(0.005) == 0.1
    assert trained.pruner.criterion.options.rate(0.01) == 0.2


def test_it_is_for_linear_layers_and_not_for_decay_in_the_gradient_of_adam():
    model = nn.Sequential(nn.Embedding(3, 4))
    with pytest.raises(UsageError, match=r"PRUNING_SCOPE: 0\.weight is not the weight of a linear layer"):
        prune.build(model, torch.optim.SGD(model.parameters()), learned().bind)
    with pytest.raises(ConfigError, match="PRUNING_METHOD=str has no effect: it needs OPTIMIZER other than adam"):
        Trained(learned(), "adam")
    assert Trained(learned()).pruner.due(1, YES)
