"""Records a session: fills the journal, shows events in the terminal, feeds trackers, writes checkpoints."""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from gpt2.alerts import Watch
from gpt2.divergence import Diverged
from gpt2.rescue import Spare
from gpt2.training import Training
from lib import track
from lib.base import launch
from lib.base.errors import UserError
from lib.base.metric import Metric
from lib.record import checkpoint, history, journal, media, pictures, short
from lib.terminal.console import Console, say
from lib.track import waiting

_IMPORT_SECONDS, _OPEN_SECONDS = 15.0, 3.0  # the longest waits for trackers, because one may hang


class Recorder:
    """Records one session of a run, on rank 0."""

    def __init__(
        self,
        folder: Path,
        book: journal.Journal,
        console: Console,
        trackers: Iterable[str],
        training: Training,
        watch: Watch,
        keeping: checkpoint.Keeping,
        about: dict[str, str],
        sampler: Callable[[], str | None] | None,
        patience: waiting.Patience,
    ):
        """Start the trackers. `about` goes into the headers of checkpoints.

        `sampler` writes the text of each evaluation, or None if it was broken off; without it there is none.
        """
        self.folder, self.journal, self.console, self.training = folder, book, console, training
        self.watch, self.spare = watch, Spare(folder)
        self.writer = checkpoint.Writer(folder / "checkpoints", keeping, about, book.sync, console.say)
        self.sampler = sampler
        self.began, self.before = time.perf_counter(), training.total_seconds
        self.described: set[str] = set()  # metrics for which the journal says how to show them
        self.patience = patience  # with the trackers at the end
        self.trackers = list(trackers)
        self.lanes = track.Lanes(folder, self.trackers)  # last: these processes are closed by __exit__ only
        self.attendant = waiting.Attendant(self.lanes, console.say)

    def __enter__(self) -> "Recorder":
        self.writer.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.writer.__exit__(*exc_info)
        finally:
            retries = isinstance(exc_info[1], Diverged)  # the trackers of the retry deliver the rest
            if retries or isinstance(exc_info[1], KeyboardInterrupt):
                self.hurry()
            self.console.close()  # a failed run has not closed it, and the wait has bars of its own
            heard = self.attendant.close(self.patience)  # trackers never change the exit code
            if heard and retries:  # the user wants no retry
                signal.raise_signal(heard)

    def hurry(self) -> None:
        """Wait only shortly for the trackers at the end."""
        self.patience = self.patience.short()

    def write(self, event: str, step: int, metrics: dict[str, float], **details: object) -> None:
        """Put an event into the journal, from which trackers get it, and show it. Alerts about it come first.

        The first record of a metric says how the metric is shown, for all readers of the journal.
        """
        for alert in self.watch.look(event, step, metrics, details.get("status", "")):
            self.alert(*alert, step)
        shown = {name: name.shown for name in metrics if isinstance(name, Metric) and name not in self.described}
        self.console.metrics |= {name: name for name in shown}
        record = self.journal.write(event, step, metrics, **details, **({"shown": shown} if shown else {}))
        self.described |= record.get("shown", {}).keys()
        self.console.show(record)
        if event == "eval" and math.isfinite(metrics["val_loss"]):
            self.sample(step)

    def sample(self, step: int) -> None:
        """Keep a sample of the model after this step, if samples are wanted."""
        if self.sampler is None:
            return
        try:
            with self.busy("sampling"):
                text = self.sampler()
        except RuntimeError as error:  # such as logits that are infinite in float16
            self.console.say(f"note: no sample of step {step}: {error}")
            return
        if text is not None:
            media.write(self.folder, self.journal, "text", "sample", step, text.encode())

    def has_sample(self, step: int) -> bool:
        """Whether the journal has a sample of this step, or samples are not wanted."""
        return (
            self.sampler is None
            or journal.key_of("media", step, {"name": "sample"}) in journal.in_force(self.folder).others
        )

    def draw(self, step: int) -> None:
        """Keep pictures of the run, which ends after this step. One that cannot be kept does not stop the run."""
        if problem := pictures.problem():
            if self.trackers:  # nobody else misses them
                self.console.say(f"note: {problem}")
            return
        with self.busy("drawing"):
            known, found = history.load(self.folder), {}
            for name, draw in (("loss", pictures.loss_curve), ("layer_sparsity", pictures.layer_sparsity)):
                try:
                    found[name] = draw(known)
                except Exception as error:  # matplotlib may raise anything
                    self.console.say(f"note: the picture {name!r} cannot be drawn: {type(error).__name__}: {error}")
        for name, drawn in found.items():
            if drawn:
                with self._told():
                    media.write(self.folder, self.journal, "image", name, step, drawn)

    def keep_artifact(self, which: str, step: int) -> None:
        """Name the checkpoint that trackers get at the end of the run after `step`: `last`, `best` or `none`."""
        if which == "none":
            return
        path = self.writer.folder / checkpoint.name(step if which == "last" else self.training.best.step)
        if path.exists():
            with self._told():
                media.keep(self.folder, self.journal, f"{which}-checkpoint", step, path)
        else:
            self.console.say(f"note: {path}: is not there, so trackers do not get it")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """A context in which a file that cannot be written is a note: the run has made all its steps."""
        try:
            yield
        except journal.JournalError:  # without the journal there is no end to record
            raise
        except UserError as error:
            self.console.say(f"note: {error}")

    def alert(self, kind: str, level: str, message: str, step: int) -> None:
        """Tell the user something at once, in the terminal and through trackers that can."""
        self.console.show(self.journal.write("alert", step, {}, kind=kind, level=level, message=message))

    def ready(self) -> None:
        """Wait for the trackers to start: it takes processor time that would slow the first steps."""
        with self.busy("starting trackers"):
            self.lanes.ready(_IMPORT_SECONDS, _OPEN_SECONDS)

    def tick(self) -> None:
        """Move the progress bar by a step."""
        self.console.tick()

    def busy(self, what: str) -> contextlib.AbstractContextManager[None]:
        """A context that shows in the terminal what the run does instead of steps."""
        return self.console.busy(what)

    def save(self, step: int) -> None:
        """Begin to save a checkpoint. It gets its name only after the journal is on the disk up to this step."""
        if not self.writer.folder.exists():
            self.journal.check()  # the whole folder of the run may be gone
            self.writer.folder.mkdir()
            self.alert("checkpoints", "warn", f"step {step}: {self.writer.folder} was removed; it is made again", step)
        with self.busy("saving"):
            self.training.total_seconds = self.seconds()
            self.writer.save(step, self.training.state_dict())

    def tidy(self) -> None:
        """Remove what a killed session left: unfinished files, and checkpoints that were to be removed."""
        found, folder = checkpoint.find(self.writer.folder), self.writer.folder
        for path in [*folder.glob("*.tmp"), *self.writer.keeping.obsolete(found, self.training.best.step)]:
            path.unlink()

    def settle(self) -> None:
        """Wait for the last checkpoint; raises CheckpointError if it could not be written."""
        try:
            with self.busy("saving"):
                self.writer.wait()
        except checkpoint.CheckpointError:
            self.journal.check()  # the whole folder of the run may be gone
            raise

    def has_checkpoint(self, step: int) -> bool:
        """Whether there is a checkpoint of this step."""
        return (self.folder / "checkpoints" / checkpoint.name(step)).exists()

    def val_loss(self, step: int) -> float | None:
        """The validation loss after this step in the journal, or None."""
        self.journal.check()
        row = journal.history(self.folder).get(("eval", step))
        return journal.numbers(row)["val_loss"] if row else None

    def interrupt(self, step: int, run_time: str) -> None:
        """Record that the user or the limit `run_time` stopped the run after this step; say how to continue it."""
        self.hurry()
        why = {"message": short.words(run_time)} if run_time else {}
        self.write("finish", step, {}, status="interrupted", **why)
        self.console.close()
        more = "RUN_TIME=..." if run_time else ""
        begins = f"{why['message']}: stopped" if why else "stopped"
        say(f"{begins} after step {step}; continue with: {launch.resume(self.folder, more)}")

    def rescue(self, step: int) -> str:
        """Save the run in a new place after its folder was removed or moved; returns what happened to the folder."""
        before = self.folder
        with contextlib.suppress(checkpoint.CheckpointError):  # its folder is gone
            self.writer.wait()
        self.writer.pending = None
        self.folder, happened = self.spare.put_back(self.journal)
        self.writer.folder = self.folder / "checkpoints"
        self.save(step)
        self.settle()
        self.write("finish", step, {}, status="failed", message=f"{before}: {happened}")
        self.spare.finish(self.folder)
        return happened

    def seconds(self) -> float:
        """The time that the run has taken up to now, over all its sessions."""
        return self.before + time.perf_counter() - self.began


class Unrecorded:
    """Takes the place of `Recorder` on every rank but 0: it records nothing."""

    def __init__(self, folder: Path):
        self.folder = folder

    def write(self, event: str, step: int, metrics: dict[str, float], **details: object) -> None:
        pass

    def alert(self, kind: str, level: str, message: str, step: int) -> None:
        pass

    def ready(self) -> None:
        pass

    def tick(self) -> None:
        pass

    def busy(self, what: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def save(self, step: int) -> None:
        pass

    def settle(self) -> None:
        pass

    def has_checkpoint(self, step: int) -> bool:
        return False

    def interrupt(self, step: int, run_time: str) -> None:
        pass

    def seconds(self) -> float:
        return 0.0  # the first rank knows it, and all stop together
