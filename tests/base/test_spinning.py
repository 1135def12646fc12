"""Waiting threads spin on an idle machine and sleep soon beside a busy one, unless the environment decides."""

import os
import time

import pytest

from lib.base import load, spinning
from lib.base.load import Reading


@pytest.fixture
def readings(monkeypatch):
    """Nothing is set; readings of 2 cores: one a second ago, and one now with this much foreign time."""
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    now = time.perf_counter()

    def made(foreign):
        monkeypatch.setattr(load, "read", lambda: Reading(now, 2.0 - foreign, 0.0, 0.0, 2))
        return Reading(now - 1, 0.0, 0.0, 0.0, 2)

    return made


@pytest.mark.parametrize(("foreign", "value"), [(0.0, None), (0.49, None), (0.5, "2000"), (2.0, "2000")])
def test_half_a_core_of_others_lets_threads_sleep(readings, foreign, value):
    spinning.choose(readings(foreign))
    assert os.environ.get("GOMP_SPINCOUNT") == value
    assert spinning.is_little() is (value is not None)


@pytest.mark.parametrize(("name", "value"), [("GOMP_SPINCOUNT", "77"), ("OMP_WAIT_POLICY", "active")])
def test_the_environment_decides(readings, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    spinning.choose(readings(2.0))
    assert (os.environ[name], os.environ.get("GOMP_SPINCOUNT")) == (value, "77" if name != "OMP_WAIT_POLICY" else None)
    assert not spinning.is_little()
