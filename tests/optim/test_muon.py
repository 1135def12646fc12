"""Muon against a float64 transcription, torch's own, and the singular values that it should produce."""

import math

import pytest
import torch

from gpt2.model import GPT2, ModelOptions
from lib import optim
from lib.optim import muon
from lib.optim.muon import Room, newton_schulz, update_scale
from tests.optim.test_optim import Small, gradients, make_steps, one_thread, schema  # noqa: F401


def reference_orthogonal(g):
    """Five steps of X = a X + b (X X^T) X + c (X X^T)^2 X, in float64."""
    x = g / g.norm()
    for _ in range(5):
        xxt = x @ x.T
        x = 3.4445 * x - 4.7750 * (xxt @ x) + 2.0315 * (xxt @ xxt @ x)
    return x


@pytest.mark.parametrize("scale", ["match-rms", "original"])
def test_1200_steps_agree_in_float64(scale):
    model = Small()
    optimizer = optim.build(model, schema(OPTIMIZER="muon", MUON_SCALE=scale).bind)
    expected = {p: p.detach().double() for p in model.prunable()}
    momentum = {p: torch.zeros_like(w) for p, w in expected.items()}
    for step in range(1200):
        lr = 1e-2 / (1 + step)
        for p, grad in zip(model.parameters(), gradients(model, step), strict=True):
            if p not in expected:
                continue
            g, (rows, columns) = grad.double(), p.shape
            momentum[p] = 0.95 * momentum[p] + 0.05 * g
            update = reference_orthogonal(0.05 * g + 0.95 * momentum[p])
            size = 0.2 * math.sqrt(max(rows, columns)) if scale == "match-rms" else math.sqrt(max(1, rows / columns))
            expected[p] = expected[p] * (1 - lr * 0.1) - lr * size * update
        make_steps(model, optimizer, [step])
    for p, weights in expected.items():
        torch.testing.assert_close(p.detach().double(), weights, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(("scale", "theirs"), [("match-rms", "match_rms_adamw"), ("original", "original")])
def test_update_is_torchs_to_bfloat16s_precision(scale, theirs):
    model, twin = Small(), Small()
    ours = optim.build(model, schema(OPTIMIZER="muon", MUON_SCALE=scale, WEIGHT_DECAY="0.3").bind)
    torchs = torch.optim.Muon(twin.prunable(), lr=1.0, momentum=0.95, weight_decay=0.3, adjust_lr_fn=theirs)
    start = [p.detach().clone() for p in model.prunable()]
    make_steps(model, ours, range(20))
    make_steps(twin, torchs, range(20))
    for p, other, before in zip(model.prunable(), twin.prunable(), start, strict=True):
        assert (p - other).norm() < 0.02 * (p - before).norm()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", ["match-rms", "original"])
def test_q_k_and_v_are_orthogonalised_apart(scale, masked):
    """Each of GPT-2's matrices against Newton-Schulz in float64; c_attn is three of them."""
    torch.manual_seed(0)
    model = GPT2(
        ModelOptions("custom", n_layer=2, n_head=2, n_embd=16, block_size=8, dropout=0.0, activation="gelu-tanh"),
        vocab_size=64,
    )
    optimizer = optim.build(model, schema(OPTIMIZER="muon", MUON_SCALE=scale).bind)
    masks = {p: (torch.rand(p.shape) < 0.5).to(torch.uint8) for p in model.prunable()}
    expected = {p: p.detach().double() for p in masks}
    momentum = {p: torch.zeros_like(w) for p, w in expected.items()}
    if masked:
        optim.use_masks(optimizer, masks)
        expected = {p: w * masks[p] for p, w in expected.items()}
        for p, w in expected.items():
            p.data.copy_(w)
    optim.set_learning_rate(optimizer, 1e-2)
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.randn_like(p) * (masks[p] if masked and p in masks else 1)
        for p, w in expected.items():
            momentum[p] = 0.95 * momentum[p] + 0.05 * p.grad.double()
            ahead = 0.05 * p.grad.double() + 0.95 * momentum[p]
            blocks = ahead.split(16) if p.shape == (48, 16) else [ahead]
            update = torch.cat([reference_orthogonal(block) for block in blocks])
            (rows, columns) = blocks[0].shape
            size = 0.2 * math.sqrt(max(rows, columns)) if scale == "match-rms" else math.sqrt(max(1, rows / columns))
            expected[p] = w * (1 - 1e-2 * 0.1) - 1e-2 * size * update * (masks[p] if masked else 1)
        optimizer.step()
    for p, w in expected.items():
        torch.testing.assert_close(p.detach().double(), w, atol=2e-6, rtol=2e-5)
        assert not masked or not p[masks[p] == 0].any()
        assert optimizer.state[p]["momentum_buffer"].shape == p.shape
    assert [tuple(p.shape) for p in model.stacked()] == [(48, 16)] * 2


def test_a_state_of_the_earlier_rule_is_loaded_with_a_note():
    def made():
        model = GPT2(
            ModelOptions("custom", n_layer=1, n_head=1, n_embd=8, block_size=8, dropout=0.0, activation="gelu-tanh"),
            vocab_size=64,
        )
        return optim.build(model, schema(OPTIMIZER="muon").bind)

    optimizer, state = made(), made().state_dict()
    optimizer.load_state_dict(state)
    assert optim.note(optimizer) == ""
    for group in state["param_groups"]:
        del group["stacked_apart"]
    optimizer.load_state_dict(state)
    assert optim.note(optimizer) == (
        "the checkpoint may be of an earlier version, in which Muon took q, k and v as one matrix; from here on "
        "they are three matrices, which changes what the run learns"
    )
    one = optim.build(Small(), schema(OPTIMIZER="muon").bind)  # a model that has no such matrix
    state = one.state_dict()
    for group in state["param_groups"]:
        del group["stacked_apart"]
    one.load_state_dict(state)
    assert optim.note(one) == ""


def test_embeddings_and_biases_are_adamws_bit_for_bit():
    model, twin = Small(), Small()
    ours = optim.build(model, schema(OPTIMIZER="muon", ADAM_BETA2="0.9").bind)
    groups = [{"params": [twin.embedding], "weight_decay": 0.1}, {"params": [twin.bias], "weight_decay": 0.0}]
    torchs = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.9), eps=1e-8, fused=True)
    make_steps(model, ours, range(30))
    make_steps(twin, torchs, range(30))
    assert torch.equal(model.embedding, twin.embedding)
    assert torch.equal(model.bias, twin.bias)


