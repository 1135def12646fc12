"""MLP_WIDTHS and HEAD_COUNTS: one number for all layers or one for each, and what a model of that shape has."""

import pytest
import torch

from gpt2 import flops
from gpt2.model import GPT2
from gpt2.shape import ModelOptions, ShapeOptions, check, groups, tensors
from gpt2.weights import layers
from gpt2.weights.form import Shape
from lib.base.errors import UsageError

PLAIN = ModelOptions("custom", 2, 4, 32, 16, 0.0, "gelu-tanh")


def shaped(mlp_widths="", head_counts=""):
    return ShapeOptions("custom", 2, 4, 32, 16, 0.0, "gelu-tanh", mlp_widths, head_counts)


def test_an_empty_text_is_the_published_shape():
    assert (shaped().widths, shaped().heads) == (PLAIN.widths, PLAIN.heads) == ((128, 128), (4, 4))
    assert flops.parameters(shaped(), 64) == flops.parameters(PLAIN, 64)
    assert flops.inference(shaped(), 64) == flops.inference(PLAIN, 64)


def test_one_number_is_for_all_layers_and_several_are_for_each():
    assert (shaped("90").widths, shaped("90, 7").widths) == ((90, 90), (90, 7))
    assert (shaped(head_counts="3").heads, shaped(head_counts="1,4").heads) == ((3, 3), (1, 4))


@pytest.mark.parametrize(("numbers", "text"), [((128, 128), ""), ((90, 90), "90"), ((128, 90), "128,90")])
def test_the_shortest_text(numbers, text):
    assert layers.text(numbers, 128) == text
    assert layers.neurons(text, 2, 32) == numbers


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (shaped("1,2,3"), "MLP_WIDTHS=1,2,3: has 3 numbers, and the model has 2 layers; give one number for all "),
        (shaped("0"), "MLP_WIDTHS=0: each number must be from 1 to 400,000, with commas between"),
        (shaped("4.5"), "MLP_WIDTHS=4.5: each number"),
        (shaped("9,"), "MLP_WIDTHS=9,: each number"),
        (shaped("1" * 5000), "MLP_WIDTHS=1111"),
        (shaped(head_counts="-1"), "HEAD_COUNTS=-1: each number must be from 1 to 1,000, with commas between"),
    ],
)
def test_other_texts_are_one_sentence(options, sentence):
    with pytest.raises(UsageError) as caught:
        check(options)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("options", [shaped(), shaped("90,7", "3,1")], ids=["whole", "shrunk"])
def test_tensors_and_groups_are_those_of_the_model(options):
    with torch.device("meta"):
        model = GPT2(options, 257)
    own = {name: (model.used_rows().get(p, len(p)), *p.shape[1:]) for name, p in model.named_parameters()}
    assert list(tensors(options, 257).items()) == list(own.items())
    for group in groups(options):
        for name, part in group.parts.items():
            assert own[name][part.dim] % (group.size * part.stack) == 0, name
    assert [group.size for group in groups(options)] == [
        size for block in model.h for size in (block.attn.n_head, block.mlp.c_fc.out_features)
    ]


def test_a_model_of_that_shape_counts_what_it_has():
    options = shaped("90,7", "3,1")
    model = GPT2(options, 64)
    # A neuron has 2 x 32 + 1 weights, a head of width 8 has 8 x (4 x 32 + 3).
    removed = (256 - 97) * 65 + (8 - 4) * 1048
    assert model.count_parameters() == flops.parameters(options, 64) == flops.parameters(PLAIN, 64) - removed
    assert flops.inference(options, 64) == flops.inference(PLAIN, 64) - 2 * removed - 4 * 4 * 8 * 16
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes == Shape(2, 4, 32, 16, 64, "90,7", "3,1").tensors()
    assert model(torch.zeros(1, 16, dtype=torch.int64)).shape == (1, 16, 64)
