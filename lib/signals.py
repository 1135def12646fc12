"""Ctrl-C, SIGTERM and a closed terminal as a request to stop: the loop finishes its step, saves and leaves."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

# One wish may come twice: make hands SIGTERM on to a program that got it with the whole group already. What comes this
# soon after the first is no second wish.
_ECHO_SECONDS = 0.5


class StopSignals:
    """A context in which SIGINT, SIGTERM and SIGHUP are noted instead of acted on; a second of a kind ends the program.

    A terminal that closes is no wish to hurry, however often it is told: shells send SIGHUP once more themselves.
    """

    def __init__(self) -> None:
        self.heard: list[int] = []  # the first one is what counts

    def __enter__(self) -> "StopSignals":
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if _in_main_thread() else ()
        heard = [s for s in wanted if signal.getsignal(s) is not signal.SIG_IGN]  # nohup wants SIGHUP ignored
        self.terminals = [fd for fd in (1, 2) if os.isatty(fd)]  # once one is closed, nobody can tell that it was one
        self.before = {s: signal.signal(s, self._note) for s in heard}
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self.before.items():
            if number != signal.SIGHUP or number not in self.heard:  # its echo may still come
                signal.signal(number, handler)

    def __call__(self) -> bool:
        """Whether a stop was asked for."""
        return bool(self.heard)

    @property
    def exit_code(self) -> int:
        """What a program ended by the signal exits with, by the shell's convention: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.heard[0] if self.heard else 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _send_nowhere(self.terminals)
        if number in self.heard:
            return
        self.heard.append(number)
        if len(self.heard) == 1:
            name = signal.Signals(number).name
            _tell(f"\n{name}: finishing the step, then saving; once more to stop at once\n")
        if number != signal.SIGHUP:
            time.sleep(_ECHO_SECONDS)  # in which its echo comes here
            signal.signal(number, signal.SIG_DFL)  # the next one ends the program, whatever it is busy with


def end_at_once() -> None:
    """From now until `interrupt`, while modules are imported, let Ctrl-C end the program with exit code 130.

    KeyboardInterrupt may come inside an extension module's import: numpy and torch swallow it, and are half modules
    from then on.
    """
    if _in_main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def interrupt() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if _in_main_thread() and signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """A context in which `end_at_once` holds."""
    end_at_once()
    try:
        yield
    finally:
        interrupt()


def _end(number: int, frame: FrameType | None) -> NoReturn:
    _tell("interrupted\n")
    os._exit(128 + number)


def _in_main_thread() -> bool:
    """Python lets the main thread alone hear signals; a worker of Ray is another one."""
    return threading.current_thread() is threading.main_thread()


def _tell(text: str) -> None:
    """Print to standard error: print itself is not safe where it may be what the signal interrupted."""
    with contextlib.suppress(OSError):  # nobody may be reading
        os.write(2, text.encode())


def _send_nowhere(descriptors: list[int]) -> None:
    """Send what is printed to the terminal that was closed nowhere: writing to that is an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for fd in descriptors:
        os.dup2(nowhere, fd)
    os.close(nowhere)
