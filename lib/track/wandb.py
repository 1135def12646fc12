"""Weights & Biases: rows go through wandb's own files in the run's folder, which tell what is already delivered."""

import hashlib
import json
import math
import os
import re
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lib.errors import UserError
from lib.run import Identity
from lib.track.tracker import Row, TrackOptions

PACKAGE = "wandb"
FLUSH_SECONDS = 0.5  # how often wandb writes its file; its default, 15 s, is what a kill would lose
DURABLE_SECONDS = 60  # a batch that is not in the file after this long has failed
QUIET_SECONDS = 2  # after the death of an earlier process, its wandb-core may write for a moment

_BLOCK, _MAGIC = 32768, 7  # bytes: of a block, and of the file's header (the log format of LevelDB)


class Tracker:
    """Logs rows and waits until they are in the run's .wandb file.

    wandb cannot be asked whether a row has arrived, and drops steps that go back. So rows carry their step as a metric
    of its own, and the .wandb files of the run, this process's and earlier ones', are read to see what they hold; only
    what is missing is logged. `wandb leet inspect` reads them too, but takes half a second and the whole file per look.

    What is in the file is safe, not yet uploaded: online, wandb uploads it, and what a killed process left goes up
    with `wandb sync <run>/wandb/run-*`.
    """

    def open(self, identity: Identity, config: dict[str, Any], folder: Path, options: TrackOptions) -> str:
        """Start a segment of the run: with an API key on the server, else in <folder>/wandb."""
        import wandb

        mode, note = _mode(options, folder)
        self.contents, self.sent = Contents(), set()
        earlier = sorted((folder / "wandb").glob(f"*run-*/run-{identity.run_id}.wandb"))
        _wait_until_quiet(earlier)
        for path in earlier:
            self.contents.read(TransactionLog(path))
        try:
            self.run = wandb.init(
                project=project(identity.project),
                name=identity.name,
                id=identity.run_id,
                config=config,
                mode=mode,
                dir=str(folder),
                resume="allow",
                reinit="create_new",
                settings=wandb.Settings(
                    silent=True, console="off", init_timeout=15, x_transaction_log_flush_interval=FLUSH_SECONDS
                ),
            )
        except Exception:
            wandb.teardown()  # or the next attempt is told that the run is in use
            raise
        if self.run.disabled:
            return "disabled by WANDB_MODE"
        file = Path(self.run.settings.sync_file)
        if folder.resolve() not in file.resolve().parents:  # wandb's silent way out of a folder that it cannot write
            raise UserError(f"{folder}: wandb cannot write to this folder and went to {file.parent}; make it writable")
        self.file = TransactionLog(file)
        self.run.define_metric("*", step_metric="step")
        return note or (_offline(folder, "by wandb's own settings") if self.run.offline else f"see {self.run.url}")

    def log(self, rows: list[Row]) -> None:
        """Log the rows that no file of the run holds, and wait until one does; raises UserError when none ever does."""
        if self.run.disabled:
            return
        ends = [row for row in rows if row.event == "finish"]  # of a run that was extended: the summary keeps the last
        rows = [row for row in rows if row not in ends[:-1]]
        for row in rows:
            if row not in self.contents and (row.event, row.step) not in self.sent:
                self._send(row)
                self.sent.add((row.event, row.step))
        deadline = time.monotonic() + DURABLE_SECONDS
        while missing := [row for row in rows if row not in self.contents]:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{self.file.path}: wandb has not written {len(missing)} rows within {DURABLE_SECONDS} s"
                )
            time.sleep(FLUSH_SECONDS / 5)
            self.contents.read(self.file)

    def finish(self, status: str) -> None:
        """Close the run; online, this returns when everything is uploaded."""
        self.run.finish(exit_code=0 if status == "finished" else 1)

    def _send(self, row: Row) -> None:
        if row.event == "finish":
            self.run.summary.update(row.metrics)
        else:
            self.run.log({"step": row.step, **row.metrics, "_timestamp": row.time})


class Contents:
    """The rows that are in the .wandb files of a run."""

    def __init__(self):
        self.history: set[tuple[int, str]] = set()  # (step, names of the metrics)
        self.summary: dict[str, Any] = {}

    def read(self, log: "TransactionLog") -> None:
        """Add what was written to a file since it was last read."""
        for record in log.records():
            if record.HasField("history"):
                items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
                if "step" in items:
                    self.history.add((json.loads(items["step"]), _names(items)))
            elif record.HasField("summary"):
                self.summary |= {item.key: json.loads(item.value_json) for item in record.summary.update if item.key}

    def __contains__(self, row: Row) -> bool:
        if row.event == "finish":
            return all(name in self.summary and _same(self.summary[name], v) for name, v in row.metrics.items())
        return (row.step, _names(row.metrics)) in self.history


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


def project(name: str) -> str:
    """The name of a project at wandb, which refuses some characters; names that differ only in those carry a hash."""
    plain = re.sub(r"[/\\#?%:\x00-\x1f]", "-", name)
    if plain == name and len(name) <= 100:
        return name
    return f"{plain[:90]}-{hashlib.md5(name.encode()).hexdigest()[:8]}"


def _mode(options: TrackOptions, folder: Path, env: Mapping[str, str] = os.environ) -> tuple[str | None, str]:
    """wandb's mode (None: whatever its own settings say, online unless told otherwise) and a note about it."""
    wanted = env.get("WANDB_MODE", "")
    if wanted:
        return wanted, _offline(folder, "by WANDB_MODE") if wanted in ("offline", "dryrun") else ""
    if options.wandb_offline:
        return "offline", _offline(folder, "as configured")
    if not _has_key(env):
        return "offline", _offline(folder, "because there is no API key")
    return None, ""


def _offline(folder: Path, why: str) -> str:
    return f"offline {why}; upload the run with: wandb sync {folder}/wandb/offline-run-*"


def _has_key(env: Mapping[str, str]) -> bool:
    """Whether wandb would find credentials, where it looks for them without a network: environment, netrc, settings."""
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    if env.get("WANDB_API_KEY") or env.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    settings = wandb_setup.singleton().settings
    return bool(settings.api_key or wbauth.read_netrc_auth(host=settings.base_url))


def _wait_until_quiet(paths: list[Path]) -> None:
    for _ in range(10):
        young = max((path.stat().st_mtime for path in paths), default=0) + QUIET_SECONDS - time.time()
        if young <= 0:
            return
        time.sleep(min(young, QUIET_SECONDS))


def _names(metrics: Mapping[str, Any]) -> str:
    """Which metrics a row has: a training row and an evaluation of the same step differ in this."""
    return ",".join(sorted(name for name in metrics if name != "step" and not name.startswith("_")))


def _same(stored: Any, value: float) -> bool:
    return isinstance(stored, int | float | str) and (
        float(stored) == value or (math.isnan(float(stored)) and math.isnan(value))
    )
