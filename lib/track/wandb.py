"""Weights & Biases: logs rows, and waits until wandb has written each to its file in the run's folder."""

import dataclasses
import os
import shlex
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lib.base.errors import UserError
from lib.config.kconf import Options
from lib.record.run import Identity
from lib.track import wandb_private as private
from lib.track.tracker import Alert, Finding, Row, TrackOptions, bind, plain_name, within_64_bits

MODULE = "wandb"
INIT_SECONDS = 15  # for wandb.init to reach the server, unless $WANDB_INIT_TIMEOUT is set
FINISH_SECONDS = 120  # for run.finish to upload the rest, unless $WANDB_FINISH_TIMEOUT is set
FLUSH_SECONDS = 0.5  # how often wandb writes its file; a kill would lose the 15 s of its default
DURABLE_SECONDS = 30  # a batch that is not in the file after this time has failed
QUIET_SECONDS = 2  # after the death of an earlier process, its wandb-core may still write for a moment


@dataclasses.dataclass(frozen=True)
class WandbOptions(Options):
    """Where the run goes at Weights & Biases."""

    wandb_offline: bool
    wandb_entity: str  # empty: wandb's own default


class Tracker:
    """Logs rows and waits until they are in the run's .wandb file.

    wandb cannot tell whether a row is stored, and it drops rows whose step decreases. So the step is logged as a metric
    `step`. All .wandb files of the run, also those of earlier processes, are read to find the rows that they hold, and
    only missing rows are logged.

    Rows in the file are stored, but not yet uploaded: online, wandb uploads them within 15 s. After a kill or a network
    failure, `wandb sync` uploads the rest. A completely uploaded file gets the marker of `wandb sync`; the note of the
    next process names the other files. If the server does not answer at the start, the run stays offline.

    NaN, infinities and 64-bit integers are kept; wandb's JSON rounds larger integers to floats. Rows of the event
    `system` are logged like others, with their step, so wandb's own system metrics are off. wandb's alerts have no step
    and no time, so the step is in their text. A metric whose name is reserved, such as `step`, gets the prefix
    `metric/`.
    """

    def open(self, identity: Identity, config: dict[str, Any], folder: Path) -> str:
        """Start wandb on a new file of the run: online if there is an API key, else offline, in <folder>/wandb."""
        from wandb.errors import AuthenticationError, CommError

        self.opened_with, self.failed = (identity, config, folder), False
        mode, note = _mode(bind(WandbOptions, config), folder)
        self.contents, self.sent, self.timed_out = private.Contents(_run_name(identity.name)), set(), False
        earlier = private.files_of(folder, identity.run_id)
        _wait_until_quiet(earlier)
        for path in earlier:
            self.contents.read(private.TransactionLog(path))
        try:
            self.run = _init(identity, config, folder, mode)
        except AuthenticationError:
            raise
        except CommError:
            self.run = _init(identity, config, folder, "offline")
            note = _offline(folder, "because the server cannot be reached")
        if self.run.disabled:
            raise UserError(
                "WANDB_MODE=disabled: wandb would discard all rows; unset it, or remove wandb from TRACKER "
                "(if it is not set, run: wandb enabled)"
            )
        file = Path(self.run.settings.sync_file)
        if folder.resolve() not in file.resolve().parents:  # wandb does not tell when it uses another folder
            raise UserError(f"{folder}: wandb cannot write to this folder and uses {file.parent}; make it writable")
        self.file = private.TransactionLog(file)
        self.run.define_metric("*", step_metric="step")
        self.run.define_metric("step", hidden=True)  # no chart
        note = note or (_offline(folder, "by wandb's own settings") if self.run.offline else f"see {self.run.url}")
        return "; ".join(filter(None, [note, _not_uploaded(earlier, self.run.offline)]))

    def log(self, rows: list[Row]) -> None:
        """Log the rows that are in no file of the run, and wait until they are; raises UserError after a timeout."""
        ends = [row for row in rows if row.event == "finish"]  # an extended run has several; the summary keeps the last
        rows = [row for row in rows if row not in ends[:-1]]
        self._deliver([dataclasses.replace(row, metrics=_renamed(within_64_bits(row.metrics))) for row in rows])

    def alert(self, alerts: list[Alert]) -> None:
        """Send the alerts that are in no file of the run, and wait like `log`."""
        self._deliver(alerts)

    def finish(self, status: str) -> None:
        """Close the run; online, wait until everything is uploaded, and raise UserError after a timeout."""
        try:
            self.run.finish(exit_code=0 if status == "finished" else 1)
        except TimeoutError:
            self.timed_out = True  # kept, because a second call of run.finish returns without an error
        if self.timed_out or private.upload_refused(Path(self.run.settings.log_internal)):
            raise UserError(f"wandb could not upload everything; upload the rest with: {_sync([self.file.path])}")
        if not self.run.offline:
            private.uploaded_mark(self.file.path).touch()

    def _deliver(self, items: Collection[Row | Alert]) -> None:
        """Send items; after a failed call, to a new file: wandb's own process may be dead, and it never restarts."""
        import wandb

        if self.failed:
            wandb.teardown(1)
            self.open(*self.opened_with)
        self.failed = True
        self._store(items)
        self.failed = False

    def _store(self, items: Collection[Row | Alert]) -> None:
        for item in items:
            if item not in self.contents and _item_key(item) not in self.sent:
                self._send(item)
                self.sent.add(_item_key(item))
        deadline = time.monotonic() + DURABLE_SECONDS
        while missing := [item for item in items if item not in self.contents]:
            if time.monotonic() > deadline:
                raise UserError(f"{self.file.path}: wandb did not write {len(missing)} rows in {DURABLE_SECONDS} s")
            time.sleep(FLUSH_SECONDS / 5)
            self.contents.read(self.file)

    def _send(self, item: Row | Alert) -> None:
        if isinstance(item, Alert):
            title, text = private.alert_message(item, self.contents.run_name)
            # wandb suppresses a second alert of one title within `wait_duration`.
            self.run.alert(title, text, level=item.level.upper(), wait_duration=0.001)
        elif item.event == "finish":
            self.run.summary.update(item.metrics)
        else:
            self.run.log({"step": item.step, **item.metrics, "_timestamp": item.time})


