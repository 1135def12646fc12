"""Errors that a user can act on: one sentence that says where, what, and what to do; never a traceback."""

import errno
import os
import re
import sys
from collections.abc import Callable

from lib.base import redact, signals

# What would move a terminal's cursor, end a line or turn the direction of writing, from wherever the text came.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a full disk, a user's limit, a process's limit
_LONGEST = 2000  # characters of a sentence; what was given may be megabytes


class UserError(Exception):
    """Something that the user can mend; programs print it and exit with `exit_code`.

    Its arguments are sentences, and its text has a line for each.
    """

    exit_code = 1  # the world's fault: a file, a disk, a network

    def __str__(self) -> str:
        lines = (printable(redact.hide(str(sentence))) for sentence in self.args)
        return "\n".join(n if len(n) <= _LONGEST else f"{n[:1500]} ... {n[-400:]}" for n in lines)


class UsageError(UserError):
    """A mistake in what the user asked for: an option, a configuration, a name."""

    exit_code = 2


def printable(text: str) -> str:
    """`text` with escapes such as \\x1b in place of characters that would damage a line of a terminal."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def shown(text: str) -> str:
    """Like `printable`, of a text of several lines, which may have tabs."""
    return re.sub("[^\t\n]+", lambda line: printable(line[0]), text)


def run_program(main: Callable[[], int | None], only_prints: bool = False) -> None:
    """Run `main` and exit with its code; a UserError is printed as `error: ...`, Ctrl-C exits with 130.

    When the reader of its output goes away (head, less), the program ends in silence. One that `only_prints` then has
    nothing left to do and exits with 0, for make would report any other code. Another one exits with 141.
    """
    _open_missing_streams()
    sys.stdout.reconfigure(errors="replace")  # a text that the terminal cannot show is no reason to stop
    os.umask(os.umask(0o077) | 0o002)  # whoever could write a run's files could change its results unseen
    signals.interrupt()
    try:
        code = main()
        sys.stdout.flush()  # here, where it can be said that this fails
        sys.exit(code)
    except UserError as error:
        for sentence in str(error).split("\n"):
            print(f"error: {sentence}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        print(f"error: {sys.executable} lacks the package {error.name}; `make train` installs all", file=sys.stderr)
        sys.exit(1)
    except MemoryError:
        print("error: memory does not suffice", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stdout = None  # Python would print a warning at exit
        sys.exit(0 if only_prints else 141)
    except OSError as error:
        if error.errno not in NO_ROOM and error.filename is None:
            raise
        sys.stdout = None
        where = printable(str(error.filename or "the output"))  # whatever else is written has a sentence of its own
        what = "written: {}; make room" if error.errno in NO_ROOM else "used: {}"
        print(f"error: {where} cannot be {what.format(error.strerror)}", file=sys.stderr)
        sys.exit(1)


def _open_missing_streams() -> None:
    """Open /dev/null for each standard stream that was closed when the program started, as by `>&-`.

    Otherwise the next file, a journal for instance, would get its number, and with it all that is printed.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115, PTH123 - gets the lowest number that is free
            os.set_inheritable(stream.fileno(), True)  # else the programs that this one starts would lack it again
            setattr(sys, name, stream)
