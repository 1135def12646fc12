"""Targets of fuzzing: every part that reads input. Used by tests/fuzz.py and tests/test_fuzz.py."""

from tests.fuzzing import configurations, models, runs, weights
from tests.fuzzing.mutation import mutated
from tests.fuzzing.promise import TARGETS

__all__ = ["TARGETS", "configurations", "models", "mutated", "runs", "weights"]
