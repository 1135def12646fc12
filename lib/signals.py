"""Ctrl-C and SIGTERM as a request: the loop finishes its step, saves and leaves; a second one stops at once."""

import os
import signal
from types import FrameType


class StopSignals:
    """A context in which SIGINT and SIGTERM are noted instead of acted on."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __enter__(self) -> "StopSignals":
        self.before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
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
        heard = f"\n{self.received.name}: finishing the step, then saving; once more to stop at once\n"
        os.write(2, heard.encode())  # print is not safe here: the signal may have interrupted one
