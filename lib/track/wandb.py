"""Weights & Biases: rows go through wandb's own files in the run's folder, which tell what is already delivered."""

import dataclasses
import json
import math
import os
import shlex
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lib.base.errors import UserError
from lib.config.kconf import Options
from lib.record.run import Identity
from lib.track.tracker import Alert, Finding, Row, TrackOptions, bind, plain_name, within_64_bits
from lib.track.wandb_log import TransactionLog

MODULE = "wandb"
INIT_SECONDS = 15  # for wandb.init to reach the server, unless $WANDB_INIT_TIMEOUT says otherwise
FINISH_SECONDS = 120  # for run.finish to upload the rest, unless $WANDB_FINISH_TIMEOUT says otherwise
FLUSH_SECONDS = 0.5  # how often wandb writes its file; its default, 15 s, is what a kill would lose
DURABLE_SECONDS = 30  # a batch that is not in the file after this long has failed
QUIET_SECONDS = 2  # after the death of an earlier process, its wandb-core may write for a moment


@dataclasses.dataclass(frozen=True)
class WandbOptions(Options):
    """Where the run goes at Weights & Biases."""

    wandb_offline: bool
    wandb_entity: str  # empty: wandb's own default


class Tracker:
    """Logs rows and waits until they are in the run's .wandb file.

    wandb cannot be asked whether a row has arrived, and drops steps that go back. So rows carry their step as a metric
    of its own, and the .wandb files of the run, this process's and earlier ones', are read to see what they hold; only
    what is missing is logged. `wandb leet inspect` reads them too, but takes half a second and the whole file per look.

    What is in the file is safe, not yet uploaded: online, wandb uploads it, at most 15 s later. What a killed process
    left, or one that lost the network, goes up with `wandb sync`. A file that went up whole has the mark of `wandb
    sync` beside it; of others the next process says so. When the server cannot be reached at the start, the run is kept
    offline.

    NaN, infinities and 64-bit integers arrive; wandb's JSON rounds whole numbers beyond that to floats. Rows of the
    event `system` are rows like others, with their step, so wandb's own sampling of the machine is off. Alerts have
    neither step nor time at wandb: the step is in their text. A metric with a name of wandb's or ours, such as `step`,
    gets a `metric/` before it.
    """

    def open(self, identity: Identity, config: dict[str, Any], folder: Path) -> str:
        """Start a segment of the run: with an API key on the server, else in <folder>/wandb."""
        from wandb.errors import AuthenticationError, CommError

        self.begun, self.stuck = (identity, config, folder), False
        mode, note = _mode(bind(WandbOptions, config), folder)
        self.contents, self.sent, self.late = Contents(_short(identity.name)), set(), False
        earlier = sorted((folder / "wandb").glob(f"*run-*/run-{identity.run_id}.wandb"))
        _wait_until_quiet(earlier)
        for path in earlier:
            self.contents.read(TransactionLog(path))
        try:
            self.run = _init(identity, config, folder, mode)
        except AuthenticationError:
            raise
        except CommError:
            self.run = _init(identity, config, folder, "offline")
            note = _offline(folder, "because the server cannot be reached")
        if self.run.disabled:
            raise UserError(
                "WANDB_MODE=disabled: wandb would throw the rows away; unset it, or leave wandb out of TRACKER "
                "(if it is not set, run: wandb enabled)"
            )
        file = Path(self.run.settings.sync_file)
        if folder.resolve() not in file.resolve().parents:  # wandb's silent way out of a folder that it cannot write
            raise UserError(f"{folder}: wandb cannot write to this folder and went to {file.parent}; make it writable")
        self.file = TransactionLog(file)
        self.run.define_metric("*", step_metric="step")
        self.run.define_metric("step", hidden=True)  # no chart of its own
        note = note or (_offline(folder, "by wandb's own settings") if self.run.offline else f"see {self.run.url}")
        return "; ".join(filter(None, [note, _left(earlier, self.run.offline)]))

    def log(self, rows: list[Row]) -> None:
        """Log the rows that no file of the run holds, and wait until one does; raises UserError when none ever does."""
        ends = [row for row in rows if row.event == "finish"]  # of a run that was extended: the summary keeps the last
        rows = [row for row in rows if row not in ends[:-1]]
        self._deliver([dataclasses.replace(row, metrics=_renamed(within_64_bits(row.metrics))) for row in rows])

    def alert(self, alerts: list[Alert]) -> None:
        """Send the alerts that no file of the run holds, and wait until one does, like `log`."""
        self._deliver(alerts)

    def finish(self, status: str) -> None:
        """Close the run; online, this returns when everything is uploaded, or raises UserError after a while."""
        try:
            self.run.finish(exit_code=0 if status == "finished" else 1)
        except TimeoutError:
            self.late = True  # a second call finds the run finished, and returns
        # A server that refuses rows ends the upload, too, which wandb tells its log alone.
        log = Path(self.run.settings.log_internal).read_text(encoding="utf-8", errors="replace")
        if self.late or "filestream: fatal error" in log:
            raise UserError(f"wandb could not upload everything; upload the rest with: {_sync([self.file.path])}")
        if not self.run.offline:
            _mark(self.file.path).touch()

    def _deliver(self, items: Collection[Row | Alert]) -> None:
        """Send, in a new segment if the last time failed: wandb's own process may be dead, and nothing revives it."""
        import wandb

        if self.stuck:
            wandb.teardown(1)
            self.open(*self.begun)
        self.stuck = True
        self._store(items)
        self.stuck = False

    def _store(self, items: Collection[Row | Alert]) -> None:
        for item in items:
            if item not in self.contents and _key(item) not in self.sent:
                self._send(item)
                self.sent.add(_key(item))
        deadline = time.monotonic() + DURABLE_SECONDS
        while missing := [item for item in items if item not in self.contents]:
            if time.monotonic() > deadline:
                raise UserError(f"{self.file.path}: wandb has not written {len(missing)} within {DURABLE_SECONDS} s")
            time.sleep(FLUSH_SECONDS / 5)
            self.contents.read(self.file)

    def _send(self, item: Row | Alert) -> None:
        if isinstance(item, Alert):
            title, text = _message(item, self.contents.name)
            # A wait of more than nothing would suppress the second alert of a kind within that time.
            self.run.alert(title, text, level=item.level.upper(), wait_duration=0.001)
        elif item.event == "finish":
            self.run.summary.update(item.metrics)
        else:
            self.run.log({"step": item.step, **item.metrics, "_timestamp": item.time})


