"""The promise to whoever gives bad input, and the list of targets that are held to it.

A target reads some input, any bytes, in the current folder, which is its own. It accepts it with one meaning or refuses
it in clear sentences, and returns which; it raises when the promise is broken: by a traceback, a control character on
the terminal, or a meaning that changes when it is written again.
"""

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

from lib.base.errors import UserError

_UNCLEAN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")  # beside tabs and ends of lines
_LONGEST = 2000  # characters of a sentence


class Target(NamedTuple):
    """A part of the programs that reads something."""

    feed: Callable[[bytes], bool]
    seeds: Callable[[], list[bytes]]  # inputs as they should be, from which others are made


TARGETS: dict[str, Target] = {}


def target(seeds: Callable[[], list[bytes]]) -> Callable:
    """Enter a function among the targets, with what makes its seeds."""

    def register(feed: Callable[[bytes], bool]) -> Callable[[bytes], bool]:
        TARGETS[feed.__name__] = Target(feed, cache(seeds))
        return feed

    return register


def outcome(action: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What `action` returns, or None when it refuses as it may; whatever else it raises is a broken promise."""
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
    """Catches what is printed and checks it for what would damage a terminal; `people`: as if at one."""
    screen = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="replace", newline="\n")
    screen.isatty = lambda: people
    try:
        with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
            yield
    except SystemExit as left:  # argparse, which repeats words as they are
        assert left.code in (0, 2), left.code
        raise
    finally:
        screen.flush()
    text = screen.buffer.getvalue().decode()
    assert people or not _UNCLEAN.search(text), text[:2000]
