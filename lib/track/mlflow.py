"""MLflow: a local SQLite database or a server; both ignore a value that they already hold."""

import functools
import json
import os
import posixpath
import re
import shlex
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lib.base.errors import UserError
from lib.record import journal
from lib.record.run import Identity
from lib.track import clean, mlflow_address, mlflow_database, mlflow_media
from lib.track.mlflow_address import SQLITE, MlflowOptions, address, problem, public, secret
from lib.track.mlflow_database import RUN_ID
from lib.track.tracker import (
    Alert,
    Finding,
    Media,
    Refused,
    Row,
    TrackOptions,
    bind,
    plain_name,
    within_64_bits,
)

MODULE = "mlflow"
SERVER_OPTION = "MLFLOW_TRACKING_URI"
PRIVATE = ("mlflow.telemetry.set_telemetry_client",)  # undocumented; tests/track/test_private.py guards it
STATUS = {"finished": "FINISHED", "interrupted": "KILLED"}  # else FAILED
ALERT = "alert."  # what the tags of alerts begin with
METRICS, PARAMS = 1000, 100  # MLflow's limits for one call
SECONDS = 10  # for one request to a server

__all__ = ["Tracker", "examine", "problem", "secret"]  # the registry and others look for them by name

T = TypeVar("T")


def _refusable(method: Callable[..., T]) -> Callable[..., T]:
    """The method, which raises Refused if the server answers that this user may not, UserError if it is too much."""

    @functools.wraps(method)
    def ask(self: "Tracker", *arguments: Any) -> T:
        try:
            return method(self, *arguments)
        except Exception as error:
            if _status(error) == 413:
                raise UserError(
                    f"{self.place} refuses what it gets as too large (HTTP 413); raise the limit of the server or of "
                    "the proxy before it, such as client_max_body_size of nginx"
                ) from error
            if _status(error) not in (401, 403):
                raise
            raise Refused(
                f"{self.place} refuses this user (HTTP {_status(error)}); check MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN; on Databricks, DATABRICKS_TOKEN"
            ) from error

    return ask


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

    @_refusable
    def open(self, identity: Identity, config: dict[str, Any], folder: Path) -> str:
        """Create the experiment and the run, or find existing ones."""
        if text := problem(config):
            raise Refused(text)
        options, runs = bind(MlflowOptions, config), folder.resolve().parent
        notes = list(mlflow_address.notes(options))  # before _without_password changes variables
        uri = address(options, runs)
        self.place, self.last = mlflow_address.place(uri, runs), None
        _set_environment()
        from mlflow import MlflowClient

        uri = _without_password(uri)
        if uri.startswith(SQLITE):
            mlflow_database.make(mlflow_address.database(uri))
        elif mlflow_address.is_databricks(uri):
            _databricks(uri)
        self.client = MlflowClient(uri)
        experiment = self._experiment(options, identity.project, mlflow_address.artifacts(uri, runs))
        self.name, number = experiment.name, experiment.experiment_id
        if uri.startswith(SQLITE):
            notes.append(mlflow_database.correct(mlflow_address.database(uri), number, identity.run_id))
        found = self.client.search_runs([number], f"tags.`{RUN_ID}` = '{identity.run_id}'", max_results=1)
        self.had = bool(found) and _has_content(found[0])
        if found:
            run = found[0]
            self.client.update_run(run.info.run_id, status="RUNNING")
        else:
            began = next(journal.read(folder))["time"]
            tags = {**_tags(bind(TrackOptions, config)), RUN_ID: identity.run_id}
            name = plain_name(identity.name, r"[\x00-\x1f]+", 250)
            run = self.client.create_run(number, int(began * 1000), tags, name)
        self.run_id = run.info.run_id
        if mlflow_address.is_database(uri):
            mlflow_database.tidy(run.info.artifact_uri)
        self._store(config, run.data.params)
        return "; ".join(filter(None, [*notes, self._where(uri, number)]))

    def destination(self) -> str:
        """The tracking URI and the experiment."""
        return f"{self.place}, experiment {self.name}"

    def holds(self) -> bool:
        """Whether MLflow had something of the run, which is found by a tag."""
        return self.had

    @_refusable
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

    @_refusable
    def alert(self, alerts: list[Alert]) -> None:
        """Store alerts as tags, because MLflow has no notifications."""
        for alert in alerts:
            name = _mlflow_name(f"{ALERT}{alert.kind}.{alert.step}")
            self.client.set_tag(self.run_id, name, clean.text(f"{alert.level}: {alert.message}"))

    @_refusable
    def media(self, items: list[Media]) -> None:
        """Store files as artifacts; each has a place of its own, where a second delivery replaces it."""
        mlflow_media.store(self.client, self.run_id, items)

    @_refusable
    def finish(self, status: str) -> None:
        """Set the run's status, and its end to the time of its last row."""
        self.client.set_terminated(self.run_id, STATUS.get(status, "FAILED"), self.last)

    def _where(self, uri: str, experiment: str) -> str:
        if mlflow_address.is_server(uri):
            return f"see {public(uri).rstrip('/')}/#/experiments/{experiment}/runs/{self.run_id}"
        if mlflow_address.is_database(uri):
            return f"look at it with: mlflow server --backend-store-uri {shlex.quote(public(uri))} (package mlflow)"
        return f"see the experiment {self.name} at {self.place}"

    def _experiment(self, options: MlflowOptions, project: str, artifacts: str | None) -> Any:
        if number := mlflow_address.experiment_id(options):
            found = self.client.get_experiment(number)
        else:
            name = mlflow_address.experiment(options, project)
            found = self.client.get_experiment_by_name(name)
            found = found or self.client.get_experiment(self.client.create_experiment(name, artifacts))
        if found.lifecycle_stage != "active":
            raise UserError(
                f"MLflow's experiment {found.name!r} was deleted; restore it with `mlflow experiments restore "
                f"-x {found.experiment_id}`, or choose another TRACKER_PROJECT"
            )
        return found

    def _store(self, config: dict[str, Any], stored: dict[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        texts = {_mlflow_name(name): _parameter_text(value)[:6000] for name, value in config.items()}
        for some in _parts([Param(*item) for item in texts.items() if item[0] not in stored], PARAMS):
            self.client.log_batch(self.run_id, params=some)
        changed = {name: text for name, text in texts.items() if stored.get(name, text) != text}
        for some in _parts([RunTag(_mlflow_name(f"resumed.{name}"), text) for name, text in changed.items()], PARAMS):
            self.client.log_batch(self.run_id, tags=some)


def examine(config: dict[str, Any]) -> list[Finding]:
    """The tracking URI, and whether the server answers or the database is writable; whether credentials are set."""
    options = bind(MlflowOptions, config)
    uri = address(options, Path(options.output_dir))
    findings = [Finding("tracking URI", public(uri), True)]
    findings += [Finding("variables", note, True) for note in mlflow_address.notes(options)]
    if mlflow_address.is_server(uri):
        keys = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME")
        here = [name for name in keys if os.environ.get(name)] or ["none in the environment"]
        return [*findings, Finding("credentials", ", ".join(here), True), _reach(uri)]
    if mlflow_address.is_databricks(uri):
        try:
            findings.append(Finding("credentials", _databricks(uri), True))
        except Refused as error:
            findings.append(Finding("credentials", str(error), False))
    if uri.startswith(SQLITE):
        findings.append(_look(mlflow_address.database(uri)))
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
    """Turn off MLflow's retries and telemetry: the lane retries, and a repeated `create` may create a second run.

    Also turn off what makes calls return early.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(SECONDS))
    os.environ.setdefault("MLFLOW_DATABRICKS_ENDPOINT_HTTP_RETRY_TIMEOUT", str(SECONDS))
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ["MLFLOW_ENABLE_ASYNC_LOGGING"] = "false"  # `log` returns when its rows are stored
    from mlflow.telemetry import set_telemetry_client

    set_telemetry_client()  # again, because the import called it before these variables were set


def _databricks(uri: str) -> str:
    """How Databricks knows this user; raises Refused if no credentials are found. Limits its requests to seconds."""
    from databricks.sdk.core import Config

    profile = uri.partition("://")[2]
    if ":" in profile:  # a scope and a prefix: MLflow itself reads such secrets, inside of Databricks
        return profile
    try:
        found = Config(http_timeout_seconds=3, retry_timeout_seconds=3, profile=profile or None)
    except ValueError as error:
        raise Refused(
            f"Databricks finds no credentials; set DATABRICKS_HOST and DATABRICKS_TOKEN, or run `databricks auth "
            f"login`: {' '.join(str(error).split())[:200]}"
        ) from None
    return f"{found.auth_type} for {found.host}"


def _status(error: Exception) -> int | None:
    """The HTTP status in an exception of MLflow, or of requests, with which MLflow uploads artifacts."""
    if hasattr(error, "get_http_status_code"):
        return error.get_http_status_code()
    return getattr(getattr(error, "response", None), "status_code", None)


def _without_password(uri: str) -> str:
    """Move credentials from the server's address to MLflow's variables, which MLflow never prints."""
    parts = urllib.parse.urlsplit(uri)
    if not mlflow_address.is_server(uri) or parts.password is None:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = urllib.parse.unquote(parts.username or "")
    os.environ["MLFLOW_TRACKING_PASSWORD"] = urllib.parse.unquote(parts.password)
    return public(uri)


def _has_content(run: Any) -> bool:
    """Whether a run has metrics, alerts or media; a killed process may have made it a moment ago."""
    return bool(run.data.metrics) or any(name.startswith((ALERT, mlflow_media.STORED)) for name in run.data.tags)


def _tags(options: TrackOptions) -> dict[str, str]:
    words = [word.strip() for word in (options.tracker_tags or "").split(",")]
    group = {"group": clean.text(options.tracker_group)} if options.tracker_group else {}
    return {_mlflow_name(word): "true" for word in words if word} | group


def _mlflow_name(name: str) -> str:
    """A name that MLflow accepts: letters, digits, `_-.: ` and `/`; and as a path, no `..` or `//`."""
    fits = re.fullmatch(r"[\w\-.: /]+", name) and posixpath.normpath(name) == name and not name.startswith(("/", ".."))
    return plain_name(name, r"(?!)" if fits and name != "." else r"[^\w\-: ]+", 250)


def _parameter_text(value: Any) -> str:
    return clean.text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
