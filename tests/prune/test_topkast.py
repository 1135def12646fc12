"""Top-KAST against its equations in plain loops and autograd, in float64; set B, the reserve, and when A is fixed.

tests/prune/test_prune.py and test_ranks.py have counts of A, resumes, skipped steps and ranks, as for every method.
"""

import pytest
import torch
from torch import nn

from lib.prune.mask import MaskOptions
from lib.prune.schedule import Plan
from lib.prune.score.magnitude import Magnitude
from lib.prune.topkast import TopKast
from lib.prune.weight import Weight
from lib.record import checkpoint
from tests.prune.test_prune import ONE, TOTAL, Trained, schema

YES, NO = (lambda: torch.tensor(True)), (lambda: torch.tensor(False))
DISTRIBUTIONS = ["layer", "erk", "row", "global", "global-rms"]


def kast(**values):
    return schema(PRUNING_DYNAMICS="topkast", **values)


def sets(weight):
    """A and B of a weight, bool."""
    return weight.mask.bool(), weight.memory["trained"].bool()


def dense(weight):
    return weight.value + weight.memory["reserve"]


def of(*values, target=0.6, backward=1.5, penalty=0.1, end=10):
    """A pruner of one row of weights, with masks every 5 steps."""
    parameter = nn.Parameter(torch.tensor([values]))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    weight = Weight("w", parameter, torch.ones(1, len(values), dtype=torch.uint8), optimizer)
    alone = MaskOptions("layer", None, None, None, None, None, "magnitude")
    pruner = TopKast(
        [weight], Magnitude(), Plan(0, end, 5, "one-shot"), target, alone, (), backward=backward, penalty=penalty
    )
    pruner.begin()
    return pruner, weight


def test_five_weights_by_hand():
    pruner, weight = of(4.0, -3.0, 2.0, -1.0, 0.5)  # A has 2 of 5, B has 3
    assert weight.mask.tolist() == [[1, 1, 0, 0, 0]]
    assert weight.value.tolist() == [[4.0, -3.0, 2.0, 0.0, 0.0]]
    assert weight.memory["reserve"].tolist() == [[0.0, 0.0, 0.0, -1.0, 0.5]]
    assert pruner.model_state({})["w"].tolist() == [[4.0, -3.0, 0.0, 0.0, 0.0]]
    assert pruner.sparsity() == 0.6
    weight.parameter.grad = torch.ones(1, 5)
    pruner.step(1, YES)
    # 1 + 0.1 w in A, 1 + 0.1 w / D in the rest of B with D = 0.4, and 0 outside.
    torch.testing.assert_close(weight.grad, torch.tensor([[1.4, 0.7, 1.5, 0.0, 0.0]]))
    with torch.no_grad():
        weight.value[0, 0] = 0.25  # it leaves both sets, and the fourth comes into B
    pruner.moved(1)
    assert weight.mask.tolist() == [[1, 1, 0, 0, 0]]  # not due
    for step in (2, 3, 4, 5):
        weight.parameter.grad = torch.ones(1, 5)
        pruner.step(step, YES)
        pruner.moved(step)
    assert weight.mask.tolist() == [[0, 1, 1, 0, 0]]
    assert weight.value.tolist() == [[0.0, -3.0, 2.0, -1.0, 0.0]]
    assert weight.memory["reserve"].tolist() == [[0.25, 0.0, 0.0, 0.0, 0.5]]


