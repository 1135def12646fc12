"""The processor time that other programs use meanwhile, because figures of a busy machine mislead."""

import hashlib
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from lib.base.errors import UserError
from lib.base.load import foreign, read

LIMIT = 0.03  # of the processor time; a measurement with more foreign time is repeated
WINDOW = 1.0  # seconds: the system counts each core's time in steps of 10 ms, too coarse for less
_TRIES, SECONDS = 10, 600.0  # of repeated measurements; whatever comes first ends them

_OTHERWISE = "use --allow-busy for figures without a verdict"
_WORK = bytes(1 << 20)

T = TypeVar("T")


class Check(NamedTuple):
    """What else happened during a measurement that was kept."""

    seconds: float
    foreign: float  # share of the processor time that others used
    speed: float  # of a fixed piece of work, in units per second: lower with a lower clock rate


class Busy(UserError):
    """Others used the processor in every try."""

    def __init__(self, share: float):
        super().__init__(f"{words(share)}; stop the other programs, or {_OTHERWISE}")
        self.share = share


def words(share: float) -> str:
    """How a figure is shown that could not be measured."""
    return f"not measured: the machine is busy ({100 * share:.0f} % of the processor time went to others)"


class Watch:
    """Repeats what others disturb, for all measurements of a section together."""

    def __init__(self, allow_busy: bool = False, writes: bool = False, seconds: float = SECONDS):
        """`allow_busy`: keep every measurement; `writes`: see `read`; `seconds` of repeated measurements at most."""
        self.allow_busy, self.writes, self.repeated = allow_busy, writes, 0
        self._left = min(seconds, SECONDS)
        self.checks: list[Check] = []

    def facts(self) -> dict[str, object]:
        """For the report: what else happened during the measurements, and how many were repeated."""
        return {"repeated": self.repeated, "checks": [check._asdict() for check in self.checks]}

    def undisturbed(self, run: Callable[[], T]) -> T:
        """What `run` returns, from the first try in which others used little; raises Busy after many tries."""
        while True:
            begin = read(self.writes)
            if not (begin.idle or self.allow_busy):
                raise UserError(f"this system does not tell how busy its processor is; {_OTHERWISE}")
            result = run()
            if not self.allow_busy:
                time.sleep(max(0.0, begin.clock + WINDOW - time.perf_counter()))
            end = read(self.writes)
            check = Check(end.clock - begin.clock, foreign(begin, end), _speed())
            if self.allow_busy or check.foreign <= LIMIT:
                self.checks.append(check)
                return result
            self.repeated, self._left = self.repeated + 1, self._left - check.seconds
            if self.repeated >= _TRIES or self._left <= 0:
                raise Busy(check.foreign)


def _speed() -> float:
    """How often per second a fixed piece of work can be done, in the best of some tries."""
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        hashlib.sha256(_WORK)
        best = min(best, time.perf_counter() - began)
    return 1 / best
