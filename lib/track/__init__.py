"""Trackers: each has its own process, which reads the run's journal, so that no tracker can disturb training.

If a tracker is slow, raises, hangs or crashes, the trainer neither waits nor fails. Rows that are not delivered stay in
the journal and can be delivered later. The interface of a tracker is in lib/track/tracker.py.
"""

import contextlib
import dataclasses
import os
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from lib.base import files, launch
from lib.base.errors import UserError
from lib.config.kconf import ROOT
from lib.track import lane, registry
from lib.track.cursor import FOLDER, Backlog, Cursor, path_of
from lib.track.registry import names
from lib.track.tracker import Alert, Row, Tracker, TrackOptions

__all__ = ["Alert", "Delivery", "Lanes", "Row", "TrackOptions", "Tracker", "names", "table"]


@dataclasses.dataclass(frozen=True)
class Delivery:
    """The state of the delivery of a run to one tracker."""

    name: str
    state: str  # starting, opening, live, finished or failed
    delivered: int  # rows, alerts and media
    pending: int  # rows, alerts and media
    message: str  # an error or a note of the tracker; one sentence or empty
    command: str  # delivers what is pending
    complete: bool = False  # whether the process has ended because everything is delivered
    sending: int = 0  # bytes of the large file that is being sent now


def table(deliveries: Iterable[Delivery]) -> str:
    """A text: what each tracker has, and the command that delivers the rest."""
    lines, deliveries = [], list(deliveries)
    width = max([8, *(len(one.name) for one in deliveries)]) + 2
    for one in deliveries:
        pending = f", {one.pending:,} pending" if one.pending else ""
        lines.append(f"{one.name:<{width}}{one.state:<10}{one.delivered:,} rows delivered{pending}")
        lines += [f"{'':<{width}}{one.message}"] if one.message else []
        lines += [f"{'':<{width}}deliver the rest with: {one.command}"] if one.pending or one.state == "failed" else []
    return "\n".join(lines)


class Lanes:
    """The processes that deliver a run to its trackers, one for each tracker."""

    def __init__(self, folder: Path, names: Iterable[str]):
        """Start the processes; the journal in `folder` must have its start or resume event."""
        folder, names = Path(folder), list(names)
        config = (lane.configuration(folder) or {}) if names else {}
        found = registry.along(names, config, folder)
        usual = names == list(config.get("tracker", names))
        self.command = f"make sync RUN={shlex.quote(str(folder))}" + ("" if usual else f" TRACKER={','.join(names)}")
        self.lanes, self.backlog = [_start(folder, name) for name in found], Backlog(folder)

    def notes(self) -> Iterator[str]:
        """New notes and errors of the trackers since the last call, as lines; costs one `stat` per tracker."""
        for one in self.lanes:
            yield from one.news()

    def close(self) -> None:
        """Tell the lanes that the run has ended; each continues until everything is delivered."""
        for one in self.lanes:
            one.close()

    def ready(self, importing: float, opening: float) -> None:
        """Wait up to `importing` seconds until libraries are imported, and `opening` more until the runs are open.

        Both take much processor time and would slow down the first steps; later deliveries take little.
        """
        for stage, seconds in ((1, importing), (2, opening)):
            deadline = time.monotonic() + seconds
            for one in self.lanes:
                while one.stage < stage and (left := deadline - time.monotonic()) > 0:
                    one.look(left)

    def wait(self, seconds: float) -> bool:
        """Wait up to `seconds` in total; returns whether all lanes have ended."""
        deadline = time.monotonic() + seconds
        return all(one.wait(max(0.0, deadline - time.monotonic())) for one in self.lanes)

    def stop(self) -> None:
        """End the lanes now; the rows that are not delivered stay pending."""
        for one in self.lanes:
            one.stop()

    def deliveries(self) -> list[Delivery]:
        """The state of each delivery."""
        return [one.delivery(self.backlog.update(), self.command) for one in self.lanes]


def _start(folder: Path, name: str) -> "_LaneProcess | _Unstarted":
    try:
        return _LaneProcess(folder, name)
    except OSError as error:  # such as too many processes; training continues
        why = error if error.filename else files.reason(error, folder / FOLDER)
        return _Unstarted(folder, name, f"its process cannot be started: {why}")


