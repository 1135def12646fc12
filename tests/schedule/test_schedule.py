"""The learning rate against values worked by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.base.errors import UsageError
from lib.schedule import ScheduleOptions, UpdateOptions, check, few_updates, learning_rate

COSINE = ScheduleOptions(max_iters=100, learning_rate=1e-3, warmup_steps=20, decay_lr=True, min_lr=1e-4)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (1, 5e-5),  # 1/20 of the peak
        (10, 5e-4),
        (20, 1e-3),  # the peak, at the end of warm-up
        (40, 1e-4 + 9e-4 * 0.8535533905932737),  # a quarter of the cosine: (1 + cos(pi / 4)) / 2
        (60, 5.5e-4),  # half of it: the middle between peak and minimum
        (100, 1e-4),  # the minimum, at the last step
    ],
)
def test_warms_up_and_follows_the_cosine(step, expected):
    assert learning_rate(step, COSINE) == pytest.approx(expected, rel=1e-12)


def test_keeps_the_peak_without_decay():
    flat = ScheduleOptions(max_iters=100, learning_rate=1e-3, warmup_steps=0, decay_lr=False, min_lr=None)
    assert [learning_rate(step, flat) for step in (1, 50, 100)] == [1e-3, 1e-3, 1e-3]


@given(st.integers(1, 500), st.integers(0, 500), st.integers(1, 500))
def test_never_leaves_the_band_between_zero_and_the_peak(iters, warmup, step):
    options = ScheduleOptions(iters, 1e-3, min(warmup, iters), True, 1e-4)
    assert 0 < learning_rate(min(step, iters), options) <= 1e-3


def test_a_run_that_ends_in_its_warm_up_is_warned_of():
    options = ScheduleOptions(100, 1e-3, 200, True, 1e-4)
    assert check(options) == ["WARMUP_STEPS=200 exceeds MAX_ITERS=100: it ends at rate 0.0005"]
    assert learning_rate(100, options) == 5e-4


def test_contradictions_are_refused():
    assert check(ScheduleOptions(100, 1e-3, 100, True, 1e-4)) == []
    with pytest.raises(UsageError, match=r"^MIN_LR=0.01 exceeds LEARNING_RATE=0.001; lower it or use --no-decay-lr$"):
        check(ScheduleOptions(100, 1e-3, 20, True, 1e-2))


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
