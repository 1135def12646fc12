"""The plan of pruning against values worked out by hand, and its refusals."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.base.errors import UsageError
from lib.config.kconf import Schema
from lib.prune.schedule import Plan, PruningScheduleOptions, plan

CURVES = st.sampled_from(["cubic", "linear", "late-cubic", "sigmoid", "one-shot"])


def made(**values):
    schema = Schema()
    pairs = {"MAX_ITERS": "1000", "PRUNING_METHOD": "magnitude"} | values
    schema.override([(name, text, "test") for name, text in pairs.items()])
    return plan(schema.bind(PruningScheduleOptions))


@pytest.mark.parametrize(
    ("curve", "quarter", "half", "late"),
    [
        ("cubic", 0.578125, 0.875, 0.984375),  # 1 - (3/4)^3, 1 - (1/2)^3, 1 - (1/4)^3
        ("linear", 0.25, 0.5, 0.75),
        ("late-cubic", 0.015625, 0.125, 0.421875),
        ("one-shot", 1.0, 1.0, 1.0),
    ],
)
def test_the_curves_have_the_published_values(curve, quarter, half, late):
    path = Plan(100, 500, 50, curve)
    assert [path.share(step) for step in (99, 200, 300, 400, 500, 501)] == [0.0, quarter, half, late, 1.0, 1.0]


def test_the_sigmoid_has_the_published_values():
    """From 1 / (1 + e^(6 - 12 x)), scaled to 0 and 1 at the ends: 1 / (1 + e^3) at a quarter is 0.0474."""
    path = made(PRUNING_SCHEDULE="sigmoid", PRUNING_WARMUP="100", PRUNING_END="500")
    shares = [path.share(step) for step in (99, 100, 200, 300, 400, 500, 501)]
    assert shares == pytest.approx([0.0, 0.0, 0.0451767, 0.5, 0.9548233, 1.0, 1.0], rel=1e-6)
    ends = [1 / (1 + math.exp(-z)) for z in (-6, -3, 6)]
    assert shares[2] == pytest.approx((ends[1] - ends[0]) / (ends[2] - ends[0]), rel=1e-12)


def test_a_polynomial_of_power_two():
    path = made(PRUNING_SCHEDULE="polynomial", PRUNING_POWER="2", PRUNING_WARMUP="100", PRUNING_END="500")
    assert path.share(300) == 0.75


def test_the_default_is_a_quarter_to_three_quarters_of_the_run():
    assert made() == Plan(250, 750, 50, "cubic", None)


def test_up_to_one_is_a_share_and_above_one_are_steps():
    assert made(PRUNING_WARMUP="120", PRUNING_END="1") == Plan(120, 1000, 50, "cubic", None)
    assert made(PRUNING_WARMUP="0", PRUNING_END="0.5").start == 0
    assert made(PRUNING_WARMUP="0", PRUNING_END="0.0001").end == 1
    assert made(PRUNING_WARMUP="0", PRUNING_END="0.5").not_before(1) == Plan(1, 500, 50, "cubic", None)


def test_masks_are_chosen_at_every_interval_and_at_the_end():
    path = Plan(10, 55, 20, "cubic")
    assert [step for step in range(100) if path.due(step)] == [10, 30, 50, 55]


def test_the_dynamics_have_plans_of_their_own():
    assert made(PRUNING_DYNAMICS="static") == Plan(0, 0, 1, "one-shot")
    assert made(PRUNING_DYNAMICS="rigl") == Plan(0, 750, 100, "one-shot")
    assert made(PRUNING_DYNAMICS="chts") == Plan(0, 750, 100, "one-shot")
    assert made(PRUNING_DYNAMICS="mest") == Plan(0, 750, 100, "one-shot")
    assert made(PRUNING_DYNAMICS="granet") == Plan(250, 750, 100, "cubic", None, continues=True)
    assert made(PRUNING_DYNAMICS="granet", PRUNING_WARMUP="0").start == 1  # it needs a gradient
    assert made(PRUNING_DYNAMICS="topkast") == Plan(0, 1000, 100, "one-shot")
    assert made(PRUNING_DYNAMICS="topkast", PRUNING_END="0.5").end == 500
    assert made(PRUNING_DYNAMICS="sr-ste") == Plan(0, 0, 1, "one-shot", continues=True)
    assert made(PRUNING_DYNAMICS="s-ste") == Plan(0, 0, 1, "one-shot", continues=True)
    assert made(PRUNING_DYNAMICS="ste", PRUNING_INTERVAL="10") == Plan(250, 750, 10, "cubic", None, continues=True)
    assert made(PRUNING_DISTRIBUTION="n-m") == Plan(250, 250, 1, "one-shot", None)
    assert made(PRUNING_SCHEDULE="one-shot", PRUNING_WARMUP="7").due(7)


def test_the_first_update_may_prune_much():
    """The recipe of GMP*'s authors: from 70 to 90 % in seven updates, 90 % minus 20 % (1 - k / 6)^3."""
    words = {"PRUNING_WARMUP": "20", "PRUNING_END": "260", "PRUNING_INTERVAL": "40"}
    path = made(TARGET_SPARSITY="0.9", PRUNING_FIRST_SPARSITY="0.7", **words)
    chosen = [step for step in range(1000) if path.due(step)]
    assert chosen == [20, 60, 100, 140, 180, 220, 260]
    sparsities = [0.7, 0.784259259259, 0.840740740741, 0.875, 0.892592592593, 0.899074074074, 0.9]
    assert [0.9 * path.share(step) for step in chosen] == pytest.approx(sparsities, abs=1e-12)
    assert path.share(19) == 0.0
    late = made(TARGET_SPARSITY="0.5", PRUNING_FIRST_SPARSITY="0.25", PRUNING_SCHEDULE="late-cubic")
    assert [late.share(step) for step in (250, 500, 750)] == [0.5, 0.5625, 1.0]
    assert made(TARGET_SPARSITY="0", PRUNING_FIRST_SPARSITY="0") == Plan(250, 750, 50, "cubic", None)
    assert made(TARGET_SPARSITY="0.5", PRUNING_FIRST_SPARSITY="0.5").share(250) == 1.0


