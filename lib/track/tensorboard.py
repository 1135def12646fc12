"""TensorBoard: event files in the run's folder, written without PyTorch and TensorFlow.

tensorboard.summary.Writer writes from a thread and cannot tell what is on the disk, so records are written here.
"""

import html
import io
import json
import re
import shlex
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lib.base import files
from lib.record.run import Identity
from lib.track import clean, media_files
from lib.track.tracker import Alert, Media, Row, within_64_bits

MODULE = "tensorboard"
# Beyond the documented interface (tests/track/test_private.py guards it). The documented one needs TensorFlow.
PRIVATE = (
    "tensorboard.compat.proto.event_pb2",
    "tensorboard.compat.proto.summary_pb2",
    "tensorboard.compat.tensorflow_stub.errors",
    "tensorboard.compat.tensorflow_stub.pywrap_tensorflow.PyRecordReader_New",
    "tensorboard.plugins.hparams.api_pb2",
    "tensorboard.plugins.hparams.metadata",
    "tensorboard.plugins.hparams.plugin_data_pb2",
    "tensorboard.plugins.hparams.summary_v2.hparams_pb",
    "tensorboard.plugins.image.metadata.create_summary_metadata",
    "tensorboard.plugins.scalar.summary_v2.scalar_pb",
    "tensorboard.plugins.text.summary_v2.text_pb",
    "tensorboard.summary.writer.record_writer.RecordWriter",
    "tensorboard.util.tensor_util.make_tensor_proto",
)
_OWN = re.compile(r"events\.out\.tfevents\.[1-9]\d{9}(\.tmp)?")  # .tmp: a kill while it was written
SESSION = "events.out.tfevents.0000000000.session"  # must sort first: some readers never return to an earlier file


class Tracker:
    """Appends a record per row to <run>/tensorboard; each process writes its own file, like TensorBoard's writers.

    Values are float32, because TensorBoard's server ignores float64: other numbers are rounded, and those beyond 3.4e38
    become infinite; NaN and infinities are kept. The tag of a metric is its name. If another event of the run already
    uses that name, the tag is <event>/<name>.

    The tags of media are `image/<name>`, `text/<name>` and `table/<name>`; TensorBoard has no place for other files.

    The configuration, the identity and the status are in a separate file. It is replaced when they change, because
    readers use only the first version that they find.
    """

    def __init__(self):
        # Imported here, before the run's first step, because it takes 0.2 s of processor time, mostly for numpy.
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb  # noqa: F401

    def open(self, identity: Identity, config: dict[str, Any], folder: Path) -> str:
        """Read the event files of earlier processes, to know which rows they hold."""
        self.identity, self.config, self.folder = identity, config, folder / "tensorboard"
        self.folder.mkdir(exist_ok=True)
        self._forget()
        for path in self._own_files():
            for event in _events(path):
                self._know(event)
        return f"look at it with: tensorboard --logdir {shlex.quote(str(folder.parent))}"

    def holds(self) -> bool:
        """Whether event files of earlier processes are there; the user may have deleted them."""
        return bool(self.stored)

    def log(self, rows: list[Row]) -> None:
        """Append the rows that are in no file; if the disk is full, append none of them."""
        self._append(self._rows(row for row in rows if (row.event, row.step) not in self.stored))

    def alert(self, alerts: list[Alert]) -> None:
        """Append alerts as texts, with one tag for each kind."""
        self._append(self._alerts(alert for alert in alerts if (f"alert {alert.kind}", alert.step) not in self.stored))

    def media(self, items: list[Media]) -> None:
        """Append images, and texts and tables as Markdown; raises UserError for a damaged file."""
        for item in items:
            name = clean.text(item.name)
            if item.kind != "artifact" and (f"{item.kind} {name}", item.step) not in self.stored:
                value = {f"{item.kind}/{name}": _SHOW[item.kind](item)}
                self._append([self._event(f"{item.kind} {name}", item.step, item.time, value)])

    def rewrite(self, rows: list[Row], alerts: list[Alert]) -> None:
        """Write a new file with these rows and alerts, then delete the old files that this tracker wrote.

        After a kill in between, the next call deletes the rest. A TensorBoard that is running has already read the old
        files and must be restarted.
        """
        old = self._own_files()
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
        """Store the status of the run, which the HPARAMS and the TEXT tab show."""
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
            self._event(f"alert {a.kind}", a.step, a.time, {f"alert/{a.kind}": _text_value(f"{a.level}: {a.message}")})
            for a in alerts
        ]

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("events.out.tfevents.[1-9]*"))

    def _own_files(self) -> list[Path]:
        """Files with names as `_new_path` makes them; other writers add a host and more."""
        return [path for path in self._files() if _OWN.fullmatch(path.name)]

    def _know(self, event: Any) -> None:
        for value in event.summary.value:
            origin = self.origins[value.tag] = value.metadata.summary_description, value.metadata.display_name
            self.stored.add((origin[0], event.step))
        self.times = [min([event.wall_time, *self.times]), max([event.wall_time, *self.times])]

    def _event(self, event: str, step: int, moment: float, values: dict[str, Any]) -> Any:
        """A record of values (name -> Summary.Value without a tag).

        The event and the names are stored as metadata, from which `_know` recovers them.
        """
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
        """A name that sorts after all existing files, even if the clock was set back: readers go by names."""
        newest = max((int(re.search(r"\d+", path.name)[0]) for path in self._files()), default=0)
        return self.folder / f"events.out.tfevents.{max(int(time.time()), newest + 1):010d}"

    def _session(self, status: str, now: float) -> None:
        """Replace the session file: options for the HPARAMS tab, options and identity as a text, and the status."""
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        began, ended = self.times or (now, now)
        lists = {name: _hparam(value) for name, value in self.config.items()}
        texts = clean.text(lists)
        options = {name: value for name, value in texts.items() if value is not None}
        about = vars(self.identity) | {"status": status} | lists
        text = _text_value(
            "".join(f"    {name} = {value}\n" for name, value in about.items())
        )  # Markdown: a block of code
        text.tag = "run"
        summaries = [
            hparams_pb(within_64_bits(options), self.identity.run_id, began),
            summary_pb2.Summary(value=[text]),
        ]
        if status != "running":
            summaries.append(_end(status, ended))
        events = [event_pb2.Event(wall_time=began, summary=summary) for summary in summaries]
        files.write(self.folder / SESSION, _records(events, first=True))


