"""Trackio: a local dashboard with one SQLite database per project; rows have ids, so none is stored twice."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any

from lib.base import files
from lib.base.errors import UserError
from lib.base.metric import EARLIER, chart_order, described
from lib.record import journal
from lib.record.run import Identity, project_name
from lib.track import clean, trackio_media, trackio_remote
from lib.track.cursor import path_of
from lib.track.tracker import Alert, Finding, Media, Row, TrackOptions, bind, plain_name, within_64_bits

MODULE = "trackio"
# Beyond the documented interface (tests/track/test_private.py guards it); the class below says why.
PRIVATE = (
    "trackio.cas.blob_path",
    "trackio.fragments.FragmentWriter",
    "trackio.fragments.alert_record",
    "trackio.fragments.import_records",
    "trackio.fragments.metric_record",
    "trackio.fragments.system_metric_record",
    "trackio.sqlite_storage.SQLiteStorage",
    "trackio.utils.MEDIA_DIR",
    "trackio.utils.RESERVED_KEYS",
    "trackio.utils.TRACKIO_DIR",
    "trackio.utils.get_storage_mode",
    "trackio.utils.serialize_values",
)
# Trackio sorts charts by name. The names in this variable of the process that serves the dashboard come first.
PLOT_ORDER = "TRACKIO_PLOT_ORDER"

Record = dict[str, Any]  # a fragment, in Trackio's words: a row or an alert in the form that is stored or sent


class Tracker:
    """Writes directly into Trackio's storage instead of calling `trackio.log`.

    `trackio.log` gives rows the time of the flush, loses up to half a second of rows when killed, turns errors into
    warnings, and identifies a run only by its name. Records written directly keep our times, run id and row ids, and
    errors raise exceptions.

    Rows of the event `system` become Trackio's system metrics, which have a time but no step; the step is in the row's
    id. Integers beyond 64 bits become floats, because Trackio's JSON does not support them.

    Media are rows too, whose value refers to a file that is copied into Trackio's folder before the row is written.
    """

    def open(self, identity: Identity, config: dict[str, Any], folder: Path) -> str:
        """Create the project's database, if it does not exist."""
        from trackio import utils
        from trackio.fragments import FragmentWriter
        from trackio.sqlite_storage import SQLiteStorage

        notes = [self.begin(identity, config)]
        if not trackio_remote.remote(config):  # else the tracker trackio-space says them
            notes += trackio_remote.notes(config)
        os.environ.pop(trackio_remote.BUCKET, None)  # Trackio replaces local databases by those of this bucket
        self.inbox = None
        if utils.get_storage_mode() == "jsonl":  # on network file systems, where SQLite is not safe
            self.inbox = FragmentWriter()
        else:
            SQLiteStorage.init_db(self.common["project"])
        return "; ".join(filter(None, notes))

    def begin(self, identity: Identity, config: dict[str, Any]) -> str:
        """Keep the identity that all records carry; returns a note if the project has a different name in Trackio."""
        from trackio.utils import serialize_values

        name = trackio_project(identity.project)
        self.common = {"project": name, "run": identity.name, "run_id": identity.run_id}
        # `_Group` is where `trackio.init(group=)` puts it, and what the dashboard groups by
        group = bind(TrackOptions, config).tracker_group or None
        self.config = serialize_values({**within_64_bits(config), "_Group": group})
        return "" if name == identity.project else f"in Trackio the project is called {name}"

    def log(self, rows: list[Row]) -> None:
        """Insert rows, in one transaction for each table; a row whose id is in the database is ignored."""
        records = [self._record(row) for row in rows]
        metrics = [record for record in records if record["kind"] == "metric"]
        if metrics and self.config:
            metrics[0]["config"] = self.config
        self.store(clean.text(records))
        self.config = None if metrics else self.config  # stored with the first metrics

    def alert(self, alerts: list[Alert]) -> None:
        """Insert alerts, which the dashboard shows as reports."""
        from trackio.fragments import alert_record

        records = [
            alert_record(
                {
                    **self._stamp(alert.step, alert.time),
                    "title": f"{self.common['run']}: {alert.kind}",  # the dashboard lists all runs together
                    "text": alert.message,
                    "level": alert.level,
                    "alert_id": f"{self.common['run_id']}-alert-{alert.kind}-{alert.step}",
                }
            )
            for alert in alerts
        ]
        self.store(clean.text(records))

    def media(self, items: list[Media]) -> None:
        """Store images, tables and texts as rows with ids, and artifacts as versions that their content identifies."""
        for item in items:
            self._keep(item)

    def finish(self, status: str) -> None:
        """Do nothing: Trackio has no status of a run."""

    def destination(self) -> str:
        """The database."""
        from trackio.sqlite_storage import SQLiteStorage

        return str(SQLiteStorage.get_project_db_path(self.common["project"]).resolve())

    def holds(self) -> bool:
        """Whether the database or the inbox has rows of the run; a dashboard may empty the inbox meanwhile."""
        import trackio

        for fragment in (storage() / "inbox").glob("*/*.jsonl") if self.inbox else ():
            with contextlib.suppress(FileNotFoundError):
                if self.common["run_id"].encode() in fragment.read_bytes():
                    return True
        there = Path(self.destination()).exists()
        return there and any(run.id == self.common["run_id"] for run in trackio.Api().runs(self.common["project"]))

    def store(self, records: list[Record]) -> None:
        """Store records in the database, or in the inbox that the dashboard imports; known ids are ignored."""
        from trackio.fragments import import_records

        self.inbox.write_local(records) if self.inbox else import_records(records)

    def put(self, content: bytes, place: PurePosixPath) -> None:
        """Write a file in Trackio's media folder."""
        from trackio.utils import MEDIA_DIR

        path = MEDIA_DIR / place
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, content)

    def put_blob(self, file: IO[bytes], digest: str) -> None:
        """Copy the file of an artifact, unless the project has its content; not on network file systems."""
        from trackio.cas import blob_path

        if self.inbox:
            raise UserError(
                f"{storage()}: Trackio gets no artifacts in its mode for network file systems, because their list is a "
                "SQLite database, which may be damaged there; set TRACKIO_DIR to a folder of a local disk"
            )
        path = blob_path(self.common["project"], digest)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.whole(path) as copy:
                shutil.copyfileobj(file, copy)

    def put_version(self, version: dict[str, Any]) -> None:
        """Add a version of an artifact, unless it has one with this content."""
        from trackio.sqlite_storage import SQLiteStorage

        SQLiteStorage.commit_artifact_version(**version)

    def _keep(self, item: Media) -> None:
        from trackio.fragments import metric_record
        from trackio.utils import RESERVED_KEYS

        if item.kind == "artifact":
            with item.path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
                file.seek(0)
                self.put_blob(file, digest)
            self.put_version(clean.text(trackio_media.artifact(item, digest, size, self.common)))
            return
        value, contents = trackio_media.stored(item, self.common)
        for place, content in contents.items():
            self.put(content, place)
        name = f"__{item.name}" if item.name in RESERVED_KEYS else item.name  # as `trackio.log` does
        row_id = f"{self.common['run_id']}-{item.kind}-{item.name}-{item.step}"
        stamp = self._stamp(item.step, item.time)
        self.store(clean.text([metric_record({**stamp, "metrics": {name: value}, "log_id": row_id})]))

    def _record(self, row: Row) -> Record:
        from trackio import fragments

        make = fragments.system_metric_record if row.event == "system" else fragments.metric_record
        row_id = f"{self.common['run_id']}-{row.event}-{row.step}"
        return make({**self._stamp(row.step, row.time), "metrics": within_64_bits(row.metrics), "log_id": row_id})

    def _stamp(self, step: int, moment: float) -> Record:
        return {**self.common, "step": step, "timestamp": datetime.fromtimestamp(moment, UTC).isoformat()}


