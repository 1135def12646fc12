"""Signals as wishes to stop: what is heard, what is an echo, and what ends a program."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from lib.base import signals
from lib.base.signals import StopSignals
from lib.config.kconf import ROOT

# Hears a wish to stop, and then is busy for longer than a test takes.
PROGRAM = """
import time
from lib.base.signals import StopSignals
with StopSignals() as stop:
    stop.last_words = lambda: print("last words", flush=True)
    print("ready", flush=True)
    while not stop():
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(20)
"""
# The same inside a library, which returns to Python much later: its main thread hears nothing.
BUSY = PROGRAM.replace("while not stop():", "while True:").replace(
    "time.sleep(0.01)", "__import__('hashlib').pbkdf2_hmac('sha256', b'', b'', 1 << 30)"
)
ANSWER = "stopping after this batch, then saving; a second one stops at once"
ECHOES = 0.6  # seconds, after which a signal is no echo of one before


# Leaves at once when it is asked to, as a trainer with quick steps. What is an echo lasts longer, for a busy machine.
QUICK = PROGRAM.replace("    time.sleep(20)", "time.sleep(0.3)\nprint('done')").replace(
    "from lib.base.signals import",
    "from lib.base import signals\nsignals._ECHO_SECONDS = 2.0\nfrom lib.base.signals import",
)


@pytest.fixture(params=[PROGRAM])
def program(request):
    """A process that takes signals as wishes to stop."""
    process = subprocess.Popen(
        [sys.executable, "-c", request.param], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_second_wish_to_stop_ends_the_program(program, number):
    program.send_signal(number)
    assert program.stdout.readline() == "asked\n"
    time.sleep(ECHOES)
    program.send_signal(number)
    assert program.wait(10) == 128 + number
    assert program.stdout.read() == "last words\n"
    assert program.stderr.read() == f"\n{number.name}: {ANSWER}\ninterrupted\n"


@pytest.mark.parametrize("program", [BUSY], indirect=True)
def test_a_program_that_is_inside_a_library_answers_and_ends(program):
    time.sleep(0.1)  # to be there
    program.send_signal(signal.SIGINT)
    assert [program.stderr.readline() for _ in range(2)] == ["\n", f"SIGINT: {ANSWER}\n"]
    time.sleep(ECHOES)
    program.send_signal(signal.SIGINT)
    assert program.wait(10) == 130
    assert program.stdout.read() == "last words\n"


def test_last_words_that_hang_are_not_waited_for():
    program = PROGRAM.replace('lambda: print("last words", flush=True)', "lambda: time.sleep(60)")
    program = program.replace(
        "from lib.base.signals import",
        "from lib.base import signals\nsignals._LAST_SECONDS = 0.1\nfrom lib.base.signals import",
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(ECHOES)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    process.stdout.close()


def test_what_is_broken_off_raises_at_a_signal_that_comes_and_at_one_that_came():
    with StopSignals() as stop:
        stop.break_off()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            stop.break_off()
        signal.raise_signal(signal.SIGTERM)  # noted
        assert (stop(), stop.exit_code) == (True, 130)


def test_a_signal_that_comes_while_it_is_looked_for_raises_too():
    coming = [signal.SIGINT]

    class Heard(list):
        def __bool__(self):
            found = len(self) > 0
            if coming:
                signal.raise_signal(coming.pop())
            return found

    with StopSignals() as stop:
        stop.heard = Heard()
        with pytest.raises(KeyboardInterrupt):
            stop.break_off()
        assert stop.heard == [signal.SIGINT]
        signal.raise_signal(signal.SIGTERM)  # noted


def test_a_wish_that_comes_where_it_is_held_out_raises_nothing():
    with StopSignals() as stop:
        stop.break_off()
        stop.hold_out()
        signal.raise_signal(signal.SIGINT)
        assert stop()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_echo_of_a_wish_is_none(program):
    """`make` hands SIGTERM on to a program that has had it with its whole process group."""
    program.send_signal(signal.SIGTERM)
    time.sleep(0.02)  # two that come at the very same time are one to the system
    program.send_signal(signal.SIGTERM)
    assert program.stdout.readline() == "asked\n"
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(0.2)


@pytest.mark.parametrize("program", [QUICK], indirect=True)
def test_an_echo_ends_no_program_that_has_stopped_already(program):
    program.send_signal(signal.SIGTERM)
    assert program.stdout.readline() == "asked\n"
    time.sleep(0.1)  # in which it leaves the context
    for echo in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        program.send_signal(echo)
    assert program.communicate(timeout=120) == ("done\n", f"\nSIGTERM: {ANSWER}\n")
    assert program.returncode == 0


def test_a_program_that_heard_nothing_leaves_without_waiting(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits for an echo of nothing"))
    with StopSignals() as stop:
        pass
    assert stop.exit_code == 0


def test_a_terminal_is_closed_only_once_however_often_it_is_said(program):
    """Its shell sends SIGHUP too."""
    for _ in range(3):
        program.send_signal(signal.SIGHUP)
        time.sleep(ECHOES)
    assert program.stdout.readline() == "asked\n"
    assert program.poll() is None


@pytest.mark.parametrize(
    ("before", "code", "says"), [("SIG_DFL", -2, ""), ("SIG_IGN", 0, "went on\n"), ("default_int_handler", 130, "")]
)
def test_while_modules_are_imported_ctrl_c_ends_the_program_unless_it_is_ignored(before, code, says):
    words = f"""
import os, signal
from lib.base.signals import ending_at_once
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
    words = "import os, signal; from lib.base.signals import StopSignals\n"
    words += "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    words += "with StopSignals() as stop:\n    os.kill(os.getpid(), signal.SIGHUP)\n    print(stop(), stop.exit_code)"
    done = subprocess.run([sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "False 0\n"


def test_what_would_spoil_the_answer_is_removed_before_it(capfd):
    with StopSignals("stopping") as stop:
        stop.clear = lambda: os.write(2, b"clear")
        signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == "clear\nSIGINT: stopping; a second one stops at once\n"


def test_a_thread_is_asked_as_by_a_signal(capfd):
    """A worker of Ray Train has the trainer in a thread."""
    assert not signals.ask(signal.SIGINT)  # nobody hears it yet
    found = []

    def work():
        with StopSignals() as outer:
            with StopSignals("saving") as inner:
                found.append(signals.ask(signal.SIGINT))
                found.append(signals.ask(signal.SIGINT))
            found.append((outer(), inner(), inner.exit_code))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True, True, (False, True, 130)]
    assert capfd.readouterr().err == "\nSIGINT: saving\n"
    assert not signals.ask(signal.SIGINT)


@pytest.mark.parametrize("program", [PROGRAM.replace("StopSignals()", 'StopSignals("")')], indirect=True)
def test_without_an_answer_nothing_is_printed(program):
    for _ in range(2):
        program.send_signal(signal.SIGTERM)
        time.sleep(ECHOES)
    assert program.wait(10) == 128 + signal.SIGTERM
    assert program.stderr.read() == ""
