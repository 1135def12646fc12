"""What the programs promise for bad input, and the list of targets that fuzzing holds to this promise.

A target gets arbitrary bytes, in a folder for itself. It returns True if it accepts the input, and False if it refuses
the input with a clear error. It raises if the promise is broken: by a traceback, by a control character in the output,
or by a value that changes when it is written and read again.
"""

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

from lib.base.errors import UserError

_UNCLEAN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")  # tab and newline are clean
_LONGEST = 2000  # characters of a sentence


class Target(NamedTuple):
    """A part of the programs that reads something."""

    feed: Callable[[bytes], bool]
    seeds: Callable[[], list[bytes]]  # valid inputs, which fuzzing changes


TARGETS: dict[str, Target] = {}


def target(seeds: Callable[[], list[bytes]]) -> Callable:
    """A decorator that registers a target; `seeds` returns its valid inputs."""

    def register(feed: Callable[[bytes], bool]) -> Callable[[bytes], bool]:
        TARGETS[feed.__name__] = Target(feed, cache(seeds))
        return feed

    return register


def outcome(action: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What `action` returns, or None after a UserError or SystemExit. Any other exception breaks the promise."""
    try:
        with terminal():
            return action(*args, **kwargs)
    except UserError as error:
        assert error.exit_code in (1, 2), error.exit_code
        lines = str(error).split("\n")
        assert all(line.strip() and len(line) <= _LONGEST and not _UNCLEAN.search(line) for line in lines), lines
    except SystemExit:
        pass
    return None


@contextlib.contextmanager
def terminal(people: bool = False) -> Iterator[None]:
    """Capture the output and check it for control characters; with `people`, pretend to be a terminal."""
    screen = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="replace", newline="\n")
    screen.isatty = lambda: people
    try:
        with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
            yield
    except SystemExit as left:  # argparse exits, and may repeat words unescaped
        assert left.code in (0, 2), left.code
        raise
    finally:
        screen.flush()
    text = screen.buffer.getvalue().decode()
    assert people or not _UNCLEAN.search(text), text[:2000]
