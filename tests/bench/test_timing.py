"""Variants take turns, rounds that others disturb are repeated, and rounds end when the ratios are certain."""

import pytest
import torch

from bench import foreign
from bench.foreign import Busy, Watch
from bench.timing import Case, Timer, close, interval, meets, quartiles
from lib.base.load import Reading


def measure(cases, rounds, within=0.0):
    watch = Watch(allow_busy=True)
    Timer(torch.device("cpu"), rounds, within, allow_busy=True).measure("title", cases, watch)
    return watch


def test_quartiles_are_interpolated():
    assert quartiles([4.0, 1.0, 2.0, 3.0]) == (1.75, 2.5, 3.25)
    assert quartiles([5.0]) == (5.0, 5.0, 5.0)


def test_goals():
    assert meets(0.35, "<= 0.35") and not meets(0.36, "<= 0.35")
    assert meets(5.0, ">= 5") and not meets(4.9, ">= 5")


def test_variants_take_turns_and_the_first_round_warms_up():
    calls = []
    cases = [Case("a", lambda: calls.append("a")), Case("b", lambda: calls.append("b"), base="a")]
    measure(cases, rounds=2)
    assert "".join(calls) == "baabba"  # every other round backwards
    assert [len(case.seconds) for case in cases] == [2, 2]
    assert cases[1].ratios == [b / a for a, b in zip(cases[0].seconds, cases[1].seconds, strict=True)]


def test_a_ratio_is_the_median_over_rounds_and_not_of_medians():
    case = Case("b", print, base="a", goal="<= 2", work=6.0, unit="GB", every=2)
    case.seconds, case.ratios = [2.0, 3.0, 30.0], [2.0, 1.0, 3.0]
    figures = case.result()
    assert (figures["median_seconds"], figures["iqr_seconds"]) == (3.0, 14.0)
    assert (figures["ratio"], figures["ratio_per_step"], figures["met"]) == (2.0, 1.0, True)
    assert (figures["rate"], figures["rate_unit"]) == (2.0, "GB/s")


def test_a_case_may_report_its_seconds_and_have_a_goal_for_them():
    seconds = iter([4.0, 6.0])
    case = Case("a process", lambda: next(seconds), goal="<= 4.5", reports=True)  # two runs: none to warm up
    measure([case], rounds=2)
    figures = case.result()
    assert (figures["rounds"], figures["median_seconds"], figures["met"]) == ([4.0, 6.0], 5.0, False)
    assert "ratio" not in figures


# ---- how many rounds -------------------------------------------------------------------------------------------------


def test_an_interval_is_between_two_of_the_sorted_values():
    assert interval([5.0, 1.0, 3.0, 2.0, 4.0]) is None  # the median is outside all 5 in 6 % of all cases
    assert interval([6.0, 1.0, 3.0, 2.0, 4.0, 5.0]) == (1.0, 6.0)  # 3.1 %
    assert interval([float(n) for n in range(1, 9)]) == (1.0, 8.0)
    assert interval([float(n) for n in range(9, 0, -1)]) == (2.0, 8.0)  # tables of the sign test: 3.9 %
    assert interval([float(n) for n in range(1, 26)]) == (8.0, 18.0)  # 4.3 %


def test_an_interval_is_close_if_both_ends_are():
    assert close([1.0, 1.0, 1.0, 1.0, 1.0, 1.029], 0.03)
    assert not close([1.0, 1.0, 1.0, 1.0, 1.0, 1.04], 0.03)
    assert not close([0.96, 1.0, 1.0, 1.0, 1.0, 1.0], 0.03)
    assert not close([1.0] * 5, 0.03)


def reporting(name, seconds, **fields):
    """A case that reports these seconds, round by round."""
    return Case(name, iter(seconds).__next__, reports=True, **fields)


