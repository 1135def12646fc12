"""Makes texts fit for UTF-8, before databases and JSON of trackers get them and fail."""

from typing import Any

from lib.track.media_files import encodable


def text(value: Any) -> Any:
    """A value whose texts, also inside of lists and dictionaries, can be encoded as UTF-8."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, dict):
        return {text(name): text(one) for name, one in value.items()}
    return [text(one) for one in value] if isinstance(value, list) else value
