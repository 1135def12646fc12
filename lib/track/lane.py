"""A lane: the process that follows a run's journal and delivers it to one tracker, also after the trainer crashed."""

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lib.base import files, redact
from lib.base.errors import UserError
from lib.record import journal, media
from lib.record.in_force import BESIDE
from lib.record.run import Identity
from lib.track import registry
from lib.track.cursor import FOLDER, Backlog, Cursor, Item, path_of
from lib.track.tracker import Alert, Media, Refused, Row

POLL = 2.0  # seconds between reads of the journal; each uses processor time that training could use
ASK = 0.25  # seconds between attempts to get the lock
BATCH = 2000  # records in one call of a tracker
WAITS = (1, 2, 4, 8, 15)  # seconds between the attempts at a call that fails
_LARGE = 50_000_000  # bytes: from this size on, the state says that a file is being sent
BUSY = 3  # exit code: another process delivers this run to this tracker

Gone = Callable[[float], bool]
T = TypeVar("T")


def main(folder: Path, name: str, pipe: int) -> int:
    """The lane's process: deliver until the trainer has ended, which closes standard input, and the journal is read.

    The lane writes a byte to `pipe` when the tracker's library is imported, and closes it when the run is open there.
    """
    # A scheduler sends SIGTERM to every process of a job. The trainer then ends the run, and the lane ends after it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(19)  # training has priority
    # What libraries print goes into the tracker's log, and may contain a rejected key.
    sys.stdout, sys.stderr = redact.Discreet(sys.stdout), redact.Discreet(sys.stderr)
    try:
        return deliver(folder, name, trainer_gone, Pipe(pipe))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code


def trainer_gone(seconds: float) -> bool:
    """Wait up to `seconds` for the trainer to end: standard input closes then, even after kill -9."""
    if not select.select([sys.stdin], [], [], seconds)[0]:
        return False
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return True


