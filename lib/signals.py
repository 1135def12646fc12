"""Ctrl-C, SIGTERM and a closed terminal as a request to stop: the loop finishes its step, saves and leaves."""

import contextlib
import os
import signal
import threading
from types import FrameType


class StopSignals:
    """A context in which SIGINT, SIGTERM and SIGHUP are noted instead of acted on; a second one ends the program."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __enter__(self) -> "StopSignals":
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if threading.current_thread() is not threading.main_thread():
            wanted = ()  # as in a worker of Ray: Python lets the main thread alone hear signals
        heard = [s for s in wanted if signal.getsignal(s) is not signal.SIG_IGN]  # nohup wants SIGHUP ignored
        self.before = {s: signal.signal(s, self._note) for s in heard}
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Whether a stop was asked for."""
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """What a program ended by the signal exits with, by the shell's convention: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.received if self.received else 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        signal.signal(number, signal.SIG_DFL)  # the next one ends the program
        if number == signal.SIGHUP:
            _forget_terminal()
        heard = f"\n{self.received.name}: finishing the step, then saving; once more to stop at once\n"
        with contextlib.suppress(OSError):  # nobody may be reading
            os.write(2, heard.encode())  # print is not safe here: the signal may have interrupted one


def _forget_terminal() -> None:
    """Send what is printed nowhere if it went to the terminal that was closed: writing to that is an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for fd in (1, 2):
        if os.isatty(fd):
            os.dup2(nowhere, fd)
    os.close(nowhere)
