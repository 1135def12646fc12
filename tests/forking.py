"""Lets a forked program fork the trainers that it starts, so that none of them has to import torch."""

import os
import runpy
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import torch

from tests import forked

OWN = {"bench", "gpt2", "lib", "scripts"}  # our packages
ONCE = "gpt2.cpu"  # a process can register its operator only once; it imports nothing of ours
THREADS = torch.get_num_threads()


def trainers() -> None:
    """From here on, this process forks its trainers, and torch uses one thread here: a fork would wait for others."""
    torch.set_num_threads(1)
    subprocess.Popen = _Popen


def clone() -> None:
    """A `prepare` for a program of another clone: it imports the modules of that clone, and forks its trainers."""
    forget()
    trainers()


def forget() -> None:
    """Forget our own modules and where they are. The program then puts its clone into the first place of sys.path."""
    for name in [name for name in sys.modules if name.partition(".")[0] in OWN and name != ONCE]:
        del sys.modules[name]
    sys.path[:] = ["", *(place for place in sys.path if place not in ("", str(forked.ROOT)))]


class _Popen(subprocess.Popen):
    """Forks a trainer of ours, with the files, group and environment that were asked for; starts any other command."""

    def _execute_child(
        self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, restore_signals, gid, gids, uid, umask,
        start_new_session, process_group,
    ):  # fmt: skip
        if isinstance(args, str) or args[0] != sys.executable or not str(args[1]).endswith(forked.TRAINERS):
            return super()._execute_child(
                args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
                p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, restore_signals, gid, gids, uid, umask,
                start_new_session, process_group,
            )  # fmt: skip
        sys.stdout.flush()  # what the child would print again
        self.pid = os.fork()
        if not self.pid:
            torch.set_num_threads(THREADS)
            become([*map(str, args[1:])], cwd or Path.cwd(), env or os.environ, (p2cread, c2pwrite, errwrite),
                    start_new_session, process_group)  # fmt: skip
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


def become(
    words: list[str], folder: Path, environment: dict[str, str], files: tuple[int, ...], session: bool, group: int
) -> NoReturn:
    """In the forked process: become the program, and end with its exit code."""
    code = 1
    try:
        if session:
            os.setsid()
        elif group >= 0:
            os.setpgid(0, group)
        for fd, file in enumerate(files):
            if file != -1:
                os.dup2(file, fd)
        signal.set_wakeup_fd(-1)
        os.closerange(3, 1 << 16)  # they hold the parent's locks
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        forked.become(folder, dict(environment))
        forked.draw_dots()
        forget()
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else int(done.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream:
                stream.flush()
        os._exit(code)
