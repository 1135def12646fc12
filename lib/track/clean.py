"""Checks files and texts before libraries of trackers get them, which fail in many ways or store what is damaged."""

import json
import struct
import zlib
from typing import Any

from lib.base.errors import UserError
from lib.track.tracker import Media

_PNG = b"\x89PNG\r\n\x1a\n"


def picture(item: Media) -> tuple[bytes, int]:
    """A picture and its number of pixels. Raises UserError if the file is no complete PNG."""
    content = item.path.read_bytes()
    if not _is_whole(content):
        raise UserError(f"{item.path}: is no complete PNG, so it cannot be shown; log the picture again")
    width, height = struct.unpack_from(">II", content, 16)
    return content, width * height


def table(item: Media) -> tuple[list[str], list[list[Any]]]:
    """The columns and the rows of a table. Raises UserError if the file holds none."""
    try:
        found = json.loads(item.path.read_text(encoding="utf-8"))
        columns, rows = found["columns"], found["rows"]
        good = isinstance(columns, list) and isinstance(rows, list) and all(isinstance(name, str) for name in columns)
        good = good and all(isinstance(row, list) and len(row) == len(columns) for row in rows)
    except (ValueError, TypeError, LookupError, RecursionError):
        good = False
    if not good:
        form = '{"columns": ["name", ...], "rows": [[cell, ...], ...]}, with one cell for each column'
        raise UserError(f"{item.path}: is no complete table; it must be {form}")
    return columns, rows


def text(value: Any) -> Any:
    """A value whose texts, also inside of lists and dictionaries, can be encoded as UTF-8.

    A byte of a file's name that is no UTF-8 is a surrogate in Python, which databases and JSON refuse.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {text(name): text(one) for name, one in value.items()}
    return [text(one) for one in value] if isinstance(value, list) else value


def _is_whole(content: bytes) -> bool:
    """Whether a PNG has all of its chunks, each with the right checksum; they are length, kind, data and checksum."""
    if not content.startswith(_PNG) or content[12:16] != b"IHDR":
        return False
    at = len(_PNG)
    while at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4])
        if zlib.crc32(memoryview(content)[at + 4 : end]) != int.from_bytes(content[end : end + 4]):
            return False
        if content[at + 4 : at + 8] == b"IEND":
            return True
        at = end + 4
    return False
