"""Errors that a user can fix. Each message is a sentence: where, what is wrong, what to do. No traceback is printed."""

import errno
import os
import re
import sys
from collections.abc import Callable

from lib.base import redact, signals

# Characters that move a terminal's cursor, end a line or change the direction of writing.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a full disk, a user's limit, a process's limit
_LONGEST = 2000  # the most characters of a sentence that are printed; it may quote megabytes of the user's input


class UserError(Exception):
    """An error that the user can fix; programs print it and exit with `exit_code`.

    Each argument is a sentence; `str` puts each on its own line.
    """

    exit_code = 1  # a problem outside of the program: a file, a disk, a network

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
    """Like `printable`, but newlines and tabs stay."""
    return re.sub("[^\t\n]+", lambda line: printable(line[0]), text)


def run_program(main: Callable[[], int | None], only_prints: bool = False) -> None:
    """Run `main` and exit with its code; a UserError is printed as `error: ...`, Ctrl-C exits with 130.

    When the reader of its output goes away (head, less), the program ends without a message. Its exit code is then 141.
    A program that `only_prints` then exits with 0: it has nothing left to do, and make would report another code.
    """
    _open_missing_streams()
    sys.stdout.reconfigure(errors="replace")  # print ? for what the terminal cannot show
    os.umask(os.umask(0o077) | 0o002)  # no write permission for others, who could change results unnoticed
    signals.interrupt()
    try:
        code = main()
        sys.stdout.flush()  # here, where a failure can still be reported
        sys.exit(code)
    except UserError as error:
        for sentence in str(error).split("\n"):
            print(f"error: {sentence}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        name = error.name or ""
        if name.startswith(("lib.", "gpt2.")):  # a Kconfig entry without its code
            sentence = f"there is no {name.replace('.', '/')}.py; write it, or remove its entry from Kconfig"
        else:
            sentence = f"{sys.executable} lacks the package {name}; `make train` installs it"
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(1)
    except MemoryError:
        print("error: out of memory", file=sys.stderr)
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
        where = printable(str(error.filename or "the output"))  # errors of other files are UserErrors
        what = "written: {}; make room" if error.errno in NO_ROOM else "used: {}"
        print(f"error: {where} cannot be {what.format(error.strerror)}", file=sys.stderr)
        sys.exit(1)


def _open_missing_streams() -> None:
    """Open /dev/null for each standard stream that was closed when the program started, as by `>&-`.

    Otherwise the next opened file, such as a journal, would get the stream's number, and all output would go into it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115, PTH123 - gets the lowest free number
            os.set_inheritable(stream.fileno(), True)  # for the programs that this one starts
            setattr(sys, name, stream)
