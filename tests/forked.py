"""Programs of the repository, forked from a process with torch already imported, so that tests start fast."""

import base64
import functools
import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import connection, forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import IO

import pytest

from lib.base import spinning

ROOT = Path(__file__).resolve().parents[1]
_ENVIRONMENT = dict(os.environ)  # before any test changed it
# What the programs import, at their start or later. `__main__` stands for pytest: without it, each fork imports pytest.
PRELOAD = [
    "__main__", "gpt2.train", "gpt2.sample", "gpt2.prepare_data", "torch._dynamo", "rich.console",
    "matplotlib.backends.backend_agg", "matplotlib.figure", "matplotlib.style",  # to draw a run
    "matplotlib.backends.backend_svg", "matplotlib.backends.backend_pdf", "scipy.stats", "scripts.report",
    "rich.table", "scripts.checkpoint_info", "scripts.config", "scripts.prune_report",
    "scripts.reproduce", "scripts.runs", "scripts.sweep", "scripts.sync", "scripts.tracker_doctor", "gpt2.session",
    "tests.forking",
]  # fmt: skip
TRAINERS = ("gpt2/train.py", "gpt2/prepare_data.py", "scripts/oneshot.py")  # what a sweep starts
_DOT = base64.b64decode(  # a PNG of one white pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
)


class Program:
    """Behaves like `python <path> <words>`, but is forked. Use it like a Popen; `stderr` is None unless `apart`.

    Of the variables that Python itself reads, only PYTHONPATH and PYTHONIOENCODING have an effect.
    """

    def __init__(
        self,
        folder: Path,
        path: str,
        words: list[str],
        environment: dict[str, str],
        prepare: Callable[[], object] | None = None,
        apart: bool = False,
        pictures: bool = False,
    ):
        """`prepare`, a function at the top level of a module, is called in the new process before the program.

        A trainer's pictures take as long as 20 steps of a tiny model, so they are a dot unless a test wants `pictures`.
        """
        sys.audit("subprocess.Popen", path, words, folder, environment)
        context = _context()
        pipes = [context.Pipe(duplex=False) for _ in range(1 + apart)]
        writers = [writer for _, writer in pipes]
        # A daemon is killed with the process that started it, in case a test does not stop it.
        self.process = context.Process(
            target=_run, args=(folder, path, words, environment, writers, prepare, pictures), daemon=True
        )
        self.process.start()
        for writer in writers:
            writer.close()
        self.pid = self.process.pid
        self.stdout, self.stderr = ([_stream(reader) for reader, _ in pipes] + [None])[:2]

    @property
    def returncode(self) -> int | None:
        """The exit code, the negative number of the signal that ended it, or None while it runs."""
        return self.process.exitcode

    def poll(self) -> int | None:
        """See `returncode`."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends, and return the exit code; raises TimeoutExpired after `timeout` seconds."""
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("program", timeout)
        return self.returncode

    def communicate(self, timeout: float = 600) -> tuple[str, str | None]:
        """What it prints to stdout and stderr until it ends; raises TimeoutExpired after `timeout` seconds."""
        deadline, parts = time.monotonic() + timeout, {self.stdout: [], self.stderr: []}
        while is_open := [stream for stream in (self.stdout, self.stderr) if stream and not stream.closed]:
            ready = connection.wait(is_open, deadline - time.monotonic())
            if not ready:
                raise subprocess.TimeoutExpired("program", timeout, b"".join(parts[self.stdout]))
            for stream in ready:
                if part := os.read(stream.fileno(), 1 << 16):
                    parts[stream].append(part)
                else:
                    stream.close()
        self.wait(deadline - time.monotonic())
        output = {stream: b"".join(found).decode(errors="replace") for stream, found in parts.items()}
        return output[self.stdout], output[self.stderr] if self.stderr else None

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Trainer(Program):
    """`python gpt2/train.py <words>`, forked, with its stderr in its stdout."""

    def __init__(
        self,
        folder: Path,
        words: list[str],
        environment: dict[str, str],
        prepare: Callable[[], object] | None = None,
        pictures: bool = False,
    ):
        super().__init__(folder, "gpt2/train.py", words, environment, prepare, pictures=pictures)


def run(folder: Path, path: str, *words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Run a program to its end, with this process's environment or another one; fails after two minutes."""
    program = Program(folder, path, list(words), dict(environment or os.environ), apart=True)
    try:
        output, errors = program.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        program.kill()
        raise
    return subprocess.CompletedProcess([path, *words], program.returncode, output, errors)


def process(target: Callable[..., object], *arguments: object) -> multiprocessing.Process:
    """Start a process that calls `target`, a function at the top level of a module, with torch already imported."""
    started = _context().Process(target=target, args=arguments, daemon=True)
    started.start()
    return started


def _stream(reader: connection.Connection) -> IO[str]:
    """The pipe's end as a text file."""
    stream = os.fdopen(os.dup(reader.fileno()), encoding="utf-8", errors="replace")
    reader.close()
    return stream


@functools.cache
def _context() -> ForkServerContext:
    """The server from which programs are forked.

    What it imports may read the environment once, as PyTorch's compiler does. So it must not start with that of a test.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for name in os.environ.keys() - _ENVIRONMENT.keys() | {"PYTHONPATH"}:
            patch.delenv(name, raising=False)
        # libgomp reads how long its threads spin when torch loads it, so a forked program could not set it any more.
        for name, value in (_ENVIRONMENT | {"PYTHONPATH": ""} | dict([spinning.LITTLE])).items():
            patch.setenv(name, value)
        forkserver.ensure_running()
    return context


def _run(
    folder: Path,
    path: str,
    words: list[str],
    environment: dict[str, str],
    writers: list[connection.Connection],
    prepare: Callable[[], object] | None,
    pictures: bool,
) -> None:
    """In the forked process: become the program."""
    gc.freeze()  # a collection would look at everything that was imported before
    for fd, writer in ((1, writers[0]), (2, writers[-1])):
        os.dup2(writer.fileno(), fd)
    for writer in writers:
        writer.close()
    become(folder, environment)
    if not pictures and path.endswith(TRAINERS):
        draw_dots()
    if prepare:
        prepare()
    sys.argv = [str(ROOT / path), *words]
    runpy.run_path(sys.argv[0], run_name="__main__")


def draw_dots() -> None:
    """Let matplotlib, where it is installed, draw a dot in place of each picture of a run."""
    if agg := sys.modules.get("matplotlib.backends.backend_agg"):
        agg.FigureCanvasAgg.print_png = lambda canvas, file, **_: file.write(_DOT)


def become(folder: Path, environment: dict[str, str]) -> None:
    """Give this process the folder and the environment of another, and streams for its files 1 and 2."""
    os.chdir(folder)
    multiprocessing.set_start_method(None, force=True)  # as in a new program
    multiprocessing.current_process()._config["daemon"] = False  # which could start no process of its own
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # TMPDIR may be another one
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    sys.stdout = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding=encoding, errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    for place in filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)):
        sys.path.append(place)
        if (custom := Path(place, "sitecustomize.py")).exists():
            runpy.run_path(str(custom))
