"""The processor time that other programs use: they disturb measurements, and threads that spin."""

import os
import resource
import time
from typing import NamedTuple

import psutil

from lib.base import threads

BUSY = 0.5  # cores


class Reading(NamedTuple):
    """Counters in seconds, summed over the cores that this process may use."""

    clock: float
    idle: float  # also while a core waits for a disk, because other programs could use it
    stolen: float  # a hypervisor gave the core to another machine
    own: float  # used by this process and all processes that it started
    cores: int


def foreign(begin: Reading, end: Reading) -> float:
    """The share of the processor time between two readings that others used.

    Everything is foreign that is neither idle nor our own. Some kernels count stolen time as that of the program which
    did not run, so the stolen time is the least.
    """
    offered = begin.cores * (end.clock - begin.clock)
    used = offered - (end.idle - begin.idle) - (end.own - begin.own)
    return min(1.0, max(0.0, used, end.stolen - begin.stolen) / offered)


def others(begin: Reading) -> float:
    """How many cores other programs have used on average since `begin`; from BUSY on they disturb."""
    end = read()
    return foreign(begin, end) * end.cores


def read(writes: bool = False) -> Reading:
    """The counters now. `writes`: count the kernel's own threads as ours, because they write our files to the disk."""
    allowed, found = _cores(), psutil.cpu_times(percpu=True)
    # Without a core that is switched off, the position in the list is the number of the core.
    cores = [found[number] for number in allowed] if len(found) == psutil.cpu_count() > max(allowed) else found
    idle = sum(times.idle + getattr(times, "iowait", 0.0) for times in cores)
    stolen = sum(getattr(times, "steal", 0.0) for times in cores)
    own = _own() + (_kernel() if writes else 0.0)
    return Reading(time.perf_counter(), idle, stolen, own, len(cores))


def _cores() -> list[int]:
    """The numbers of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(threads.cores()))


def _own() -> float:
    """Processor time of this process, of its ended children and of the processes that live below it."""
    total = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return total + _sum(psutil.Process().children(recursive=True))


def _kernel() -> float:
    """Processor time of the threads of Linux's kernel; 0 where they cannot be seen, as in a container."""
    try:
        parent = psutil.Process(2)
        return _sum(parent.children()) if parent.name() == "kthreadd" else 0.0
    except psutil.Error:
        return 0.0


def _sum(processes: list[psutil.Process]) -> float:
    """Processor time of processes and of their ended children."""
    total = 0.0
    for process in processes:
        try:
            total += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:
            pass
    return total