def _init(identity: Identity, config: dict[str, Any], folder: Path, mode: str | None) -> Any:
    """The run that `wandb.init` makes or resumes; raises what it raises."""
    import wandb

    options = bind(TrackOptions, config)
    tags = [tag.strip() for tag in (options.tracker_tags or "").split(",")]
    try:
        return wandb.init(
            project=project(identity.project),
            entity=bind(WandbOptions, config).wandb_entity or None,
            group=_short(options.tracker_group) if options.tracker_group else None,
            tags=list(dict.fromkeys(plain_name(tag, r"[\x00-\x1f]", 64) for tag in tags if tag)) or None,
            name=_short(identity.name),
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
                x_transaction_log_flush_interval=FLUSH_SECONDS,
                x_disable_stats=True,
            ),
        )
    except Exception:
        wandb.teardown()  # or the next attempt is told that the run is in use
        raise


class Contents:
    """The rows and alerts that are in the .wandb files of a run."""

    def __init__(self, name: str):
        self.name = name  # of the run, with which the texts of alerts begin
        self.history: set[tuple[int, str]] = set()  # (step, names of the metrics)
        self.summary: dict[str, Any] = {}
        self.alerts: set[tuple[str, str]] = set()  # (title, text)

    def read(self, log: "TransactionLog") -> None:
        """Add what was written to a file since it was last read."""
        for record in log.records():
            if record.HasField("history"):
                items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
                if "step" in items:
                    self.history.add((json.loads(items["step"]), _names(items)))
            elif record.HasField("summary"):
                self.summary |= {item.key: json.loads(item.value_json) for item in record.summary.update if item.key}
            elif record.HasField("alert"):
                self.alerts.add((record.alert.title, record.alert.text))

    def __contains__(self, item: Row | Alert) -> bool:
        if isinstance(item, Alert):
            title, text = _message(item, self.name)
            return bool({(title, text), (title, text.removeprefix(f"{self.name}: "))} & self.alerts)  # as earlier code
        if item.event == "finish":
            return all(name in self.summary and _same(self.summary[name], v) for name, v in item.metrics.items())
        return (item.step, _names(item.metrics)) in self.history


def examine(config: Mapping[str, Any]) -> list[Finding]:
    """How the run would go to wandb: mode, whether there is a key, whether the server answers within 3 seconds."""
    import requests
    from wandb.sdk import wandb_setup

    mode, note = _mode(bind(WandbOptions, config), Path("<run>"))
    key, address = _has_key(os.environ), wandb_setup.singleton().settings.base_url
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


def project(name: str) -> str:
    """The name of a project at wandb, which refuses some characters."""
    return plain_name(name, r"[/\\#?%:\x00-\x1f]", 100)


def _short(name: str) -> str:
    """The name of a run or group at wandb."""
    return plain_name(name, r"[\x00-\x1f]", 128)


def _message(alert: Alert, name: str) -> tuple[str, str]:
    """Title and text of an alert of a run at wandb; together they tell it from others."""
    return plain_name(alert.kind, r"[\x00-\x1f]", 63), f"{name}: {alert.message} (step {alert.step})"


def _key(item: Row | Alert) -> tuple[str, int]:
    return (item.event if isinstance(item, Row) else f"alert {item.kind}", item.step)


def _mode(options: WandbOptions, folder: Path, env: Mapping[str, str] = os.environ) -> tuple[str | None, str]:
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


def _left(earlier: list[Path], offline: bool) -> str:
    """What to say of the files of earlier processes; an offline run's note has those that were offline."""
    unsent = [path for path in earlier if not _mark(path).exists()]
    if offline:
        unsent = [path for path in unsent if not path.parent.name.startswith("offline-")]
    return f"part of the run may not be uploaded yet; upload it with: {_sync(unsent)}" if unsent else ""


def _sync(paths: list[Path]) -> str:
    return shlex.join(["wandb", "sync", "--include-online", *(str(path.parent) for path in paths)])


def _mark(path: Path) -> Path:
    """What `wandb sync` leaves beside a .wandb file that is uploaded, and passes it over for."""
    return path.with_name(f"{path.name}.synced")


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


def _renamed(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics under names that are free in wandb: `step` is ours there, and `_step`, `_timestamp` and so on are its."""
    return {f"metric/{name}" if name == "step" or name.startswith("_") else name: v for name, v in metrics.items()}


def _names(metrics: Mapping[str, Any]) -> str:
    """Which metrics a row has: a training row and an evaluation of the same step differ in this."""
    return ",".join(sorted(name for name in metrics if name != "step" and not name.startswith("_")))


def _same(stored: Any, value: float) -> bool:
    return isinstance(stored, int | float | str) and (
        float(stored) == value or (math.isnan(float(stored)) and math.isnan(value))
    )
