"""How threads wait for each other; to be said before torch is imported, so this imports nothing."""

import os


def spin_little() -> None:
    """Let OpenMP's threads sleep soon; an environment that says otherwise is left alone.

    They spin 300,000 times for each other before they sleep. Where another program uses a core, they spin for one that
    is not running: the default preset on 2 cores then fell from 15,000 to 900 tokens/s, and to 7,000 with this, which
    costs 7 % on an idle machine. Read by libgomp when torch loads it.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
