"""Weights & Biases: logs rows, and waits until wandb has written each to its file in the run's folder."""

import dataclasses
import functools
import os
import shlex
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lib.base.errors import UserError
from lib.config.kconf import Options
from lib.record.run import Identity
from lib.track import wandb_files, wandb_media, wandb_place, wandb_start
from lib.track import wandb_private as private
from lib.track.tracker import Alert, Finding, Media, Refused, Row, bind, within_64_bits
from lib.track.wandb_upload import sync, upload

__all__ = ["Tracker", "examine", "upload"]

MODULE = "wandb"
ANSWER_SECONDS = 10  # for the server to answer at all
DURABLE_SECONDS = 30  # a batch that is not in the file after this time has failed
QUIET_SECONDS = 2  # after the death of an earlier process, its wandb-core may still write for a moment


@dataclasses.dataclass(frozen=True)
class WandbOptions(Options):
    """Whether wandb sends the run."""

    wandb_offline: bool


class Tracker:
    """Logs rows and waits until they are in the run's .wandb file.

    wandb cannot tell whether a row is stored, and it drops rows whose step decreases. So the step is logged as a metric
    `step`. All .wandb files of the run that go to the same place, also those of earlier processes, are read to find the
    rows that they hold, and only missing rows are logged.

    Rows in the file are stored, but not yet uploaded: online, wandb uploads them within 15 s. After a kill or a network
    failure, the next process or `upload` uploads the rest. A completely uploaded file gets the marker of `wandb sync`;
    the note names files for which that failed. If the server does not answer at the start, the run stays offline.

    NaN, infinities and 64-bit integers are kept; wandb's JSON rounds larger integers to floats. Rows of the event
    `system` are logged like others, with their step, so wandb's own system metrics are off. wandb's alerts have no step
    and no time, so the step is in their text. A metric whose name is reserved, such as `step`, gets the prefix
    `metric/`.
    """

    def open(self, identity: Identity, config: dict[str, Any], folder: Path) -> str:
        """Start wandb on a new file of the run: online if there is an API key, else offline, in <folder>/wandb.

        Raises Refused for a key of the wrong form, and if the server answers, but does not take the run.
        """
        from wandb.errors import AuthenticationError, CommError

        self.opened_with = identity, config, folder
        wandb_files.check_links(folder)
        os.environ.update(private.data_folder(folder))
        self.place, variables = wandb_place.chosen(identity, config)
        self.sent, self.asked, self.timed_out, unanswered = set(), False, False, ""
        try:
            mode, note = _mode(bind(WandbOptions, config), folder)
            if mode in (None, "online"):
                unanswered = private.answers(self.place.server, ANSWER_SECONDS)
            online = mode in (None, "online") and not unanswered
            earlier = private.files_of(folder, identity.run_id)
            _wait_until_quiet(earlier)
            self.ledger = wandb_files.Ledger(folder, self.place, identity.run_id)
            account = functools.cache(private.default_entity if online else lambda: None)
            earlier = [path for path in earlier if self.place.has(path)]
            earlier, damaged = wandb_files.usable(earlier, self.ledger, self.place, folder, account)
            self.incomplete = self.ledger.misses(earlier)
            if online:
                self._upload(earlier, folder)
            self.run = wandb_start.init(identity, self.place, config, folder, "offline" if unanswered else mode)
        except AuthenticationError as error:
            raise Refused(f"wandb: the API key cannot be right: {error}; run: wandb login --relogin") from None
        except CommError as error:
            if "timed out" not in str(error):
                raise Refused(f"{self.place} refuses the run: {error}; check the key, entity and project") from None
            unanswered = "the server did not answer in time"
            self.run = wandb_start.init(identity, self.place, config, folder, "offline")
        if self.run.disabled:
            raise UserError(
                "WANDB_MODE=disabled: wandb would discard all rows; unset it, or remove wandb from TRACKER "
                "(if it is not set, run: wandb enabled)"
            )
        self.file = private.TransactionLog(wandb_start.file_of(self.run, folder))
        self._read(earlier)
        # `wandb sync` of this file replaces the whole summary of the run at the server.
        if before := {n: v for n, v in self.contents.summary.items() if n[0] != "_" and not isinstance(v, dict)}:
            self.run.summary.update(before)
        self.run.define_metric("*", step_metric="step")
        self.run.define_metric("step", hidden=True)  # no chart
        if unanswered:
            note = _offline(folder, "because the server cannot be reached")
        elif self.run.offline:
            note = note or _offline(folder, "by wandb's own settings")
        else:
            wandb_media.await_artifacts(self.run)
            note = f"see {private.without_user(self.run.url)}"
        self.failed = False
        return "; ".join(filter(None, [note, variables, damaged, _not_uploaded(self.earlier, self.run.offline)]))

    def destination(self) -> str:
        """The server, the entity if one is given, and the project."""
        return str(self.place)

    def holds(self) -> bool:
        """Whether the server has the run, or .wandb files have its rows, and no file was cut or lost before its upload.

        The server counts the rows, so a lost file does not matter if they had been uploaded.
        """
        self.asked = True
        if self.incomplete:
            return not self.run.offline and self.run.resumed and self.run.starting_step >= self.ledger.rows
        return bool(self.earlier) or (not self.run.offline and self.run.resumed)

    def log(self, rows: list[Row]) -> None:
        """Log the rows that are in no file of the run, and wait until they are; raises UserError after a timeout."""
        ends = [row for row in rows if row.event == "finish"]  # an extended run has several; the summary keeps the last
        rows = [row for row in rows if row not in ends[:-1]]
        self._deliver([dataclasses.replace(row, metrics=_renamed(within_64_bits(row.metrics))) for row in rows])

    def alert(self, alerts: list[Alert]) -> None:
        """Send the alerts that are in no file of the run, and wait like `log`."""
        self._deliver(alerts)

    def media(self, items: list[Media]) -> None:
        """Send the media that are in no file of the run, and wait like `log`; online, until artifacts are uploaded.

        Raises MediaError for a damaged file, and for one that the server refuses.
        """
        self._deliver(items)

    def finish(self, status: str) -> None:
        """Close the run; online, wait until everything is uploaded, and raise UserError after a timeout."""
        code = 0 if status == "finished" else 1
        try:
            self.run.finish(exit_code=code)
        except TimeoutError:
            self.timed_out = True  # kept, because a second call of run.finish returns without an error
        if self.timed_out or private.not_uploaded(Path(self.run.settings.log_internal)):
            # A closed run stays as it is, so another attempt would fail too.
            raise Refused(f"wandb could not upload everything; upload the rest with: {_sync([self.file.path])}")
        if not self.run.offline:
            private.uploaded_mark(self.file.path).touch()
            self.ledger.uploaded([self.file.path])
        if not self.sent and self.contents.exit_code == code:  # `make sync` of a run that has everything
            wandb_start.discard(self.file.path)

    def _upload(self, earlier: list[Path], folder: Path) -> None:
        """Upload what earlier processes left. wandb numbers rows as it gets them, so old rows must come first."""
        waiting = private.unsent(earlier)
        if not waiting:
            return
        try:
            sync(folder, waiting, self.place.server)
            self.ledger.uploaded(waiting)
        except UserError as error:  # the note names the files
            print(error, flush=True)

    def _read(self, earlier: list[Path]) -> None:
        """Find the rows in the files of earlier processes, unless they go elsewhere or the server has lost them."""
        account = "" if self.run.offline else self.run.entity
        lost = not (self.run.offline or self.run.resumed)
        self.earlier = [
            path
            for path in earlier
            if self.place.has(path, account) and not (lost and private.uploaded_mark(path).exists())
        ]
        self.incomplete = self.incomplete or len(self.earlier) < sum(self.place.has(path, account) for path in earlier)
        self.contents, self.logs = private.Contents(self.place.name), [private.TransactionLog(p) for p in self.earlier]
        for log in self.logs:
            self.contents.read(log)
        self.place.mark(self.file.path, account, self.opened_with[2])

    def _deliver(self, items: Collection[Row | Alert | Media]) -> None:
        """Send items; after a failed call, to a new file: wandb's own process may be dead, and it never restarts."""
        import wandb

        if self.failed:
            wandb.teardown(1)
            self.open(*self.opened_with)
        self.failed = True
        try:
            self._store(items)
        except wandb_media.MediaError:  # only this file's fault
            self.failed = False
            raise
        self.failed = False
        # If the lane knows that rows are lost, it has counted all as pending by now, and delivers them.
        self.ledger.note([*self.logs, *([self.file] if self.sent else [])], forget=self.incomplete and self.asked)

    def _store(self, items: Collection[Row | Alert | Media]) -> None:
        for item in items:
            if item not in self.contents and _item_key(item) not in self.sent:
                self._send(item)
        deadline = time.monotonic() + DURABLE_SECONDS
        while missing := [item for item in items if item not in self.contents]:
            if time.monotonic() > deadline:
                raise UserError(f"{self.file.path}: wandb did not write {len(missing)} rows in {DURABLE_SECONDS} s")
            time.sleep(wandb_start.FLUSH_SECONDS / 5)
            self.contents.read(self.file)

    def _send(self, item: Row | Alert | Media) -> None:
        if isinstance(item, Alert):
            title, text = private.alert_message(item, self.contents.run_name)
            # wandb suppresses a second alert of one title within `wait_duration`.
            self.run.alert(title, text, level=item.level.upper(), wait_duration=0.001)
        elif isinstance(item, Media):
            wandb_media.send(self.run, item, wandb_media.content(item), self.file.path.parent)
        elif item.event == "finish":
            self.run.summary.update(item.metrics)
        else:
            self.run.log({"step": item.step, **item.metrics, "_timestamp": item.time})
        self.sent.add(_item_key(item))


