"""Ctrl-C, SIGTERM, a closed terminal and SLURM's SIGUSR2 as requests to stop: the loop ends its batch, saves, exits."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

# One request may arrive as two signals: make forwards SIGTERM to a program that already got it with its process group.
# So a signal this soon after the first one is not a second request.
_ECHO_SECONDS = 0.5
_LAST_SECONDS = 2.0  # the longest wait for a program's last words, because the disk may hang
ANSWER = "stopping after this batch, then saving"
_open: list["StopSignals"] = []  # the contexts that this process is in, the innermost last


class StopSignals:
    """A context in which SIGINT, SIGTERM, SIGHUP and SIGUSR2 are only noted. A second one of a kind ends the program.

    SLURM sends SIGUSR2 before a job's time is over, if sbatch was asked for that.

    A second SIGHUP does not: shells send it again when a terminal closes.

    Python runs handlers only in the main thread, and only while this thread is outside of C code. A product of large
    matrices on a busy CPU takes many seconds. So a second thread receives the signals too, prints the answer and can
    end the program.
    """

    def __init__(self, answer: str = ANSWER):
        """`answer` is what the first signal prints; empty: no signal prints anything."""
        self.answer = answer
        self.heard: list[int] = []  # the first one decides the exit code
        self.heard_at = 0.0  # when the first one came, on the monotonic clock
        self.clear: Callable[[], object] = lambda: None  # called before the answer, to remove what would spoil it
        self.last_words: Callable[[], object] = lambda: None  # called before a second signal ends the program
        self.breaking = False  # whether a signal raises KeyboardInterrupt, which breaks off the current work

    def __enter__(self) -> "StopSignals":
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2) if _in_main_thread() else ()
        heard = [s for s in wanted if signal.getsignal(s) is not signal.SIG_IGN]  # such as SIGHUP under nohup
        self.terminals = [fd for fd in (1, 2) if os.isatty(fd)]  # asked now, as isatty fails once a terminal is closed
        self.before = {s: signal.getsignal(s) for s in heard}
        if heard:
            reader, self.writer = os.pipe()
            os.set_blocking(self.writer, False)
            self.woken = signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
            self.thread = threading.Thread(target=self._listen, args=(reader,), name="signals", daemon=True)
            self.thread.start()
        for number in heard:
            signal.signal(number, self._note)
        _open.append(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        _open.remove(self)
        if self.heard:  # wait for an echo, which would end the program once the handlers are restored
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
        """The exit code after a signal, by the shell's convention: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.heard[0] if self.heard else 0

    def break_off(self) -> None:
        """Until `hold_out`, let a signal raise KeyboardInterrupt; raise it now if a signal was heard before.

        Only for work that can be broken off anywhere.
        """
        self.breaking = True  # first, so that a signal between these lines raises too
        if self.heard:
            self.breaking = False
            raise KeyboardInterrupt

    def hold_out(self) -> None:
        """Go back to only noting signals."""
        self.breaking = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        """The handler, which runs in the main thread: note the signal."""
        if number == signal.SIGHUP:
            _send_nowhere(self.terminals)
        if not self.heard:
            self.heard_at = time.monotonic()
        self.heard.append(number)
        if self.breaking:
            self.breaking = False
            raise KeyboardInterrupt

    def _listen(self, reader: int) -> None:
        """In the second thread: read the numbers of signals from the pipe until its other end is closed."""
        first: dict[int, float] = {}  # signal -> when it came first
        with os.fdopen(reader, "rb", buffering=0) as pipe:
            while number := pipe.read(1):
                number, now = number[0], time.monotonic()
                if number not in self.before:
                    continue
                if not first and self.answer:
                    self._reply(number, "; a second one stops at once")
                if now - first.setdefault(number, now) > _ECHO_SECONDS and number != signal.SIGHUP:
                    self._end(number)

    def _reply(self, number: int, more: str = "") -> None:
        self.clear()
        _tell(f"\n{signal.Signals(number).name}: {self.answer}{more}\n")

    def _end(self, number: int) -> NoReturn:
        if self.answer:
            _tell("interrupted\n")
        words = threading.Thread(target=self._say_last_words, daemon=True)
        words.start()
        words.join(_LAST_SECONDS)
        os._exit(128 + number)

    def _say_last_words(self) -> None:
        with contextlib.suppress(Exception):  # the disk may be full
            self.last_words()


def ask(number: int) -> bool:
    """Ask what this process does to stop, as this signal would. Returns False if it would hear no signal now.

    For a worker of Ray Train: there the trainer is in a thread, where no handler of a signal can be.
    """
    if not (last := _open[-1:]):  # looked at once, because another thread may leave the context now
        return False
    innermost = last[0]
    if not innermost.heard:
        innermost.heard_at = time.monotonic()
        innermost.heard.append(number)
        if innermost.answer:
            innermost._reply(number)
    return True


def end_at_once() -> None:
    """Let Ctrl-C end the program with exit code 130 until `interrupt` is called, while modules are imported.

    If a KeyboardInterrupt comes while numpy or torch imports an extension module, they swallow it and stay incomplete.
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
    """Python allows handlers of signals only in the main thread; a worker of Ray runs in another one."""
    return threading.current_thread() is threading.main_thread()


def _tell(text: str) -> None:
    """Write to standard error. `print` is not safe here: a signal may have interrupted a print."""
    with contextlib.suppress(OSError):  # standard error may be closed
        os.write(2, text.encode())


def _send_nowhere(descriptors: list[int]) -> None:
    """Redirect the output for a closed terminal to /dev/null, because writing to the terminal is an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for fd in descriptors:
        os.dup2(nowhere, fd)
    os.close(nowhere)
