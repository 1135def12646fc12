"""S-STE against plain loops in float64: its projection, its gradient, beta, and what a run computes with and saves."""

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lib.base.errors import UsageError
from lib.config.config_file import ConfigError
from lib.prune.hidden import smooth, soft_threshold
from lib.prune.masked_linear import MaskedLinear
from lib.record import checkpoint
from tests.prune.test_prune import GROUPS, METHODS, ONE, TOTAL, Trained, case, schema, two_of_four


def by_hand(rows, n, m):
    """sign(w) max(|w| - t, 0), where t is the (m - n)th smallest magnitude of each group; in Python's floats."""
    found = []
    for row in rows.tolist():
        found.append([])
        for start in range(0, len(row), m):
            group = row[start : start + m]
            t = sorted(map(abs, group))[m - n - 1]
            found[-1] += [(1 if w > 0 else -1) * max(abs(w) - t, 0.0) for w in group]
    return torch.tensor(found, dtype=torch.float64)


def largest(rows, n, m):
    """uint8: the n largest of each m neighbours."""
    groups = rows.abs().reshape(-1, m)
    return torch.zeros_like(groups).scatter_(1, groups.topk(n, dim=1).indices, 1).view_as(rows).byte()


def beta_by_hand(dense):
    soft = by_hand(dense, 2, 4)
    pairs = list(zip(dense.flatten().tolist(), soft.flatten().tolist(), strict=True))
    return sum(w * s for w, s in pairs) / sum(s * s for _, s in pairs)


# ---- the projection --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "m", "weights", "expected"),
    [
        (2, 4, [1.0, -2.0, 3.0, -4.0], [0, 0, 1, -2]),
        (2, 4, [0.5, 0.25, -0.5, 0.0], [0.25, 0, -0.25, 0]),
        (2, 4, [-3.0, 1.0, 2.0, 2.0], [-1, 0, 0, 0]),  # one of two equal ones is kept, and nothing is left of it
        (2, 4, [2.0, -2.0, 2.0, -2.0], [0, 0, 0, 0]),
        (1, 4, [1.0, -2.0, 3.0, -4.0], [0, 0, 0, -1]),
        (3, 4, [1.0, -2.0, 3.0, -4.0], [0, -1, 2, -3]),
        (1, 2, [1.0, -2.0, 3.0, -4.0], [0, -1, 0, -1]),
        (2, 4, [0.0, 0.0, 3.0, -4.0], [0, 0, 3, -4]),  # what is 2:4 already stays as it is
    ],
)
def test_literal_values(n, m, weights, expected):
    weights = torch.tensor([weights])
    assert soft_threshold(weights, largest(weights, n, m), m).tolist() == [expected]
    assert smooth(weights, largest(weights, n, m), torch.tensor(2.5), m).tolist() == [[2.5 * w for w in expected]]


