"""What the loop talks to: puts events into the journal, shows them, and writes checkpoints."""

import contextlib
import shlex
import time
from pathlib import Path

from gpt2.alerts import Watch
from gpt2.rescue import Spare
from gpt2.training import Training
from lib import track
from lib.base.errors import UserError
from lib.record import checkpoint, journal
from lib.terminal.console import Console, say

_IMPORT_SECONDS, _OPEN_SECONDS = 15.0, 3.0  # to wait for the trackers at most: one may hang


class Recorder:
    """The journal, the console and the trackers of one session of a run."""

    def __init__(
        self,
        folder: Path,
        book: journal.Journal,
        console: Console,
        lanes: track.Lanes,
        training: Training,
        watch: Watch,
        keeping: checkpoint.Keeping,
        about: dict[str, str],
    ):
        self.folder, self.journal, self.console, self.lanes, self.training = folder, book, console, lanes, training
        self.watch, self.spare = watch, Spare(folder)
        self.writer = checkpoint.Writer(folder / "checkpoints", keeping, about, book.sync, console.say)
        self.began, self.before = time.perf_counter(), training.total_seconds

    def write(self, event: str, step: int, metrics: dict[str, float], **details: object) -> None:
        """Put an event into the journal, from which everything else learns of it, and show it; alerts come first."""
        for alert in self.watch.look(event, step, metrics, details.get("status", "")):
            self.alert(*alert, step)
        self.console.show(self.journal.write(event, step, metrics, **details))
        for note in self.lanes.notes():
            self.console.say(note)

    def alert(self, kind: str, level: str, message: str, step: int) -> None:
        """Tell the user something at once, here and wherever trackers can."""
        self.console.show(self.journal.write("alert", step, {}, kind=kind, level=level, message=message))

    def ready(self) -> None:
        """Return when trackers have begun, which takes processor time that the first steps would miss."""
        with self.busy("starting trackers"):
            self.lanes.ready(_IMPORT_SECONDS, _OPEN_SECONDS)

    def tick(self) -> None:
        """Move the progress bar."""
        self.console.tick()

    def busy(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Say what is being done while no step is made."""
        return self.console.busy(what)

    def save(self, step: int) -> None:
        """Begin to save a checkpoint, which gets its name after the journal's lines up to this step are safe."""
        if not self.writer.folder.exists():
            self.journal.check()  # the whole run may be gone
            self.writer.folder.mkdir()
            self.alert("checkpoints", "warn", f"step {step}: {self.writer.folder} was removed; it is made again", step)
        with self.busy("saving"):
            self.training.total_seconds = self.seconds()
            self.writer.save(step, self.training.state_dict())

    def tidy(self) -> None:
        """Remove what a kill left of checkpoints: unfinished files, and those that are kept no longer."""
        found, folder = checkpoint.find(self.writer.folder), self.writer.folder
        for path in [*folder.glob("*.tmp"), *self.writer.keeping.obsolete(found, self.training.best.step)]:
            path.unlink()

    def settle(self) -> None:
        """Return when the last checkpoint is there; raises CheckpointError if it could not be written."""
        try:
            with self.busy("saving"):
                self.writer.wait()
        except checkpoint.CheckpointError:
            self.journal.check()  # the whole run may be gone
            raise

    def val_loss(self, step: int) -> float | None:
        """What the journal has as the validation loss after this step; None if it has none."""
        self.journal.check()
        row = journal.history(self.folder).get(("eval", step))
        return journal.numbers(row)["val_loss"] if row else None

    def stop(self, step: int) -> None:
        """Leave a checkpoint of this step behind, and the word that the run was interrupted after it."""
        if not (self.folder / "checkpoints" / checkpoint.name(step)).exists():
            self.save(step)
            self.settle()
        self.leave(step)

    def leave(self, step: int) -> None:
        """Leave the word that the run was interrupted after this step, without a checkpoint of it."""
        self.write("finish", step, {}, status="interrupted")
        self.console.close()
        say(f"stopped after step {step}; continue with: make resume RUN={shlex.quote(str(self.folder))}")

    def rescue(self, step: int) -> UserError:
        """Save the run whose folder was removed or moved after this step; returns what its user has to know."""
        before = self.folder
        with contextlib.suppress(checkpoint.CheckpointError):  # there was no place for it
            self.writer.wait()
        self.writer.pending = None
        self.folder, what = self.spare.put_back(self.journal)
        self.writer.folder = self.folder / "checkpoints"
        self.save(step)
        self.settle()
        self.write("finish", step, {}, status="failed", message=f"{before}: {what}")
        self.spare.finish(self.folder)
        again = f"make resume RUN={shlex.quote(str(self.folder))}"
        return UserError(f"{before}: {what}; go on after step {step} with: {again}")

    def seconds(self) -> float:
        """How long the run has taken, over all its sessions up to now."""
        return self.before + time.perf_counter() - self.began


class Unrecorded:
    """What every rank but the first talks to: nobody listens, and nothing is written."""

    def __init__(self, folder: Path):
        self.folder = folder

    def write(self, event: str, step: int, metrics: dict[str, float], **details: object) -> None:
        """Rank 0 does."""

    def alert(self, kind: str, level: str, message: str, step: int) -> None:
        """Rank 0 does."""

    def ready(self) -> None:
        """Rank 0 does."""

    def tick(self) -> None:
        """Rank 0 does."""

    def busy(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Nothing to say."""
        return contextlib.nullcontext()

    def save(self, step: int) -> None:
        """Rank 0 does; its weights are those of all."""

    def settle(self) -> None:
        """Rank 0 does."""

    def stop(self, step: int) -> None:
        """Rank 0 does."""

    def leave(self, step: int) -> None:
        """Rank 0 does."""
