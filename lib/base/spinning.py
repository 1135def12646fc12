"""How OpenMP's threads wait for work: whether they spin. Decided before torch is imported."""

import os
import time

from lib.base import load

LITTLE = ("GOMP_SPINCOUNT", "2000")  # an environment variable and the value that it gets
_OTHERS = (LITTLE[0], "OMP_WAIT_POLICY")  # if the environment has one of them, it decides
_LOOK = 0.1  # seconds; the system counts a core's time in steps of 10 ms


def choose(begin: load.Reading) -> None:
    """Let waiting threads sleep soon if other programs have used the processor since `begin`.

    libgomp's threads spin 300,000 times before they sleep. That is fastest on an idle machine: 4 layers of width 128
    trained 1.15 to 1.33 x as fast on an Intel Xeon, and 1.07 x on an AMD EPYC, as with 2,000. If another program uses a
    core, they spin while they wait for a thread that does not run. On the AMD's 2 cores, training then fell from 15,000
    to 900 tokens/s, and with 2,000 to 7,000. libgomp reads the number when torch loads it and never again, so programs
    that start later are not noticed.
    """
    if os.environ.keys() & set(_OTHERS):
        return
    time.sleep(max(0.0, begin.clock + _LOOK - time.perf_counter()))
    if load.others(begin) >= load.BUSY:
        os.environ[LITTLE[0]] = LITTLE[1]


def is_little() -> bool:
    """Whether waiting threads sleep soon because other programs used the processor."""
    return os.environ.get(LITTLE[0]) == LITTLE[1]
