"""Redaction: what looks like a secret, and texts without those of this process, for whatever is shown or kept."""

import contextlib
import netrc
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

# Of variables and flags that hold one: HF_TOKEN, --api-key, PGPASSWORD; not TOKENIZER, SAMPLE_TOKENS or MONKEY.
_NAME = re.compile(r"((^|[-_])(KEY|TOKEN|SECRET|PAT)|APIKEY|PASSWORD|PASSWD|PASSPHRASE)(_ID)?$", re.IGNORECASE)
_ADDRESS = re.compile(r"(://)[^/\s]*@")
_PARAMETER = re.compile(r"([?&]\w*(?:token|key|secret|password)\w*=)[^&\s]+", re.IGNORECASE)
_HEADER = re.compile(r"\b(Basic|Bearer) [\w+/=.~-]{16,}")
_IN_ADDRESS = re.compile(
    r"https?://[^/\s]*@|://[^/\s]*:[^/\s]*@|://\S*[?&]\w*(token|key|secret|password)\w*=", re.IGNORECASE
)
# To hide these would tear texts that have nothing to do with them.
_SHORTEST = 6  # characters; what is shorter stays
_WORD = re.compile(r"[a-z]{1,10}")


def found_in(text: str) -> bool:
    """Whether a text has an address with a user's name or password in it, or with a parameter like `token=`."""
    return bool(_IN_ADDRESS.search(text))


def hide(text: str, env: Mapping[str, str] = os.environ) -> str:
    """`text` with *** in place of the keys and passwords of the environment and of ~/.netrc, and of what addresses and
    HTTP headers hold.

    Of the environment those count whose names end like WANDB_API_KEY or HF_TOKEN, but no short values and no ordinary
    words. What a library keeps in other files of its own is not known here.
    """
    for value in sorted(_values(env), key=len, reverse=True):
        text = text.replace(value, "***")
    return _HEADER.sub(r"\1 ***", _PARAMETER.sub(r"\1***", _ADDRESS.sub(r"\1***@", text)))


def finder(env: Mapping[str, str] = os.environ) -> Callable[[bytes], bool]:
    """What tells whether a file's content has one of the keys and passwords in it that `hide` knows by now."""
    values = [value.encode(errors="surrogateescape") for value in _values(env)]
    return lambda content: any(value in content for value in values)


def without(words: Iterable[str]) -> list[str]:
    """A command line with *** for what is given to a name like API_KEY or --token, and without what `hide` knows."""
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


def _values(env: Mapping[str, str]) -> Iterator[str]:
    found = [value for name, value in env.items() if _NAME.search(name)]
    # There is none, or it is damaged, or there is no home.
    with contextlib.suppress(OSError, netrc.NetrcParseError, UnicodeError, RuntimeError):
        path = env.get("NETRC") or Path("~/.netrc").expanduser()  # named, or what others may read were refused
        found += [password or "" for _, _, password in netrc.netrc(path).hosts.values()]
    yield from (value for value in found if len(value) >= _SHORTEST and not _WORD.fullmatch(value))


class Discreet:
    """A stream of text that hides secrets in what is written to it, unless they come in parts."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text; returns its length as it was given."""
        self.stream.write(hide(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
