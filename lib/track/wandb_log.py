"""Reads .wandb files, in which wandb keeps all that a run logs, while wandb writes them."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK, _MAGIC = 32768, 7  # bytes: of a block, and of the file's header (the log format of LevelDB)


class TransactionLog:
    """Reads the records of a .wandb file, also while wandb writes it: blocks of 32 KiB, records in one or more chunks.

    A chunk is CRC (4 bytes), length (2), kind (1: whole, 2: first, 3: middle, 4: last part of a record), data.
    """

    def __init__(self, path: Path):
        self.path, self.position = path, _MAGIC

    def records(self) -> Iterator[Any]:
        """The whole records (protobuf) that were added since the last call."""
        from wandb.proto import wandb_internal_pb2

        for body in self._bodies():
            record = wandb_internal_pb2.Record()
            record.ParseFromString(body)
            yield record

    def _bodies(self) -> Iterator[bytes]:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.position)
            data, start, parts = file.read(), self.position, b""
        at = 0
        while True:
            room = _BLOCK - (start + at) % _BLOCK
            if room < 7:  # a header does not fit: the rest of the block is padding
                at += room
                continue
            if at + 7 > len(data):
                return
            _, length, kind = struct.unpack_from("<IHB", data, at)
            if kind not in (1, 2, 3, 4) or at + 7 + length > len(data):  # being written, or torn
                return
            parts = data[at + 7 : at + 7 + length] if kind in (1, 2) else parts + data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):
                self.position = start + at
                yield parts
