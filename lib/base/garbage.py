"""Pauses Python's garbage collector while much is made that stays: it would walk through all of it several times."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """A context in which nothing is collected."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def none() -> Iterator[None]:
    """A context in which nothing is collected, now or later: the collector never looks at what exists at its end."""
    with paused():
        yield
        gc.freeze()