@pytest.mark.parametrize("penalty", ["0", "0.01"])
def test_a_run_of_sgd_against_plain_loops(penalty):
    """The equations of the paper for dense weights in float64: A, B, the gradient at W * A, the penalty, the update."""
    options = {"TARGET_SPARSITY": "0.8", "TOPKAST_BACKWARD": "2.5", "TOPKAST_PENALTY": penalty, "WEIGHT_DECAY": "0"}
    made = kast(**options)
    made.override([("SGD_MOMENTUM", "0", "test"), ("OPTIMIZER", "sgd", "test")])
    trained = Trained(made, "sgd")
    torch.manual_seed(0)
    fresh = nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 8))
    theta = [fresh[n].weight.detach().double() for n in (0, 2)]
    bias = [fresh[n].bias.detach().double().requires_grad_() for n in (0, 2)]
    c, density, chosen = float(penalty), 0.2, None
    for step in range(41):
        if step:
            alpha = [(w * a).requires_grad_() for w, (a, _) in zip(theta, chosen, strict=True)]
            generator = torch.Generator().manual_seed(step)
            x, y = (torch.randn(20, n, generator=generator).double() for n in (16, 8))
            out = torch.tanh(x @ alpha[0].T + bias[0]) @ alpha[1].T + bias[1]
            (out - y).square().mean().backward()
            for w, leaf, (a, b) in zip(theta, alpha, chosen, strict=True):
                for i in range(w.numel()):
                    if b.view(-1)[i]:
                        scale = 1.0 if a.view(-1)[i] else 1 / density
                        w.view(-1)[i] -= 0.01 * (leaf.grad.view(-1)[i] + c * scale * w.view(-1)[i])
            for one in bias:
                one.data -= 0.01 * one.grad
                one.grad = None
            trained.step()
        if step % 4 == 0:  # of 192 and of 96; 40 steps are the whole run, so B is A in the end
            chosen = [
                (largest(w, small), largest(w, small if step == 40 else large))
                for w, small, large in zip(theta, (39, 19), (97, 48), strict=True)
            ]
        for weight, w, (a, b) in zip(trained.pruner.weights, theta, chosen, strict=True):
            assert all(map(torch.equal, sets(weight), (a, b))), step
            torch.testing.assert_close(dense(weight).double(), w, rtol=1e-4, atol=1e-6)


def largest(w, count):
    found = torch.zeros(w.numel(), dtype=torch.bool)
    found[w.abs().flatten().argsort(descending=True)[:count]] = True
    return found.view(w.shape)


def test_gradients_are_those_of_the_loss_and_the_penalty():
    """Autograd in float64: W * A is a leaf (straight through), and the penalty is added to the loss as in the paper."""
    trained = Trained(kast(TOPKAST_PENALTY="0.3", TARGET_SPARSITY="0.7"))
    w = [dense(weight).double() for weight in trained.pruner.weights]
    for leaf in w:
        leaf.requires_grad_()
    both = [sets(weight) for weight in trained.pruner.weights]
    alpha = [(one.detach() * a).requires_grad_() for one, (a, _) in zip(w, both, strict=True)]
    bias = [trained.model[n].bias.detach().double() for n in (0, 2)]
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(20, n, generator=generator).double() for n in (16, 8))
    ((torch.tanh(x @ alpha[0].T + bias[0]) @ alpha[1].T + bias[1]) - y).square().mean().backward()
    for one, (a, b) in zip(w, both, strict=True):
        (0.15 * (one[a].square().sum() + one[b & ~a].square().sum() / 0.3)).backward()
    trained.done = 1
    trained.backward()
    trained.pruner.step(1, YES)
    for weight, one, leaf, (_, b) in zip(trained.pruner.weights, w, alpha, both, strict=True):
        torch.testing.assert_close(weight.grad.double(), leaf.grad * b + one.grad, rtol=1e-5, atol=1e-7)
        assert torch.count_nonzero(weight.grad[~b]) == 0


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(("target", "backward"), [("0.8", "2"), ("0.7", "1.37"), ("0.93", "5"), ("0.6", "3")])
def test_b_has_exactly_its_number_and_all_of_a(distribution, target, backward):
    trained = Trained(kast(PRUNING_DISTRIBUTION=distribution, TARGET_SPARSITY=target, TOPKAST_BACKWARD=backward))
    kept = TOTAL - round(float(target) * TOTAL)
    more = min(TOTAL, round(float(backward) * kept))
    assert trained.pruner.gradients() == (more - kept) / (TOTAL - kept)
    for step in range(41):
        if step:
            trained.step()
        both = [sets(weight) for weight in trained.pruner.weights]
        assert sum(int(a.sum()) for a, _ in both) == kept
        assert sum(int(b.sum()) for _, b in both) == (kept if step == 40 else more)
        assert not any((a & ~b).any() for a, b in both)
        if trained.pruner.plan.due(step) and distribution != "global-rms":  # nothing outside a set is larger
            for weight, pair in zip(trained.pruner.weights, both, strict=True):
                w = dense(weight).abs()
                for chosen in pair:
                    if distribution == "row":
                        worst, best = w.masked_fill(~chosen, 9).amin(1), w.masked_fill(chosen, 0).amax(1)
                        assert (worst >= best).all()
                    elif chosen.any() and not chosen.all():
                        assert w[chosen].min() >= w[~chosen].max()


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw", "adamwadv", "adamwspam", "stablespam", "muon"])
def test_outside_b_nothing_moves_under_any_optimizer(kind):
    """Neither by weight decay nor by moments, and moments are zero there; all other weights move."""
    trained = Trained(kast(TARGET_SPARSITY="0.8", WEIGHT_DECAY="0.3"), kind)
    came = 0
    for step in range(1, 40):
        before = [(dense(weight), *sets(weight)) for weight in trained.pruner.weights]
        trained.step()
        for weight, (value, _, b) in zip(trained.pruner.weights, before, strict=True):
            now, trains = dense(weight), sets(weight)[1]
            assert torch.equal(now[~b], value[~b])
            assert (now[b] != value[b]).float().mean() > 0.9
            assert not weight.value[~trains].any() and not weight.memory["reserve"][trains].any()
            for name, moment in weight.state.items():
                if isinstance(moment, torch.Tensor) and moment.shape == value.shape:
                    assert torch.count_nonzero(moment[~trains]) == 0, (step, name)
            came += int((trains & ~b).sum())
    assert came > 0


