"""What the loop talks to: puts events into the journal, shows them, and writes checkpoints."""

import contextlib
import time
from pathlib import Path

from gpt2.loop import Training
from lib import checkpoint, journal, track
from lib.console import Console


class Recorder:
    """The journal, the console and the trackers of one session of a run."""

    def __init__(self, folder: Path, book: journal.Journal, console: Console, lanes: track.Lanes, training: Training):
        self.folder, self.journal, self.console, self.lanes, self.training = folder, book, console, lanes, training
        self.writer = checkpoint.Writer(folder / "checkpoints", book.sync, console.say)
        self.began, self.before = time.perf_counter(), training.total_seconds

    def write(self, event: str, step: int, metrics: dict[str, float], **details: object) -> None:
        """Put an event into the journal, from which everything else learns of it, and show it."""
        self.console.show(self.journal.write(event, step, metrics, **details))
        for note in self.lanes.notes():
            self.console.say(note)

    def tick(self) -> None:
        """Move the progress bar."""
        self.console.tick()

    def busy(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Say what is being done while no step is made."""
        return self.console.busy(what)

    def save(self, step: int) -> None:
        """Begin to save a checkpoint, which gets its name after the journal's lines up to this step are safe."""
        with self.busy("saving"):
            self.training.total_seconds = self.seconds()
            self.writer.save(step, self.training.state_dict())

    def settle(self) -> None:
        """Return when the last checkpoint is there; raises CheckpointError if it could not be written."""
        with self.busy("saving"):
            self.writer.wait()

    def seconds(self) -> float:
        """How long the run has taken, over all its sessions up to now."""
        return self.before + time.perf_counter() - self.began