def problem(config: Mapping[str, Any]) -> str:
    """Why no run can be kept: wandb discards everything in this mode."""
    if os.environ.get("WANDB_MODE") == "disabled":
        return "WANDB_MODE=disabled: wandb would discard all rows; unset it, or remove wandb from TRACKER"
    return ""


def examine(config: Mapping[str, Any]) -> list[Finding]:
    """The mode, whether there is an API key, and whether the server answers within 3 seconds."""
    from wandb.errors import AuthenticationError

    try:
        mode, note = _mode(bind(WandbOptions, config), Path("RUN"))
        key = private.has_key()
    except AuthenticationError as error:
        return [Finding("API key", f"cannot be right: {error}; run: wandb login --relogin", False)]
    online = mode in (None, "online")
    found = [
        Finding("mode", note or mode or "online", mode != "disabled"),
        Finding("API key", "there" if key else "none, so runs stay offline; run: wandb login", key or not online),
    ]
    if not online:
        return found
    address = private.server_address()
    problem = private.answers(address, 3)
    return [*found, Finding("server", problem or f"{address} answers", not problem)]


def _item_key(item: Row | Alert | Media) -> tuple[str, int]:
    if isinstance(item, Media):
        return private.media_name(item), item.step
    return (item.event if isinstance(item, Row) else f"alert {item.kind}", item.step)


