"""Which tensors a scope names."""

import pytest

from gpt2.model import GPT2, ModelOptions
from lib.base.errors import UsageError
from lib.config.kconf import Schema
from lib.prune import scope

MODEL = GPT2(ModelOptions("custom", 2, 2, 16, 8, 0.0, "gelu-tanh"), 64)


def default():
    schema = Schema()
    schema.override([("PRUNING_METHOD", "magnitude", "test")])
    return schema["PRUNING_SCOPE"]


def test_the_default_is_what_the_model_calls_prunable():
    chosen = scope.select(MODEL, default())
    assert list(chosen.values()) == MODEL.prunable()
    assert [name for name in chosen if name.startswith("h.0.")] == [
        "h.0.attn.c_attn.weight", "h.0.attn.c_proj.weight", "h.0.mlp.c_fc.weight", "h.0.mlp.c_proj.weight",
    ]  # fmt: skip


def test_patterns_are_joined_and_the_order_is_the_models():
    assert list(scope.select(MODEL, " h.1.mlp.c_fc.weight , wte.weight")) == ["wte.weight", "h.1.mlp.c_fc.weight"]


def test_tied_weights_are_counted_once():
    MODEL.head = MODEL.wte  # a second name for the same parameter
    try:
        assert [name for name in scope.select(MODEL, "*") if not name.startswith(("h.", "ln_f"))] == [
            "wte.weight",
            "wpe.weight",
        ]
    finally:
        del MODEL.head


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("h.*.mlp.*.weight,lm_head*", "'lm_head*' matches no parameter; names look like {names}"),
        (" , ", "PRUNING_SCOPE is empty; name parameters such as {names}, or do not prune"),
    ],
)
def test_a_scope_without_a_tensor_is_refused(patterns, message):
    with pytest.raises(UsageError) as error:
        scope.select(MODEL, patterns)
    names = "wte.weight and h.0.attn.c_attn.weight"
    assert str(error.value).endswith(message.format(names=names))
