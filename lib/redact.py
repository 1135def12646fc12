"""Redaction: what looks like a secret, and texts without those of this process, for whatever is shown or kept."""

import contextlib
import netrc
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO

# Of variables and flags that hold one: HF_TOKEN, --api-key; not TOKENIZER or SAMPLE_TOKENS.
_NAME = re.compile(r"(^|[-_])(KEY|TOKEN|SECRET|PASSWORD|PASSWD)(_ID)?$", re.IGNORECASE)
_ADDRESS = re.compile(r"(://)[^/\s]*@")
_HEADER = re.compile(r"\b(Basic|Bearer) [\w+/=.~-]{16,}")
_IN_ADDRESS = re.compile(r"https?://[^/\s]*@|://[^/\s]*:[^/\s]*@|[?&]\w*(token|key|secret|password)\w*=", re.IGNORECASE)
_SHORTEST = 6  # characters: to hide what is shorter would tear texts that have nothing to do with it


def found_in(text: str) -> bool:
    """Whether a text has an address with a user's name or password in it, or with a parameter like `token=`."""
    return bool(_IN_ADDRESS.search(text))


def hide(text: str, env: Mapping[str, str] = os.environ) -> str:
    """`text` with *** in place of the keys and passwords of the environment and of ~/.netrc, and of what addresses and
    HTTP headers hold.

    Of the environment those count whose names end like WANDB_API_KEY or HF_TOKEN. What a library keeps in other files
    of its own is not known here.
    """
    for value in sorted(_values(env), key=len, reverse=True):
        text = text.replace(value, "***")
    return _HEADER.sub(r"\1 ***", _ADDRESS.sub(r"\1***@", text))


def is_in(content: bytes, env: Mapping[str, str] = os.environ) -> bool:
    """Whether a file's content has one of the keys and passwords in it that `hide` knows."""
    return any(value.encode(errors="surrogateescape") in content for value in _values(env))


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
    yield from (value for name, value in env.items() if _NAME.search(name) and len(value) >= _SHORTEST)
    with contextlib.suppress(OSError, netrc.NetrcParseError, UnicodeError):  # there is none, or it is damaged
        passwords = (password for _, _, password in netrc.netrc(env.get("NETRC")).hosts.values())
        yield from (password for password in passwords if password and len(password) >= _SHORTEST)


class Discreet:
    """A stream of text that hides secrets in what is written to it, unless they come in parts."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text; returns its length as it was given."""
        self.stream.write(hide(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
