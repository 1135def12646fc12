"""Foreign processor time is what is neither idle nor ours, and a real busy program is found."""

import subprocess
import sys
import time

import psutil
import pytest

from lib.base import load
from lib.base.load import Reading

BEGIN = Reading(clock=100.0, idle=50.0, stolen=3.0, own=20.0, cores=2)


def share(seconds=10.0, idle=0.0, stolen=0.0, own=0.0):
    end = Reading(BEGIN.clock + seconds, BEGIN.idle + idle, BEGIN.stolen + stolen, BEGIN.own + own, 2)
    return pytest.approx(load.foreign(BEGIN, end))


def test_foreign_is_what_is_neither_idle_nor_ours():
    assert share(idle=20.0) == 0.0
    assert share(own=20.0) == 0.0
    assert share(idle=8.0, own=11.6) == 0.02
    assert share(idle=0.0, own=9.0) == 0.55
    assert share(idle=10.03, own=10.0) == 0.0  # by the steps in which a system counts
    assert share() == 1.0


def test_stolen_time_is_foreign_also_where_it_is_counted_as_ours():
    assert share(idle=10.0, own=9.0, stolen=1.0) == 0.05
    assert share(idle=10.0, own=10.0, stolen=1.0) == 0.05


def test_a_reading_is_of_the_cores_that_may_be_used(monkeypatch):
    idle = psutil.cpu_times(percpu=True)
    monkeypatch.setattr(load, "_cores", lambda: [0])
    reading = load.read()
    assert reading.cores == 1
    assert idle[0].idle <= reading.idle < sum(idle[0])


SPIN = "import time\nend = time.process_time() + {seconds}\nwhile time.process_time() < end: pass"


def test_our_own_processes_are_ours():
    begin = load.read()
    subprocess.run([sys.executable, "-c", SPIN.format(seconds=0.3)], check=True)
    with subprocess.Popen([sys.executable, "-c", SPIN.format(seconds=0.3) + "\nprint(flush=True)\ninput()"],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as lives:  # fmt: skip
        lives.stdout.readline()
        used = load.read().own - begin.own
        lives.communicate(b"\n")
    assert 0.6 <= used < 2


def test_the_kernels_threads_are_ours_where_they_write_for_us(monkeypatch):
    class Thread:
        def __init__(self, name, user):
            self.name, self.user = lambda: name, user

        def children(self):
            return [Thread("kworker", 2.0), Thread("kswapd", 3.0)]

        def cpu_times(self):
            return (self.user, 0.5, 0.0, 0.0, 9.0)  # the last is no processor time

    monkeypatch.setattr(psutil, "Process", lambda pid: Thread("kthreadd", 0.0))
    assert load._kernel() == 6.0
    monkeypatch.setattr(psutil, "Process", lambda pid: Thread("sh", 0.0))  # in a container
    assert load._kernel() == 0.0


def test_a_busy_program_of_others_is_found(tmp_path):
    """It belongs to nobody: its parent has ended."""
    start = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]]); print(flush=True)"
    spin = SPIN.format(seconds=600) + f"\nopen({str(tmp_path / 'ended')!r}, 'w')"
    spin = f"import os, sys\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n" + spin
    subprocess.run([sys.executable, "-c", start, spin], check=True)
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
        time.sleep(0.01)
    busy = psutil.Process(int((tmp_path / "pid").read_text()))
    try:
        begin, used = load.read(), busy.cpu_times().user
        while busy.cpu_times().user < used + 0.5:
            time.sleep(0.05)
        end = load.read()
    finally:
        busy.kill()
    seconds = load.foreign(begin, end) * end.cores * (end.clock - begin.clock)
    assert seconds > 0.45
