"""Pictures and tables for tests: whole ones, and ones that are damaged in every way."""

import struct
import zlib

from lib.track.tracker import Media


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width=600, height=300):
    """A black picture."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(width)) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def damaged(folder):
    """Items that no tracker can show, with files in `folder`."""
    folder.mkdir(exist_ok=True)
    whole = png()
    form = '{"columns": ["a", "b"], "rows": '
    contents = {
        "empty.png": b"",
        "zeros.png": bytes(len(whole)),
        "torn.png": whole[:-20],
        "flipped.png": whole[:60] + bytes([whole[60] ^ 1]) + whole[61:],
        "torn.json": form.encode(),
        "list.json": b"[]",
        "short-row.json": f"{form}[[1, 2], [3]]}}".encode(),
        "text-row.json": f'{form}["ab"]}}'.encode(),
        "number.json": b'{"columns": 1, "rows": []}',
        "deep.json": b"[" * 100_000,
        "latin.json": b"\xe9",
    }
    items = []
    for name, content in contents.items():
        path = folder / name
        path.write_bytes(content)
        kind = "image" if path.suffix == ".png" else "table"
        items.append(Media(kind, name, 1, 1700000000.5, path))
    return items
