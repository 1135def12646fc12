"""Trackers as the user of a run sees them: what they report while it trains, and how its end waits for them."""

import contextlib
import dataclasses
import math
import os
import threading
import time
from collections.abc import Callable, Mapping

from lib.base import durations, launch
from lib.base.signals import StopSignals
from lib.config.kconf import Options
from lib.terminal.console import Bars, duration, say
from lib.track import Delivery, Lanes, table

_USUAL_SECONDS = 30.0  # the longest wait of TRACKER_WAIT=auto where trackers can go on after the run
_IDLE_SECONDS = 900.0  # elsewhere, the longest wait in which nothing arrives: a hanging tracker must not hold a cluster
_SLOWEST = 100_000  # bytes/s: while a large file is sent, nothing else arrives
_SHORT_SECONDS = 5.0  # the longest wait after a signal: schedulers kill all processes of a job 30 s after it
_QUIET_SECONDS = 1.0  # a wait that is not worth a word
_LOOK_SECONDS = 0.5  # between looks at the deliveries
_NEWS_SECONDS = 2.0  # between looks at what trackers report while the run trains


@dataclasses.dataclass(frozen=True)
class WaitOptions(Options):
    """How long the end of a run waits for its trackers."""

    tracker_wait: str  # auto, all, or a duration


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long to wait until the trackers have everything."""

    seconds: float  # in total; infinite: no limit
    idle: float = math.inf  # seconds in which nothing arrives
    reason: str = ""  # why there is no limit, as a clause

    def words(self) -> str:
        """Such as `up to 30 s`."""
        if self.seconds < math.inf:
            return f"up to {self.seconds:.0f} s"
        return f"until everything is delivered{self.reason}"

    def short(self) -> "Patience":
        """What is left of it if there is no time to wait."""
        return Patience(min(self.seconds, _SHORT_SECONDS))


def patience(wait: str, env: Mapping[str, str] = os.environ) -> Patience:
    """What the value of TRACKER_WAIT means in this process.

    In a job that ends with this process, `auto` waits for every tracker. A tracker of files ends its delivery quickly
    anyway. Whether another one sends its rows far away is known only once it is open, and opening is what takes
    minutes at a new Space.
    """
    if wait == "auto":
        job = launch.ends_with_us(env)
        return Patience(math.inf, _IDLE_SECONDS, f": they end with this {job}") if job else Patience(_USUAL_SECONDS)
    return Patience(math.inf if wait == "all" else durations.seconds(wait))


class Attendant:
    """Tells the user what the trackers of a run report, from a thread beside the loop, and waits for them at the end.

    A look costs one `stat` per tracker.
    """

    def __init__(self, lanes: Lanes, say: Callable[[str], object]):
        """Call `say` with each note and error within seconds, until `close`."""
        self.lanes, self.say, self.ended = lanes, say, threading.Event()
        self.thread = threading.Thread(target=self._listen, name="news of trackers", daemon=True)
        if lanes.lanes:
            self.thread.start()

    def _listen(self) -> None:
        while not self.ended.wait(_NEWS_SECONDS):
            for note in self.lanes.notes():
                self.say(note)

    def close(self, patience: Patience) -> int:
        """End the lanes; see `end`."""
        self.ended.set()
        if self.thread.is_alive():
            self.thread.join(1)  # a look may hang on a file system; the thread then ends with the process
        return end(self.lanes, patience, self.say)


def end(lanes: Lanes, patience: Patience, tell: Callable[[str], object]) -> int:
    """Tell the lanes that the run has ended, wait for them, and print what each tracker has.

    `tell` is called with what they report meanwhile. A signal leaves the wait, and its number is returned, else 0. The
    lanes continue, unless the signal went to them too and killed them.
    """
    lanes.close()
    with StopSignals("ending the wait for the trackers") as asked:
        _wait(lanes, patience, tell, asked)
    if deliveries := lanes.deliveries():
        say(table(deliveries))
    return asked.heard[0] if asked.heard else 0


def _wait(lanes: Lanes, patience: Patience, tell: Callable[[str], object], asked: Callable[[], bool]) -> None:
    """Wait until the lanes, which are closed, have ended, `patience` is used up, or the user `asked` to leave."""
    deadline = time.monotonic() + patience.seconds
    if lanes.wait(min(_QUIET_SECONDS, patience.seconds)) or patience.seconds <= _QUIET_SECONDS:
        return
    say(f"waiting for the trackers {patience.words()} (Ctrl-C ends the wait)")
    moved, before = time.monotonic(), []
    with contextlib.closing(Bars("rows")) as bars:
        while True:
            looked, found = time.monotonic(), lanes.deliveries()
            for note in lanes.notes():
                with bars.above():
                    tell(note)
            bars.show({one.name: _count(one) for one in found if one.state != "finished" or one not in before})
            if found != before:
                moved, before = looked, found
            now = time.monotonic()
            sends = max((one.sending for one in found), default=0) / _SLOWEST
            left = min(deadline, moved + patience.idle + sends) - now
            if left <= 0 or asked() or lanes.wait(min(_LOOK_SECONDS, left)):
                break
    if now >= moved + patience.idle + sends:
        say(f"nothing has arrived at the trackers for {duration(patience.idle)}, so the wait ends")


def _count(one: Delivery) -> tuple[str, int, int]:
    """What a bar shows of a delivery. A tracker that has all rows may still upload them."""
    state = "closing" if one.state == "live" and not one.pending else "uploading" if one.sending else one.state
    return state, one.delivered, one.delivered + one.pending
