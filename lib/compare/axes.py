"""Axes of a sweep: several values in one word, as in `a,b`, `0.5..0.9:0.1` and `1..5`, and what a point is called."""

import hashlib
import re
from collections.abc import Iterable
from decimal import Decimal, localcontext

from lib.base.errors import UsageError
from lib.config.option import Option
from lib.record import lineage

MOST = 1000  # values of an axis, and configurations of a line
CHAINS = tuple(lineage.OPTIONS.values())  # texts, but @a,@b names two configurations
# Few digits, so that the arithmetic is exact and quick.
_NUMBER = r"[+-]?(?:\d{1,30}\.?\d{0,30}|\.\d{1,30})(?:e[+-]?\d{1,2})?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(?::({_NUMBER}))?", re.ASCII | re.IGNORECASE)
_ENDLESS = re.compile(r"\.\.\s*$|\.\.\s*:|inf|nan", re.IGNORECASE)
_LONGEST = 60  # characters of a name
_BARE = "TARGET_SPARSITY"  # a number that everyone knows without its name


def values(option: Option | None, text: str) -> tuple[str, ...]:
    """The values that `text` gives an option: several if it is an axis; raises UsageError for a range without end.

    Options that are lists or texts have one value, whatever it looks like.
    """
    if option is None or option.kind == "set":
        return (text,)
    if option.kind == "str":
        several = text.split(",")
        return tuple(several) if option.name in CHAINS and all(one.startswith("@") for one in several) else (text,)
    found: list[str] = []
    for part in text.split(","):
        found += numbers(part.strip()) if ".." in part else [part.strip()]
    if len(found) == 1:
        return (found[0] if ".." in text else text,)
    if "" in found:
        raise UsageError("has an empty value; write values with one comma between them, as in a,b")
    if twice := _twice(option, found):
        raise UsageError(f"has {twice} twice; leave one out")
    if len(found) > MOST:
        raise UsageError(f"has {len(found):,} values; a sweep takes up to {MOST:,}")
    return tuple(found)


def numbers(text: str) -> list[str]:
    """The numbers of `a..b:step`, exact as decimals and not above b, or of `1..5`; raises UsageError if it is bad."""
    if not (match := _RANGE.fullmatch(text)):
        if _ENDLESS.search(text):
            raise UsageError("never ends; write its last value, as in 1..5 or 0.5..0.9:0.1")
        raise UsageError("is no range; write first..last:step, as in 0.5..0.9:0.1, or 1..5")
    with localcontext() as context:
        context.prec = 400  # holds every sum of two such numbers exactly
        first, last = Decimal(match[1]), Decimal(match[2])
        whole = first == first.to_integral_value() and last == last.to_integral_value()
        if not match[3] and not whole:
            raise UsageError(f"lacks a step; write it after a colon, as in {text}:0.1")
        step = Decimal(match[3] or 1)
        if step <= 0:
            raise UsageError(f"never ends: its step is {match[3]}; write one above 0")
        if last < first:
            raise UsageError("is empty; write the smaller number first")
        if (count := (last - first) // step + 1) > MOST:
            many = f"{count:,f}" if count < 10**15 else "far too many"
            raise UsageError(f"has {many} values; a sweep takes up to {MOST:,}")
        return [_plain(first + number * step) for number in range(int(count))]


def _plain(number: Decimal) -> str:
    text = f"{number:f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) if number else "0"


def _twice(option: Option, texts: Iterable[str]) -> str:
    """A value that is there twice, however it is spelt; "" if there is none."""
    seen = set()
    for text in texts:
        same = option.written(text)
        if option.kind in ("int", "float") and option.malformed(text) is None:
            same = float(text) if option.kind == "float" else int(text)
        if same in seen:
            return text
        seen.add(same)
    return ""


# ---- names -----------------------------------------------------------------------------------------------------------


def name(base: str, chosen: Iterable[tuple[Option, str]], alone: bool, in_full: bool = False) -> str:
    """The name of a point: `base` ("": none), then its values, as in `state-hybrid-0.5`.

    `chosen` are the axes that the point uses. A number or switch is preceded by its option's name unless it is `alone`;
    `in_full`, every value is.
    """
    parts = [base] if base else []
    for option, text in chosen:
        value = _value(option, text)
        bare = option.kind in ("choice", "str") or ((option.name == _BARE or alone) and option.kind != "bool")
        bare = bare and not in_full and (parts or value[:1].isalnum())
        parts.append(value if bare else f"{_words(option)}-{value}")
    found = "-".join(parts) or "base"
    if len(found) <= _LONGEST:
        return found
    return f"{found[: _LONGEST - 9].rstrip('-.')}-{hashlib.sha256(found.encode()).hexdigest()[:8]}"


def _words(option: Option) -> str:
    return option.name.lower().replace("_", "-")


def _value(option: Option, text: str) -> str:
    """A value as a part of a name, which can be a folder's."""
    if option.name == "PRUNING_METHOD" and text == "none":
        return "dense"
    text = option.written(text).lstrip("@").replace("@", "-").removeprefix("+").replace("+", "")
    text = f"0{text}" if text.startswith(".") else text
    return re.sub(r"[^\w.-]", "_", text, flags=re.ASCII)