def test_a_is_fixed_from_the_end_on_and_b_is_a():
    trained = Trained(kast(PRUNING_END="20"))
    for step in range(1, 41):
        before = [weight.mask.clone() for weight in trained.pruner.weights]
        trained.step()
        for weight, mask in zip(trained.pruner.weights, before, strict=True):
            a, b = sets(weight)
            assert torch.equal(a, b) == (step >= 20)
            assert step <= 20 or torch.equal(weight.mask, mask)
    assert trained.pruner.ends() == float("inf")


@pytest.mark.parametrize("skipped", [(8,), (20,), (20, 21)])
def test_masks_that_were_due_at_a_skipped_step_are_chosen_at_the_next_good_one(skipped):
    trained = Trained(kast(PRUNING_END="20"))
    chosen = []
    for step in range(1, 25):
        at = trained.pruner.changed_at
        trained.step(NO if step in skipped else YES)
        if trained.pruner.changed_at != at:
            chosen.append(step)
    due = [4, 8, 12, 16, 20]
    assert chosen == [step if step not in skipped else max(skipped) + 1 for step in due]
    assert torch.equal(*sets(trained.pruner.weights[0]))


def test_a_checkpoint_has_every_value_once_and_continues_bit_for_bit(tmp_path):
    whole, first, second = (Trained(kast(TARGET_SPARSITY="0.8")) for _ in range(3))
    for _ in range(40):
        whole.step()
    for _ in range(22):
        first.step()
    state = checkpoint.load(checkpoint.save(tmp_path, 22, first.state(), ONE, {}))
    assert state["pruner"]["memory"] == {"0.weight": {}, "2.weight": {}}
    gone = TOTAL - 58
    assert sum(int((state["model"][name] == 0).sum()) for name in state["pruner"]["shapes"]) == gone
    assert sum(len(values) for values in state["pruner"]["hidden"].values()) == gone
    assert {name: len(bits) for name, bits in state["pruner"]["trained"].items()} == {"0.weight": 24, "2.weight": 12}
    second.load(state)
    second.done = 22
    for one, other in zip(first.pruner.weights, second.pruner.weights, strict=True):
        assert torch.equal(one.value, other.value)
        assert all(torch.equal(one.memory[name], other.memory[name]) for name in ("trained", "reserve"))
    for _ in range(18):
        second.step()
    for one, other in zip(whole.pruner.weights, second.pruner.weights, strict=True):
        assert torch.equal(dense(one), dense(other))
        assert all(map(torch.equal, sets(one), sets(other)))
    assert whole.pruner.metrics(40) == second.pruner.metrics(40)