def first_charts(folder: Path | None) -> str:
    """The value of PLOT_ORDER for the run in `folder`; None: for a project whose runs are not known."""
    known = dict(EARLIER)
    if folder and (folder / journal.FILE).exists():
        for record in journal.read(folder):
            known |= described(record)
    return ",".join(chart_order(known.values()))


def also(config: Mapping[str, Any], folder: Path) -> list[str]:
    """Further trackers of the run: `trackio-space`, if a Space or server is configured.

    A run that had `trackio-space` keeps it. If the Space or server is no longer configured, that tracker reports it.
    """
    return ["trackio-space"] if trackio_remote.remote(config) or path_of(folder, "trackio-space").exists() else []


def examine(config: Mapping[str, Any]) -> list[Finding]:
    """Where runs are stored, whether this is writable, and the state of the Space or server."""
    from trackio import utils
    from trackio.sqlite_storage import SQLiteStorage

    folder = storage().absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    good = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    mode = "the inbox, because it is on a network file system" if utils.get_storage_mode() == "jsonl" else "SQLite"
    database = SQLiteStorage.get_project_db_path(trackio_project(config.get("tracker_project") or project_name()))
    return [
        Finding("storage", f"{folder}: writable, rows go to {mode}" if good else f"{there}: cannot be written", good),
        Finding("database", f"{database}: {'there' if database.exists() else 'made by the first run'}", True),
        *trackio_remote.examine(config),
    ]


def trackio_project(name: str) -> str:
    """The name of a project in Trackio, which allows only letters, digits, `-` and `_`."""
    return plain_name(name, r"^([^A-Za-z0-9_]*registry-)+|[^A-Za-z0-9_-]+", 100, _reserved)


def _reserved(name: str) -> bool:
    """Whether Trackio reserves a name, such as `..._system`."""
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
    """Whether Trackio has rows of a project, imported or not; `name` is what `trackio_project` returns."""
    from trackio.sqlite_storage import SQLiteStorage

    return SQLiteStorage.get_project_db_path(name).exists() or any((storage() / "inbox").glob("*/*.jsonl"))
