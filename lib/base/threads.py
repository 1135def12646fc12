"""How many threads there may be, and how they wait. Set before torch is imported, so this module imports only `os`."""

import os

SPIN = ("GOMP_SPINCOUNT", "2000")  # an environment variable and the value that it gets


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spin_little() -> None:
    """Let OpenMP's waiting threads sleep soon, unless the environment sets GOMP_SPINCOUNT.

    By default they spin 300,000 times before they sleep. If another program uses a core, they spin while they
    wait for a thread that does not run. The default preset on 2 cores then fell from 15,000 to 900 tokens/s, and with
    this setting to 7,000. The setting costs 7 % on an idle machine. libgomp reads it when torch loads it.
    """
    os.environ.setdefault(*SPIN)
