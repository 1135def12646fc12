"""For scripts that train with Hugging Face Accelerate: `Accelerator(log_with=[EspalierTracker("my run")])`."""

import contextlib
import dataclasses
import inspect
import os
import threading
import time
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, on_main_process

from lib import track
from lib.base import files
from lib.base.errors import UsageError, UserError
from lib.config.kconf import Schema
from lib.record import journal, media, run
from lib.terminal.console import say
from lib.track import clean, waiting
from lib.track.espalier_series import Series
from lib.track.espalier_values import flattened, images, large, npy, plain, png, table

_MENUS = ("Experiment tracking", "Output")  # of Kconfig


@dataclasses.dataclass(frozen=True)
class Run:
    """The run of a script."""

    id: str
    name: str  # unique among the runs of its output folder
    project: str
    folder: Path
    notes: list[str] = dataclasses.field(default_factory=list)  # of the trackers, such as the run's address


class EspalierTracker(GeneralTracker):
    """Writes a run folder with a journal, and feeds Espalier's trackers from it, for training loops outside Espalier.

    Only the main process writes. When `log` returns, the values are in the journal, even if the script crashes later.
    The trackers read the journal in their own processes. A run that ends without `Accelerator.end_training` has the
    state `crashed`. `make sync RUN=folder` delivers the missing rows of any run.

    A row is identified by its step and the names of its metrics. For the same names, steps must increase: a repeated
    step is written to the journal, but trackers do not get it. After a resume from an earlier checkpoint, a repeated
    row with other values withdraws the earlier rows from that step on; see lib/record/in_force.py.

    Images, tables and artifacts are files in the run's folder, which the trackers get once for each name and step. A
    second one of a name in a step is called `<name>/2`. They belong to the step of the last row unless `step` is given.
    Further arguments of Accelerate's trackers, which their libraries would get, have no effect.
    """

    name = "espalier"
    requires_logging_directory = False  # it is used if Accelerate has one

    def __init__(
        self,
        run_name: str = "",
        *,
        project: str = "",
        trackers: tuple[str, ...] = ("trackio",),
        output_dir: str = "",
        resume: bool = False,
        wait_seconds: float | None = None,
        **options: str | bool,
    ):
        """Check the arguments; nothing is written before Accelerate starts its trackers.

        run_name           empty: the date and time
        project            empty: name and hashed path of the git clone around the current folder, or of that folder
        trackers           as in --tracker: names, ("all",) or ()
        output_dir         empty: the logging_dir of Accelerate's ProjectConfiguration; without one, `runs`
        resume             continue the run of this name in `output_dir`, if it exists, instead of a new one
        wait_seconds       how long `finish` waits for the trackers; None: as the option tracker_wait says
        options            Espalier's options for trackers, such as tracker_group="sweep", wandb_offline=True

        Raises UsageError for an argument that cannot be used.
        """
        super().__init__()
        schema = Schema()
        texts = {name.upper(): option_text(name.upper(), value) for name, value in options.items()}
        texts = {"TRACKER": ",".join(trackers) or "none", **({"TRACKER_PROJECT": project} if project else {}), **texts}
        schema.override([(name, text, "EspalierTracker") for name, text in texts.items()])
        self.names = track.names(schema["TRACKER"], schema.values())
        self.options = {name.lower(): schema[name] for name in texts} | {"tracker": self.names}
        project = schema["TRACKER_PROJECT"] or run.project_name(run.clone(Path.cwd()))
        self.wanted = run.RunOptions(output_dir, project, run_name, "")
        self.resume, asked = resume, waiting.patience(schema["TRACKER_WAIT"])
        self.patience = asked if wait_seconds is None else waiting.Patience(wait_seconds)
        # What trackers bind, and what a journal requires to be a number.
        reserved = [name for name, option in schema.options.items() if option.menu[0] in _MENUS] + ["MAX_ITERS"]
        self.reserved = {name.lower() for name in reserved}
        self.run: Run | None = None  # on the main process, once it has started
        self.lock = threading.RLock()  # scripts may log from several threads
        self.journal: journal.Journal | None = None  # between start and finish
        self.lanes: track.Lanes | None = None

    @property
    def tracker(self) -> "EspalierTracker":
        """What `get_tracker("espalier", unwrap=True)` returns: this object, because it needs no wrapper."""
        return self

    # In an earlier version `tracker` was the Path of the run's folder. A script that opens it, or joins a name to it,
    # still works; the other members of a Path are gone, and `name` is the tracker's.
    def __fspath__(self) -> str:
        return os.fspath(self.folder)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    @property
    def folder(self) -> Path | None:
        """The run's folder, on the main process once it has started."""
        return self.run and self.run.folder

    @on_main_process
    def start(self) -> None:
        """Finish an earlier run, then create a run's folder or open that of the resumed run; raises UserError."""
        self.finish()
        name = self.wanted.tracker_run_name or f"run_{time.strftime('%Y%m%d-%H%M%S')}"
        parent = str(files.named(os.fspath(self.wanted.output_dir or logging_dir() or "runs")))
        folder, wanted = Path(parent) / run.folder_name(name), dataclasses.replace(self.wanted, output_dir=parent)
        if not self.resume or not (folder / "run.json").exists():
            folder, identity = run.create(dataclasses.replace(wanted, tracker_run_name=name))
            if note := run.renamed(wanted, identity, "pass resume=True to EspalierTracker"):
                say(note)
        self.stack = contextlib.ExitStack()  # closed by `finish`, or by the death of the process
        self.stack.enter_context(files.held(folder, "training this run"))
        identity = run.Identity.load(folder)
        self.run = Run(identity.run_id, identity.name, identity.project, folder)
        self.journal = journal.Journal(folder)
        self.stack.callback(self.journal.close)
        self.series = Series(folder)
        self.step = max(self.series.last, 0)  # of the last row
        self.taken: set[tuple[str, int]] = set()  # name and step of each file that this session has written

    @on_main_process
    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Record the script's configuration, which begins the run, and start the trackers.

        Trackers show these values as they are. In the journal's `config`, which has the options of the trackers too, a
        value with the name of such an option is `config.<name>`, so that no tracker confuses the two.
        """
        if self.journal is None:
            what = f"the run in {self.folder} has ended" if self.run else "no run has started"
            raise UserError(f"EspalierTracker: {what}; call init_trackers, or start, first")
        event = "resume" if self.journal.seq else "start"
        details = {} if self.journal.seq else {"schema": journal.SCHEMA}
        parameters = plain(dict(values))
        config = {f"config.{name}" if name in self.reserved else name: value for name, value in parameters.items()}
        config |= self.options
        self.journal.write(event, max(self.series.last, 0), config=config, parameters=parameters, **details)
        self.lanes = self.lanes or track.Lanes(self.folder, self.names)

    @on_main_process
    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Record numbers, tensors of one element and nested dictionaries of them; other values stay in the journal.

        An array of more than 256 elements is written into the run's folder as a .npy file; the journal names the file.
        If `step` is None, it is the step after the last one. Raises JournalError when the disk is full.
        """
        flat = flattened(values)
        metrics = {name: value for name, value in flat.items() if isinstance(value, bool | int | float)}
        with self.lock:
            self._begin()
            step = self.step = self.series.last + 1 if step is None else checked(step)
            others = {name: self._other(name, value, step) for name, value in flat.items() if name not in metrics}
            event = self.series.event(tuple(sorted(metrics)), step) if metrics else "others"
            self.journal.write(event, step, metrics, **({"others": others} if others else {}))
        self._hear()

    @on_main_process
    def log_images(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Record images: name -> an image, a list of images, or an array of four dimensions.

        An image is a numpy array, a tensor, an image of Pillow or a figure of matplotlib; see `espalier_values.png`.
        Raises UsageError for anything else.
        """
        self._begin()
        content = [(name, png(image, name)) for name, value in values.items() for image in images(value)]
        for name, picture in content:
            self._write("image", name, step, picture)
        self._hear()

    @on_main_process
    def log_table(
        self,
        table_name: str,
        columns: list[str] | None = None,
        data: Iterable[Iterable[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Record a table from `data` or from a dataframe; without `columns`, the first row of `data` has their names.

        Cells are numbers, bools, None and text; anything else becomes text. Raises UsageError without
        `data` and dataframe, or if a row has too few or too many cells.
        """
        self._begin()
        self._write("table", table_name, step, table(table_name, columns, data, dataframe))
        self._hear()

    @on_main_process
    def log_artifact(
        self,
        local_path: str | os.PathLike,
        artifact_path: str | None = None,
        *,
        name: str = "",
        step: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Record a file of any kind; the run's folder gets a copy of what it holds now.

        Its name is `name`, or that of the file, in the folder `artifact_path`. Raises UserError if it cannot be copied.
        """
        self._begin()
        path = Path(local_path)
        if path.is_dir():
            raise UsageError(f"log_artifact: {path} is a folder; use log_artifacts")
        name = "/".join(filter(None, [artifact_path, name or path.name]))
        media.keep(self.folder, self.journal, *self._free(name, step), path)
        self._hear()

    @on_main_process
    def log_artifacts(
        self, local_dir: str | os.PathLike, artifact_path: str | None = None, *, step: int | None = None
    ) -> None:
        """Record each file in a folder and in the folders in it, such as those that `Accelerator.save_state` writes."""
        found = [path for path in sorted(Path(local_dir).rglob("*")) if path.is_file()]
        if not found:
            raise UsageError(f"log_artifacts: {local_dir} has no files; give a folder that has")
        for path in found:
            name = path.relative_to(local_dir).as_posix()
            self.log_artifact(path, artifact_path, name=name, step=step)

    @on_main_process
    def finish(self) -> None:
        """Record the end of the run, and print what each tracker has; without a run, do nothing."""
        with self.lock:
            if self.journal is None:
                return
            self._begin()
            self.journal.write("finish", max(self.series.last, 0), {}, status="finished")
            self.stack.close()
            lanes, self.journal, self.lanes = self.lanes, None, None
        say(f"run folder  {self.folder}")
        waiting.end(lanes, self.patience, self._tell)
        self.run.notes.extend(lanes.notes())

    def _begin(self) -> None:
        with self.lock:
            if self.lanes is None:  # the script has no configuration
                self.store_init_configuration({})

    def _hear(self) -> None:
        with self.lock:
            for note in self.lanes.notes() if self.lanes else []:  # another thread may have ended the run
                self._tell(note)

    def _tell(self, note: str) -> None:
        self.run.notes.append(note)
        say(note)

    def _write(self, kind: str, name: str, step: int | None, content: bytes) -> None:
        media.write(self.folder, self.journal, kind, *self._free(name, step), content)

    def _other(self, name: str, value: Any, step: int) -> Any:
        """What the journal holds of a value that is no number."""
        array = large(value)
        if array is None:
            return plain(value)
        path = media.place(self.folder, self.journal, *self._free(name, step), ".npy")
        files.write(path, npy(array))
        return {"file": path.relative_to(self.folder).as_posix(), "shape": list(array.shape), "dtype": str(array.dtype)}

    def _free(self, name: str, step: int | None) -> tuple[str, int]:
        """A name that no other file of the step has, and the step; None is that of the last row."""
        step = self.step if step is None else checked(step)
        name = clean.text(name)
        names = (name if number == 1 else f"{name}/{number}" for number in count(1))
        with self.lock:
            found = next(name for name in names if (name, step) not in self.taken)
            self.taken.add((found, step))
        return found, step


def logging_dir() -> str | os.PathLike | None:
    """The logging_dir of the Accelerator that is calling, None without one.

    Accelerate passes it only to trackers that it builds itself, not to the objects in `log_with`.
    """
    frame = inspect.currentframe()
    while frame:
        if isinstance(caller := frame.f_locals.get("self"), Accelerator):
            return caller.logging_dir
        frame = frame.f_back
    return None


def checked(step: Any) -> int:
    """A step as a number from 0; raises UsageError for anything else, which no reader of the journal would take."""
    number = int(step)
    if number != step or number < 0:
        raise UsageError(f"EspalierTracker: a step must be a whole number from 0; got {step!r}")
    return number


def option_text(name: str, value: Any) -> str:
    """An option's value as configurations write it; raises UsageError if it is not a text, number or bool."""
    if not isinstance(value, bool | int | float | str):
        raise UsageError(f'EspalierTracker: {name} must be text, a number or a bool, lists as "a,b"; got {value!r}')
    return str(value) if not isinstance(value, bool) else "y" if value else "n"
