"""TensorBoard: event files in the run's folder, by TensorBoard's own record writer; no PyTorch, no TensorFlow."""

import io
import re
import shlex
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lib.base import files
from lib.record.run import Identity
from lib.track.tracker import Alert, Row, within_64_bits

MODULE = "tensorboard"
SESSION = "events.out.tfevents.0000000000.session"  # sorts first: some readers never go back to an earlier file


class Tracker:
    """Appends a record per row to <run>/tensorboard, a file per process, as TensorBoard's own writers do.

    Values are float32, as in all of TensorBoard's own scalars, since its server passes over float64: other numbers are
    rounded, and beyond 3.4e38 they are infinite; NaN and infinities are kept. A metric is under its name, unless
    another event of the run used that name first: then under <event>/<name>.

    The configuration, the identity and the end are in a file of their own, which is replaced when they change, because
    readers keep the first version of them that they meet.
    """

    def __init__(self):
        # Before the run's first step, not with its first rows: 0.2 s of processor time, most of it numpy's.
        from tensorboard.plugins.hparams import summary_v2  # noqa: F401

    def open(self, identity: Identity, config: dict[str, Any], folder: Path) -> str:
        """Find out what earlier processes stored."""
        self.identity, self.config, self.folder = identity, config, folder / "tensorboard"
        self.folder.mkdir(exist_ok=True)
        self._forget()
        for path in self._files():
            for event in _events(path):
                self._know(event)
        return f"look at it with: tensorboard --logdir {shlex.quote(str(folder.parent))}"

    def log(self, rows: list[Row]) -> None:
        """Append the rows that no file holds, all of them or, when the disk is full, none."""
        self._append(self._rows(row for row in rows if (row.event, row.step) not in self.stored))

    def alert(self, alerts: list[Alert]) -> None:
        """Append alerts as texts, a tag per kind."""
        self._append(self._alerts(alert for alert in alerts if (f"alert {alert.kind}", alert.step) not in self.stored))

    def rewrite(self, rows: list[Row], alerts: list[Alert]) -> None:
        """Write a file that has these, then remove the others; what a kill in between leaves goes with the next call.

        A TensorBoard that is open has read the others, and must be started again.
        """
        old = self._files()
        self._forget()
        if events := [*self._rows(rows), *self._alerts(alerts)]:
            data, self.path = _records(events, first=True), self._new_path()
            files.write(self.path, data)
            self.size = len(data)
        for path in old:
            path.unlink()
        for event in events:
            self._know(event)
        self._session("running", time.time())

    def finish(self, status: str) -> None:
        """Write how the run ended where the HPARAMS and the TEXT tab show it."""
        self._session(status, time.time())

    def _forget(self) -> None:
        self.stored: set[tuple[str, int]] = set()  # (event, step)
        self.origins: dict[str, tuple[str, str]] = {}  # tag -> event and metric
        self.times: list[float] = []  # unix seconds, of the first and the last record
        self.path, self.size = None, 0  # this process's file, made with the first row; bytes

    def _rows(self, rows: Iterable[Row]) -> list[Any]:
        return [self._event(row.event, row.step, row.time, _scalars(row)) for row in rows]

    def _alerts(self, alerts: Iterable[Alert]) -> list[Any]:
        return [
            self._event(f"alert {a.kind}", a.step, a.time, {f"alert/{a.kind}": _text(f"{a.level}: {a.message}")})
            for a in alerts
        ]

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("events.out.tfevents.[1-9]*"))

    def _know(self, event: Any) -> None:
        for value in event.summary.value:
            origin = self.origins[value.tag] = value.metadata.summary_description, value.metadata.display_name
            self.stored.add((origin[0], event.step))
        self.times = [min([event.wall_time, *self.times]), max([event.wall_time, *self.times])]

    def _event(self, event: str, step: int, moment: float, values: dict[str, Any]) -> Any:
        """A record of values (name -> Summary.Value without a tag), which tells its event and names when read back."""
        from tensorboard.compat.proto import event_pb2

        made = event_pb2.Event(wall_time=moment, step=step)
        for name, value in values.items():
            value.tag = self._tag(event, name)
            value.metadata.summary_description, value.metadata.display_name = event, name
            made.summary.value.append(value)
        return made

    def _tag(self, event: str, name: str) -> str:
        tag = name
        while self.origins.setdefault(tag, (event, name)) != (event, name):
            tag = f"{event}/{tag}"
        return tag

    def _append(self, events: list[Any]) -> None:
        if not events:
            return
        if self.path is None:
            self._session("running", events[0].wall_time)
            self.path = self._new_path()
            self.path.touch(exist_ok=False)
        data = _records(events, first=not self.size)
        files.append(self.path, data, after=self.size)
        self.size += len(data)
        for event in events:
            self._know(event)

    def _new_path(self) -> Path:
        """Readers want files in the order of their names, also after the clock was set back."""
        newest = max((int(re.search(r"\d+", path.name)[0]) for path in self._files()), default=0)
        return self.folder / f"events.out.tfevents.{max(int(time.time()), newest + 1):010d}"

    def _session(self, status: str, now: float) -> None:
        """Replace the file of what is said once: options for the HPARAMS tab, all of it as a text, and the end."""
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        began, ended = self.times or (now, now)
        lists = {name: ",".join(map(str, v)) if isinstance(v, list | tuple) else v for name, v in self.config.items()}
        options = {name: value for name, value in lists.items() if value is not None}
        about = vars(self.identity) | {"status": status} | lists
        text = _text("".join(f"    {name} = {value}\n" for name, value in about.items()))  # Markdown: a block of code
        text.tag = "run"
        summaries = [
            hparams_pb(within_64_bits(options), self.identity.run_id, began),
            summary_pb2.Summary(value=[text]),
        ]
        if status != "running":
            summaries.append(_end(status, ended))
        events = [event_pb2.Event(wall_time=began, summary=summary) for summary in summaries]
        files.write(self.folder / SESSION, _records(events, first=True))


