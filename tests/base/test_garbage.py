"""Python's garbage collector pauses in the context, and then looks at what was made or leaves it out."""

import gc

from lib.base import garbage


def test_what_is_made_is_looked_at_later_or_never():
    try:
        with garbage.none():
            assert not gc.isenabled()
            made = [[]]
        assert gc.isenabled()
        assert not any(one is made for one in gc.get_objects())
        with garbage.paused():
            made = [[]]
        assert any(one is made for one in gc.get_objects())
    finally:
        gc.unfreeze()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with garbage.none():
            pass
        assert not gc.isenabled()
    finally:
        gc.unfreeze()
        gc.enable()
