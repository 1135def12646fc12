"""Real-time priority for the benchmark, so that other programs take less of its time."""

import os

from lib.base.errors import UsageError


def realtime() -> None:
    """Give this process, and what it starts from now on, the lowest real-time priority; raises UsageError."""
    if not hasattr(os, "sched_setscheduler"):
        raise UsageError("--realtime: this system has no such priority; leave it out")
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))
    except OSError as error:
        raise UsageError(f"--realtime: {error.strerror}; run it as root, or leave it out") from None