def _scalars(row: Row) -> dict[str, Any]:
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb

    return {name: scalar_pb("", float(value)).value[0] for name, value in within_64_bits(row.metrics).items()}


def _text(text: str) -> Any:
    from tensorboard.plugins.text.summary_v2 import text_pb

    return text_pb("", text.encode(errors="backslashreplace")).value[0]


def _end(status: str, moment: float) -> Any:
    """How the run ended, as the HPARAMS tab filters by it: success, failure, or unknown when it was interrupted."""
    from tensorboard.compat.proto import summary_pb2
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    states = {"finished": api_pb2.STATUS_SUCCESS, "interrupted": api_pb2.STATUS_UNKNOWN}
    info = plugin_data_pb2.SessionEndInfo(status=states.get(status, api_pb2.STATUS_FAILURE), end_time_secs=moment)
    content = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=info))
    value = summary_pb2.Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=content, tensor=metadata.NULL_TENSOR)
    return summary_pb2.Summary(value=[value])


def _records(events: list[Any], first: bool) -> bytes:
    """Events as the records of an event file, led by the format's version if they are its first."""
    from tensorboard.compat.proto import event_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    head = [event_pb2.Event(wall_time=events[0].wall_time, file_version="brain.Event:2")] if first else []
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for event in (*head, *events):
        writer.write(event.SerializeToString())
    return buffer.getvalue()


def _events(path: Path) -> Iterator[Any]:
    """The events of a file up to its end or to the record that a kill tore, where TensorBoard's readers stop too."""
    from tensorboard.compat.proto import event_pb2
    from tensorboard.compat.tensorflow_stub import errors
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

    reader = PyRecordReader_New(str(path))
    while True:
        try:
            reader.GetNext()
        except (errors.OutOfRangeError, errors.DataLossError):
            return
        yield event_pb2.Event.FromString(reader.record())
