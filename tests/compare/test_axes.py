"""Axes: the values of a word, and the names of points."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.base.errors import UsageError
from lib.compare import axes
from lib.config.kconf import Schema

OPTIONS = Schema().options


def values(name, text):
    return axes.values(OPTIONS[name], text)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("TARGET_SPARSITY", "0.5", ("0.5",)),
        ("TARGET_SPARSITY", "0.5..0.9:0.1", ("0.5", "0.6", "0.7", "0.8", "0.9")),
        ("TARGET_SPARSITY", "0.1..0.3:0.1,0.95", ("0.1", "0.2", "0.3", "0.95")),
        ("TARGET_SPARSITY", "0.5..0.9:0.3", ("0.5", "0.8")),
        ("LEARNING_RATE", "1e-4..3e-4:1e-4", ("0.0001", "0.0002", "0.0003")),
        ("LEARNING_RATE", "1..1", ("1",)),
        ("SEED", "1..5", ("1", "2", "3", "4", "5")),
        ("N_EMBD", "100..300:100", ("100", "200", "300")),
        ("SEED", "9, 11..12", ("9", "11", "12")),
        ("OPTIMIZER", "adamw,AdamWSPAM", ("adamw", "AdamWSPAM")),
        ("DETERMINISTIC", "y,n", ("y", "n")),
        ("INIT_FROM", "@a,@b@200", ("@a", "@b@200")),
        # What is a text or a list by itself is no axis.
        ("INIT_FROM", "runs/a,b", ("runs/a,b",)),
        ("TRACKER", "wandb,trackio", ("wandb,trackio",)),
        ("TRACKER_TAGS", "a,b", ("a,b",)),
        ("PRUNING_SCOPE", "h.*.attn.*,h.*.mlp.*", ("h.*.attn.*,h.*.mlp.*",)),
        ("CHECKPOINT_AT", "200,1000", ("200,1000",)),
        ("DATASET_SOURCE", "../a..b:1", ("../a..b:1",)),
        ("EVAL_TASKS", "piqa,hellaswag", ("piqa,hellaswag",)),
    ],
)
def test_the_values_of_a_word(name, text, expected):
    assert values(name, text) == expected


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("SEED", "1..", "never ends"),
        ("SEED", "1..inf", "never ends"),
        ("SEED", "1..9:0", "never ends: its step is 0; write one above 0"),
        ("SEED", "1..9:-1", "never ends: its step is -1"),
        ("SEED", "5..1", "is empty; write the smaller number first"),
        ("SEED", "1..1001", "has 1,001 values; a sweep takes up to 1,000"),
        ("SEED", "0..99999999999999999999", "has far too many values"),
        ("SEED", "1..1e99:1e-99", "has far too many values"),
        ("SEED", "1..700,701..1400", "has 1,400 values"),
        ("TARGET_SPARSITY", "0.5..0.9", "lacks a step; write it after a colon, as in 0.5..0.9:0.1"),
        ("OPTIMIZER", "adam..adamw", "is no range; write first..last:step"),
        ("OPTIMIZER", "adamw,,sgd", "has an empty value"),
        ("OPTIMIZER", "adamw,", "has an empty value"),
        ("OPTIMIZER", "adamw,ADAMW", "has ADAMW twice; leave one out"),
        ("LEARNING_RATE", "1e-3,0.001", "has 0.001 twice"),
    ],
)
def test_what_is_no_axis_is_refused_in_a_sentence(name, text, told):
    with pytest.raises(UsageError) as caught:
        values(name, text)
    assert str(caught.value).startswith(told)


@given(st.integers(-(10**6), 10**6), st.integers(1, 10**6), st.integers(0, 200), st.integers(0, 8))
def test_a_range_is_exact(first, step, count, places):
    """Against exact fractions: no value is off by a rounding error, and the last is there."""

    def plain(number):
        return f"{number}e-{places}"

    found = axes.numbers(f"{plain(first)}..{plain(first + count * step)}:{plain(step)}")
    assert [Fraction(text) for text in found] == [Fraction(first + n * step, 10**places) for n in range(count + 1)]
    assert not any("e" in text or text.endswith(".") for text in found)


def named(base, *chosen, alone=False, in_full=False):
    return axes.name(base, [(OPTIONS[name], text) for name, text in chosen], alone, in_full)


def test_a_point_is_named_by_its_values():
    state = (("PRUNING_METHOD", "state"), ("PRUNING_STATE", "hybrid"), ("TARGET_SPARSITY", "0.5"))
    assert named("", *state) == "state-hybrid-0.5"
    assert named("mine", *state) == "mine-state-hybrid-0.5"
    assert named("", ("OPTIMIZER", "AdamW"), ("PRUNING_METHOD", "none")) == "adamw-dense"
    assert named("wide", ("N_EMBD", "64"), alone=True) == "wide-64"
    assert named("", ("N_EMBD", "64"), ("LEARNING_RATE", "1e-3")) == "n-embd-64-learning-rate-1e-3"
    assert named("a", ("DETERMINISTIC", "y"), alone=True) == "a-deterministic-y"
    assert named("a", ("INIT_FROM", "@wanda-50@200")) == "a-wanda-50-200"
    assert named("", ("LEARNING_RATE", "-.5"), alone=True) == "learning-rate--.5"
    assert named("", ("OPTIMIZER", "sgd"), in_full=True) == "optimizer-sgd"
    assert named("") == "base"
    # Long names keep their beginning, and are told apart by eight digits of the sha256 of the whole name.
    assert (
        named("", *[("PRUNING_STATE", "hybrid")] * 12) == "hybrid-hybrid-hybrid-hybrid-hybrid-hybrid-hybrid-hy-052c4e92"
    )
