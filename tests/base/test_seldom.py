"""Repeated work stays a small share of the time."""

import pytest

from lib.base import seldom


@pytest.fixture
def work(monkeypatch):
    """Does work of so many seconds after a pause of so many; tells whether it was due."""
    now, one = [100.0], seldom.Seldom(0.5)
    monkeypatch.setattr(seldom.time, "monotonic", lambda: now[0])

    def work(pause, seconds):
        now[0] += pause
        if due := one.due:
            with one:
                now[0] += seconds
        return due

    return work


def test_work_that_takes_little_is_due_whenever_its_least_pause_is_over(work):
    assert [work(0.5, 0.01) for _ in range(100)] == [True] * 100
    assert not work(0.25, 0.01)
    assert work(0.25, 0.01)


def test_work_that_takes_long_is_a_twentieth_of_the_time(work):
    assert work(0, 8)  # 6 s more than may be owed
    assert not work(119, 8)
    assert work(1, 1)
    assert not work(19, 1)
    assert work(1, 1)
    assert work(10_000, 2)  # a long pause saves up nothing
    assert work(0, 1)
    assert not work(19, 1)
