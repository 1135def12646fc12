"""Where MLflow keeps a run: the tracking URI and the experiment, from our options and MLflow's own variables."""

import dataclasses
import os
import re
import sys
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from lib.base import files
from lib.config.kconf import Options
from lib.track.registry import requirements
from lib.track.tracker import bind, plain_name

SQLITE = "sqlite:///"  # with a path and perhaps a query after it
FILES = "mlartifacts"  # the folder of artifacts, beside a database
DATABASES = ("postgresql", "mysql", "mssql")
# What MLflow, or the driver of a database, sends to any server.
SECRETS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_AUTH", "PGPASSWORD", "MYSQL_PWD")
STORES = "mlflow.tracking_store"  # the entry points of packages that add schemes
WORKS = "sqlite:///path/to/mlflow.db, http://, https://, postgresql://, mysql://, mssql:// or databricks"


@dataclasses.dataclass(frozen=True)
class MlflowOptions(Options):
    """Where MLflow keeps runs."""

    mlflow_tracking_uri: str  # empty: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the folder of runs
    output_dir: str
    tracker_project: str  # empty: $MLFLOW_EXPERIMENT_NAME, else the experiment $MLFLOW_EXPERIMENT_ID


def address(options: MlflowOptions, runs: Path) -> str:
    """The tracking URI: the option, else MLFLOW_TRACKING_URI, else sqlite:///mlflow.db.

    A relative path of a database starts from `runs`, the folder of runs, and not from the current folder.
    """
    uri = _wanted(options)
    if not uri.startswith(SQLITE):
        return uri
    path, mark, query = uri.removeprefix(SQLITE).partition("?")
    return f"{SQLITE}{runs.resolve() / files.named(path)}{mark}{query}"


def database(uri: str) -> Path:
    """The file of a SQLite database."""
    return Path(uri.removeprefix(SQLITE).partition("?")[0])


def artifacts(uri: str, runs: Path) -> str | None:
    """Where a new experiment keeps files: beside its database; None with a server, which decides by itself."""
    if not is_database(uri):
        return None
    return str((database(uri).parent if uri.startswith(SQLITE) else runs.resolve()) / FILES)


def is_database(uri: str) -> bool:
    """Whether this process writes into a database, without a server in between."""
    return uri.startswith(SQLITE) or _kind(uri) in DATABASES


def is_server(uri: str) -> bool:
    """Whether the URI is the address of an MLflow server."""
    return _kind(uri) in ("http", "https")


def is_databricks(uri: str) -> bool:
    """Whether the URI is `databricks` or `databricks://<profile>`."""
    return "databricks" in (uri, _kind(uri))


def public(uri: str) -> str:
    """A URI without user name and password; in the URI of a database, a password may contain any character."""
    credentials = "[^/]*@" if is_server(uri) else "[^/].*@"
    return re.sub(f"^([^/]*//){credentials}", r"\1", uri)


def place(uri: str, runs: Path) -> str:
    """The URI without secrets and parameters.

    A database in the folder of runs is given relative to it, so that both can be moved together.
    """
    if uri.startswith(SQLITE):
        path, runs = database(uri).resolve(), runs.resolve()
        return f"{SQLITE}{path.relative_to(runs) if path.is_relative_to(runs) else path}"
    if is_databricks(uri):
        where = os.environ.get("DATABRICKS_HOST") or os.environ.get("DATABRICKS_CONFIG_PROFILE")
        return f"{uri} ({where})" if where else uri
    return public(uri).partition("?")[0].rstrip("/")


def experiment(options: MlflowOptions, project: str) -> str:
    """The name of the experiment: the option, else MLFLOW_EXPERIMENT_NAME, else the run's project."""
    wanted = options.tracker_project or os.environ.get("MLFLOW_EXPERIMENT_NAME") or project
    return plain_name(wanted, r"[\x00-\x1f]+", 250)


def experiment_id(options: MlflowOptions) -> str:
    """The experiment MLFLOW_EXPERIMENT_ID, or "" where a name is given."""
    named = options.tracker_project or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    return "" if named else os.environ.get("MLFLOW_EXPERIMENT_ID", "")


