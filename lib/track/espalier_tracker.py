"""For scripts that train with Hugging Face Accelerate: `Accelerator(log_with=[EspalierTracker("my run")])`."""

import contextlib
import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, on_main_process

from lib import track
from lib.base import files
from lib.base.errors import UsageError, UserError
from lib.config.kconf import Schema
from lib.record import journal, run
from lib.terminal.console import say

EVALUATION = ("eval", "val", "test")  # how the names of metrics begin that belong to the event `eval`


class EspalierTracker(GeneralTracker):
    """A run folder with a journal, and Espalier's trackers fed from it, for a training loop that is not Espalier's.

    Only the main process writes. What is logged is in the journal when `log` returns, whatever becomes of the script;
    trackers get it from there, in processes of their own. A run that ends without `Accelerator.end_training` is a
    crashed one, and `make sync RUN=folder` delivers what is missing of any.

    A row is told apart by its step and by which metrics it has; steps of the same metrics must grow. One that comes
    again is in the journal only. After a resume from an earlier checkpoint it counts, if it has other values; see
    lib/record/in_force.py.
    """

    name = "espalier"
    requires_logging_directory = False

    def __init__(
        self,
        run_name: str = "",
        *,
        project: str = "",
        trackers: tuple[str, ...] = ("trackio",),
        output_dir: str = "runs",
        resume: bool = False,
        wait_seconds: float = 30.0,
        **options: str | bool,
    ):
        """Check the arguments; nothing is written before Accelerate starts its trackers.

        run_name, project  empty: the date and time; name and hashed path of the clone around the current folder, or
                           of that folder
        trackers           as in --tracker: names, ("all",) or ()
        resume             go on with the run of this name in `output_dir`, if it is there, instead of making another
        wait_seconds       how long the end waits for the trackers, which deliver on by themselves after that
        options            of Espalier's, for trackers: tracker_group="sweep", wandb_offline=True

        Raises UsageError for what cannot be used here.
        """
        super().__init__()
        schema = Schema()
        texts = {name.upper(): option_text(name.upper(), value) for name, value in options.items()}
        texts = {"TRACKER": ",".join(trackers) or "none", **texts}
        schema.override([(name, text, "EspalierTracker") for name, text in texts.items()])
        self.names = track.names(schema["TRACKER"])
        self.options = {name.lower(): schema[name] for name in texts} | {"tracker": self.names}
        project = project or run.project_name(run.clone(Path.cwd()))
        self.wanted = run.RunOptions(str(files.named(output_dir)), project, run_name, "")
        self.resume, self.wait_seconds = resume, wait_seconds
        self.reserved = {name.lower() for name in schema.options}  # in a journal these are values of our options
        self.folder: Path | None = None
        self.journal: journal.Journal | None = None  # between start and finish
        self.lanes: track.Lanes | None = None

    @property
    def tracker(self) -> Path | None:
        """The run's folder, on the main process once it has started."""
        return self.folder

    @on_main_process
    def start(self) -> None:
        """Make the run's folder, or open that of the run to resume, after the end of a run before; raises UserError."""
        self.finish()
        wanted = self.wanted.tracker_run_name or f"run_{time.strftime('%Y%m%d-%H%M%S')}"
        there = Path(self.wanted.output_dir) / run.folder_name(wanted)
        if self.resume and (there / "run.json").exists():
            self.folder = there
        else:
            self.folder, _ = run.create(run.RunOptions(self.wanted.output_dir, self.wanted.tracker_project, wanted, ""))
        self.stack = contextlib.ExitStack()  # closed by `finish`, or by the death of the process
        self.stack.enter_context(files.held(self.folder, "training this run"))
        self.journal = journal.Journal(self.folder)
        self.stack.callback(self.journal.close)
        self.series = Series(self.folder)

    @on_main_process
    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Record the script's configuration, which begins the run, and start the trackers.

        A value with the name of an option of Espalier's is recorded as `config.<name>`, so that no tracker takes it for
        one.
        """
        if self.journal is None:
            raise UserError("EspalierTracker: no run is going on; call init_trackers, or start, first")
        config = {f"config.{name}" if name in self.reserved else name: plain(value) for name, value in values.items()}
        event = "resume" if self.journal.seq else "start"
        details = {} if self.journal.seq else {"schema": journal.SCHEMA}
        self.journal.write(event, max(self.series.last, 0), config={**config, **self.options}, **details)
        self.lanes = self.lanes or track.Lanes(self.folder, self.names)

    @on_main_process
    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Record numbers, tensors of one element and nested dictionaries of them; other values stay in the journal.

        Without `step` it is the one after the last. Raises JournalError when the disk is full.
        """
        if self.lanes is None:  # the script has no configuration
            self.store_init_configuration({})
        step = self.series.last + 1 if step is None else int(step)
        flat = flattened(values)
        metrics = {name: value for name, value in flat.items() if isinstance(value, bool | int | float)}
        others = {name: plain(value) for name, value in flat.items() if name not in metrics}
        event = self.series.event(tuple(sorted(metrics)), step) if metrics else "others"
        self.journal.write(event, step, metrics, **({"others": others} if others else {}))
        for note in self.lanes.notes():
            say(note)

    @on_main_process
    def finish(self) -> None:
        """Record the run's end, and say what each tracker has; nothing happens when no run is going on."""
        if self.journal is None:
            return
        if self.lanes is None:
            self.store_init_configuration({})
        self.journal.write("finish", max(self.series.last, 0), {}, status="finished")
        self.stack.close()
        lanes, self.journal, self.lanes = self.lanes, None, None
        lanes.close()
        lanes.wait(self.wait_seconds)
        say(f"run folder  {self.folder}")
        if deliveries := lanes.deliveries():
            say(track.table(deliveries))


