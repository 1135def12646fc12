"""Makes texts fit for UTF-8, before databases and JSON of trackers get them and fail."""

from typing import Any


def text(value: Any) -> Any:
    """A value whose texts, also inside of lists and dictionaries, UTF-8 can hold.

    A lone surrogate, from a file name that is not UTF-8, becomes an escape.
    """
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {text(name): text(one) for name, one in value.items()}
    return [text(one) for one in value] if isinstance(value, list) else value
