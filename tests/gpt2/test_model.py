"""The model against transformers' GPT2LMHeadModel with the same weights, and its own promises."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2.model import GPT2, ModelOptions
from lib.base.errors import UsageError

TINY = ModelOptions("custom", n_layer=3, n_head=4, n_embd=32, block_size=24, dropout=0.0, activation="gelu-tanh")


def reference(options: ModelOptions, vocab_size: int) -> GPT2LMHeadModel:
    """transformers' model of the same shape, with weights drawn wide enough that every part of it matters."""
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=options.block_size,
        n_embd=options.n_embd,
        n_layer=options.n_layer,
        n_head=options.n_head,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def with_weights_of(theirs: GPT2LMHeadModel, options: ModelOptions, vocab_size: int) -> GPT2:
    """Our model with transformers' weights: the same names, matrices transposed because theirs are Conv1D."""
    ours = GPT2(options, vocab_size).eval()
    weights = theirs.transformer.state_dict()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            source = weights[name]
            if name.startswith("h.") and source.dim() == 2:
                source = source.T
            parameter[: len(source)] = source
    return ours


@pytest.mark.parametrize("vocab_size", [256, 101])
def test_logits_and_loss_agree_with_transformers(vocab_size):
    torch.manual_seed(0)
    theirs = reference(TINY, vocab_size)
    ours = with_weights_of(theirs, TINY, vocab_size)
    tokens = torch.randint(vocab_size, (2, 24))
    with torch.no_grad():
        expected, got = theirs(tokens).logits, ours(tokens)
        assert got.shape == (2, 24, vocab_size)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
        targets = torch.randint(vocab_size, (2, 24))
        loss = F.cross_entropy(expected.flatten(0, 1), targets.flatten())
        torch.testing.assert_close(ours(tokens, targets), loss, atol=1e-4, rtol=1e-4)


def test_gradients_agree_with_transformers():
    torch.manual_seed(0)
    theirs = reference(TINY, 101)
    ours = with_weights_of(theirs, TINY, 101)
    tokens, targets = torch.randint(101, (2, 16)), torch.randint(101, (2, 16))
    F.cross_entropy(theirs(tokens).logits.flatten(0, 1), targets.flatten()).backward()
    ours(tokens, targets).backward()
    expected = dict(theirs.transformer.named_parameters())
    for name, parameter in ours.named_parameters():
        gradient = expected[name].grad.T if name.startswith("h.") and parameter.dim() == 2 else expected[name].grad
        torch.testing.assert_close(parameter.grad[: len(gradient)], gradient, atol=1e-4, rtol=1e-3, msg=name)


def test_the_padding_of_the_vocabulary_is_invisible():
    model = GPT2(TINY, 101)
    assert model.wte.weight.shape == (128, 32)
    assert model(torch.zeros(1, 4, dtype=torch.long)).shape == (1, 4, 101)
    model(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long)).backward()
    assert torch.count_nonzero(model.wte.weight.grad[101:]) == 0


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        ((12, 12, 768), 124_439_808),
        ((24, 16, 1024), 354_823_168),
        ((36, 20, 1280), 774_030_080),
        ((48, 25, 1600), 1_557_611_200),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(shape, parameters):
    with torch.device("meta"):
        model = GPT2(ModelOptions("gpt2", *shape, block_size=1024, dropout=0.0, activation="gelu-tanh"), 50257)
        assert model.count_parameters() == parameters


def test_a_fresh_model_is_initialised_as_published():
    torch.manual_seed(0)
    model = GPT2(
        ModelOptions("custom", n_layer=8, n_head=4, n_embd=128, block_size=256, dropout=0.0, activation="gelu-tanh"),
        1024,
    )
    assert model.wte.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.wpe.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert model.h[3].mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.h[3].mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.02)  # sqrt(2 * 8) = 4
    assert model.h[3].attn.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.02)
    tokens = torch.randint(1024, (4, 128))
    assert model(tokens, torch.randint(1024, (4, 128))).item() == pytest.approx(math.log(1024), abs=0.1)


def test_no_position_sees_what_follows_it():
    torch.manual_seed(0)
    model = with_weights_of(reference(TINY, 101), TINY, 101)
    tokens = torch.randint(101, (1, 24))
    changed = tokens.clone()
    changed[0, 12] = (changed[0, 12] + 1) % 101
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :12], after[:, :12])
    assert (before[:, 12:] - after[:, 12:]).abs().amax(dim=2).min() > 1e-3


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    model = GPT2(ModelOptions("custom", 2, 2, 32, 16, dropout=0.5, activation="gelu-tanh"), 64)
    tokens = torch.randint(64, (1, 16))
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_prunable_weights_are_the_matrices_of_the_blocks():
    model = GPT2(TINY, 101)
    assert [tuple(w.shape) for w in model.prunable()] == [(96, 32), (32, 32), (128, 32), (32, 128)] * 3


def test_flops_per_token_of_gpt2_124m():
    with torch.device("meta"):
        model = GPT2(ModelOptions("gpt2", 12, 12, 768, 1024, 0.0, "gelu-tanh"), 50257)
    assert model.flops_per_token() == 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024


def test_a_width_that_the_heads_cannot_share_is_refused():
    message = "^N_EMBD=32 cannot be divided among N_HEAD=5 heads; choose a multiple$"
    with pytest.raises(UsageError, match=message):
        GPT2(ModelOptions("custom", 1, 5, 32, 8, 0.0, "gelu-tanh"), 64)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_what_is_compiled_computes_the_same(dtype, tolerance):
    """Traced as for inductor, whose code needs no compiler here: the parts that look whether they are compiled."""
    torch.manual_seed(0)
    model = GPT2(TINY, 101)
    tokens, targets = torch.randint(101, (2, 2, 24))
    compiled = torch.compile(model, dynamic=False, fullgraph=True, backend="aot_eager")
    gradients = []
    for forward in (model, compiled):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = forward(tokens, targets)
        gradients.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
    for found, expected in zip(*gradients, strict=True):
        assert (found - expected).norm() <= tolerance * expected.norm()
