"""Signals as wishes to stop: what is heard, what is an echo, and what ends a program."""

import signal
import subprocess
import sys
import time

import pytest

from lib.kconf import ROOT

# Hears a wish to stop, and then is busy for longer than a test takes.
PROGRAM = """
import time
from lib.signals import StopSignals
with StopSignals() as stop:
    print("ready", flush=True)
    while not stop():
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(20)
"""


@pytest.fixture
def program():
    """A process that takes signals as wishes to stop."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_wish_to_stop_ends_the_program(program, number):
    program.send_signal(number)
    assert program.stdout.readline() == "asked\n"  # printed when the time of echoes is over
    program.send_signal(number)
    assert program.wait(10) == -number
    assert program.stderr.read() == f"\n{number.name}: finishing the step, then saving; once more to stop at once\n"


def test_the_echo_of_a_wish_is_none(program):
    """`make` hands SIGTERM on to a program that has had it with its whole process group."""
    program.send_signal(signal.SIGTERM)
    time.sleep(0.02)  # two that come at the very same time are one to the system
    program.send_signal(signal.SIGTERM)
    assert program.stdout.readline() == "asked\n"
    assert program.poll() is None


def test_a_terminal_is_closed_only_once_however_often_it_is_said(program):
    """Its shell sends SIGHUP too."""
    for _ in range(3):
        program.send_signal(signal.SIGHUP)
        time.sleep(0.02)
    assert program.stdout.readline() == "asked\n"
    assert program.poll() is None


@pytest.mark.parametrize(
    ("before", "code", "says"), [("SIG_DFL", -2, ""), ("SIG_IGN", 0, "went on\n"), ("default_int_handler", 130, "")]
)
def test_while_modules_are_imported_ctrl_c_ends_the_program_unless_it_is_ignored(before, code, says):
    words = f"""
import os, signal
from lib.signals import ending_at_once
signal.signal(signal.SIGINT, signal.{before})
with ending_at_once():
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):
        pass
print("went on")
"""
    done = subprocess.run([sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, says)
    assert done.stderr == ("interrupted\n" if code == 130 else "")


def test_what_is_ignored_stays_ignored():
    """As in a program that `nohup` began."""
    words = "import os, signal; from lib.signals import StopSignals\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    words += "with StopSignals() as stop:\n    os.kill(os.getpid(), signal.SIGHUP)\n    print(stop(), stop.exit_code)"
    done = subprocess.run([sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "False 0\n"
