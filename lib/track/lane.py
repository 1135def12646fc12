"""A lane: the process that follows a run's journal and delivers it to one tracker, whatever becomes of the trainer."""

import contextlib
import dataclasses
import fcntl
import importlib
import os
import select
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lib import journal
from lib.errors import UserError
from lib.run import Identity
from lib.track.cursor import FOLDER, Cursor
from lib.track.tracker import TrackOptions

POLL = 0.25  # seconds between looks at the journal
BATCH = 2000  # records handed to a tracker at once
WAITS = (1, 2, 4, 8, 15)  # seconds between the attempts at a call that fails
BUSY = 3  # exit code: another process delivers to this tracker of this run

Gone = Callable[[float], bool]


def main(folder: Path, name: str) -> int:
    """The lane's process: deliver until the trainer's end of standard input closes and the journal is read."""
    # A scheduler's SIGTERM goes to every process of a job. The trainer answers it by finishing; the lane ends with it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        return deliver(folder, name, trainer_gone)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code


def trainer_gone(seconds: float) -> bool:
    """Wait up to `seconds` for the trainer to end: its end of the pipe closes then, even by kill -9."""
    if not select.select([sys.stdin], [], [], seconds)[0]:
        return False
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return True


def deliver(folder: Path, name: str, gone: Gone) -> int:
    """Deliver a run's journal to a tracker until `gone` and nothing is left; returns the process's exit code.

    What goes wrong ends up as one sentence in the tracker's state; what was not delivered stays for the next time.
    """
    (Path(folder) / FOLDER).mkdir(exist_ok=True)
    with _lock(Path(folder) / FOLDER / f"{name}.lock", gone) as locked:
        if not locked:
            return BUSY
        cursor = Cursor.load(folder, name)
        lane = _Lane(Path(folder), name, cursor)
        try:
            lane.run(gone)
        except Exception as error:  # a tracker's library may raise anything; it is all the same to the run
            traceback.print_exc()
            lane.note(state="failed", message=_sentence(error))
            return 1
        return 0


@dataclasses.dataclass
class _Lane:
    folder: Path
    name: str
    cursor: Cursor
    tracker: Any = None

    def run(self, gone: Gone) -> None:
        ended = gone(0)
        if ended and self.cursor.state == "finished" and not self.cursor.pending(self.folder):
            return
        self.note(state="starting", message="", note="")
        config = self._configuration(gone)
        self.note(state="live", note=self._insist(lambda: self._open(config)))
        while True:
            # Asked before the journal is read, so that what the trainer wrote before it ended is delivered.
            ended = gone(0 if ended else POLL)
            batch = self.cursor.batch(self.folder, BATCH)
            if batch:
                self._log(batch)
            elif ended:
                break
        status = _status(self.folder)
        self._insist(lambda: self.tracker.finish(status))
        self.note(state="finished")

    def note(self, **changes: str) -> None:
        for field, value in changes.items():
            setattr(self.cursor, field, value)
        self.cursor.save(self.folder, self.name)

    def _configuration(self, gone: Gone) -> dict[str, Any]:
        while True:
            ended = gone(0)
            found = configuration(self.folder)
            if found is not None:
                return found
            if ended:
                raise UserError(f"{self.folder}: the journal has no start event, so there is nothing to deliver")
            gone(POLL)

    def _open(self, config: dict[str, Any]) -> str:
        options = TrackOptions(**{field.name: config.get(field.name) for field in dataclasses.fields(TrackOptions)})
        self.tracker = module(self.name).Tracker()
        return self.tracker.open(Identity.load(self.folder), config, self.folder, options)

    def _log(self, batch: list) -> None:
        rows = [row for _, _, row in batch if row]
        if rows:
            self._insist(lambda: self.tracker.log(rows))
        self.cursor.advance(batch)
        self._insist(lambda: self.cursor.save(self.folder, self.name))

    def _insist(self, action: Callable[[], Any]) -> Any:
        for wait in WAITS:
            try:
                return action()
            except Exception:
                traceback.print_exc()  # into the tracker's log file
                time.sleep(wait)
        return action()


def module(name: str) -> Any:
    """The module of a tracker: lib/track/<name>.py."""
    return importlib.import_module(f"lib.track.{name.replace('-', '_')}")


def configuration(folder: Path) -> dict[str, Any] | None:
    """The resolved options of the run's newest start or resume, by name in lower case; None before it started."""
    found = None
    for record in journal.read(folder):
        if record["event"] in ("start", "resume"):
            found = record.get("config", found)
    return found


def _status(folder: Path) -> str:
    """How the run ended: what its last record says, or `crashed` when it did not get to say anything."""
    last = deque(journal.read(folder), maxlen=1)
    return last[0].get("status", "finished") if last and last[0]["event"] == "finish" else "crashed"


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text[:300]}"


@contextlib.contextmanager
def _lock(path: Path, gone: Gone) -> Iterator[bool]:
    """Whether this process is the one that delivers; waits for another one while the trainer lives, then 2 s more."""
    with path.open("a+") as file:
        patience = 8
        while not (locked := _try_lock(file.fileno())) and patience:
            if gone(POLL):
                patience -= 1
                time.sleep(POLL)
        if locked:
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
        yield locked


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
