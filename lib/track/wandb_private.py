"""What the wandb tracker takes from wandb beyond its documented interface; tests/track/test_private.py guards it.

wandb has no documented way to ask whether a row is stored, so the records in its .wandb files are read while it writes
them. `wandb leet inspect` reads such a file too, but it takes half a second and reads the file from its beginning.
"""

import json
import math
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lib.base.files import whole
from lib.track.tracker import Alert, Media, Row, plain_name

PRIVATE = (
    "wandb.proto.wandb_internal_pb2",  # what a .wandb file holds
    "wandb.sdk.lib.wbauth.authenticate_session",
    "wandb.sdk.wandb_setup.singleton",  # the documented `wandb.setup` starts wandb-core
)
_REFUSED = re.compile(
    r'"level":"ERROR[^"]*","msg":"((?:filestream: fatal error|runfiles|file transfer: |sender: failed to log artifact)'
    r'(?:[^"\\]|\\.)*)"'
)
_BLOCK, _CHUNK_HEADER = 32768, 7  # bytes, in a .wandb file
_BEGINNING = b":W&B\xe1\xbe\x00"


def settings(flush_seconds: float) -> dict[str, Any]:
    """Settings with an `x_`, which wandb calls experimental: how often it writes its file, and no system metrics."""
    return {"x_transaction_log_flush_interval": flush_seconds, "x_disable_stats": True}


def about(everything: bool, program: str) -> dict[str, Any]:
    """Settings for what wandb tells about the machine and the code; with an empty `program` and not `everything`, none.

    The machine's kind (system, Python, processor, GPUs) belongs to a result; its name, the git remote, the code and the
    list of packages do not. wandb takes the arguments of the program from `sys.argv`.
    """
    known = {"program": program} if program else {}
    if everything:
        return known
    return {**known, "host": "", "disable_git": True, "disable_code": True} | {
        "x_save_requirements": False,
        "x_disable_machine_info": not program,
    }


def server_address() -> str:
    """The address of wandb's server, from the environment or wandb's settings files, without a user and password."""
    return without_user(_base_url())


def without_user(address: str) -> str:
    """An address without the user and password that it may have: it is kept in files."""
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def default_entity() -> str:
    """The entity of the API key, which the server says; raises what wandb raises."""
    import wandb

    return wandb.Api().default_entity or ""


def _base_url() -> str:
    from wandb.sdk import wandb_setup

    return wandb_setup.singleton().settings.base_url


def has_key() -> bool:
    """Whether wandb has credentials, found without a network: in the environment, netrc or its settings.

    Raises AuthenticationError if they have the wrong form.
    """
    from wandb.sdk.lib import wbauth

    return bool(wbauth.authenticate_session(host=_base_url(), source="espalier", prompt=False, update_session=False))


def answers(address: str, seconds: float) -> str:
    """Why a server does not answer within some seconds, or an empty text; any answer counts."""
    import requests

    try:
        requests.get(address, timeout=seconds)
    except requests.RequestException as error:
        return f"{address} does not answer ({type(error).__name__})"
    return ""


def files_of(folder: Path, run_id: str) -> list[Path]:
    """The .wandb files of a run, one for each process that delivered it; each is in its own folder."""
    return sorted((folder / "wandb").glob(f"*run-*/run-{run_id}.wandb"))


def uploaded_mark(path: Path) -> Path:
    """The file that `wandb sync` writes beside an uploaded .wandb file, which it skips from then on."""
    return path.with_name(f"{path.name}.synced")


def unsent(paths: list[Path]) -> list[Path]:
    """Those .wandb files that have a run and are not completely uploaded; a process killed at its start leaves none."""
    from google.protobuf.message import DecodeError

    def has_run(path: Path) -> bool:
        try:
            return any(record.HasField("run") for record in TransactionLog(path).records())
        except DecodeError:
            return True  # wandb_files.usable says what is wrong

    return [path for path in paths if not uploaded_mark(path).exists() and has_run(path)]


def not_uploaded(log: Path) -> str:
    """Why rows, files or artifacts were not uploaded, which wandb says only in this log (JSON lines); or empty."""
    found = _REFUSED.search(log.read_text(encoding="utf-8", errors="replace"))
    return json.loads(f'"{found[1]}"') if found else ""


def data_folder(folder: Path) -> dict[str, str]:
    """The variable that tells wandb to keep files of tables in the run's folder until they are uploaded."""
    return {"WANDB_DATA_DIR": os.environ.get("WANDB_DATA_DIR") or str(folder.resolve() / "wandb")}


class TransactionLog:
    """Reads the records of a .wandb file, also while wandb writes it.

    The format is LevelDB's log: blocks of 32 KiB, records in one or more chunks. A chunk is CRC-32 of kind and data (4
    bytes), length (2), kind (1: complete, 2: first, 3: middle, 4: last part of a record), data.
    """

    def __init__(self, path: Path):
        self.path, self.position = path, len(_BEGINNING)  # after the last complete record
        self.stop = self.position  # of the first chunk that is incomplete or damaged
        self.rows = 0  # that `Contents` has read

    def records(self) -> Iterator[Any]:
        """The complete records (protobuf) that were added since the last call."""
        yield from map(parsed, self.bodies())

    def begins(self) -> bool:
        """Whether the file begins as wandb begins it."""
        with self.path.open("rb") as file:
            return file.read(len(_BEGINNING)) == _BEGINNING

    def is_damaged(self) -> bool:
        """Whether a complete chunk follows the place where reading stopped: this is not the torn end after a kill."""
        if not self.begins():
            return self.path.stat().st_size > len(_BEGINNING)
        data = self.path.read_bytes()
        block = self.stop - self.stop % _BLOCK + _BLOCK
        places = [*range(self.stop + 1, min(block, len(data))), *range(block, len(data), _BLOCK)]
        return any(_chunk(data, at, _BLOCK - at % _BLOCK) for at in places)

    def bodies(self) -> Iterator[bytes]:
        if not self.path.exists() or not self.begins():
            return
        with self.path.open("rb") as file:
            file.seek(self.position)
            data, start, parts = file.read(), self.position, b""
        at = 0
        while True:
            room = _BLOCK - (start + at) % _BLOCK
            if room < _CHUNK_HEADER:  # the rest of the block is padding
                at += room
                continue
            self.stop = start + at
            if not (chunk := _chunk(data, at, room)):  # wandb is writing it, or was killed, or it is damaged
                return
            kind, body = chunk
            at += _CHUNK_HEADER + len(body)
            parts = body if kind in (1, 2) else parts + body
            if kind in (1, 4):
                self.position = start + at
                yield parts