class Series:
    """Which event a row belongs to, such that the steps of an event grow.

    Rows with the metrics of an evaluation are of the event `eval`, others of `train`; when that one is at or beyond the
    step already, as when a script logs twice in a step or counts epochs beside steps, of `train.2`, `train.3`, ...
    """

    def __init__(self, folder: Path):
        """What the journal in `folder` says so far."""
        self.last = -1  # the highest step
        self.steps: dict[str, int] = {}  # event -> its highest step
        self.rows: dict[tuple[str, ...], tuple[str, int]] = {}  # names of metrics -> last event and step
        for record in journal.read(folder):
            if record["event"].partition(".")[0] in ("train", "eval"):
                self._note(tuple(sorted(record["metrics"])), record["event"], record["step"])

    def event(self, names: tuple[str, ...], step: int) -> str:
        """The event for a row with these metrics; one that was there before gets the same again."""
        event, last = self.rows.get(names, ("", -1))
        if step <= last:
            return event
        base = "eval" if any(name.startswith(EVALUATION) for name in names) else "train"
        events = (base if number == 1 else f"{base}.{number}" for number in count(1))
        event = next(event for event in events if self.steps.get(event, -1) < step)
        self._note(names, event, step)
        return event

    def _note(self, names: tuple[str, ...], event: str, step: int) -> None:
        self.last = max(self.last, step)
        self.steps[event] = max(self.steps.get(event, -1), step)
        if step > self.rows.get(names, ("", -1))[1]:
            self.rows[names] = event, step


def option_text(name: str, value: Any) -> str:
    """An option's value as configurations write it; raises UsageError for what is no text, number or bool."""
    if not isinstance(value, bool | int | float | str):
        raise UsageError(f'EspalierTracker: {name} must be text, a number or a bool, lists as "a,b"; got {value!r}')
    return str(value) if not isinstance(value, bool) else "y" if value else "n"


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """name -> number or other value: nested dictionaries become `a/b`, arrays and tensors of one element a number."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = value.item() if hasattr(value, "item") and _size(value) == 1 else value
    return flat


def plain(value: Any) -> Any:
    """What JSON can hold of a value: numbers that are none as text, arrays as lists, everything unknown as its text."""
    if hasattr(value, "tolist"):  # numpy and torch
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(one) for one in value]
    finite = isinstance(value, float) and value - value == 0
    return value if value is None or finite or isinstance(value, bool | int | str) else str(value)


def _size(array: Any) -> int:
    return array.numel() if hasattr(array, "numel") else array.size