def _init(identity: Identity, config: dict[str, Any], folder: Path, mode: str | None) -> Any:
    """The run that `wandb.init` creates or resumes; raises what `wandb.init` raises."""
    import wandb

    options = bind(TrackOptions, config)
    tags = [tag.strip() for tag in (options.tracker_tags or "").split(",")]
    try:
        return wandb.init(
            project=wandb_project(identity.project),
            entity=bind(WandbOptions, config).wandb_entity or None,
            group=_run_name(options.tracker_group) if options.tracker_group else None,
            tags=list(dict.fromkeys(plain_name(tag, r"[\x00-\x1f]", 64) for tag in tags if tag)) or None,
            name=_run_name(identity.name),
            id=identity.run_id,
            config=config,
            mode=mode,
            dir=str(folder),
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", INIT_SECONDS)),
                finish_timeout=float(os.environ.get("WANDB_FINISH_TIMEOUT", FINISH_SECONDS)),
                finish_timeout_raises=True,
                **private.settings(FLUSH_SECONDS),
            ),
        )
    except Exception:
        wandb.teardown()  # otherwise wandb refuses the next attempt, because the run is in use
        raise


def examine(config: Mapping[str, Any]) -> list[Finding]:
    """The mode, whether there is an API key, and whether the server answers within 3 seconds."""
    import requests

    mode, note = _mode(bind(WandbOptions, config), Path("<run>"))
    key, address = private.has_key(), private.server_address()
    online = mode in (None, "online")
    found = [
        Finding("mode", note or mode or "online", mode != "disabled"),
        Finding("API key", "there" if key else "none, so runs stay offline; run: wandb login", key or not online),
    ]
    if not online:
        return found
    try:
        requests.get(address, timeout=3)
    except requests.RequestException as error:
        return [*found, Finding("server", f"{address} does not answer ({type(error).__name__})", False)]
    return [*found, Finding("server", f"{address} answers", True)]


def wandb_project(name: str) -> str:
    """The name of a project at wandb, which refuses some characters."""
    return plain_name(name, r"[/\\#?%:\x00-\x1f]", 100)


def _run_name(name: str) -> str:
    """The name of a run or group at wandb."""
    return plain_name(name, r"[\x00-\x1f]", 128)


def _item_key(item: Row | Alert) -> tuple[str, int]:
    return (item.event if isinstance(item, Row) else f"alert {item.kind}", item.step)


def _mode(options: WandbOptions, folder: Path, env: Mapping[str, str] = os.environ) -> tuple[str | None, str]:
    """wandb's mode and a note about it; None leaves the mode to wandb's own settings, which default to online."""
    wanted = env.get("WANDB_MODE", "")
    if wanted:
        return wanted, _offline(folder, "by WANDB_MODE") if wanted in ("offline", "dryrun") else ""
    if options.wandb_offline:
        return "offline", _offline(folder, "as configured")
    if not private.has_key(env):
        return "offline", _offline(folder, "because there is no API key")
    return None, ""


def _offline(folder: Path, why: str) -> str:
    return f"offline {why}; upload the run with: wandb sync {folder}/wandb/offline-run-*"


def _not_uploaded(earlier: list[Path], offline: bool) -> str:
    """A note about files of earlier processes; the note of an offline run names those that were offline already."""
    unsent = [path for path in earlier if not private.uploaded_mark(path).exists()]
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
