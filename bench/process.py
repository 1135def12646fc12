"""Runs a program as a user would, in its own process, and measures its time and peak memory."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from lib.base.errors import UserError
from lib.config import command_line
from lib.config.kconf import ROOT

# The kernel counts the parent's memory in the peak of its child. So a small process starts the program. It prints the
# program's peak as the last line. Its input ends with the benchmark, even if that is killed; it then ends the program.
_STARTER = """\
import os, signal, sys, threading

def end():
    sys.stdin.buffer.raw.read(1)
    os.killpg(0, signal.SIGKILL)

threading.Thread(target=end, daemon=True).start()
empty = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[empty])
_, status, used = os.wait4(pid, 0)
print(f"\\n{used.ru_maxrss * (1 if sys.platform == 'darwin' else 1024)}", flush=True)
sys.exit(os.waitstatus_to_exitcode(status))
"""
_SAMPLES_PER_SECOND = 50  # of the memory of a GPU


class Finished(NamedTuple):
    """The output, times and peak memory of a program that ended."""

    lines: list[tuple[float, str]]  # (seconds after the start, printed line)
    began: float  # unix seconds
    seconds: float
    peak_bytes: int  # resident memory of its largest process; on a GPU, memory of the GPU


def run(words: Sequence[str], folder: Path, device: torch.device, **variables: str) -> Finished:
    """Run this Python with `words` in `folder` and more environment variables; raises UserError if it fails.

    The program gets no configuration from this process's environment. Python keeps the byte code of what it imports, as
    it does for users, so that no program compiles its modules again at every start.
    """
    given = command_line.unconfigured(os.environ)
    given.pop("PYTHONDONTWRITEBYTECODE", None)
    environment = given | {"PYTHONUNBUFFERED": "1"} | variables
    began = time.time()
    with (
        _gpu_peak(device) as gpu,
        subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _STARTER, sys.executable, *words],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that Ctrl-C reaches only this process, which then ends the others
        ) as process,
    ):
        try:
            lines = [(time.time() - began, line.rstrip()) for line in process.stdout]
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        printed = [line for _, line in lines[:-1] if line]
        raise UserError(f"{shlex.join(words)}: failed: {printed[-1] if printed else 'it printed nothing'}")
    peak = max(gpu) if gpu else int(lines[-1][1])
    return Finished(lines[:-1], began, time.time() - began, peak)


def ours(
    program: str, options: Mapping[str, object], folder: Path, device: torch.device, *flags: str, **variables: str
) -> Finished:
    """Run one of our programs, gpt2/`program`, with `flags` and NAME=value `options`; see `run`."""
    words = [f"{name}={value}" for name, value in options.items()]
    return run([str(ROOT / "gpt2" / program), *flags, *words], folder, device, **variables)


@contextlib.contextmanager
def _gpu_peak(device: torch.device) -> Iterator[list[int]]:
    """Sample how many bytes of the GPU's memory other processes take meanwhile; stays empty for other devices.

    The GPU reports only the total of all programs, so no other program may start or end on it.
    """
    found: list[int] = []
    if device.type != "cuda":
        yield found
        return
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    done = threading.Event()

    def look() -> None:
        while not done.wait(1 / _SAMPLES_PER_SECOND):
            found.append(free - torch.cuda.mem_get_info(device)[0])

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
