"""What the wandb tracker takes from wandb beyond its documented interface; tests/track/test_private.py guards it.

wandb has no documented way to ask whether a row is stored, so the records in its .wandb files are read while it writes
them. `wandb leet inspect` reads such a file too, but it takes half a second and reads the file from its beginning.
"""

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lib.track.tracker import Alert, Row, plain_name

PRIVATE = (
    "wandb.proto.wandb_internal_pb2",  # what a .wandb file holds
    "wandb.sdk.lib.wbauth.read_netrc_auth",
    "wandb.sdk.wandb_setup.singleton",  # the documented `wandb.setup` starts wandb-core
)
_BLOCK, _FILE_HEADER, _CHUNK_HEADER = 32768, 7, 7  # bytes, in a .wandb file


def settings(flush_seconds: float) -> dict[str, Any]:
    """Settings with an `x_`, which wandb calls experimental: how often it writes its file, and no system metrics."""
    return {"x_transaction_log_flush_interval": flush_seconds, "x_disable_stats": True}


def server_address() -> str:
    """The address of wandb's server, from the environment or wandb's settings files."""
    from wandb.sdk import wandb_setup

    return wandb_setup.singleton().settings.base_url


def has_key(env: Mapping[str, str] = os.environ) -> bool:
    """Whether wandb would find credentials without a network: in the environment, netrc or its settings."""
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    if env.get("WANDB_API_KEY") or env.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    found = wandb_setup.singleton().settings
    return bool(found.api_key or wbauth.read_netrc_auth(host=found.base_url))


def files_of(folder: Path, run_id: str) -> list[Path]:
    """The .wandb files of a run, one for each process that delivered it; each is in its own folder."""
    return sorted((folder / "wandb").glob(f"*run-*/run-{run_id}.wandb"))


def uploaded_mark(path: Path) -> Path:
    """The file that `wandb sync` writes beside an uploaded .wandb file, which it skips from then on."""
    return path.with_name(f"{path.name}.synced")


def upload_refused(internal_log: Path) -> bool:
    """Whether the server rejected rows; that ends the upload, and wandb reports it only in this log."""
    return "filestream: fatal error" in internal_log.read_text(encoding="utf-8", errors="replace")


class TransactionLog:
    """Reads the records of a .wandb file, also while wandb writes it.

    The format is LevelDB's log: blocks of 32 KiB, records in one or more chunks. A chunk is CRC (4 bytes), length (2),
    kind (1: complete, 2: first, 3: middle, 4: last part of a record), data.
    """

    def __init__(self, path: Path):
        self.path, self.position = path, _FILE_HEADER

    def records(self) -> Iterator[Any]:
        """The complete records (protobuf) that were added since the last call."""
        from wandb.proto import wandb_internal_pb2

        for body in self.bodies():
            record = wandb_internal_pb2.Record()
            record.ParseFromString(body)
            yield record

    def bodies(self) -> Iterator[bytes]:
        if not self.path.exists():
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
            body = at + _CHUNK_HEADER
            if body > len(data):
                return
            _, length, kind = struct.unpack_from("<IHB", data, at)
            if kind not in (1, 2, 3, 4) or body + length > len(data):  # incomplete: wandb is writing, or was killed
                return
            at = body + length
            parts = data[body:at] if kind in (1, 2) else parts + data[body:at]
            if kind in (1, 4):
                self.position = start + at
                yield parts


class Contents:
    """The rows and alerts in the .wandb files of a run."""

    def __init__(self, run_name: str):
        self.run_name = run_name
        self.history: set[tuple[int, str]] = set()  # (step, names of the metrics)
        self.summary: dict[str, Any] = {}
        self.alerts: set[tuple[str, str]] = set()  # (title, text)

    def read(self, log: TransactionLog) -> None:
        """Add the records that were written to a file since it was last read."""
        for record in log.records():
            if record.HasField("history"):
                items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
                if "step" in items:
                    self.history.add((json.loads(items["step"]), _metric_names(items)))
            elif record.HasField("summary"):
                self.summary |= {item.key: json.loads(item.value_json) for item in record.summary.update if item.key}
            elif record.HasField("alert"):
                self.alerts.add((record.alert.title, record.alert.text))

    def __contains__(self, item: Row | Alert) -> bool:
        if isinstance(item, Alert):
            title, text = alert_message(item, self.run_name)
            without_name = text.removeprefix(f"{self.run_name}: ")  # how earlier versions of this tracker wrote it
            return bool({(title, text), (title, without_name)} & self.alerts)
        if item.event == "finish":
            return all(name in self.summary and _same(self.summary[name], v) for name, v in item.metrics.items())
        return (item.step, _metric_names(item.metrics)) in self.history


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
