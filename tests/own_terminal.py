"""Starts a program in a terminal of its own, as the user does: its signals and its hang-up come from there."""

import fcntl
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path


def start(folder: Path, words: Sequence[str], **env: str) -> tuple[subprocess.Popen, int]:
    """Start this Python with `words` in `folder`; returns the process and our end of the terminal, 100 x 24."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | env,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=_own,
    )
    os.close(theirs)
    return process, ours


def _own() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
