"""A lane: the process that follows a run's journal and delivers it to one tracker, whatever becomes of the trainer."""

import contextlib
import dataclasses
import functools
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

from lib.base import files, redact
from lib.base.errors import UserError
from lib.record import journal
from lib.record.run import Identity
from lib.track import registry
from lib.track.cursor import FOLDER, Backlog, Cursor, Item, path_of
from lib.track.tracker import Alert, Row

POLL = 2.0  # seconds between looks at the journal; each costs processor time that training could use
ASK = 0.25  # seconds between attempts at the lock
BATCH = 2000  # records handed to a tracker at once
WAITS = (1, 2, 4, 8, 15)  # seconds between the attempts at a call that fails
BUSY = 3  # exit code: another process delivers to this tracker of this run

Gone = Callable[[float], bool]


def main(folder: Path, name: str, pipe: int) -> int:
    """The lane's process: deliver until the trainer's end of standard input closes and the journal is read.

    The trainer reads a byte from `pipe` when the tracker's library is imported, and its end when the run is open there.
    """
    # A scheduler's SIGTERM goes to every process of a job. The trainer answers it by finishing; the lane ends with it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(19)  # the processors are for training
    # What libraries print goes into the tracker's log, and may quote a key that was refused.
    sys.stdout, sys.stderr = redact.Discreet(sys.stdout), redact.Discreet(sys.stderr)
    try:
        return deliver(folder, name, trainer_gone, Pipe(pipe))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code


def trainer_gone(seconds: float) -> bool:
    """Wait up to `seconds` for the trainer to end: its end of the pipe closes then, even by kill -9."""
    if not select.select([sys.stdin], [], [], seconds)[0]:
        return False
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return True