def test_ste_continues_choosing_after_the_end():
    path = Plan(10, 20, 5, "linear", continues=True)
    assert [step for step in range(40) if path.due(step)] == [10, 15, 20, 25, 30, 35]


@given(st.integers(1, 500), st.integers(1, 500), CURVES)
def test_the_share_never_falls_and_ends_at_one(start, length, curve):
    path = Plan(start, start + length, 7, curve)
    shares = [path.share(step) for step in range(start + length + 2)]
    assert shares == sorted(shares)
    assert (shares[start - 1], shares[-1]) == (0.0, 1.0)


@given(st.integers(0, 40), st.integers(0, 60), st.integers(1, 30), st.booleans(), st.integers(0, 50))
def test_updates_are_the_steps_at_which_masks_are_due(start, length, interval, continues, more):
    path, steps = Plan(start, start + length, interval, "linear", continues=continues), start + length + more
    assert path.updates(steps) == sum(path.due(step) for step in range(steps + 1))


def test_the_last_step_at_which_masks_were_due():
    path = Plan(10, 55, 20, "cubic")
    assert [path.last(step) for step in (9, 10, 29, 30, 54, 55, 90)] == [None, 10, 10, 30, 50, 55, 55]
    path = Plan(10, 25, 10, "linear", continues=True)
    assert [path.last(step) for step in (10, 24, 25, 29, 30, 41)] == [10, 20, 25, 25, 30, 40]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"PRUNING_WARMUP": "0.4001", "PRUNING_END": "0.4"},
            "PRUNING_END=0.4 is step 400, before pruning starts at step 400 (PRUNING_WARMUP=0.4001); end it later or "
            "start it sooner",
        ),
        (
            {"PRUNING_WARMUP": "0.8", "PRUNING_END": "0.5"},
            "PRUNING_END=0.5 is step 500, before pruning starts at step 800 (PRUNING_WARMUP=0.8); end it later or "
            "start it sooner",
        ),
        ({"PRUNING_END": "1001"}, "PRUNING_END=1001 lies beyond MAX_ITERS=1000, so the target would never be reached"),
        (
            {"PRUNING_WARMUP": "5000"},
            "PRUNING_WARMUP=5000 lies beyond MAX_ITERS=1000, so the target would never be reached",
        ),
        (
            {"PRUNING_FIRST_SPARSITY": "0.6"},
            "PRUNING_FIRST_SPARSITY=0.6 exceeds TARGET_SPARSITY=0.5, but sparsity never falls; lower it",
        ),
    ],
)
def test_a_plan_that_a_run_cannot_follow_is_refused(values, message):
    with pytest.raises(UsageError) as error:
        made(**values)
    assert str(error.value) == message


def test_a_plan_may_start_and_end_at_the_same_step():
    path = made(PRUNING_WARMUP="0.5", PRUNING_END="0.5")
    assert [(step, path.share(step)) for step in range(1001) if path.due(step)] == [(500, 1.0)]
