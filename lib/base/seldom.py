"""Work that is repeated, such as a look at all runs, and stays a small share of the time however long it takes."""

import math
import time
from types import TracebackType

_SHARE = 0.05  # of the time
_CREDIT = 2.0  # seconds of work that are not counted: what takes little may be repeated at once


class Seldom:
    """A context for the work, which tells when it is due again."""

    def __init__(self, least: float = 0.0):
        """`least`: seconds from the start of the work to its next start, at least."""
        self.least, self.began, self.ended, self.debt = least, -math.inf, 0.0, 0.0

    @property
    def due(self) -> bool:
        """Whether it is time to do the work again."""
        now = time.monotonic()
        return now - self.began >= self.least and self._left(now) <= _CREDIT

    def _left(self, now: float) -> float:
        """The seconds of work whose share of the time is not over."""
        return max(0.0, self.debt - _SHARE * (now - self.ended))

    def __enter__(self) -> None:
        self.began = time.monotonic()
        self.debt = self._left(self.began)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.ended = time.monotonic()
        self.debt += self.ended - self.began
