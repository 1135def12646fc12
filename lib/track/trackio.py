"""Trackio: a local dashboard with one SQLite database per project; rows have ids, so none is stored twice."""

import dataclasses
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lib.config.kconf import Options
from lib.record.run import Identity, project_name
from lib.track.cursor import path_of
from lib.track.tracker import Alert, Finding, Row, TrackOptions, bind, plain_name, within_64_bits

MODULE = "trackio"
# Trackio sorts charts by name, and these before them where the process that serves the dashboard has PLOT_ORDER.
PLOT_ORDER = "TRACKIO_PLOT_ORDER"
FIRST = (
    "val_loss,train_loss,sparsity,learning_rate,grad_norm,tokens_per_second,val_perplexity,average_nonzeros,mfu,tokens"
)

Record = dict[str, Any]  # what Trackio calls a fragment: a row or an alert of any run, ready to be stored or sent


@dataclasses.dataclass(frozen=True)
class TrackioOptions(Options):
    """Where the run goes beside the local database."""

    trackio_space_id: str  # name or owner/name; empty: as the environment says


class Tracker:
    """Writes straight into Trackio's storage instead of calling `trackio.log`.

    `trackio.log` stamps rows with the time they are flushed, loses half a second of them when killed, turns errors into
    warnings, and knows a run by its name alone; Trackio's records take our times, run id and row ids, and raise.

    Rows of the event `system` are Trackio's system metrics, which have a time and no step: their ids hold it. Whole
    numbers beyond 64 bits become floats, because Trackio's JSON has no others; everything else arrives as it is.
    """

    def open(self, identity: Identity, config: dict[str, Any], folder: Path) -> str:
        """Create the project's database, or raise what keeps it from being created."""
        from trackio import utils
        from trackio.fragments import FragmentWriter
        from trackio.sqlite_storage import SQLiteStorage

        note = self.begin(identity, config)
        self.inbox = None
        if utils.get_storage_mode() == "jsonl":  # Trackio's way on network file systems, which are unsafe for SQLite
            self.inbox = FragmentWriter()
        else:
            SQLiteStorage.init_db(self.common["project"])
        return note

    def begin(self, identity: Identity, config: dict[str, Any]) -> str:
        """Note whose records these will be; returns how the project is called, if Trackio calls it otherwise."""
        from trackio.utils import serialize_values

        name = project(identity.project)
        self.common = {"project": name, "run": identity.name, "run_id": identity.run_id}
        # `_Group` is where `trackio.init(group=)` puts it, and what the dashboard groups by
        group = bind(TrackOptions, config).tracker_group or None
        self.config = serialize_values({**within_64_bits(config), "_Group": group})
        return "" if name == identity.project else f"the project is called {name} there"

    def log(self, rows: list[Row]) -> None:
        """Insert rows, a transaction for each table; a row whose id is in the database is left alone."""
        records = [self._record(row) for row in rows]
        metrics = [record for record in records if record["kind"] == "metric"]
        if metrics and self.config:
            metrics[0]["config"] = self.config
        self.store(records)
        self.config = None if metrics else self.config  # stored with the first of them

    def alert(self, alerts: list[Alert]) -> None:
        """Insert alerts, which the dashboard shows as reports."""
        from trackio.fragments import alert_record

        self.store(
            [
                alert_record(
                    {
                        **self._stamp(alert.step, alert.time),
                        "title": f"{self.common['run']}: {alert.kind}",  # the dashboard lists those of all runs
                        "text": alert.message,
                        "level": alert.level,
                        "alert_id": f"{self.common['run_id']}-alert-{alert.kind}-{alert.step}",
                    }
                )
                for alert in alerts
            ]
        )

    def finish(self, status: str) -> None:
        """Trackio has no notion of a run's end."""

    def store(self, records: list[Record]) -> None:
        """Put records into the database, or into the inbox that Trackio's dashboard imports; by id, so none twice."""
        from trackio.fragments import import_records

        self.inbox.write_local(records) if self.inbox else import_records(records)

    def _record(self, row: Row) -> Record:
        from trackio import fragments

        make = fragments.system_metric_record if row.event == "system" else fragments.metric_record
        row_id = f"{self.common['run_id']}-{row.event}-{row.step}"
        return make({**self._stamp(row.step, row.time), "metrics": within_64_bits(row.metrics), "log_id": row_id})

    def _stamp(self, step: int, moment: float) -> Record:
        return {**self.common, "step": step, "timestamp": datetime.fromtimestamp(moment, UTC).isoformat()}


def also(config: Mapping[str, Any], folder: Path) -> list[str]:
    """The trackers that a run with this one has too: the one for its Space or server.

    A run that had it keeps it: when no variable names the Space or server any more, that lane says what is missing.
    """
    return ["trackio-space"] if remote(config) or path_of(folder, "trackio-space").exists() else []


def remote(config: Mapping[str, Any], env: Mapping[str, str] = os.environ) -> str:
    """The Space, or the address of the server, that is to get the run too; empty if there is none.

    The option comes before Trackio's own variables, and those in Trackio's order.
    """
    space = bind(TrackioOptions, config).trackio_space_id or env.get("TRACKIO_SPACE_ID")
    return space or env.get("TRACKIO_SERVER_URL") or ""


def examine(config: Mapping[str, Any]) -> list[Finding]:
    """Where runs are stored, whether that can be written, and what there is to say of the Space or server."""
    from trackio import utils
    from trackio.sqlite_storage import SQLiteStorage

    from lib.track import trackio_space

    folder = storage().absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    good = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    mode = "the inbox, because it is on a network file system" if utils.get_storage_mode() == "jsonl" else "SQLite"
    database = SQLiteStorage.get_project_db_path(project(config.get("tracker_project") or project_name()))
    return [
        Finding("storage", f"{folder}: writable, rows go to {mode}" if good else f"{there}: cannot be written", good),
        Finding("database", f"{database}: {'there' if database.exists() else 'made by the first run'}", True),
        *(trackio_space.examine(config) if remote(config) else []),
    ]


def project(name: str) -> str:
    """The name of a project in Trackio, which drops other characters than letters, digits, `-` and `_`."""
    return plain_name(name, r"^([^A-Za-z0-9_]*registry-)+|[^A-Za-z0-9_-]+", 100, _reserved)


def _reserved(name: str) -> bool:
    """Whether Trackio keeps a name for itself, such as `..._system`."""
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
