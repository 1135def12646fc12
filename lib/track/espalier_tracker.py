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

EVALUATION = ("eval", "val", "test")  # metrics whose names begin with one of these belong to the event `eval`


class EspalierTracker(GeneralTracker):
    """Writes a run folder with a journal, and feeds Espalier's trackers from it, for training loops outside Espalier.

    Only the main process writes. When `log` returns, the values are in the journal, even if the script crashes later.
    The trackers read the journal in their own processes. A run that ends without `Accelerator.end_training` has the
    state `crashed`. `make sync RUN=folder` delivers the missing rows of any run.

    A row is identified by its step and the names of its metrics. For the same names, steps must increase: a repeated
    step is written to the journal, but trackers do not get it. After a resume from an earlier checkpoint, a repeated
    row with other values withdraws the earlier rows from that step on; see lib/record/in_force.py.
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

        run_name           empty: the date and time
        project            empty: name and hashed path of the git clone around the current folder, or of that folder
        trackers           as in --tracker: names, ("all",) or ()
        resume             continue the run of this name in `output_dir`, if it exists, instead of a new one
        wait_seconds       how long `finish` waits for the trackers; after that they continue in the background
        options            Espalier's options for trackers, such as tracker_group="sweep", wandb_offline=True

        Raises UsageError for an argument that cannot be used.
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
        self.reserved = {name.lower() for name in schema.options}  # in a journal these names mean our options
        self.folder: Path | None = None
        self.journal: journal.Journal | None = None  # between start and finish
        self.lanes: track.Lanes | None = None

    @property
    def tracker(self) -> Path | None:
        """The run's folder, on the main process once it has started."""
        return self.folder

    @on_main_process
    def start(self) -> None:
        """Finish an earlier run, then create a run's folder or open that of the resumed run; raises UserError."""
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

        A value with the name of an Espalier option is recorded as `config.<name>`, so that no tracker confuses the two.
        """
        if self.journal is None:
            raise UserError("EspalierTracker: no run has started; call init_trackers, or start, first")
        config = {f"config.{name}" if name in self.reserved else name: plain(value) for name, value in values.items()}
        event = "resume" if self.journal.seq else "start"
        details = {} if self.journal.seq else {"schema": journal.SCHEMA}
        self.journal.write(event, max(self.series.last, 0), config={**config, **self.options}, **details)
        self.lanes = self.lanes or track.Lanes(self.folder, self.names)

    @on_main_process
    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Record numbers, tensors of one element and nested dictionaries of them; other values stay in the journal.

        If `step` is None, it is the step after the last one. Raises JournalError when the disk is full.
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
        """Record the end of the run, and print what each tracker has; without a run, do nothing."""
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
    """Assigns each row to an event, so that the steps of each event increase.

    Rows with metrics of an evaluation belong to `eval`, others to `train`. If that event already has this step or a
    later one, the row belongs to `train.2`, `train.3`, ...: a script may log twice in a step, or count epochs too.
    """

    def __init__(self, folder: Path):
        """Restore the state from the journal in `folder`."""
        self.last = -1  # the highest step
        self.steps: dict[str, int] = {}  # event -> its highest step
        self.rows: dict[tuple[str, ...], tuple[str, int]] = {}  # names of metrics -> last event and step
        for record in journal.read(folder):
            if record["event"].partition(".")[0] in ("train", "eval"):
                self._note(tuple(sorted(record["metrics"])), record["event"], record["step"])

    def event(self, names: tuple[str, ...], step: int) -> str:
        """The event of a row with these metrics; a repeated row gets the event that it had."""
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
    """An option's value as configurations write it; raises UsageError if it is not a text, number or bool."""
    if not isinstance(value, bool | int | float | str):
        raise UsageError(f'EspalierTracker: {name} must be text, a number or a bool, lists as "a,b"; got {value!r}')
    return str(value) if not isinstance(value, bool) else "y" if value else "n"


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """name -> value: nested dictionaries become `a/b`, and arrays and tensors of one element a number."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = value.item() if hasattr(value, "item") and _size(value) == 1 else value
    return flat


def plain(value: Any) -> Any:
    """A value for JSON: NaN and infinities become text, arrays become lists, and other objects str(value)."""
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
