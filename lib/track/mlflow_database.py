"""MLflow's local SQLite database and the artifacts beside it: after a kill, and after they were moved."""

import contextlib
import os
import re
import sqlite3
from pathlib import Path

from lib.base.files import locks, partial
from lib.track.mlflow_address import FILES, SQLITE

PRIVATE = ("mlflow.store.artifact.local_artifact_repo._TEMP_ARTIFACT_PREFIX",)
SECONDS = 10  # to wait for another process that writes
RUN_ID = "espalier.run_id"  # the tag that stores our run id, because MLflow assigns its own
_LOCAL = "^(file:(//)?)?/"  # what a path begins with; all other places are addresses
_EXPERIMENTS = """
    select experiment_id, artifact_location from experiments where artifact_location is not null and (experiment_id = ?
    or experiment_id in (select experiment_id from runs join tags using (run_uuid) where key = ?))
"""
# The runs whose files are elsewhere, with our run id or null.
_RUNS = """
    select runs.run_uuid, artifact_uri, value from runs left join tags on tags.run_uuid = runs.run_uuid and key = ?
    where artifact_uri != ? || runs.run_uuid || '/artifacts'
"""


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


def correct(path: Path, experiment: str, run_id: str) -> str:
    """Correct where files of our runs are, because MLflow stores absolute paths; returns a note about earlier files.

    Files belong beside the database. Its paths differ in a copy, after a move, or if it was made without a place for
    files: MLflow then takes `mlruns` in the current folder. A place of any other name was chosen by the user and stays.
    `experiment` is the number of the experiment of the run with our id `run_id`.
    """
    now, note = path.parent / FILES, ""
    with contextlib.closing(sqlite3.connect(path, timeout=SECONDS)) as database, database:
        for number, place in database.execute(_EXPERIMENTS, (experiment, RUN_ID)).fetchall():
            if place != str(now) and _is_default(place):
                new = (str(now), number)
                database.execute("update experiments set artifact_location = ? where experiment_id = ?", new)
        for number, place, ours in database.execute(_RUNS, (RUN_ID, f"{now}/")).fetchall():
            before, new = Path(re.sub(_LOCAL, "/", place)), now / number / "artifacts"
            here = new.is_dir()  # then the database was copied or moved with the files, also those of other users
            left = os.access(before, os.R_OK) and not here  # a note tells it of the run at hand only
            if not _is_default(str(before.parent.parent)) or not (here or ours == run_id or (ours and not left)):
                continue
            database.execute("update runs set artifact_uri = ? where run_uuid = ?", (str(new), number))
            if left:
                note = f"files that the run stored before stay in {before}, and new ones are in {new}"
    return note


def _is_default(place: str) -> bool:
    """Whether a place of files is one that we or MLflow choose: `mlartifacts`, or `mlruns/<number>`."""
    path = Path(place)
    return bool(re.match(_LOCAL, place)) and (path.name == FILES or path.parent.name == "mlruns")


def tidy(folder: str) -> None:
    """Remove the incomplete files that a killed process left in a run's folder of artifacts, if that is a local one."""
    from mlflow.store.artifact.local_artifact_repo import _TEMP_ARTIFACT_PREFIX

    if folder.startswith("/"):
        for left in Path(folder).rglob(f"{_TEMP_ARTIFACT_PREFIX}*"):
            left.unlink()
