"""How many steps a run of fine-tuning has, and which combinations are refused."""

import pytest

from gpt2.finetune.options import FinetuneOptions, check
from lib.base.errors import UsageError
from lib.config.kconf import Schema


def made(**options):
    schema = Schema()
    schema.override([(name.upper(), str(value), "test") for name, value in {"block_size": 64, **options}.items()])
    return schema.bind(FinetuneOptions)


def test_an_epoch_is_rounded_up_to_whole_steps_and_grpos_down():
    sft = made(finetune_recipe="sft", finetune_batch_size=8, finetune_accumulation=2)
    assert [sft.steps(count, 1) for count in (1, 16, 17, 90)] == [1, 1, 2, 6]
    assert sft.steps(90, 2) == 3
    assert made(finetune_recipe="sft", finetune_epochs="2.5").steps(90, 1) == 30  # 12 steps of 8
    assert made(finetune_recipe="dpo", finetune_steps=7).steps(90, 1) == 7
    grpo = made(finetune_recipe="grpo", finetune_batch_size=8, finetune_generations=4)
    assert [grpo.steps(count, 1) for count in (1, 2, 3, 90)] == [1, 1, 1, 45]


def test_lengths_have_the_context_as_their_default():
    assert (made(finetune_recipe="sft").length, made(finetune_recipe="grpo").completion) == (64, 16)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"optimizer": "sgd"}, "OPTIMIZER=sgd: make finetune trains with TRL's AdamW; leave it out"),
        ({"pruning_method": "magnitude"}, "PRUNING_METHOD=magnitude: make finetune holds masks that exist and "),
        ({"eval_tasks": "piqa"}, "EVAL_TASKS=piqa: make finetune measures no tasks; use make evaluate later"),
        ({"finetune_length": 65}, "FINETUNE_LENGTH=65: is longer than the context, BLOCK_SIZE=64; lower it"),
        (
            {"finetune_recipe": "grpo", "finetune_batch_size": 6},
            "FINETUNE_GENERATIONS=8: a step has 6 completions (1 process x FINETUNE_BATCH_SIZE=6 x "
            "FINETUNE_ACCUMULATION=1), which must be a multiple of it; change one of them",
        ),
        (
            {"finetune_recipe": "grpo", "finetune_completion": 64},
            "FINETUNE_COMPLETION=64: leaves no room for a prompt in the context, BLOCK_SIZE=64; lower it",
        ),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(options, sentence):
    with pytest.raises(UsageError) as error:
        check(made(**{"finetune_recipe": "sft", **options}), 1)
    assert str(error.value).startswith(sentence)
