"""Foreign processor time is what is neither idle nor ours, and a real busy program is found."""

import psutil
import pytest

from bench import foreign
from bench.foreign import Watch
from lib.base.errors import UserError
from lib.base.load import Reading

BEGIN = Reading(clock=100.0, idle=50.0, stolen=3.0, own=20.0, cores=2)


def test_an_idle_machine_is_accepted_and_a_busy_one_is_not(monkeypatch):
    ends = [BEGIN, Reading(110.0, 59.5, 3.0, 30.0, 2), BEGIN, Reading(110.0, 60.0, 3.0, 30.0, 2)]
    monkeypatch.setattr(foreign, "read", lambda writes: ends.pop(0))
    monkeypatch.setattr(foreign, "WINDOW", 0.0)
    watch, results = Watch(), iter(["2.5 % foreign", "idle"])
    assert watch.undisturbed(lambda: next(results)) == "2.5 % foreign"
    assert (watch.repeated, len(ends)) == (0, 2)
    ends[1:] = [Reading(110.0, 59.3, 3.0, 30.0, 2), *[BEGIN, Reading(110.0, 60.0, 3.0, 30.0, 2)]]  # first 3.5 %
    assert watch.undisturbed(iter(["busy", "idle"]).__next__) == "idle"
    assert (watch.repeated, ends) == (1, [])


def test_a_system_that_does_not_tell_how_busy_it_is_needs_allow_busy(monkeypatch):
    nothing = psutil.cpu_times()._replace(**dict.fromkeys(psutil.cpu_times()._fields, 0.0))
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: [nothing] * psutil.cpu_count())
    with pytest.raises(UserError, match=r"^this system does not tell how busy its processor is; use --allow-busy "):
        Watch().undisturbed(print)
    assert Watch(allow_busy=True).undisturbed(lambda: "measured") == "measured"