def test_rounds_end_when_the_interval_of_every_ratio_is_close():
    # Both get slower by a half in each round, which is no noise of the ratio; the first ratio is 3 instead of 2.
    seconds = [1.5**n for n in range(30)]
    cases = [reporting("a", seconds), reporting("b", [3.0, *(2 * one for one in seconds[1:])], base="a")]
    measure(cases, rounds=30, within=0.03)
    assert cases[1].ratios == [3.0] + [2.0] * 8  # with 9, the highest and lowest are no ends
    assert cases[1].result()["interval"] == (2.0, 2.0)


def test_rounds_end_at_the_most():
    case = reporting("a", [float(n) for n in range(1, 30)])
    measure([case], rounds=7, within=0.03)
    assert case.result()["interval"] == (1.0, 7.0)


# ---- whether others used the processor -------------------------------------------------------------------------------


@pytest.fixture
def shares(monkeypatch):
    """The shares of the processor time that others use, one for each check; each takes ten seconds of two cores."""
    found, clock = [], [1000.0]
    counted = {"used": 0.0, "reads": 0}

    def read(writes):
        assert not writes
        if counted["reads"] % 2:
            clock[0] += 10
            counted["used"] += 20 * found.pop(0)
        counted["reads"] += 1
        return Reading(clock[0], 2 * clock[0] - counted["used"], 0.0, 0.0, 2)

    monkeypatch.setattr(foreign, "read", read)
    monkeypatch.setattr(foreign.time, "sleep", lambda seconds: None)
    return found


def run(cases, rounds=1):
    timer, watch = Timer(torch.device("cpu"), rounds), Watch()
    timer.together = 0.0  # each round is checked
    try:
        timer.measure("title", cases, watch)
    finally:
        assert [len(case.seconds) for case in cases] == [len(watch.checks)] * len(cases)
    return watch


def test_a_round_beside_others_is_repeated(shares):
    shares += [0.029, 0.5, 0.031, 0.0]
    cases = [reporting("a", [1.0, 9.0, 9.0, 2.0]), reporting("b", [2.0, 1.0, 1.0, 4.0], base="a")]
    watch = run(cases, rounds=2)
    assert (cases[0].seconds, cases[1].ratios) == ([1.0, 2.0], [2.0, 2.0])
    assert watch.repeated == 2
    assert [round(check.foreign, 3) for check in watch.checks] == [0.029, 0.0]


def test_a_machine_that_stays_busy_is_not_measured(shares):
    shares += [0.0] + [0.25] * 10
    case = reporting("a", [1.0] * 20)
    with pytest.raises(
        Busy, match=r"^not measured: the machine is busy \(25 % of the processor time went to others\); "
    ):
        run([case], rounds=5)
    assert shares == []  # ten tries


def test_tries_end_with_their_time_too(shares, monkeypatch):
    monkeypatch.setattr(foreign, "SECONDS", 30.0)
    shares += [0.25] * 10
    with pytest.raises(Busy):
        run([reporting("a", [1.0] * 20)])
    assert len(shares) == 7


def test_a_section_ends_with_its_time_after_one_round(shares):
    shares += [0.0]
    case, timer = reporting("a", [1.0] * 20), Timer(torch.device("cpu"), 20)
    timer.together, timer.until = 0.0, 0.0
    timer.measure("title", [case], Watch())
    assert case.seconds == [1.0]


def test_enough_rounds_stay_when_the_machine_becomes_busy(shares):
    shares += [0.0] * 6 + [0.25] * 10
    case = reporting("a", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0] + [9.0] * 10)
    run([case], rounds=20)
    assert case.result()["interval"] == (1.0, 6.0)


def test_short_rounds_are_checked_together(shares):
    shares += [0.0, 0.5, 0.0]
    case, timer, watch = reporting("a", [1.0] * 1000), Timer(torch.device("cpu"), 4), Watch()
    timer.measure("title", [case], watch)
    assert (len(case.seconds), len(watch.checks), len(shares)) == (4, 1, 2)
