"""Trackio: a local dashboard over one SQLite database per project; rows are inserted with ids, so none comes twice."""

import hashlib
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lib.run import Identity
from lib.track.tracker import Row, TrackOptions

PACKAGE = "trackio"


class Tracker:
    """Writes straight into Trackio's storage instead of `trackio.log`.

    `trackio.log` stamps rows with the time they are flushed, loses half a second of them when killed, turns errors into
    warnings, and knows a run by its name alone; `bulk_log` takes our times, run id and row ids, and raises.
    """

    def open(self, identity: Identity, config: dict[str, Any], folder: Path, options: TrackOptions) -> str:
        """Create the project's database, or raise what keeps it from being created."""
        from trackio import utils
        from trackio.sqlite_storage import SQLiteStorage

        self.identity, self.config, self.project = identity, config, project(identity.project)
        self.fragments = utils.get_storage_mode() == "jsonl"  # Trackio's way on network file systems, unsafe for SQLite
        if not self.fragments:
            SQLiteStorage.init_db(self.project)
        return "" if self.project == identity.project else f"the project is called {self.project} there"

    def log(self, rows: list[Row]) -> None:
        """Insert rows in one transaction; a row whose id is in the database is left alone."""
        ids = [f"{self.identity.run_id}-{row.event}-{row.step}" for row in rows]
        times = [datetime.fromtimestamp(row.time, UTC).isoformat() for row in rows]
        (self._insert_fragments if self.fragments else self._insert)(rows, ids, times)
        self.config = None  # stored with the first rows

    def finish(self, status: str) -> None:
        """Trackio has no notion of a run's end."""

    def _insert(self, rows: list[Row], ids: list[str], times: list[str]) -> None:
        from trackio.sqlite_storage import SQLiteStorage

        SQLiteStorage.bulk_log(
            project=self.project,
            run=self.identity.name,
            run_id=self.identity.run_id,
            metrics_list=[row.metrics for row in rows],
            steps=[row.step for row in rows],
            timestamps=times,
            config=self.config,
            log_ids=ids,
        )

    def _insert_fragments(self, rows: list[Row], ids: list[str], times: list[str]) -> None:
        """Leave the rows in Trackio's inbox, which its dashboard imports by row id."""
        from trackio.fragments import FragmentWriter, metric_record

        common = {"project": self.project, "run": self.identity.name, "run_id": self.identity.run_id}
        records = [
            metric_record({**common, "metrics": row.metrics, "step": row.step, "timestamp": moment, "log_id": row_id})
            for row, row_id, moment in zip(rows, ids, times, strict=True)
        ]
        if self.config:
            records[0]["config"] = self.config
        FragmentWriter().write_local(records)


def project(name: str) -> str:
    """The name of a project in Trackio, which drops other characters than letters, digits, `-` and `_`.

    Names that differ only in those, or that it reserves (`registry-...`, `..._system`), carry eight digits of a hash.
    """
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name)
    if plain == name and 0 < len(plain) <= 100 and not _reserved(plain):
        return name
    return (
        f"{plain.removeprefix('registry-').strip('-')[:90] or 'project'}-{hashlib.md5(name.encode()).hexdigest()[:8]}"
    )


def _reserved(name: str) -> bool:
    from trackio.sqlite_storage import SQLiteStorage

    try:
        SQLiteStorage.validate_project_name(name)
    except ValueError:
        return True
    return False


def storage() -> Path:
    """The folder of Trackio's databases: $TRACKIO_DIR, or one in Hugging Face's cache."""
    from trackio.utils import TRACKIO_DIR

    return Path(TRACKIO_DIR)


def has_data(name: str) -> bool:
    """Whether Trackio's storage holds anything of a project (a name as `project` returns it), imported or not."""
    from trackio.sqlite_storage import SQLiteStorage

    return SQLiteStorage.get_project_db_path(name).exists() or any((storage() / "inbox").glob("*/*.jsonl"))
