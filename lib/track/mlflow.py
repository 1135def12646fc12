"""MLflow: a local SQLite database or a server; both ignore a value that they already hold."""

import dataclasses
import json
import os
import posixpath
import re
import shlex
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from importlib import util
from pathlib import Path
from typing import Any, TypeVar

from lib.base import files
from lib.base.errors import UserError
from lib.base.files import locks, partial
from lib.config.kconf import Options
from lib.record import journal
from lib.record.run import Identity
from lib.track.tracker import Alert, Finding, Row, TrackOptions, bind, plain_name, within_64_bits

MODULE = "mlflow"
PRIVATE = ("mlflow.telemetry.set_telemetry_client",)  # undocumented; tests/track/test_private.py guards it
RUN_ID = "espalier.run_id"  # the tag that stores our run id, because MLflow assigns its own
STATUS = {"finished": "FINISHED", "interrupted": "KILLED"}  # else FAILED
METRICS, PARAMS = 1000, 100  # MLflow's limits for one call
SQLITE = "sqlite:///"  # with a path and perhaps a query after it
SECONDS = 10  # for one request to a server

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class MlflowOptions(Options):
    """Where MLflow keeps runs."""

    mlflow_tracking_uri: str  # empty: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the folder of runs
    output_dir: str


class Tracker:
    """Logs with MlflowClient, because `mlflow.start_run` uses global state of the process.

    Rows may be delivered twice. MLflow identifies a value by run, name, step, milliseconds and value, and ignores one
    that it already has. So `open` reads no values. In SQLite a repeated value costs 1.2 ms, a new one 0.2 ms. Rows of
    different events stay separate as long as their metrics differ in name, time or value.

    Values are 64-bit floats: NaN is kept, MLflow turns infinities into ±1.797e308, and integers beyond 2^53 are
    rounded. Times are in milliseconds, `_mlflow_name` replaces characters that MLflow does not allow in names, and
    parameters are cut after 6000 characters. MLflow's parameters are immutable: if a resume changes an option, the tag
    `resumed.<option>` has the new value.
    """

    def open(self, identity: Identity, config: dict[str, Any], folder: Path) -> str:
        """Create the experiment and the run, or find existing ones."""
        _set_environment()
        from mlflow import MlflowClient

        uri = _without_password(address(bind(MlflowOptions, config), folder.resolve().parent))
        if uri.startswith(SQLITE):
            _make_database(_file(uri))
        self.client, self.last = MlflowClient(uri), None
        experiment = self._experiment(plain_name(identity.project, r"[\x00-\x1f]+", 250))
        if found := self.client.search_runs([experiment], f"tags.`{RUN_ID}` = '{identity.run_id}'", max_results=1):
            run = found[0]
            self.client.update_run(run.info.run_id, status="RUNNING")
        else:
            began = next(journal.read(folder))["time"]
            tags = {**_tags(bind(TrackOptions, config)), RUN_ID: identity.run_id}
            name = plain_name(identity.name, r"[\x00-\x1f]+", 250)
            run = self.client.create_run(experiment, int(began * 1000), tags, name)
        self.run_id = run.info.run_id
        self._store(config, run.data.params)
        if not uri.startswith("http"):
            return f"look at it with: mlflow server --backend-store-uri {shlex.quote(public(uri))} (package mlflow)"
        return f"see {public(uri).rstrip('/')}/#/experiments/{experiment}/runs/{self.run_id}"

    def log(self, rows: list[Row]) -> None:
        """Insert values, at most 1000 per transaction; existing values are ignored."""
        from mlflow.entities import Metric

        metrics = [
            Metric(_mlflow_name(name), float(value), int(row.time * 1000), row.step)
            for row in rows
            for name, value in within_64_bits(row.metrics).items()
        ]
        for some in _parts(metrics, METRICS):
            self.client.log_batch(self.run_id, metrics=some)
        self.last = int(rows[-1].time * 1000)

    def alert(self, alerts: list[Alert]) -> None:
        """Store alerts as tags, because MLflow has no notifications."""
        for alert in alerts:
            name = _mlflow_name(f"alert.{alert.kind}.{alert.step}")
            self.client.set_tag(self.run_id, name, f"{alert.level}: {alert.message}")

    def finish(self, status: str) -> None:
        """Set the run's status, and its end to the time of its last row."""
        self.client.set_terminated(self.run_id, STATUS.get(status, "FAILED"), self.last)

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            return self.client.create_experiment(name)
        if found.lifecycle_stage != "active":
            raise UserError(
                f"MLflow's experiment {name!r} was deleted; restore it with `mlflow experiments restore "
                f"-x {found.experiment_id}`, or choose another TRACKER_PROJECT"
            )
        return found.experiment_id

    def _store(self, config: dict[str, Any], stored: dict[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        texts = {_mlflow_name(name): _parameter_text(value)[:6000] for name, value in config.items()}
        for some in _parts([Param(*item) for item in texts.items() if item[0] not in stored], PARAMS):
            self.client.log_batch(self.run_id, params=some)
        changed = {name: text for name, text in texts.items() if stored.get(name, text) != text}
        for some in _parts([RunTag(_mlflow_name(f"resumed.{name}"), text) for name, text in changed.items()], PARAMS):
            self.client.log_batch(self.run_id, tags=some)


def address(options: MlflowOptions, runs: Path) -> str:
    """The tracking URI: the option, else MLFLOW_TRACKING_URI, else sqlite:///mlflow.db.

    A relative path of a database starts from `runs`, the folder of runs, and not from the current folder.
    """
    uri = options.mlflow_tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    if not uri.startswith(SQLITE):
        return uri
    path, mark, query = uri.removeprefix(SQLITE).partition("?")
    return f"{SQLITE}{runs.resolve() / files.named(path)}{mark}{query}"


def public(uri: str) -> str:
    """A URI without user name and password; in the URI of a database, a password may contain any character."""
    credentials = "[^/]*@" if uri.startswith("http") else "[^/].*@"
    return re.sub(f"^([^/]*//){credentials}", r"\1", uri)


def examine(config: dict[str, Any]) -> list[Finding]:
    """The tracking URI, and whether the server answers or the database is writable; whether credentials are set."""
    options = bind(MlflowOptions, config)
    uri = address(options, Path(options.output_dir))
    findings = [Finding("tracking URI", public(uri), True)]
    if uri.startswith("http"):
        keys = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME")
        here = [name for name in keys if os.environ.get(name)] or ["none in the environment"]
        return [*findings, Finding("credentials", ", ".join(here), True), _reach(uri)]
    if uri.startswith(SQLITE):
        lacking = [name for name in ("sqlalchemy", "alembic") if not util.find_spec(name)]
        findings.append(Finding("packages of the local database", ", ".join(lacking) or "installed", not lacking))
        findings.append(_look(_file(uri)))
    return findings


def _look(path: Path) -> Finding:
    there = next(one for one in (path, *path.parents) if one.exists())
    writable = os.access(there, os.W_OK) and (path.is_file() or there.is_dir())
    size = f"{path.stat().st_size / 1e6:,.1f} MB" if path.is_file() else "will be created"
    return Finding("database", f"{path}: {size if writable else f'{there} cannot be written'}", writable)


def _reach(uri: str) -> Finding:
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=3) as answer:
            return Finding("server", f"answers ({answer.status})", True)
    except (OSError, ValueError) as error:
        return Finding("server", f"{public(uri)} does not answer within 3 s: {error}", False)


def _set_environment() -> None:
    """Turn off MLflow's retries and telemetry: the lane retries, and a repeated `create` may create a second run."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(SECONDS))
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.telemetry import set_telemetry_client

    set_telemetry_client()  # again, because the import called it before these variables were set


def _file(uri: str) -> Path:
    return Path(uri.removeprefix(SQLITE).partition("?")[0])


def _make_database(path: Path) -> None:
    """Create the database under another name, then rename it: a kill or a second process would leave a broken file."""
    from mlflow import MlflowClient

    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(path.name + ".lock")  # a file, because NFS cannot lock folders
    with lock.open("w") as file:
        locks(file.fileno(), lock, wait=True)
        if not path.exists():
            partial(path).unlink(missing_ok=True)
            MlflowClient(f"{SQLITE}{partial(path)}").search_experiments(max_results=1)
            partial(path).replace(path)
        lock.unlink(missing_ok=True)  # a process that creates a new lock file finds the database


def _without_password(uri: str) -> str:
    """Move credentials from the server's address to MLflow's variables, which MLflow never prints."""
    parts = urllib.parse.urlsplit(uri)
    if not uri.startswith("http") or parts.password is None:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = urllib.parse.unquote(parts.username or "")
    os.environ["MLFLOW_TRACKING_PASSWORD"] = urllib.parse.unquote(parts.password)
    return public(uri)


def _tags(options: TrackOptions) -> dict[str, str]:
    words = [word.strip() for word in (options.tracker_tags or "").split(",")]
    group = {"group": options.tracker_group} if options.tracker_group else {}
    return {_mlflow_name(word): "true" for word in words if word} | group


def _mlflow_name(name: str) -> str:
    """A name that MLflow accepts: letters, digits, `_-.: ` and `/`; and as a path, no `..` or `//`."""
    fits = re.fullmatch(r"[\w\-.: /]+", name) and posixpath.normpath(name) == name and not name.startswith(("/", ".."))
    return plain_name(name, r"(?!)" if fits and name != "." else r"[^\w\-: ]+", 250)


def _parameter_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
