"""The learning rate against values worked by hand."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.base.errors import UsageError
from lib.config.kconf import Schema
from lib.schedule import UpdateOptions, build, check, few_updates, warnings

BASE = {"lr_schedule": "cosine", "max_iters": 100, "learning_rate": 1e-3, "warmup_steps": 20, "min_lr": 1e-4}
WSD = {"lr_schedule": "wsd", "lr_decay_share": 0.4, "lr_decay_shape": "linear"}
RESTARTS = {"lr_schedule": "restarts", "lr_cycle": 20, "lr_first_restart": 40, "lr_last_restart": 0.8}
RESTARTS |= dict.fromkeys(["pruning_dynamics", "pruning_warmup", "pruning_end", "pruning_interval"])


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


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (10, 5e-4),  # in the warm-up
        (20, 1e-3),
        (30, 1e-3 - 9e-4 * 10 / 19),
        (39, 1e-4),  # the step before the first restart
        (40, 1e-3),
        (45, 1e-3 - 9e-4 * 5 / 19),
        (59, 1e-4),
        (60, 1e-3),
        (79, 1e-4),
        (80, 1e-3),  # the last restart, at 0.8 of the run
        (90, 5.5e-4),
        (100, 1e-4),
    ],
)
def test_restarts(step, expected):
    assert rate(step, **RESTARTS) == pytest.approx(expected, rel=1e-12)


def test_a_cycle_that_the_last_restart_cuts_short_still_reaches_the_minimum():
    short = RESTARTS | {"lr_cycle": 15}  # restarts at 40, 55, 70 and 80
    assert [rate(step, **short) for step in (69, 70, 79, 80)] == pytest.approx([1e-4, 1e-3, 1e-4, 1e-3], rel=1e-12)
    each = RESTARTS | {"lr_cycle": 1}
    assert [rate(step, **each) for step in (40, 60, 79, 80)] == [1e-3] * 4


def test_restarts_are_those_of_the_authors_recipe():
    """30 epochs of 10 steps, of which each 4 from the third on are a cycle: init - (init - final) k / (cycle - 1)."""
    recipe = RESTARTS | {"max_iters": 300, "learning_rate": 8e-5, "min_lr": 8e-6, "warmup_steps": 0}
    recipe |= {"lr_cycle": 40, "lr_first_restart": 21, "lr_last_restart": 261}
    expected = [8e-5 - (8e-5 - 8e-6) * k / 39 for _ in range(7) for k in range(40)]
    assert [rate(step, **recipe) for step in range(21, 301)] == pytest.approx(expected, rel=1e-12)


@given(st.integers(1, 500), st.integers(1, 60), st.data())
def test_each_restart_is_at_the_peak_and_the_step_before_it_at_the_minimum(iters, cycle, data):
    first = data.draw(st.integers(2, max(2, iters)))
    last = data.draw(st.integers(first, max(first, iters)))
    iters, warmup = max(iters, last + 1), data.draw(st.integers(0, first - 1))
    words = {"max_iters": iters, "warmup_steps": warmup, "lr_cycle": cycle}
    of = build(binder(**RESTARTS | words | {"lr_first_restart": first, "lr_last_restart": last})).learning_rate
    restarts = {*range(first, last, cycle), last}
    for step in range(max(1, warmup), iters + 1):
        assert 1e-4 * (1 - 1e-12) <= of(step) <= 1e-3
        if step in restarts or step == warmup:
            assert of(step) == 1e-3
        elif step + 1 in restarts or step == iters:
            assert of(step) == pytest.approx(1e-4, rel=1e-9)
        else:
            assert of(step) < of(step - 1) or step == 1


def test_restarts_that_are_not_in_the_run_are_refused():
    message = (
        r"^LR_FIRST_RESTART={} is step {} and LR_LAST_RESTART={} is step {}, but they must be steps in this order, "
        r"before the last of MAX_ITERS=100$"
    )
    for ask in (check, build):
        with pytest.raises(UsageError, match=message.format(0.9, 90, 0.8, 80)):
            ask(binder(**RESTARTS | {"lr_first_restart": 0.9}))
        with pytest.raises(UsageError, match=message.format(0.2, 20, 1, 100)):  # the run would end at the peak
            ask(binder(**RESTARTS | {"lr_first_restart": 0.2, "lr_last_restart": 1}))


def test_restarts_where_no_masks_are_chosen_are_told():
    def told(**words):
        schema = Schema()
        words = {"MAX_ITERS": "1000", "PRUNING_METHOD": "magnitude", "LR_SCHEDULE": "restarts"} | words
        schema.override([(name, text, name) for name, text in words.items()])
        return warnings(schema.bind)

    assert told() == told(LR_CYCLE="100") == []  # at 250, 350, ..., 750; updates every 50 steps
    assert told(PRUNING_INTERVAL="250", LR_CYCLE="250") == []  # three updates are meant to be few
    assert told(LR_CYCLE="75") == [
        "LR_SCHEDULE=restarts: the learning rate restarts at step 325, where no masks are chosen; let "
        "LR_FIRST_RESTART, LR_CYCLE and LR_LAST_RESTART follow PRUNING_WARMUP, PRUNING_INTERVAL and PRUNING_END"
    ]
    assert "restarts at step 800" in told(LR_LAST_RESTART="0.8")[0]
    assert told(PRUNING_METHOD="none") == told(PRUNING_DYNAMICS="static") == []
    early = {"LR_FIRST_RESTART": "100", "LR_CYCLE": "100", "LR_LAST_RESTART": "700"}
    assert told(PRUNING_WARMUP="0", WARMUP_STEPS="50", **early) == []  # updates at 0, 50, ...
    assert told(LR_FIRST_RESTART="100") == [
        "LR_SCHEDULE=restarts: WARMUP_STEPS=200 lasts beyond the first restart at step 100, which therefore does not "
        "happen; lower WARMUP_STEPS or raise LR_FIRST_RESTART"
    ]


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
