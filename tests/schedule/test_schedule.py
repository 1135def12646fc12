"""The learning rate against values worked by hand."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.base.errors import UsageError
from lib.config.kconf import Schema
from lib.schedule import UpdateOptions, build, check, few_updates

BASE = {"lr_schedule": "cosine", "max_iters": 100, "learning_rate": 1e-3, "warmup_steps": 20, "min_lr": 1e-4}
WSD = {"lr_schedule": "wsd", "lr_decay_share": 0.4, "lr_decay_shape": "linear"}


def binder(**choices):
    """What `Schema.bind` is, with these values in place of a configuration's."""
    values = BASE | choices
    return lambda cls: cls(**{field.name: values[field.name] for field in dataclasses.fields(cls)})


def rate(step, **choices):
    return build(binder(**choices)).learning_rate(step)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
@pytest.mark.parametrize(("step", "expected"), [(1, 5e-5), (10, 5e-4), (20, 1e-3)])  # 1/20, half, all of the peak
def test_every_schedule_warms_up_to_the_peak(schedule, step, expected):
    assert rate(step, **WSD | {"lr_schedule": schedule}) == expected


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (40, 1e-4 + 9e-4 * 0.8535533905932737),  # a quarter of the cosine: (1 + cos(pi / 4)) / 2
        (60, 5.5e-4),  # half of it: the middle between peak and minimum
        (100, 1e-4),  # the minimum, at the last step
    ],
)
def test_cosine(step, expected):
    assert rate(step) == pytest.approx(expected, rel=1e-12)


def test_cosine_is_bit_for_bit_what_it_was():
    for step in range(20, 101):
        progress = (step - 20) / max(1, 100 - 20)
        assert rate(step) == 1e-4 + (1e-3 - 1e-4) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@pytest.mark.parametrize(("step", "expected"), [(40, 7.75e-4), (60, 5.5e-4), (92, 1.9e-4), (100, 1e-4)])
def test_linear(step, expected):
    assert rate(step, lr_schedule="linear") == pytest.approx(expected, rel=1e-12)


def test_constant():
    flat = {"lr_schedule": "constant", "warmup_steps": 0, "min_lr": None}
    assert [rate(step, **flat) for step in (1, 50, 100)] == [1e-3, 1e-3, 1e-3]


@pytest.mark.parametrize(
    ("shape", "step", "expected"),
    [
        ("linear", 60, 1e-3),  # the last step of the stable phase: 100 - 0.4 x 100
        ("linear", 61, 1e-3 - 9e-4 / 40),
        ("linear", 70, 7.75e-4),  # a quarter of the way
        ("linear", 100, 1e-4),
        ("1-sqrt", 60, 1e-3),
        ("1-sqrt", 70, 5.5e-4),  # 1 - sqrt(1/4) is a half
        ("1-sqrt", 100, 1e-4),
    ],
)
def test_wsd(shape, step, expected):
    assert rate(step, **WSD | {"lr_decay_shape": shape}) == pytest.approx(expected, rel=1e-12)


def test_wsd_without_a_stable_phase_decays_from_the_end_of_the_warm_up_and_is_warned_of():
    late = WSD | {"warmup_steps": 80}
    assert [rate(step, **late) for step in (40, 80, 90, 100)] == pytest.approx([5e-4, 1e-3, 5.5e-4, 1e-4], rel=1e-12)
    assert check(binder(**late)) == [
        "WARMUP_STEPS=80 ends after step 60, where the decay of LR_DECAY_SHARE=0.4 would begin: there is no stable "
        "phase, and the decay is shorter"
    ]
    assert check(binder(**WSD)) == []
    assert rate(100, **WSD | {"lr_decay_share": 0.0}) == 1e-3


@given(
    st.sampled_from(["cosine", "linear", "wsd", "constant"]),
    st.sampled_from(["linear", "1-sqrt"]),
    st.integers(1, 500),
    st.integers(0, 500),
    st.floats(0, 1),
)
def test_never_rises_after_the_warm_up_and_ends_at_or_above_the_minimum(schedule, shape, iters, warmup, share):
    warmup = min(warmup, iters)
    of = build(
        binder(lr_schedule=schedule, max_iters=iters, warmup_steps=warmup, lr_decay_share=share, lr_decay_shape=shape)
    ).learning_rate
    rates = [of(step) for step in range(max(1, warmup), iters + 1)]
    assert all(0 < of(step) <= 1e-3 for step in range(1, iters + 1))
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] >= 1e-4 * (1 - 1e-12)


def test_a_configuration_builds_its_schedule():
    schema = Schema()
    words = {"LR_SCHEDULE": "wsd", "LR_DECAY_SHAPE": "1-sqrt", "MAX_ITERS": "1000", "WARMUP_STEPS": "10"}
    schema.override([(name, text, name) for name, text in words.items()])
    made = build(schema.bind)
    assert made.max_iters == 1000
    # 800 is the last step at the peak 6e-4; the minimum is 6e-5
    assert [made.learning_rate(step) for step in (10, 800, 850, 1000)] == pytest.approx(
        [6e-4, 6e-4, 3.3e-4, 6e-5], rel=1e-12
    )


def test_a_run_that_ends_in_its_warm_up_is_warned_of():
    assert check(binder(warmup_steps=200)) == ["WARMUP_STEPS=200 exceeds MAX_ITERS=100: it ends at rate 0.0005"]
    assert rate(100, warmup_steps=200) == 5e-4


def test_contradictions_are_refused():
    assert check(binder(warmup_steps=100)) == []
    message = r"^MIN_LR=0.01 exceeds LEARNING_RATE=0.001; lower it or use LR_SCHEDULE=constant$"
    with pytest.raises(UsageError, match=message):
        check(binder(min_lr=1e-2))


@pytest.mark.parametrize(
    ("interval", "warmup", "end", "dynamics", "times"),
    [
        (50, 0.25, 0.75, "gradual", 11),  # 250, 300, ..., 750
        (60, 0.25, 0.75, "gradual", 10),  # 250, 310, ..., 730, 750
        (70, 0.25, 0.75, "gradual", 9),  # 250, 320, ..., 740, 750
        (1000, 0.25, 0.75, "gradual", 2),
        (100, None, 0.75, "rigl", 9),  # 1, 101, ..., 701, 750
        (100, 0.25, 0.5, "ste", 9),  # 250, 350, ..., and at the last step
        (100, None, None, "sr-ste", 11),
        (100, 400, 1000, "gradual", 7),
        (None, None, None, None, 0),
    ],
)
def test_an_interval_that_chooses_masks_fewer_than_ten_times_is_told(interval, warmup, end, dynamics, times):
    found = few_updates(UpdateOptions(1000, dynamics, warmup, end, interval))
    assert [f"PRUNING_INTERVAL={interval} chooses masks about {times} times in" in text for text in found] == (
        [True] if 0 < times < 10 else []
    )
