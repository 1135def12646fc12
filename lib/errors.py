"""Errors that a user can act on: one sentence that says where, what, and what to do; never a traceback."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something that the user can mend; programs print it and exit with `exit_code`."""

    exit_code = 1  # the world's fault: a file, a disk, a network


class UsageError(UserError):
    """A mistake in what the user asked for: an option, a configuration, a name."""

    exit_code = 2


def run_program(main: Callable[[], int | None]) -> None:
    """Run `main` and exit with its code; a UserError is printed as `error: ...`, Ctrl-C exits with 130."""
    sys.stdout.reconfigure(errors="replace")  # a text that the terminal cannot show is no reason to stop
    try:
        sys.exit(main())
    except UserError as error:
        for sentence in str(error).splitlines():
            print(f"error: {sentence}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        print(f"error: {sys.executable} lacks the package {error.name}; `make train` installs all", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output (head, less) went away; Python would print a warning at exit
        sys.stdout = None
        sys.exit(141)
