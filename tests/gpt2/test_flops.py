"""The definition of FLOPs, against numbers worked out by hand and against what PyTorch counts."""

import types

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gpt2 import flops
from gpt2.model import GPT2
from gpt2.shape import ModelOptions

SMALL = ModelOptions("custom", n_layer=2, n_head=2, n_embd=32, block_size=16, dropout=0.0, activation="gelu-tanh")
GPT2_124M = ModelOptions("gpt2", 12, 12, 768, 1024, 0.0, "gelu-tanh")


def pruner(total, **more):
    return types.SimpleNamespace(total=total, weights=[], **more)


def test_by_hand():
    # Width 32: a block has 12 x 1,024 + 13 x 32 = 12,704, two of them 25,408; 64 in the last norm; 64 x 32 = 2,048 in
    # the embedding; 16 x 32 = 512 positions, which are in no product. Attention: 4 x 2 x 32 x 16 = 4,096.
    assert flops.parameters(SMALL, 64) == 25_408 + 64 + 2_048 + 512
    assert flops.inference(SMALL, 64) == 2 * 27_520 + 4_096 == 59_136
    assert flops.training(SMALL, 64) == 177_408
    assert flops.parameters(GPT2_124M, 50_257) == 124_439_808
    assert flops.training(GPT2_124M, 50_257) == 6 * 123_653_376 + 12 * 12 * 768 * 1024 == 855_166_464


def test_they_are_those_of_the_model():
    model = GPT2(SMALL, 61)  # the padding to 64 tokens does not count
    assert model.count_parameters() == flops.parameters(SMALL, 61) == 28_032 - 3 * 32
    assert model.flops_per_token() == flops.training(SMALL, 61)


@pytest.mark.parametrize("passes", [1, 3])
def test_torch_counts_the_same(passes):
    model, batch = GPT2(SMALL, 64), 3
    tokens = torch.randint(64, (batch, 16))
    # The fused kernel of a CPU is none that PyTorch counts.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits = model(tokens)
        if passes == 3:
            logits.sum().backward()
    # PyTorch counts products only: no biases (2 x 9 x 32) and no norms (5 x 64).
    not_in_products = 2 * 9 * 32 + 5 * 64
    ours = flops.inference(SMALL, 64) if passes == 1 else flops.training(SMALL, 64)
    assert counter.get_total_flops() == batch * 16 * (ours - 2 * passes * not_in_products)


def test_by_nonzeros():
    model = types.SimpleNamespace(options=SMALL, vocab_size=64)
    known = flops.facts(model, pruner(24_576))
    assert known == {
        "training_per_token": 177_408, "inference_per_token": 59_136, "training_per_zero": 6, "inference_per_zero": 2,
        "weights_in_scope": 24_576,
    }  # fmt: skip
    # On average a quarter of the weights is zero, and half of them at the end.
    assert flops.summary(known, 1_000, 18_432, 12_288) == {
        "training_flops": 177_408_000, "training_flops_nonzeros": 140_544_000, "inference_flops_per_token": 59_136,
        "inference_flops_per_token_nonzeros": 34_560, "nonzeros": 12_288,
    }  # fmt: skip
    dense_gradient = flops.facts(model, pruner(24_576, zeroes_weights=False, gradients=lambda: 1.0))
    assert dense_gradient["training_per_zero"] == 4
    # topkast at 80 %, training 40 %: of four zeros one needs its gradient, so they save 6, 6, 6 and 4.
    some = flops.facts(model, pruner(24_576, zeroes_weights=False, gradients=lambda: 0.25))
    assert some["training_per_zero"] == 5.5


def test_a_teacher_is_a_part_of_training():
    model = types.SimpleNamespace(options=SMALL, vocab_size=64)
    known = flops.facts(model, pruner(24_576), teacher=59_136)
    assert (known["training_per_token"], known["teacher_per_token"]) == (177_408 + 59_136, 59_136)
    found = flops.summary(known, 1_000, 18_432, 12_288)
    assert (found["training_flops"], found["training_flops_nonzeros"]) == (236_544_000, 199_680_000)
    assert (found["teacher_flops"], found["inference_flops_per_token"]) == (59_136_000, 59_136)


def test_positions_in_scope_save_nothing():
    positions = types.SimpleNamespace(name="wpe.weight", mask=torch.ones(16, 32))
    model = types.SimpleNamespace(options=SMALL, vocab_size=64)
    known = flops.facts(model, types.SimpleNamespace(total=2_048, weights=[positions]))
    assert (known["training_per_zero"], known["inference_per_zero"]) == (4.5, 1.5)
