"""Threads: how many there may be, and how they wait; to be said before torch is imported, so this imports nothing."""

import os

SPIN = ("GOMP_SPINCOUNT", "2000")  # a variable of the environment and what it is set to


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spin_little() -> None:
    """Let OpenMP's threads sleep soon; an environment that says otherwise is left alone.

    They spin 300,000 times for each other before they sleep. Where another program uses a core, they spin for one that
    is not running: the default preset on 2 cores then fell from 15,000 to 900 tokens/s, and to 7,000 with this, which
    costs 7 % on an idle machine. Read by libgomp when torch loads it.
    """
    os.environ.setdefault(*SPIN)
