"""Pieces of work take turns, and the fastest round of each counts, by a clock of the test's own."""

import itertools

import pytest
import torch

from lib.machine import turns

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """The seconds that the module sees; tests add to them."""
    now = [0.0]
    monkeypatch.setattr(turns.time, "perf_counter", lambda: now[0])
    return now


def test_one_round_without_disturbance_is_enough(clock):
    """The first piece takes 1 ms in its tenth round, and 79 times as long in all others."""
    count, done = itertools.count(), []

    def disturbed():
        done.append("a")
        clock[0] += 0.001 if next(count) == 10 else 0.079

    def plain():
        done.append("b")
        clock[0] += 0.002

    seconds, rounds = turns.fastest([disturbed, plain], CPU)
    assert seconds == pytest.approx([0.001, 0.002])
    assert rounds == 26  # 2 s: 25 rounds of 81 ms, and a shorter one
    assert "".join(done[:8]) == "ab" + "ba" + "ab" + "ba"  # once before, then in turns


def test_short_rounds_go_on_for_seconds_and_long_ones_are_five(clock):
    ticks = []

    def taking(seconds):
        def run():
            clock[0] += seconds

        return run

    assert turns.fastest([taking(0.001)], CPU, lambda: ticks.append(1)) == (pytest.approx([0.001]), len(ticks))
    assert 1998 <= len(ticks) <= 2002
    assert turns.fastest([taking(9.0), taking(1.0)], CPU) == (pytest.approx([9.0, 1.0]), 5)