@pytest.mark.parametrize("shape", [(32, 32), (16, 64), (64, 16)])
def test_singular_values_come_near_one(shape):
    torch.manual_seed(1)
    matrices = torch.randn(3, *shape)
    singular = torch.linalg.svdvals(newton_schulz(matrices))
    assert singular.min() > 0.6
    assert singular.max() < 1.25
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(newton_schulz(matrices).flatten(1), (u @ vt).flatten(1)).min() > 0.97


@pytest.mark.parametrize("shape", [(300, 300), (256, 400), (400, 256)])
@pytest.mark.parametrize("rank", [300, 3])
def test_products_by_halves_agree_in_float64(shape, rank):
    """Matrices above the smallest size, not a multiple of the panel, also of low rank, where rounding counts most."""
    torch.manual_seed(2)
    matrices = torch.randn(3, shape[0], rank) @ torch.randn(3, rank, shape[1])
    room = Room()
    newton_schulz(torch.randn(3, *shape), room)  # what the room holds is of no account
    for found, matrix in zip(newton_schulz(matrices, room), matrices.double(), strict=True):
        expected = reference_orthogonal(matrix)
        assert (found - expected).norm() < 5e-4 * expected.norm()


@pytest.mark.parametrize("shape", [(300, 300), (256, 400), (400, 256), (16, 64)])
def test_bfloat16_is_as_precise_as_the_authors_code(shape):
    """Theirs runs in bfloat16 everywhere; torch's Muon is a transcription of it."""
    torch.manual_seed(2)
    matrices = torch.randn(3, *shape)
    found = newton_schulz(matrices, Room(), bfloat16=True)
    assert found.dtype == torch.float32
    for one, matrix in zip(found, matrices, strict=True):
        expected = reference_orthogonal(matrix.double())
        theirs = torch.optim._muon._zeropower_via_newtonschulz(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7)
        assert (one - expected).norm() < 2 * (theirs - expected).norm()
        assert (one - expected).norm() < 0.02 * expected.norm()


def test_muon_orthogonalises_in_bfloat16_if_told():
    weights = {}
    for told in ((), ("attention", "muon")):
        model = Small()
        optimizer = optim.build(model, schema(OPTIMIZER="muon").bind)
        optim.use_kernels(optimizer, told)
        before = model.wide.detach().clone()
        make_steps(model, optimizer, [0])
        weights[told] = model.wide.detach() - before
    difference = (weights[()] - weights["attention", "muon"]).norm() / weights[()].norm()
    assert 1e-4 < difference < 0.02


def test_equal_columns_lose_little_to_rounding():
    """The worst case of several steps on X X^T alone; five at once are wrong by 7e-3."""
    matrix = torch.ones(256, 1024)
    expected = reference_orthogonal(matrix.double())
    assert (newton_schulz(matrix[None])[0] - expected).norm() < 1e-3 * expected.norm()


def test_matrices_are_orthogonalised_in_batches(monkeypatch):
    """Seven matrices of one shape in batches of two: as all at once."""
    weights = []
    for together in (2 * 35, 2**20):
        monkeypatch.setattr(muon, "_TOGETHER", together)
        torch.manual_seed(0)
        model = torch.nn.ParameterList([torch.randn(5, 7) for _ in range(7)])
        model.prunable = lambda model=model: list(model)
        optimizer = optim.build(model, schema(OPTIMIZER="muon").bind)
        for p in model:
            p.grad = torch.randn_like(p)
        optimizer.step()
        weights.append(torch.stack(list(model)))
    torch.testing.assert_close(*weights)


def test_size_of_updates():
    assert update_scale(768, 3072, "match-rms") == pytest.approx(11.0851252)  # 0.2 sqrt(3072)
    assert update_scale(3072, 768, "match-rms") == pytest.approx(11.0851252)
    assert (update_scale(768, 3072, "original"), update_scale(3072, 768, "original")) == (1, 2)
    orthogonal = torch.linalg.qr(torch.randn(768, 256))[0]
    root_mean_square = (orthogonal * update_scale(768, 256, "match-rms")).square().mean().sqrt()
    assert root_mean_square.item() == pytest.approx(0.2, rel=1e-3)


def test_a_matrix_without_gradient_is_left_alone():
    assert not newton_schulz(torch.zeros(2, 3, 5)).any()


def test_without_masks_muon_would_revive_pruned_weights():
    """What the masks are for: the orthogonal update of a matrix with zeros has none."""
    for masked in (True, False):
        model = Small()
        optimizer = optim.build(model, schema(OPTIMIZER="muon").bind)
        tall = model.tall.detach().clone()
        mask = (torch.rand(model.wide.shape) < 0.5).to(torch.uint8)
        model.wide.data.mul_(mask)
        if masked:
            optim.use_masks(optimizer, {model.wide: mask})
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        model.wide.grad.mul_(mask)
        optimizer.step()
        assert bool(model.wide[mask == 0].any()) != masked
        assert not torch.equal(model.tall, tall)  # it has no mask
