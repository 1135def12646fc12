"""Trackers: each is fed from the run's journal by a process of its own, so that none of them can touch training.

A tracker may be slow, raise, hang or crash: the trainer neither waits nor fails, and what was not delivered stays in
the journal for the next time. lib/track/tracker.py says what a tracker is.
"""

import dataclasses
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from lib import launch
from lib.errors import UserError
from lib.kconf import ROOT
from lib.track import lane, registry
from lib.track.cursor import FOLDER, Cursor, path_of
from lib.track.registry import names
from lib.track.tracker import Alert, Row, Tracker, TrackOptions

__all__ = ["Alert", "Delivery", "Lanes", "Row", "TrackOptions", "Tracker", "names", "table"]


@dataclasses.dataclass(frozen=True)
class Delivery:
    """What became of the rows of a run at one tracker."""

    name: str
    state: str  # starting, opening, live, finished or failed
    delivered: int  # rows and alerts
    pending: int  # rows and alerts
    message: str  # what is wrong, or what the tracker has to say; one sentence or empty
    command: str  # delivers what is pending


def table(deliveries: Iterable[Delivery]) -> str:
    """What the trackers have, a line each, and how to deliver what they lack."""
    lines, deliveries = [], list(deliveries)
    width = max([8, *(len(one.name) for one in deliveries)]) + 2
    for one in deliveries:
        pending = f", {one.pending:,} pending" if one.pending else ""
        lines.append(f"{one.name:<{width}}{one.state:<10}{one.delivered:,} rows delivered{pending}")
        lines += [f"{'':<{width}}{one.message}"] if one.message else []
        lines += [f"{'':<{width}}deliver the rest with: {one.command}"] if one.pending else []
    return "\n".join(lines)


class Lanes:
    """The processes that deliver a run to its trackers; with no trackers, none, and everything works the same way."""

    def __init__(self, folder: Path, names: Iterable[str]):
        """Start a process per tracker; the journal in `folder` must have its start or resume event."""
        found = registry.along(names, lane.configuration(folder) or {}) if (names := list(names)) else []
        self.lanes = [_Lane(Path(folder), name) for name in found]

    def notes(self) -> Iterator[str]:
        """What trackers have to say since the last call, one line each; costs a `stat` per tracker."""
        for one in self.lanes:
            yield from one.news()

    def close(self) -> None:
        """Tell the lanes that the run has ended; each goes on until it has delivered what there is."""
        for one in self.lanes:
            one.process.stdin.close()

    def imported(self, seconds: float) -> bool:
        """Whether every lane has imported its library, which takes processor time; waits up to `seconds` in all."""
        deadline = time.monotonic() + seconds
        while any(one.importing() for one in self.lanes):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def wait(self, seconds: float) -> bool:
        """Whether all lanes have ended, waiting up to `seconds` in all."""
        deadline = time.monotonic() + seconds
        for one in self.lanes:
            try:
                one.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                return False
        return True

    def stop(self) -> None:
        """End the lanes now; what they have not delivered stays pending."""
        for one in self.lanes:
            one.process.terminate()

    def deliveries(self) -> list[Delivery]:
        """How far each tracker is."""
        return [one.delivery() for one in self.lanes]


class _Lane:
    """The trainer's end of one lane."""

    def __init__(self, folder: Path, name: str):
        self.folder, self.name, self.state = folder, name, path_of(folder, name)
        self.stamp = self._stamp()  # what an earlier process left is no news
        self.said: set[str] = set()
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        try:
            (folder / FOLDER).mkdir(exist_ok=True)
            with path_of(folder, name, "log").open("ab") as log:
                self.process = subprocess.Popen(
                    # -P: the user's working directory may hold a folder `lib` or `wandb`
                    [sys.executable, "-P", "-m", "lib.track", str(folder), name],
                    stdin=subprocess.PIPE,  # closes when the trainer ends, however it ends
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C in the terminal is for the trainer
                    env={**launch.without(os.environ), "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"},
                )
        except OSError as error:
            raise UserError(f"{folder}: the process for tracker {name} cannot be started: {error}") from None

    def news(self) -> Iterator[str]:
        stamp, code = self._stamp(), self.process.poll()
        if stamp == self.stamp and code is None:
            return
        self.stamp = stamp
        cursor = self._cursor()
        for text in (cursor.note, self._trouble(cursor, code)):
            if text and text not in self.said:
                self.said.add(text)
                yield f"{self.name}: {text}"

    def importing(self) -> bool:
        return self.process.poll() is None and (self._stamp() == self.stamp or self._cursor().state == "starting")

    def delivery(self) -> Delivery:
        cursor, code = self._cursor(), self.process.poll()
        pending, message = cursor.pending(self.folder), self._trouble(cursor, code) or cursor.note
        if code is None:
            message = f"still delivering, which goes on by itself (process {self.process.pid})"
        command = f"make sync RUN={shlex.quote(str(self.folder))}"
        return Delivery(self.name, cursor.state, cursor.rows, pending, message, command)

    def _cursor(self) -> Cursor:
        try:
            return Cursor.load(self.folder, self.name)
        except UserError as error:  # the lane has failed on it; that is no reason for the trainer to
            return Cursor(state="failed", message=str(error))

    def _trouble(self, cursor: Cursor, code: int | None) -> str:
        if code == lane.BUSY:
            pid = path_of(self.folder, self.name, "lock").read_text(encoding="utf-8").strip()
            return f"another process ({pid}) delivers this run to it already"
        if code in (None, 0) or cursor.state == "failed":
            return cursor.message
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"its process ended with {how}, see {path_of(self.folder, self.name, 'log')}"

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self.state.stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_ino