class _LaneProcess:
    """One lane, as the trainer sees it."""

    def __init__(self, folder: Path, name: str):
        """Start the process; raises OSError."""
        self.folder, self.name, self.state = folder, name, path_of(folder, name)
        self.seen = self._stamp(), None  # the state that an earlier process left is not news
        self.said: set[str] = set()
        self.stage = 0  # 0: starting, 1: the library is imported, 2: the run is open, or opening it failed
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        (folder / FOLDER).mkdir(exist_ok=True)
        hears, tells = os.pipe()
        self.told = os.fdopen(hears, "rb", buffering=0)
        try:
            with path_of(folder, name, "log").open("ab", buffering=0) as log:
                log.write(time.strftime("%Y-%m-%d %H:%M:%S\n").encode())  # raises if the disk is full
                self.process = subprocess.Popen(
                    # -P: the user's working directory may hold a folder `lib` or `wandb`
                    [sys.executable, "-P", "-m", "lib.track", str(folder), name, str(tells)],
                    stdin=subprocess.PIPE,  # closes when the trainer ends, even after a kill
                    stdout=log,
                    stderr=log,
                    pass_fds=[tells],
                    start_new_session=True,  # Ctrl-C in the terminal is for the trainer
                    env={**launch.without(os.environ), "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"},
                )
        except BaseException:
            self.told.close()
            raise
        finally:
            os.close(tells)

    def look(self, seconds: float) -> None:
        """Wait up to `seconds` for the next stage."""
        if select.select([self.told], [], [], seconds)[0]:
            self.stage = 1 if self.told.read(1) else 2

    def close(self) -> None:
        self.told.close()
        self.process.stdin.close()

    def wait(self, seconds: float) -> bool:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self) -> None:
        self.process.kill()  # a lane ignores SIGTERM; a kill loses no rows

    def news(self) -> Iterator[str]:
        seen = self._stamp(), self.process.poll()
        if seen == self.seen:
            return
        self.seen = seen
        cursor = self._cursor()
        for text in (cursor.note, self._trouble(cursor, seen[1])):
            if text and text not in self.said:
                self.said.add(text)
                yield f"{self.name}: {text}"

    def delivery(self, backlog: Backlog, command: str) -> Delivery:
        cursor, code = self._cursor(), self.process.poll()
        message = self._trouble(cursor, code) or cursor.note
        if code is None:
            until = launch.ends_with_us(os.environ)
            until = f", until this {until} ends" if until else ""
            message = f"still delivering in the background (process {self.process.pid}){until}"
        pending = cursor.pending(backlog)
        complete = code == 0 and not pending and cursor.state != "failed"
        return Delivery(self.name, cursor.state, cursor.rows, pending, message, command, complete, cursor.sending)

    def _cursor(self) -> Cursor:
        try:
            return Cursor.load(self.folder, self.name)
        except UserError as error:  # the lane failed because of this file; the trainer must not fail
            return Cursor(state="failed", message=str(error))

    def _trouble(self, cursor: Cursor, code: int | None) -> str:
        if code == lane.BUSY:
            with contextlib.suppress(OSError):
                pid = path_of(self.folder, self.name, "lock").read_text(encoding="utf-8").strip()
                return f"another process ({pid}) is already delivering this run to this tracker"
        if code in (None, 0) or cursor.state == "failed":
            return cursor.message or cursor.aside()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"its process ended with {how}, see {path_of(self.folder, self.name, 'log')}"

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self.state.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino


class _Unstarted:
    """A lane whose process could not be started: all rows stay pending."""

    stage = 2

    def __init__(self, folder: Path, name: str, message: str):
        self.folder, self.name, self.message, self.said = folder, name, message, False

    def close(self) -> None:
        pass

    def wait(self, seconds: float) -> bool:
        return True

    def stop(self) -> None:
        pass

    def news(self) -> Iterator[str]:
        if not self.said:
            yield f"{self.name}: {self.message}"
        self.said = True

    def delivery(self, backlog: Backlog, command: str) -> Delivery:
        return Delivery(self.name, "failed", 0, Cursor().pending(backlog), self.message, command)