def _mode(options: WandbOptions, folder: Path) -> tuple[str | None, str]:
    """wandb's mode and a note about it; None leaves the mode to wandb's own settings, which default to online."""
    wanted = os.environ.get("WANDB_MODE", "")
    if wanted:
        return wanted, _offline(folder, "by WANDB_MODE") if wanted in ("offline", "dryrun") else ""
    if options.wandb_offline:
        return "offline", _offline(folder, "as configured")
    if not private.has_key():
        return "offline", _offline(folder, "because there is no API key")
    return None, ""


def _offline(folder: Path, why: str) -> str:
    return f"offline {why}; upload the run with: wandb sync {shlex.quote(str(folder))}/wandb/offline-run-*"


def _not_uploaded(earlier: list[Path], offline: bool) -> str:
    """A note about files of earlier processes; the note of an offline run names those that were offline already."""
    unsent = private.unsent(earlier)
    if offline:
        unsent = [path for path in unsent if not path.parent.name.startswith("offline-")]
    return f"part of the run may not be uploaded yet; upload it with: {_sync(unsent)}" if unsent else ""


def _sync(paths: list[Path]) -> str:
    return shlex.join(["wandb", "sync", "--include-online", *(str(path.parent) for path in paths)])


def _wait_until_quiet(paths: list[Path]) -> None:
    for _ in range(10):
        young = max((path.stat().st_mtime for path in paths), default=0) + QUIET_SECONDS - time.time()
        if young <= 0:
            return
        time.sleep(min(young, QUIET_SECONDS))


def _renamed(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics without reserved names: `step` is the step of the row, and wandb uses names that begin with `_`."""
    return {f"metric/{name}" if name == "step" or name.startswith("_") else name: v for name, v in metrics.items()}