def _hparam(value: Any) -> Any:
    """A value for the HPARAMS tab, which takes numbers, bools and texts."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return json.dumps(value) if isinstance(value, dict) else value


def _scalars(row: Row) -> dict[str, Any]:
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb

    return {
        clean.text(name): scalar_pb("", float(value)).value[0] for name, value in within_64_bits(row.metrics).items()
    }


def _text_value(text: str) -> Any:
    from tensorboard.plugins.text.summary_v2 import text_pb

    return text_pb("", text.encode(errors="backslashreplace")).value[0]


def _image(item: Media) -> Any:
    """A PNG for the IMAGES tab, which asks for its width and height."""
    from tensorboard.compat.proto import summary_pb2
    from tensorboard.plugins.image.metadata import create_summary_metadata
    from tensorboard.util.tensor_util import make_tensor_proto

    png = media_files.image(item)
    width, height = (str(int.from_bytes(png[at : at + 4])).encode() for at in (16, 20))
    tensor = make_tensor_proto([width, height, png], dtype="string")
    return summary_pb2.Summary.Value(metadata=create_summary_metadata("", ""), tensor=tensor)


def _block(item: Media) -> Any:
    """A text as it is: the TEXT tab takes Markdown, in which four spaces mark a block of code."""
    return _text_value("".join(f"    {line}\n" for line in media_files.text(item).split("\n")))


def _table(item: Media) -> Any:
    """A table as Markdown."""
    columns, rows = media_files.table(item)
    lines = [columns, ["---"] * len(columns), *rows]
    return _text_value("".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines))


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return html.escape(re.sub(r"[\\`*_\[\]|]", r"\\\g<0>", " ".join(text.split())), quote=False)


_SHOW = {"image": _image, "text": _block, "table": _table}  # kind -> Summary.Value of a file


def _end(status: str, moment: float) -> Any:
    """The status for the HPARAMS tab: success, failure, or unknown if the run was interrupted."""
    from tensorboard.compat.proto import summary_pb2
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    states = {"finished": api_pb2.STATUS_SUCCESS, "interrupted": api_pb2.STATUS_UNKNOWN}
    info = plugin_data_pb2.SessionEndInfo(status=states.get(status, api_pb2.STATUS_FAILURE), end_time_secs=moment)
    content = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=info))
    value = summary_pb2.Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=content, tensor=metadata.NULL_TENSOR)
    return summary_pb2.Summary(value=[value])


def _records(events: list[Any], first: bool) -> bytes:
    """Events in the record format of event files; `first` puts the version of the format before them."""
    from tensorboard.compat.proto import event_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    head = [event_pb2.Event(wall_time=events[0].wall_time, file_version="brain.Event:2")] if first else []
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for event in (*head, *events):
        writer.write(event.SerializeToString())
    return buffer.getvalue()


def _events(path: Path) -> Iterator[Any]:
    """The events of a file up to its end or its first incomplete record, where TensorBoard's readers stop too."""
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
