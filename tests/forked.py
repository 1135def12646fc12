"""Trainers forked from a process that has imported them already: a test waits for its training, not for torch."""

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import connection, forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What a run imports, some of it only when it is under way; "__main__" is pytest's or torture's, else each fork's work.
PRELOAD = ["__main__", "gpt2.train", "gpt2.session", "torch._dynamo", "tests.forked"]


class Trainer:
    """`python gpt2/train.py <words>` in all but its start; to be used like a Popen whose stderr goes to its stdout."""

    def __init__(
        self,
        folder: Path,
        words: list[str],
        environment: dict[str, str],
        prepare: Callable[[], object] | None = None,
    ):
        """`prepare`, a function of a module, is called in the process before it trains."""
        context = _context()
        reader, writer = context.Pipe(duplex=False)
        # A daemon is stopped with the process that started it, should a test forget it.
        self.process = context.Process(target=_train, args=(folder, words, environment, writer, prepare), daemon=True)
        self.process.start()
        writer.close()
        self.pid = self.process.pid
        self.stdout = os.fdopen(os.dup(reader.fileno()), encoding="utf-8", errors="replace")
        reader.close()

    @property
    def returncode(self) -> int | None:
        """The exit code, the negative number of the signal that ended it, or None while it runs."""
        return self.process.exitcode

    def poll(self) -> int | None:
        """See `returncode`."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code when it has ended; raises TimeoutExpired after `timeout` seconds."""
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("train", timeout)
        return self.returncode

    def communicate(self, timeout: float = 600) -> tuple[str, None]:
        """What it has printed when it has ended; raises TimeoutExpired after `timeout` seconds."""
        deadline, parts = time.monotonic() + timeout, []
        if self.stdout.closed:  # it had said all when the time was over before
            self.wait(timeout)
            return "", None
        while connection.wait([self.stdout], deadline - time.monotonic()):
            if part := os.read(self.stdout.fileno(), 1 << 16):
                parts.append(part)
                continue
            self.stdout.close()
            self.wait(deadline - time.monotonic())
            return b"".join(parts).decode(errors="replace"), None
        raise subprocess.TimeoutExpired("train", timeout, b"".join(parts))

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


@functools.cache
def _context() -> ForkServerContext:
    """One server for all the tests of this process; what a test does to its environment and folder is not for it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.delenv("PYTHONPATH", raising=False)
        forkserver.ensure_running()
    return context


def _train(
    folder: Path,
    words: list[str],
    environment: dict[str, str],
    output: connection.Connection,
    prepare: Callable[[], object] | None,
) -> None:
    """In the forked process: become the program."""
    from gpt2 import train
    from lib.base.errors import run_program

    _become(folder, environment, output)
    if prepare:
        prepare()
    sys.argv = [train.__file__, *words]
    run_program(train.main)


def _become(folder: Path, environment: dict[str, str], output: connection.Connection) -> None:
    """Give this process the folder, the environment and the output of another."""
    os.chdir(folder)
    multiprocessing.set_start_method(None, force=True)  # as in a program, which nobody has set it in
    os.environ.clear()
    os.environ.update(environment)
    for fd in (1, 2):
        os.dup2(output.fileno(), fd)
    output.close()
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