def notes(options: MlflowOptions) -> Iterator[str]:
    """Sentences about variables of MLflow that are set and not used, and what is used instead."""
    ours, theirs = options.mlflow_tracking_uri, os.environ.get("MLFLOW_TRACKING_URI")
    if ours and theirs and ours != theirs:
        yield f"the option MLFLOW_TRACKING_URI={public(ours)} wins over the variable, which is {public(theirs)}"
    uri = _wanted(options)
    given = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if given and is_server(uri) and public(uri) != uri and unquote(urlsplit(uri).username or "") != given:
        yield "the user and the password in MLFLOW_TRACKING_URI win over MLFLOW_TRACKING_USERNAME and its password"
    project, name = options.tracker_project, os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if project and name and project != name:
        yield f"TRACKER_PROJECT={project} wins over MLFLOW_EXPERIMENT_NAME={name}"
    if (project or name) and (number := os.environ.get("MLFLOW_EXPERIMENT_ID")):
        winner = f"TRACKER_PROJECT={project}" if project else f"MLFLOW_EXPERIMENT_NAME={name}"
        yield f"{winner} wins over MLFLOW_EXPERIMENT_ID={number}"
    if number := os.environ.get("MLFLOW_RUN_ID"):
        yield f"MLFLOW_RUN_ID={number} is not used, because MLflow finds a run of Espalier by its own id"


def secret(config: dict[str, Any]) -> str:
    """The variables or the file with credentials that MLflow sends to any server; "" if there are none.

    A URI that has a user and a password is used with these; if one is empty, MLflow sends its token. A profile of
    Databricks names its own server.
    """
    uri = _wanted(bind(MlflowOptions, config))
    if uri.startswith(SQLITE) or is_databricks(uri) or re.match("[^/]*//[^/?#@:]+:[^/?#]+@", uri):
        return ""
    stored = Path.home() / ".mlflow" / "credentials"
    found = [name for name in SECRETS if os.environ.get(name)] + ([str(stored)] if stored.exists() else [])
    return " and ".join(found)


def problem(config: dict[str, Any]) -> str:
    """Why MLflow cannot keep a run there, and what to do, in one sentence; "" if nothing speaks against it."""
    options = bind(MlflowOptions, config)
    uri = _wanted(options)
    what, kind = f"MLFLOW_TRACKING_URI={public(uri)}", _kind(uri)
    if is_server(uri):
        return "" if re.match("[^/]*//[^/]", public(uri)) else f"{what} names no server; write http://host:port"
    if is_databricks(uri):
        return _lacks_for_databricks(what, options)
    if kind == "sqlite" and not (uri.startswith(SQLITE) and database(uri).name):
        return f"{what} is not understood; write {SQLITE}path/to/mlflow.db"
    if is_database(uri):
        return _lacks_for_database(what, uri)
    if re.match(r"[\w.-]+:\d+(/|$)", uri):
        return f"{what} has no scheme; write http://{uri}"
    if {"uc", "databricks-uc"} & {uri, kind}:
        return f"{what} is a registry of models and keeps no runs; write databricks"
    if kind in ("", "file"):
        path = Path(re.sub("^file:(//)?", "", uri))
        path = path if path.suffix == ".db" else path / "mlflow.db"
        return f"{what} names a folder, where MLflow no longer keeps runs; write {SQLITE}{path}"
    if metadata.entry_points(group=STORES, name=kind):
        return ""
    return f"{what} has the scheme {kind}, which MLflow does not know; use {WORKS}"


def _wanted(options: MlflowOptions) -> str:
    return options.mlflow_tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"


def _kind(uri: str) -> str:
    """The scheme in lower case, without the driver that a database's URI may name after a plus sign."""
    found = re.match(r"([a-z][a-z\d.-]*)(\+[^:/]*)?:", uri, re.IGNORECASE)
    return found[1].lower() if found else ""


def _lacks_for_databricks(what: str, options: MlflowOptions) -> str:
    if not (util.find_spec("databricks") and util.find_spec("databricks.sdk")):
        return f"{what} needs the package databricks-sdk; run: {sys.executable} -m pip install databricks-sdk"
    if experiment_id(options) or experiment(options, "").startswith("/"):
        return ""
    return (
        f"{what} needs an experiment that is an absolute path of the workspace; set TRACKER_PROJECT or "
        "MLFLOW_EXPERIMENT_NAME to one such as /Users/you@example.com/gpt2"
    )


def _lacks_for_database(what: str, uri: str) -> str:
    if lacking := [name for name in ("sqlalchemy", "alembic") if not util.find_spec(name)]:
        packages = " ".join(requirements("mlflow", "mlflow"))
        return f"{what} needs {' and '.join(lacking)}; run: {sys.executable} -m pip install {packages}"
    if uri.startswith(SQLITE):  # its driver is Python's own
        return ""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        make_url(uri).get_dialect().import_dbapi()
    except ArgumentError:
        return f"{what} is not understood; write it as {_kind(uri)}://user:password@host/database"
    except ModuleNotFoundError as error:
        return f"{what} needs the driver {error.name}; install it, or name another one as in {_kind(uri)}+driver://"
    return ""