class Pipe:
    """The end that the lane writes; the trainer may have closed the other."""

    def __init__(self, descriptor: int):
        os.set_inheritable(descriptor, False)
        self.file = os.fdopen(descriptor, "wb", buffering=0)

    def imported(self) -> None:
        """Tell that the library is imported."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: closed
            self.file.write(b"i")

    def close(self) -> None:
        """Tell that there is nothing more to wait for."""
        self.file.close()


def deliver(folder: Path, name: str, gone: Gone, pipe: Pipe) -> int:
    """Deliver a run's journal to a tracker until `gone` and nothing is left; returns the process's exit code.

    What goes wrong ends up as one sentence in the tracker's state; what was not delivered stays for the next time.
    """
    (Path(folder) / FOLDER).mkdir(exist_ok=True)
    with _lock(path_of(folder, name, "lock"), gone, pipe) as locked:
        if not locked:
            return BUSY
        cursor = Cursor.load(folder, name)
        lane = _Lane(Path(folder), name, cursor, Backlog(folder), gone, pipe)
        try:
            lane.run()
        except (Exception, SystemExit) as error:  # a tracker's library may raise anything
            traceback.print_exc()
            lane.note(state="failed", message=_sentence(error))
            return 1
        return 0


@dataclasses.dataclass
class _Lane:
    folder: Path
    name: str
    cursor: Cursor
    backlog: Backlog
    gone: Gone
    pipe: Pipe
    tracker: Any = None
    is_open: bool = False

    def run(self) -> None:
        ended, before = self.gone(0), self.cursor.state
        if ended and before == "finished" and not self.cursor.pending(self.backlog.update()):
            return
        self.note(state="starting", message="", note="")
        self.tracker = registry.load(self.name)()
        self.pipe.imported()
        self.note(state="opening")
        self._await_start()
        unknown = self.backlog.taken_back and not self.cursor.reach and hasattr(self.tracker, "rewrite")
        if unknown or self.cursor.is_stale(self.backlog):  # unknown: without a state, files may be there all the same
            self._begin_again(ended=before == "finished")
        else:
            self.cursor.trust()
            self._open()
        self.pipe.close()
        while True:
            # Asked before the journal is read, so that what the trainer wrote before it ended is delivered.
            ended = self.gone(0 if ended else POLL)
            if self.cursor.is_stale(self.backlog.update()):
                self._begin_again(ended=False)
            items, edge = self.cursor.batch(self.backlog, BATCH)
            if items:
                self._deliver(items, edge)
            elif ended:
                break
        status = _status(self.folder)
        if status == "running":  # somebody delivers what there is so far
            return
        self._insist(lambda: self.tracker.finish(status))
        self.note(state="finished")

    def note(self, **changes: str) -> None:
        for field, value in changes.items():
            setattr(self.cursor, field, redact.hide(value))
        self.cursor.save(self.folder, self.name)

    def _await_start(self) -> None:
        while True:
            ended = self.gone(0)
            if self.backlog.update().configs:
                return
            if ended:
                raise UserError(f"{self.folder}: the journal has no start event, so there is nothing to deliver")
            self.gone(POLL)

    def _open(self) -> None:
        first = Identity.load(self.folder)
        identity = self.cursor.identity(first)
        note = self._insist(lambda: self.tracker.open(identity, self.backlog.configs[-1][1], self.folder))
        self.is_open = True
        again = f"the run {identity.name} has all rows in force; rows of {first.name} were taken back"
        self.note(state="live", note="; ".join(filter(None, [again if identity != first else "", note])))

    def _begin_again(self, ended: bool) -> None:
        """Make the tracker hold what is in force; `ended`: its run was told of an end."""
        if hasattr(self.tracker, "rewrite"):
            self._open()  # with the options of now
            items = [item for _, item in self.backlog.items(0)]
            rows, alerts = ([item for item in items if isinstance(item, kind)] for kind in (Row, Alert))
            self._insist(lambda: self.tracker.rewrite(rows, alerts))
            self.cursor.rewritten(self.backlog.end, len(items))
            self._save()
            return
        if not ended:
            self._leave()
        self.cursor.begin_again()
        self._save()
        self.tracker = registry.load(self.name)()
        self._open()

    def _leave(self) -> None:
        """Tell the tracker that the run which it has goes on no more; tried once, since no row depends on it."""
        try:
            if not self.is_open:
                config = next(config for place, config in reversed(self.backlog.configs) if place <= self.cursor.reach)
                self.tracker.open(self.cursor.identity(Identity.load(self.folder)), config, self.folder)
            self.tracker.finish("interrupted")
        except Exception:
            traceback.print_exc()

    def _deliver(self, items: list[Item], edge: int) -> None:
        self.cursor.reach = max(edge, self.cursor.reach)
        self._save()  # before they are handed over: a kill in between must not hide that the tracker has them
        for start in range(0, len(items), BATCH):
            for kind, deliver in ((Row, self.tracker.log), (Alert, self.tracker.alert)):
                if some := [item for item in items[start : start + BATCH] if isinstance(item, kind)]:
                    self._insist(functools.partial(deliver, some))
        self.cursor.advance(edge, len(items))
        self._save()

    def _save(self) -> None:
        self._insist(lambda: self.cursor.save(self.folder, self.name))

    def _insist(self, action: Callable[[], Any]) -> Any:
        """What `action` returns; it is tried again after each of WAITS, and on and on while the trainer lives."""
        waits = iter(WAITS)
        while True:
            try:
                result = action()
                break
            except Exception as error:
                traceback.print_exc()  # into the tracker's log file
                ended = self.gone(0)
                if (wait := next(waits, None)) is None:
                    if ended:
                        raise
                    wait = WAITS[-1]
                    with contextlib.suppress(UserError):  # of a full disk: the message is not worth an end
                        self.note(message=f"{_sentence(error)}; trying again")
                time.sleep(wait) if ended else self.gone(wait)
        self.cursor.message = ""
        return result


def configuration(folder: Path) -> dict[str, Any] | None:
    """The resolved options of the run's newest start or resume, by name in lower case; None before it started."""
    found = None
    for record in journal.read(folder):
        if record["event"] in ("start", "resume"):
            found = record.get("config", found)
    return found


def _status(folder: Path) -> str:
    """How the run ended: what its last record of training says, or `crashed` when it did not get to say anything."""
    told = (record for record in journal.read(folder) if record["event"] not in ("alert", "system"))
    last = deque(told, maxlen=1)
    if last and last[0]["event"] == "finish":
        return last[0].get("status", "finished")
    return "running" if files.is_held(folder) else "crashed"


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text[:300]}"


@contextlib.contextmanager
def _lock(path: Path, gone: Gone, pipe: Pipe) -> Iterator[bool]:
    """Whether this process is the one that delivers; waits for another one while the trainer lives, then 2 s more."""
    with path.open("ab", buffering=0) as file:
        patience = 8
        while not (locked := files.locks(file.fileno(), path)) and patience:
            pipe.close()
            if gone(ASK):
                patience -= 1
                time.sleep(ASK)
        if locked:
            file.truncate(0)
            try:
                file.write(b"%d\n" % os.getpid())
            except OSError as error:
                raise UserError(f"{path}: cannot be written: {files.reason(error, path.parent)}") from None
        yield locked