def parsed(body: bytes) -> Any:
    """A record of a .wandb file; raises protobuf's DecodeError."""
    from wandb.proto import wandb_internal_pb2

    record = wandb_internal_pb2.Record()
    record.ParseFromString(body)
    return record


def _chunk(data: bytes, at: int, room: int) -> tuple[int, bytes] | None:
    """Kind and data of a complete, undamaged chunk in a block that has `room` bytes left, or None."""
    begin = at + _CHUNK_HEADER
    if begin > len(data) or room < _CHUNK_HEADER:
        return None
    crc, length, kind = struct.unpack_from("<IHB", data, at)
    if kind not in (1, 2, 3, 4) or length > room - _CHUNK_HEADER or begin + length > len(data):
        return None
    return (kind, data[begin : begin + length]) if crc == zlib.crc32(data[begin - 1 : begin + length]) else None


def write_log(path: Path, bodies: Iterable[bytes]) -> None:
    """Write a .wandb file with these records; raises OSError."""
    content = bytearray(_BEGINNING)
    for rest in bodies:
        begun = False
        while rest or not begun:
            room = _BLOCK - len(content) % _BLOCK
            if room < _CHUNK_HEADER:
                content += bytes(room)
                continue
            part, rest = rest[: room - _CHUNK_HEADER], rest[room - _CHUNK_HEADER :]
            kind = (3 if begun else 2) if rest else (4 if begun else 1)
            checked = bytes([kind]) + part
            content += struct.pack("<IH", zlib.crc32(checked), len(part)) + checked
            begun = True
    with whole(path) as file:
        file.write(content)


class Contents:
    """The rows, media and alerts in the .wandb files of a run."""

    def __init__(self, run_name: str):
        self.run_name = run_name
        self.history: set[tuple[int, str]] = set()  # (step, names of the metrics)
        self.summary: dict[str, Any] = {}
        self.alerts: set[tuple[str, str]] = set()  # (title, text)
        self.exit_code: int | None = None  # of the newest process that ended

    def read(self, log: TransactionLog) -> None:
        """Add the records that were written to a file since it was last read."""
        for record in log.records():
            if record.HasField("history"):
                log.rows += 1
                items = {tuple(item.nested_key) or (item.key,): item.value_json for item in record.history.item}
                if ("step",) in items and _has_files(items, log.path):
                    names = dict.fromkeys(name for name, *_ in items)
                    self.history.add((json.loads(items["step",]), _metric_names(names)))
            elif record.HasField("summary"):
                self.summary |= {item.key: json.loads(item.value_json) for item in record.summary.update if item.key}
            elif record.HasField("alert"):
                self.alerts.add((record.alert.title, record.alert.text))
            elif record.HasField("exit"):
                self.exit_code = record.exit.exit_code

    def __contains__(self, item: Row | Alert | Media) -> bool:
        if isinstance(item, Alert):
            title, text = alert_message(item, self.run_name)
            without_name = text.removeprefix(f"{self.run_name}: ")  # an earlier version, or the run had another name
            return any(title == known and found.endswith(without_name) for known, found in self.alerts)
        if isinstance(item, Media):
            return (item.step, media_name(item)) in self.history
        if item.event == "finish":
            return all(name in self.summary and _same(self.summary[name], v) for name, v in item.metrics.items())
        return (item.step, _metric_names(item.metrics)) in self.history


def media_name(item: Media) -> str:
    """The metric that refers to media; the part before the slash is the section of the charts."""
    return f"{'artifact' if item.kind == 'artifact' else 'media'}/{unicode_name(item.name)}"


def unicode_name(name: str) -> str:
    """A name that protobuf takes: it has no lone surrogates, which a file name that is not UTF-8 has."""
    return name.encode(errors="replace").decode()


def _has_files(items: Mapping[tuple[str, ...], str], log: Path) -> bool:
    """Whether the media of a row are completely in the files beside a .wandb file; `items` by nested name."""
    paths = {name[0]: json.loads(value) for name, value in items.items() if name[1:] == ("path",)}
    return all(
        (file := log.parent / "files" / path).exists() and file.stat().st_size == json.loads(items[name, "size"])
        for name, path in paths.items()
    )


def alert_message(alert: Alert, run_name: str) -> tuple[str, str]:
    """Title and text of an alert at wandb; together they identify it, since wandb stores neither its step nor time."""
    return plain_name(alert.kind, r"[\x00-\x1f]", 63), f"{run_name}: {alert.message} (step {alert.step})"


def _metric_names(metrics: Mapping[str, Any]) -> str:
    """The names of a row's metrics; they distinguish a training row from an evaluation of the same step."""
    return ",".join(sorted(name for name in metrics if name != "step" and not name.startswith("_")))


def _same(stored: Any, value: float) -> bool:
    return isinstance(stored, int | float | str) and (
        float(stored) == value or (math.isnan(float(stored)) and math.isnan(value))
    )
