"""MLflow's local SQLite database and the artifacts beside it: after a kill, and after they were moved."""

import contextlib
import sqlite3
from pathlib import Path

from lib.base.files import locks, partial
from lib.track.mlflow_address import FILES, SQLITE

PRIVATE = ("mlflow.store.artifact.local_artifact_repo._TEMP_ARTIFACT_PREFIX",)
SECONDS = 10  # to wait for another process that writes


def make(path: Path) -> None:
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


def correct(path: Path, before: str) -> None:
    """Correct where a moved database says that the files beside it are, because MLflow stores absolute paths.

    `before` is what it says. A folder that is there, or that has another name than we give, is left alone.
    """
    now = str(path.parent / FILES)
    if before == now or Path(before).name != FILES or Path(before).exists():
        return
    with contextlib.closing(sqlite3.connect(path, timeout=SECONDS)) as database, database:
        database.execute("update experiments set artifact_location = ? where artifact_location = ?", (now, before))
        database.execute(
            "update runs set artifact_uri = ? || substr(artifact_uri, ?) where substr(artifact_uri, 1, ?) = ?",
            (now, len(before) + 1, len(before) + 1, f"{before}/"),
        )


def tidy(folder: str) -> None:
    """Remove the incomplete files that a killed process left in a run's folder of artifacts, if that is a local one."""
    from mlflow.store.artifact.local_artifact_repo import _TEMP_ARTIFACT_PREFIX

    if folder.startswith("/"):
        for left in Path(folder).rglob(f"{_TEMP_ARTIFACT_PREFIX}*"):
            left.unlink()
