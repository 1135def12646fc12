"""Ctrl-C, SIGTERM and a closed terminal as a request to stop: the loop finishes its batch, saves and leaves."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

# One wish may come twice: make hands SIGTERM on to a program that got it with the whole group already. What comes this
# soon after the first is no second wish.
_ECHO_SECONDS = 0.5
_LAST_SECONDS = 2.0  # for the last words of a program that is ended: a disk may hang


class StopSignals:
    """A context in which SIGINT, SIGTERM and SIGHUP are noted instead of acted on; a second of a kind ends the program.

    A terminal that closes is no wish to hurry, however often it is told: shells send SIGHUP once more themselves.

    Python calls handlers in the main thread alone, and only when that is not inside a library: on a busy CPU a product
    of large matrices takes many seconds. So a thread hears the signals too. It answers, and it ends the program.
    """

    def __init__(self) -> None:
        self.heard: list[int] = []  # the first one is what counts
        self.heard_at = 0.0  # when that came, on the monotonic clock
        self.last_words: Callable[[], object] = lambda: None  # called before a second signal ends the program
        self.breaking = False  # whether a signal raises KeyboardInterrupt, so that nobody waits for the work at hand

    def __enter__(self) -> "StopSignals":
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if _in_main_thread() else ()
        heard = [s for s in wanted if signal.getsignal(s) is not signal.SIG_IGN]  # nohup wants SIGHUP ignored
        self.terminals = [fd for fd in (1, 2) if os.isatty(fd)]  # once one is closed, nobody can tell that it was one
        self.before = {s: signal.getsignal(s) for s in heard}
        if heard:
            reader, self.writer = os.pipe()
            os.set_blocking(self.writer, False)
            self.woken = signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
            self.thread = threading.Thread(target=self._listen, args=(reader,), name="signals", daemon=True)
            self.thread.start()
        for number in heard:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.heard:  # an echo that comes after the handlers are restored would end the program
            time.sleep(max(0.0, self.heard_at + _ECHO_SECONDS - time.monotonic()))
        for number, handler in self.before.items():
            if number != signal.SIGHUP or number not in self.heard:  # its echo may still come
                signal.signal(number, handler)
        if self.before:
            signal.set_wakeup_fd(self.woken)
            os.close(self.writer)
            self.thread.join()

    def __call__(self) -> bool:
        """Whether a stop was asked for."""
        return bool(self.heard)

    @property
    def exit_code(self) -> int:
        """What a program ended by the signal exits with, by the shell's convention: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.heard[0] if self.heard else 0

    def break_off(self) -> None:
        """Let a signal raise KeyboardInterrupt until `hold_out`; raise it now if one was heard before.

        The work until then must be such that it can be broken off anywhere.
        """
        self.breaking = True  # first: a signal that comes between these lines raises it too
        if self.heard:
            self.breaking = False
            raise KeyboardInterrupt

    def hold_out(self) -> None:
        """Only note a signal, as before."""
        self.breaking = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        """In the main thread: what it must know before it goes on."""
        if number == signal.SIGHUP:
            _send_nowhere(self.terminals)
        if not self.heard:
            self.heard_at = time.monotonic()
        self.heard.append(number)
        if self.breaking:
            self.breaking = False
            raise KeyboardInterrupt

    def _listen(self, reader: int) -> None:
        """In a thread: read the numbers of signals, as they come, until the other end is closed."""
        first: dict[int, float] = {}  # signal -> when it came first
        with os.fdopen(reader, "rb", buffering=0) as pipe:
            while number := pipe.read(1):
                number, now = number[0], time.monotonic()
                if number not in self.before:
                    continue
                if not first:
                    name = signal.Signals(number).name
                    _tell(f"\n{name}: stopping after this batch, then saving; once more to stop at once\n")
                if now - first.setdefault(number, now) > _ECHO_SECONDS and number != signal.SIGHUP:
                    self._end(number)

    def _end(self, number: int) -> NoReturn:
        _tell("interrupted\n")
        words = threading.Thread(target=self._say_last_words, daemon=True)
        words.start()
        words.join(_LAST_SECONDS)
        os._exit(128 + number)

    def _say_last_words(self) -> None:
        with contextlib.suppress(Exception):  # the disk may be full
            self.last_words()


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
