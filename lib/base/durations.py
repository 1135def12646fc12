"""Durations as users write them: `90s`, `20m`, `2h`, `1h30m`, `1d`, or a number of seconds."""

import re

from lib.base.errors import UsageError

TIME_OVER = 124  # the exit code of what stops because its time is over, as of timeout(1)
EXAMPLES = "90s, 20m, 1h30m, 2d or a number of seconds"
_FORM = re.compile(r"(?:(\d{1,4})d)?(?:(\d{1,6})h)?(?:(\d{1,7})m)?(?:(\d{1,9})s)?", re.ASCII)
_PLAIN = re.compile(r"\d{1,9}", re.ASCII)
_UNITS = 86400, 3600, 60, 1


def is_duration(text: str) -> bool:
    """Whether a text is a duration."""
    return bool(_PLAIN.fullmatch(text) or (text and _FORM.fullmatch(text)))


def seconds(text: str) -> int:
    """The seconds of a duration; raises UsageError for another text."""
    if not is_duration(text):
        raise UsageError(f"{text!r} is not a duration; write {EXAMPLES}")
    if _PLAIN.fullmatch(text):
        return int(text)
    parts = _FORM.fullmatch(text).groups()
    return sum(int(part) * unit for part, unit in zip(parts, _UNITS, strict=True) if part)
