"""SparseGPT against its formulas in plain loops in float64, without a Cholesky factor."""

import numpy as np
import pytest
import torch

from gpt2.oneshot import sparsegpt
from gpt2.oneshot.sparsegpt import PRODUCTS, Plan
from lib.base.errors import UserError
from tests.gpt2.oneshot import cases

DAMPING = 0.01


def damped(x: np.ndarray, count: int) -> np.ndarray:
    """H = 2 X^T X / count with the damping; a dead input gets 1 on the diagonal."""
    h = 2 * x.T @ x / count
    for j in range(len(h)):
        if h[j, j] == 0:
            h[j, j] = 1
    mean = sum(h[j, j] for j in range(len(h))) / len(h)
    return h + DAMPING * mean * np.eye(len(h))


def reference(weight, x, count, budgets, block, n_m=None):
    """(pruned weights, mask) of the layer `weight` (O, I) with inputs `x` (S, I), both float64.

    The inverse of the Hessian of the inputs that are left is computed anew for each input (equations 3 and 4 of the
    paper). `budgets` has the number of weights that each block of inputs loses.
    """
    w, h = weight.copy(), damped(x, count)
    dead = (x == 0).all(axis=0)
    w[:, dead] = 0
    outputs, width = w.shape
    kept = np.ones_like(w, dtype=np.uint8)
    inverse = [np.linalg.inv(h[j:, j:]) for j in range(width)]
    for j in range(width):
        if n_m is None and j % block == 0:
            group = range(j, min(j + block, width))
            scores = sorted((w[i, c] ** 2 / inverse[c][0, 0], c, i) for c in group for i in range(outputs))
            for _, c, i in scores[: budgets[j // block]]:
                kept[i, c] = 0
        if n_m is not None and j % n_m[1] == 0:
            for i in range(outputs):
                scores = sorted((w[i, c] ** 2 / inverse[c][0, 0], c) for c in range(j, j + n_m[1]))
                for _, c in scores[: n_m[1] - n_m[0]]:
                    kept[i, c] = 0
        for i in range(outputs):
            if not kept[i, j]:
                error = w[i, j] / inverse[j][0, 0]
                w[i, j:] -= error * inverse[j][0]
                w[i, j] = 0
    w[:, dead] = weight[:, dead] * kept[:, dead]
    return w, kept


def layer(dead=()):
    """A layer of 64 x 48 and 400 inputs with features that depend on each other."""
    draw = np.random.default_rng(3)
    x = draw.normal(size=(400, 48)) @ (np.eye(48) + 0.3 * draw.normal(size=(48, 48)))
    x[:, list(dead)] = 0
    return draw.normal(size=(64, 48)), x


def ours(weight, x, budget, plan, count=8):
    """(pruned weights, mask) by the code under test; the inputs come in two batches."""
    w = torch.tensor(weight, dtype=torch.float32)
    products = torch.zeros(48, 48)
    for part in torch.tensor(x, dtype=torch.float32).split(250):
        PRODUCTS.add(products, part)
    kept = sparsegpt.prune(w, products, count, budget, plan, "h.0.mlp.c_fc.weight")
    return w.numpy(), kept.numpy()


@pytest.mark.parametrize("panel", [1024, 20])
def test_the_unstructured_solution_is_that_of_the_formulas(monkeypatch, panel):
    monkeypatch.setattr(sparsegpt, "_PANEL", panel)
    weight, x = layer()
    # 1535 of 3072 weights stay: of the blocks of 20, 20 and 8 inputs 639.58, 639.58 and 255.83 by proportion
    expected, mask = reference(weight, x, 8, (641, 640, 256), block=20)
    got, kept = ours(weight, x, 1537, Plan(DAMPING, 20, None, None))
    assert kept.dtype == np.uint8
    np.testing.assert_array_equal(kept, mask)
    assert int((got == 0).sum()) == 1537
    np.testing.assert_allclose(got, expected, atol=2e-4)
    assert abs(got - weight * mask).max() > 0.1  # the weights that stay have changed


def test_two_of_four_is_that_of_the_formulas():
    weight, x = layer()
    expected, mask = reference(weight, x, 8, (), block=16, n_m=(2, 4))
    got, kept = ours(weight, x, 1536, Plan(DAMPING, 16, 2, 4))
    np.testing.assert_array_equal(kept, mask)
    np.testing.assert_array_equal(kept.reshape(64, 12, 4).sum(axis=2), np.full((64, 12), 2))
    np.testing.assert_allclose(got, expected, atol=2e-4)


def test_dead_inputs_are_pruned_first_and_count():
    weight, x = layer(dead=(5, 6, 7, 40))
    expected, mask = reference(weight, x, 8, (100, 100, 100), block=16)
    got, kept = ours(weight, x, 300, Plan(DAMPING, 16, None, None))
    np.testing.assert_array_equal(kept[:, 40], np.zeros(64))
    # The first block loses 100 weights and has 3 x 64 dead ones: those of input 5, and 36 of input 6.
    assert [int(kept[:, j].sum()) for j in (5, 6, 7)] == [0, 28, 64]
    np.testing.assert_array_equal(kept, mask)
    assert int((got == 0).sum()) == 300
    np.testing.assert_array_equal(got[:, 7], weight[:, 7].astype(np.float32))  # stays, and keeps its value
    np.testing.assert_allclose(got, expected, atol=2e-4)


@pytest.mark.parametrize("n_m", [None, (2, 4)])
def test_weights_that_are_zero_already_stay_zero_and_count(n_m):
    weight, x = layer()
    weight[:, :10] *= np.random.default_rng(5).random((64, 10)) < 0.2  # about 512 zeros, most in the first block of 16
    before = weight == 0
    got, kept = ours(weight, x, 1536, Plan(DAMPING, 16, *(n_m or (None, None))))
    assert (got[before] == 0).all() and (kept[before] == 0).all()
    np.testing.assert_array_equal(kept, got != 0)
    assert int((got == 0).sum()) == 1536 if n_m is None else 1536 < int((got == 0).sum()) < 1700
    first = kept[:, :16] == 0
    assert first.sum() == max(512, before.sum()) or n_m is not None


def test_the_factor_gives_the_damped_inverse():
    _, x = layer()
    h = torch.tensor(2 * x.T @ x, dtype=torch.float32)
    factor = sparsegpt.inverse_factor(h.triu(), torch.zeros(48, dtype=torch.bool), DAMPING, "w").double()
    assert factor.dtype == torch.float64
    torch.testing.assert_close(factor, factor.triu(), rtol=0, atol=0)
    expected = torch.tensor(np.linalg.inv(damped(x, 1)))
    torch.testing.assert_close(factor.T @ factor, expected, rtol=1e-4, atol=1e-7)


def test_a_singular_hessian_is_one_sentence():
    x = torch.randn(3, 48, generator=torch.Generator().manual_seed(0)) * 1e3  # 3 tokens for 48 inputs
    products = torch.zeros(48, 48)
    PRODUCTS.add(products, x)
    products[3, 4] *= 1.5  # as rounding does, which damping this low does not make up for
    with pytest.raises(UserError) as error:
        sparsegpt.prune(torch.randn(64, 48), products, 1, 10, Plan(1e-6, 16, None, None), "h.0.mlp.c_fc.weight")
    assert str(error.value) == (
        "h.0.mlp.c_fc: the Hessian of its inputs is singular; raise SPARSEGPT_DAMPING from 1e-06, or "
        "CALIBRATION_SAMPLES"
    )


@pytest.mark.parametrize(("distribution", "n_m"), [("layer", None), ("n-m", (2, 4))])
def test_each_block_sees_the_inputs_of_the_pruned_blocks_before_it(distribution, n_m):
    model = cases.trained().double()
    states = cases.embedded(model, cases.windows(24))
    got, masks = cases.pruned("sparsegpt", distribution, sparsegpt_block=48)
    different = 0
    for number, block in enumerate(model.h):
        xs, _ = cases.inputs(block, states)
        for name, x in xs.items():
            weight = block.get_parameter(name)
            # 60 % of the weights; each block of 48 inputs loses the same number, up to 1
            budget = round(0.6 * weight.numel())
            parts = weight.shape[1] // 48
            budgets = [(budget + parts - 1 - part) // parts for part in range(parts)]
            expected, mask = reference(weight.detach().numpy(), x, 24, budgets, 48, n_m)
            different += int((masks[f"h.{number}.{name}"].numpy() != mask).sum())
            weight.data.copy_(torch.tensor(expected))
        with torch.no_grad():
            states = block(states)
    total = sum(mask.numel() for mask in masks.values())
    assert total == 55_296
    assert different <= 20  # ties, up to the rounding of float32
    tokens = cases.windows(24, seed=5)
    with torch.no_grad():
        loss = float(got(tokens[:, :-1], tokens[:, 1:]))
        assert loss == pytest.approx(float(model(tokens[:, :-1], tokens[:, 1:])), rel=1e-3)
