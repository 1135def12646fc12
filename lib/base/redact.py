"""Redaction: finds secrets, and hides those of this process in texts that are printed or kept."""

import contextlib
import netrc
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

# Names of variables and flags that hold a secret: HF_TOKEN, --api-key, PGPASSWORD; not TOKENIZER or MONKEY.
_NAME = re.compile(r"((^|[-_])(KEY|TOKEN|SECRET|PAT)|APIKEY|PASSWORD|PASSWD|PASSPHRASE)(_ID)?$", re.IGNORECASE)
_ADDRESS = re.compile(r"(://)[^/\s]*@")
_PARAMETER = re.compile(r"([?&]\w*(?:token|key|secret|password)\w*=)[^&\s]+", re.IGNORECASE)
_HEADER = re.compile(r"\b(Basic|Bearer) [\w+/=.~-]{16,}")
_IN_ADDRESS = re.compile(
    r"https?://[^/\s]*@|://[^/\s]*:[^/\s]*@|://\S*[?&]\w*(token|key|secret|password)\w*=", re.IGNORECASE
)
# Short values and ordinary words are not hidden: they also occur in other texts, which would become unreadable.
_SHORTEST = 6  # the fewest characters of a value that is hidden
_WORD = re.compile(r"[a-z]{1,10}")


def found_in(text: str) -> bool:
    """Whether a text has a URL with a user's name or password, or with a parameter like `token=`."""
    return bool(_IN_ADDRESS.search(text))


def hide(text: str) -> str:
    """`text` with *** in place of secrets: those of the environment, of ~/.netrc, and in URLs and HTTP headers.

    A variable of the environment holds a secret if its name ends like WANDB_API_KEY or HF_TOKEN, unless its value is
    short or an ordinary word. Secrets that libraries keep in other files are not known.
    """
    for value in sorted(_values(), key=len, reverse=True):
        text = text.replace(value, "***")
    return _HEADER.sub(r"\1 ***", _PARAMETER.sub(r"\1***", _ADDRESS.sub(r"\1***@", text)))


def finder() -> Callable[[bytes], bool]:
    """A function that tells whether a file's content has a secret of the environment or of ~/.netrc."""
    values = [value.encode(errors="surrogateescape") for value in _values()]
    return lambda content: any(value in content for value in values)


def without(words: Iterable[str]) -> list[str]:
    """A command line with *** for the values of API_KEY=..., --token ... and the like, and for what `hide` hides."""
    shown, hidden = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        secret = bool(_NAME.search(name))
        if hidden and not word.startswith("--"):
            word = "***"
        elif secret and equals:
            word = f"{name}=***"
        shown.append(hide(word))
        hidden = secret and not equals and word.startswith("-")
    return shown


def _values() -> Iterator[str]:
    found = [value for name, value in os.environ.items() if _NAME.search(name)]
    # ~/.netrc may be missing or damaged, or there may be no home.
    with contextlib.suppress(OSError, netrc.NetrcParseError, UnicodeError, RuntimeError):
        # Without a path, netrc refuses a file that other users can read.
        path = os.environ.get("NETRC") or Path("~/.netrc").expanduser()
        found += [password or "" for _, _, password in netrc.netrc(path).hosts.values()]
    yield from (value for value in found if len(value) >= _SHORTEST and not _WORD.fullmatch(value))


class Discreet:
    """A text stream that hides secrets. It does not find a secret that is split over several writes."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:  # returns the length of the given text, as every stream does
        self.stream.write(hide(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