@st.composite
def matrices(draw):
    m = draw(st.integers(2, 8))
    n, rows, groups = draw(st.integers(1, m - 1)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    numbers = st.floats(-4, 4, width=32) | st.sampled_from([0.0, -1.0, 1.0, 2.0])  # the latter are often equal
    size = rows * groups * m
    return n, m, torch.tensor(draw(st.lists(numbers, min_size=size, max_size=size))).view(rows, groups * m)


@given(matrices())
def test_it_is_the_formula_and_leaves_at_most_n_of_m(drawn):
    n, m, weights = drawn
    soft = soft_threshold(weights, largest(weights, n, m), m)
    assert torch.equal(soft, by_hand(weights, n, m).float())
    assert ((soft != 0).view(-1, m).sum(1) <= n).all()


@given(matrices(), st.integers(0, 1000), st.floats(0, 1))
def test_it_is_continuous(drawn, seed, size):
    """A change of the weights by at most d moves each projected weight by at most 2 d, whatever it does to the mask."""
    n, m, first = drawn
    change = torch.rand(first.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    second = first.double() + size * (2 * change - 1)
    one, other = (soft_threshold(w, largest(w, n, m), m) for w in (first.double(), second))
    assert (one - other).abs().max() <= 2 * (first - second).abs().max() + 1e-12


# ---- the layer -------------------------------------------------------------------------------------------------------


S = functools.partial(smooth, m=4)


def layer(bias=True):
    torch.manual_seed(0)
    dense = nn.Linear(8, 6, bias=bias)
    return dense, largest(dense.weight.detach(), 2, 4), torch.tensor(1.75)


@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_with_projected_weights_and_their_dense_gradient(bias):
    dense, mask, scale = layer(bias)
    x = torch.randn(3, 5, 8, requires_grad=True)
    upstream = torch.randn(3, 5, 6)
    effective = (1.75 * by_hand(dense.weight.detach(), 2, 4)).requires_grad_()  # dL/dW' is what W gets
    x64 = x.detach().double().requires_grad_()
    b64 = dense.bias.detach().double().requires_grad_() if bias else None
    expected = F.linear(x64, effective, b64)
    expected.backward(upstream.double())
    got = MaskedLinear(dense, S, mask, scale)(x)
    got.backward(upstream)
    pairs = [(got, expected), (x.grad, x64.grad), (dense.weight.grad, effective.grad)]
    for found, right in pairs + ([(dense.bias.grad, b64.grad)] if bias else []):
        torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=1e-6)
    assert torch.count_nonzero(dense.weight.grad[mask == 0]) > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_weights_are_projected_in_float32(dtype):
    dense, mask, scale = layer()
    x = torch.randn(4, 8)
    exact = scale * by_hand(dense.weight.detach(), 2, 4).float()
    with torch.autocast("cpu", dtype):
        got = MaskedLinear(dense, S, mask, scale)(x)
        assert torch.equal(got, F.linear(x, exact, dense.bias))
    got.float().sum().backward()
    assert (got.dtype, dense.weight.grad.dtype) == (dtype, torch.float32)


def test_a_layer_of_bfloat16_weights():
    dense, _, scale = layer()
    dense.bfloat16()
    x = torch.randn(4, 8, dtype=torch.bfloat16)
    exact = by_hand(dense.weight.detach().float(), 2, 4).bfloat16() * scale
    got = MaskedLinear(dense, S, largest(dense.weight.detach(), 2, 4), scale)(x)
    assert torch.equal(got, F.linear(x, exact, dense.bias))
    got.sum().backward()
    assert dense.weight.grad.dtype == torch.bfloat16


# ---- the pruner ------------------------------------------------------------------------------------------------------


def test_beta_is_that_of_the_first_weights_and_stays():
    """beta = W . S(W) / |S(W)|^2 of each tensor makes |W - beta S(W)| least; here of two small matrices."""
    trained = Trained(case("s-ste"))
    expected = {w.name: beta_by_hand(w.value.double()) for w in trained.pruner.weights}
    for weight in trained.pruner.weights:
        beta, soft = expected[weight.name], by_hand(weight.value.double(), 2, 4)
        errors = [float((weight.value.double() - b * soft).norm()) for b in (0.999 * beta, beta, 1.001 * beta)]
        assert errors[1] == min(errors)
    for _ in range(5):
        trained.step()
        found = trained.pruner.state_dict()["beta"]
        assert {name: value.item() for name, value in found.items()} == {
            name: pytest.approx(value, rel=1e-6) for name, value in expected.items()
        }
    assert all(1.5 < value < 4 for value in expected.values())


def test_every_forward_pass_projects_the_weights_of_that_moment():
    """So do evaluations, checkpoints and the sparsity, from before the first step on."""
    trained = Trained(case("s-ste"))
    beta = [beta_by_hand(weight.value.double()) for weight in trained.pruner.weights]
    bias, moved = [trained.model[0].bias, trained.model[2].bias], 0
    for step in range(1, 41):
        masks = [weight.mask.clone() for weight in trained.pruner.weights]
        soft = [b * by_hand(w.value.double(), 2, 4) for b, w in zip(beta, trained.pruner.weights, strict=True)]
        x = torch.randn(3, 16, generator=torch.Generator().manual_seed(step))
        hidden = torch.tanh(x.double() @ soft[0].T + bias[0])
        torch.testing.assert_close(trained.model(x).double(), hidden @ soft[1].T + bias[1], rtol=1e-4, atol=1e-5)
        saved = trained.pruner.model_state(trained.model.state_dict())
        for weight, expected in zip(trained.pruner.weights, soft, strict=True):
            torch.testing.assert_close(saved[weight.name].double(), expected, rtol=1e-5, atol=1e-7)
            assert torch.equal(saved[weight.name] != 0, two_of_four(weight.value).bool())
            assert torch.equal(weight.mask, two_of_four(weight.value).byte())
        assert trained.pruner.sparsity() == 0.5
        assert trained.pruner.layers() == {"sparsity/0": 0.5, "sparsity/2": 0.5}
        trained.step()
        moved += sum(int((w.mask != old).sum()) for w, old in zip(trained.pruner.weights, masks, strict=True))
    assert moved > 20
    assert trained.pruner.metrics(40)["average_nonzeros"] == TOTAL / 2


def test_a_step_moves_dense_weights_by_the_gradient_of_the_projected_ones():
    """Two steps of plain SGD, written out in float64."""
    trained = Trained(schema(**METHODS["s-ste"], OPTIMIZER="sgd", WEIGHT_DECAY="0", SGD_MOMENTUM="0"), "sgd")
    dense = [weight.value.double() for weight in trained.pruner.weights]
    bias = [trained.model[0].bias.detach().double(), trained.model[2].bias.detach().double()]
    beta = [beta_by_hand(weight) for weight in dense]
    for step in (1, 2):
        generator = torch.Generator().manual_seed(step)
        x, y = (torch.randn(20, width, generator=generator).double() for width in (16, 8))
        soft = [(b * by_hand(w, 2, 4)).requires_grad_() for b, w in zip(beta, dense, strict=True)]
        free = [b.clone().requires_grad_() for b in bias]
        loss = (torch.tanh(x @ soft[0].T + free[0]) @ soft[1].T + free[1] - y).square().mean()
        *of_soft, first, second = torch.autograd.grad(loss, [*soft, *free])
        rate = 0.01
        dense = [w - rate * g for w, g in zip(dense, of_soft, strict=True)]
        bias = [b - rate * g for b, g in zip(bias, (first, second), strict=True)]
        trained.step()
        for weight, expected in zip(trained.pruner.weights, dense, strict=True):
            torch.testing.assert_close(weight.value.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("n", "m"), [(1, 4), (3, 4), (1, 2), (2, 8)])
def test_other_patterns(n, m):
    options = {"PRUNING_SCOPE": "0.weight"} if m == 8 else {}  # the other matrix has 12 inputs
    groups = GROUPS | {"PRUNING_N": str(n), "PRUNING_M": str(m), "PRUNING_INTERVAL": None}
    trained = Trained(schema(PRUNING_DYNAMICS="s-ste", **groups, **options))
    for _ in range(10):
        trained.step()
    saved = trained.pruner.model_state({})
    for weight in trained.pruner.weights:
        assert torch.equal(saved[weight.name] != 0, largest(weight.value, n, m).bool())
    assert trained.pruner.sparsity() == 1 - n / m


def test_a_checkpoint_holds_the_model_and_all_dense_weights(tmp_path):
    trained = Trained(case("s-ste"))
    for _ in range(7):
        trained.step()
    state = checkpoint.load(checkpoint.save(tmp_path, 7, trained.state(), ONE, {}))
    for weight in trained.pruner.weights:
        assert torch.equal(state["pruner"]["hidden"][weight.name], weight.value.flatten())
        assert torch.equal(state["model"][weight.name], trained.pruner.used(weight))
    lacking = state | {"pruner": {key: value for key, value in state["pruner"].items() if key != "beta"}}
    with pytest.raises(KeyError):  # gpt2.training turns it into a CheckpointError
        Trained(case("s-ste")).load(lacking)


def test_what_begins_as_2_of_4_is_projected_to_itself():
    """INIT_FROM may name weights that are pruned. Then nothing is taken from the others, and beta is 1."""
    trained = Trained(case("s-ste"))
    with torch.no_grad():
        for weight in trained.pruner.weights:
            weight.value.mul_(weight.mask)
    trained.pruner.begin()
    for weight in trained.pruner.weights:
        assert torch.equal(trained.pruner.used(weight), weight.value)


def test_a_tensor_of_equal_magnitudes_is_refused():
    trained = Trained(case("s-ste"))
    with torch.no_grad():
        trained.model[2].weight.fill_(0.5)
    with pytest.raises(UsageError, match=r"^PRUNING_DYNAMICS=s-ste: in every group of 2\.weight the weights that "):
        trained.pruner.begin()


def test_weights_that_are_nan_are_nan_in_the_forward_pass_and_choose_no_masks():
    trained = Trained(case("s-ste"))
    trained.step()
    masks = [weight.mask.clone() for weight in trained.pruner.weights]
    with torch.no_grad():
        trained.model[0].weight[0, 0] = torch.nan
    trained.pruner.chooses = True
    trained.pruner.moved(2)
    assert all(torch.equal(w.mask, mask) for w, mask in zip(trained.pruner.weights, masks, strict=True))
    assert trained.pruner.model_state({})["0.weight"][0, :4].isnan().any()


@pytest.mark.parametrize(
    "options",
    [
        {"PRUNING_DISTRIBUTION": "layer", "TARGET_SPARSITY": None},
        {"PRUNING_METHOD": "wanda", "TARGET_SPARSITY": None},
        {"PRUNING_METHOD": "random", "TARGET_SPARSITY": None},
        {"PRUNING_STRUCTURE": "neurons", "TARGET_SPARSITY": None, "PRUNING_SCOPE": None},
        {"TARGET_SPARSITY": "0.7"},
        {"PRUNING_INTERVAL": "4", "TARGET_SPARSITY": None},
        {"PRUNING_WARMUP": "0.1", "TARGET_SPARSITY": None},
    ],
)
def test_what_does_not_go_with_it_cannot_be_chosen(options):
    with pytest.raises(ConfigError):
        schema(**{"PRUNING_DYNAMICS": "s-ste", "PRUNING_INTERVAL": None} | options)
