"""Reads files of media for trackers, which would store a damaged one without an error, or fail without a reason."""

import json
import zlib
from typing import Any

from lib.base.errors import UserError
from lib.track import clean
from lib.track.tracker import Media

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def image(item: Media) -> bytes:
    """The content of a PNG file; raises UserError if it is not a whole one."""
    png = item.path.read_bytes()
    if not png.startswith(_SIGNATURE):
        raise UserError(f"{item.path}: is not a PNG file; write it again")
    at, kind = len(_SIGNATURE), b""
    while kind != b"IEND":
        length, kind = int.from_bytes(png[at : at + 4]), png[at + 4 : at + 8]
        end = at + 12 + length  # length, kind, data, checksum
        if end > len(png) or zlib.crc32(png[at + 4 : end - 4]) != int.from_bytes(png[end - 4 : end]):
            raise UserError(f"{item.path}: this PNG file is cut off or damaged; write it again")
        if at == len(_SIGNATURE) and (kind, length) != (b"IHDR", 13):
            raise UserError(f"{item.path}: this PNG file has no header; write it again")
        at = end
    return png


def text(item: Media) -> str:
    """The content of a text file; raises UserError if it is not UTF-8."""
    try:
        return item.path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{item.path}: this text is not UTF-8: {error}") from None


def table(item: Media) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a table; raises UserError if the file holds none, or if a row has too few or many cells."""
    try:
        found = json.loads(item.path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{item.path}: this table is not JSON: {error}") from None
    columns, rows = (found.get("columns"), found.get("rows")) if isinstance(found, dict) else (None, None)
    if not isinstance(columns, list) or not isinstance(rows, list):
        raise UserError(f'{item.path}: this table is not an object with the lists "columns" and "rows"')
    for number, row in enumerate(rows, 1):
        if not isinstance(row, list) or len(row) != len(columns):
            raise UserError(f"{item.path}: row {number} of this table is not a list of {len(columns)} cells")
    return clean.text(columns), clean.text(rows)