class Pipe:
    """The lane's end of the pipe to the trainer, which may have closed its own end."""

    def __init__(self, descriptor: int):
        os.set_inheritable(descriptor, False)
        self.file = os.fdopen(descriptor, "wb", buffering=0)

    def imported(self) -> None:
        """Tell the trainer that the library is imported."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: closed
            self.file.write(b"i")

    def close(self) -> None:
        """Tell the trainer that it need not wait any longer."""
        self.file.close()


def deliver(folder: Path, name: str, gone: Gone, pipe: Pipe) -> int:
    """Deliver a run's journal to a tracker until `gone` and everything is delivered; returns the exit code.

    An error is stored as one sentence in the tracker's state. The rows that were not delivered stay pending.
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
        complete = ended and before == "finished" and not self.cursor.pending(self.backlog.update())
        # The rows may have to go elsewhere now, or the destination may have lost them.
        if complete and not (self.cursor.destination or hasattr(registry.tracker_class(self.name)(), "holds")):
            return
        self.note(state="starting", message="", note="")
        self.tracker = registry.tracker_class(self.name)()
        self.pipe.imported()
        self.note(state="opening")
        self._await_start()
        unknown = self.backlog.taken_back and not self.cursor.reach and hasattr(self.tracker, "rewrite")
        if unknown or self.cursor.is_stale(self.backlog):  # unknown: the state may be lost, but not the files
            self._begin_again(ended=before == "finished")
        else:
            self.cursor.trust()
            self._open()
        self.pipe.close()
        while True:
            # Asked before the journal is read, so that the last records of the trainer are delivered.
            ended = self.gone(0 if ended else POLL)
            if self.cursor.is_stale(self.backlog.update()):
                self._begin_again(ended=False)
            items, edge = self.cursor.batch(self.backlog, BATCH)
            if items:
                self._deliver(items, edge)
            elif ended:
                self._try_again()
                break
        status = _status(self.folder)
        if status == "running":  # `make sync` while the run trains
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
        again = f"the run {identity.name} has all valid rows; rows of {first.name} were withdrawn"
        notes = [again if identity != first else "", self._find_destination(), note]
        self.note(state="live", note="; ".join(filter(None, notes)))

    def _find_destination(self) -> str:
        """Continue with what the tracker's destination has; returns a note if it lacks what was delivered."""
        place = redact.hide(self._insist(self.tracker.destination)) if hasattr(self.tracker, "destination") else ""
        before, delivered = self.cursor.go_to(place), self.cursor.rows
        if delivered and hasattr(self.tracker, "holds") and not self._insist(self.tracker.holds):
            self.cursor.lost()
        if before:
            rest = "the rest" if self.cursor.rows else "all of the run"
            return f"the rows went to {before} before; {place} now gets {rest}"
        lost = delivered > self.cursor.rows
        return f"{place or self.folder} does not hold the run any more and gets all of it again" if lost else ""

    def _begin_again(self, ended: bool) -> None:
        """Give the tracker exactly the valid rows, by a rewrite or a new run; `ended`: its old run was finished."""
        if hasattr(self.tracker, "rewrite"):
            self._open()  # with the current options
            items = [item for _, item in self.backlog.items(0)]
            rows, alerts, shown = (_of(kind, items) for kind in (Row, Alert, Media))
            self._insist(lambda: self.tracker.rewrite(rows, alerts))
            self.cursor.left_out = {}
            missing = [item for item in shown if not self._hand_over(item)]
            self.cursor.rewritten(self.backlog.end, len(items) - len(missing))
            self._save()
            return
        if not ended:
            self._leave()
        self.cursor.begin_again()
        self._save()
        self.tracker = registry.tracker_class(self.name)()
        self._open()

    def _leave(self) -> None:
        """End the tracker's old run as interrupted; tried once, because no row depends on it."""
        try:
            if not self.is_open:
                identity = self.cursor.identity(Identity.load(self.folder))
                self.tracker.open(identity, self.backlog.configs[-1][1], self.folder)
            self.tracker.finish("interrupted")
        except Exception:
            traceback.print_exc()

    def _deliver(self, items: list[Item], edge: int) -> None:
        self.cursor.reach = max(edge, self.cursor.reach)
        self._save()  # before delivery, so that after a kill the state shows that the tracker may have them
        for start in range(0, len(items), BATCH):
            for kind, deliver in ((Row, self.tracker.log), (Alert, self.tracker.alert)):
                if some := _of(kind, items[start : start + BATCH]):
                    self._insist(functools.partial(deliver, some))
        missing = [item for item in _of(Media, items) if not self._hand_over(item)]
        self.cursor.advance(edge, len(items) - len(missing))
        self._save()

    def _hand_over(self, item: Media) -> bool:
        """Give media to a tracker that takes them. Media that it cannot get are set aside; then this returns False."""
        if not hasattr(self.tracker, "media"):
            return True
        if not os.path.lexists(item.path):  # such as a checkpoint of an earlier end; nothing can deliver it
            print(f"{item.path}: is no longer there, so the tracker does not get it", flush=True)
            return True
        try:
            self.cursor.sending = media.size(item.path, self.folder)
            if self.cursor.sending > _LARGE:
                self._save()
            # Where one item failed, the next ones may fail for the same reason, so they get fewer attempts.
            self._insist(
                lambda: self.tracker.media([item]), WAITS[:1] if self.cursor.left_out else WAITS, for_ever=False
            )
        except Exception as error:
            self.cursor.set_aside(item, redact.hide(_sentence(error)))
            return False
        finally:
            self.cursor.sending = 0
        self.cursor.left_out.pop(f"{item.step} {item.name}", None)
        return True

    def _try_again(self) -> None:
        """Deliver what was set aside, once more before the end."""
        for key in list(self.cursor.left_out):
            if (item := self.backlog.media(key)) is None:  # withdrawn meanwhile
                del self.cursor.left_out[key]
            elif self._hand_over(item):
                self.cursor.rows += 1
        self._save()

    def _save(self) -> None:
        self._insist(lambda: self.cursor.save(self.folder, self.name))

    def _insist(self, action: Callable[[], Any], waits: Sequence[float] | None = None, for_ever: bool = True) -> Any:
        """Return what `action` returns. After an error, try again after each of `waits`, then while the trainer runs.

        `waits` are WAITS unless given. A refusal is told at once, and is not tried again after the trainer has ended.
        Not `for_ever`: after the waits the error is raised also while the trainer runs.
        """
        rest = iter(WAITS if waits is None else waits)
        while True:
            try:
                result = action()
                break
            except Exception as error:
                traceback.print_exc()  # into the tracker's log file
                ended = self.gone(0)
                wait = None if isinstance(error, Refused) else next(rest, None)
                if wait is None:
                    if ended or not for_ever:
                        raise
                    wait = WAITS[-1]
                    self.pipe.close()
                    with contextlib.suppress(UserError):  # a full disk: delivery continues without the message
                        self.note(message=f"{_sentence(error)}; trying again")
                time.sleep(wait) if ended else self.gone(wait)
        self.cursor.message = ""
        return result


def _of(kind: type[T], items: Iterable[Any]) -> list[T]:
    return [item for item in items if isinstance(item, kind)]


def configuration(folder: Path) -> dict[str, Any] | None:
    """The resolved options of the run's newest start or resume, by name in lower case; None before it started."""
    found = None
    for record in journal.read(folder):
        if record["event"] in ("start", "resume"):
            found = record.get("config", found)
    return found


def _status(folder: Path) -> str:
    """The status in the last record of training; without one, `running` or `crashed`."""
    of_training = (record for record in journal.read(folder) if record["event"] not in BESIDE)
    last = deque(of_training, maxlen=1)
    if last and last[0]["event"] == "finish":
        return last[0].get("status", "finished")
    return "running" if files.is_held(folder) else "crashed"


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text[:300]}"


@contextlib.contextmanager
def _lock(path: Path, gone: Gone, pipe: Pipe) -> Iterator[bool]:
    """Whether this process has the lock; waits for another process while the trainer runs, and 2 s longer."""
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
