"""The identity and the folder of a run: how they are made, and how programs find them again."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lib.base import files
from lib.base.errors import UsageError, UserError
from lib.base.launch import Launch
from lib.config import command_line
from lib.config.kconf import ROOT, Options
from lib.record import journal

FOLDERS = ("checkpoints", "trackers", "media")
PROJECT = "ESPALIER_PROJECT"  # the variable by which `make job` hands on the name of the project
# Trackers write, replace and delete files in these, so they may not be links.
_NO_LINKS = ("trackers", "media", "tensorboard", "accelerate-tensorboard", "dvclive", "swanlab", "comet")
_UNBEGUN = {"lock", "checkpoints", ".config", ".config.tmp", "run.json.tmp"}  # files of a folder without run.json
_ID = re.compile(r"\w{1,64}", re.ASCII)
_AT = re.compile(r"(.+)@(best|newest|\d{1,9})", re.ASCII)  # RUN@STEP
_TAIL = 1 << 16  # bytes at a journal's end
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class RunOptions(Options):
    """Where runs live and what they are called."""

    output_dir: str
    tracker_project: str  # empty: project_name()
    tracker_run_name: str  # empty: gpt2_<optimizer>_<date and time>
    optimizer: str


@dataclasses.dataclass(frozen=True)
class Identity:
    """The id and the names of a run, in its folder and in every tracker."""

    run_id: str  # 12 hex digits, unique; a job that is started again keeps its id
    project: str
    name: str  # unique among the runs of an output folder

    @classmethod
    def load(cls, folder: Path) -> "Identity":
        """The identity in a run's folder; raises UsageError if there is no run, or if a file in it is a link."""
        path = Path(folder) / "run.json"
        try:
            found = cls(**json.loads(path.read_text(encoding="utf-8")))
            if not all(isinstance(text, str) for text in dataclasses.astuple(found)) or not _ID.fullmatch(found.run_id):
                raise ValueError("a value is not text, or run_id is not valid")
            _check_links(Path(folder))
            return found
        except FileNotFoundError:
            raise UsageError(f"{folder}: there is no run in this folder (run.json is missing)") from None
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path}: the run's identity cannot be read: {error}") from None


def check_place(options: RunOptions) -> None:
    """Raise UserError if a run's folder cannot be made in OUTPUT_DIR. Makes nothing."""
    parent = Path(options.output_dir)
    there = next(place for place in (parent, *parent.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UserError(f"{parent}: the run's folder cannot be made there: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        why = "Read-only file system" if os.statvfs(there).f_flag & os.ST_RDONLY else "Permission denied"
        raise UserError(f"{parent}: the run's folder cannot be made there: {why}")


def create(
    options: RunOptions, run_id: str = "", begin: Callable[[Path], object] = lambda folder: None
) -> tuple[Path, Identity]:
    """Make a new folder for a run in `output_dir` and store its identity there. Existing runs are not touched.

    `run_id` is from `job_id`; if it is empty, the id is random. `begin` writes what a new run has besides its identity.
    Raises UserError if something cannot be written, and leaves no folder behind then.
    """
    wanted = options.tracker_run_name or f"gpt2_{options.optimizer}_{time.strftime('%Y%m%d-%H%M%S')}"
    parent = Path(options.output_dir)
    with contextlib.ExitStack() as held, contextlib.ExitStack() as undo:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            name, folder = _take(parent, wanted, held)
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            (folder / "checkpoints").mkdir(exist_ok=True)
        except OSError as error:
            why = files.reason(error, parent)
            raise UserError(f"{parent}: the run's folder cannot be made there: {why}") from None
        identity = Identity(run_id or uuid.uuid4().hex[:12], options.tracker_project or project_name(), name)
        begin(folder)
        files.write_json(folder / "run.json", dataclasses.asdict(identity))  # from now on the folder is a run
        undo.pop_all()
    return folder, identity


def renamed(options: RunOptions, identity: Identity, command: str) -> str:
    """A note that a run has another name than TRACKER_RUN_NAME, because a folder has that name; "" if it has not.

    `command` continues the run that is in that folder.
    """
    wanted = options.tracker_run_name
    folder = Path(options.output_dir) / folder_name(wanted)
    if not wanted or identity.name == wanted:
        return ""
    instead = f"; to continue {wanted} instead: {command}" if (folder / "run.json").exists() else ""
    return f"note: {folder} exists, so this run is called {identity.name}{instead}"


def job_id(options: RunOptions, launch: Launch) -> str:
    """The run_id for a job that its launcher may start again, made from job, OUTPUT_DIR and name; "" for other jobs."""
    if not launch.job:
        return ""
    parts = launch.launcher, launch.job, str(Path(options.output_dir).resolve()), options.tracker_run_name
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def find(output_dir: str, run_id: str) -> Path | None:
    """The folder of the run with this id in `output_dir`, or None; raises UsageError if there are two.

    Skips folders that are damaged, belong to another user, or are just being removed.
    """
    found = []
    for path in sorted(Path(output_dir).glob("*/run.json")):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except (PermissionError, FileNotFoundError):
            continue
        except OSError as error:
            raise UserError(f"{path}: cannot be read to see whose run it is: {error.strerror}") from None
        if f'"{run_id}"' in text:
            found.append(path.parent)
    if len(found) > 1:
        raise UsageError(
            f"{found[0]} and {found[1]} are both the run that this job began, so one is a copy; move the copy out "
            f"of {output_dir}"
        )
    return found[0] if found else None


def new_folder(parent: Path, wanted: str) -> tuple[str, Path]:
    """Make the first folder of `wanted`, `wanted-2`, ... that does not exist. Two processes never get the same one."""
    for name, folder in _names(parent, wanted):
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return name, folder


def _take(parent: Path, wanted: str, stack: contextlib.ExitStack) -> tuple[str, Path]:
    """Like `new_folder`, but also takes a folder whose trainer was killed before the run began. `stack` locks it."""
    for name, folder in _names(parent, wanted):
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
        if is_unbegun(folder) and not files.is_held(folder):
            stack.enter_context(files.held(folder, "starting a run there"))
            if is_unbegun(folder):  # no other process was faster
                return name, folder


def _names(parent: Path, wanted: str) -> Iterator[tuple[str, Path]]:
    """`wanted`, `wanted-2`, ... and their folders."""
    for number in itertools.count(1):
        name = wanted if number == 1 else f"{wanted}-{number}"
        yield name, parent / folder_name(name)


def is_unbegun(folder: Path) -> bool:
    """Whether a folder has only what `create` leaves when it is killed."""
    try:
        names = {path.name for path in folder.iterdir()}
        ours = not names or "lock" in names  # the lock is made first
        return ours and names <= _UNBEGUN and not any(folder.glob("checkpoints/*"))
    except (NotADirectoryError, PermissionError):  # of another user
        return False


def is_begun(folder: Path) -> bool:
    """Whether there is a run, or something that no program may touch.

    The folder of a program that was killed before the run began does not count: a new program takes it.
    """
    return folder.exists() and not is_unbegun(folder)


def latest(output_dir: str, trains: bool = False) -> Path:
    """The run in `output_dir` or its sweeps that was written last; raises UsageError if there is none.

    Results of tasks do not count, because a run may be evaluated long after its end. `trains`: the last run that has
    something to train.
    """
    whole = ("run.json", ".config")
    runs = [run for run in folders(Path(output_dir)) if all((run / name).exists() for name in whole)]
    if not runs:
        raise UsageError(f"{output_dir}: there is no run in this folder yet; start one with make train")
    if trains:
        runs = [run for run in runs if not _is_oneshot(run)]
    if not runs:
        raise UsageError(f"{output_dir}: has only one-shot runs, which train nothing; start one with make train")
    return max(runs, key=_written)


def _is_oneshot(folder: Path) -> bool:
    return "CONFIG_PRUNING_DYNAMICS_ONESHOT=y" in (folder / ".config").read_text(errors="replace").splitlines()


def _written(folder: Path) -> float:
    """When the run in `folder` was written last, apart from results of tasks; unix seconds."""
    begun, book = (folder / "run.json").stat().st_mtime, folder / journal.FILE
    if not book.exists():
        return begun
    with book.open("rb") as file:
        file.seek(max(0, book.stat().st_size - _TAIL))
        if b'"event":"task"' not in file.read():
            return max(begun, book.stat().st_mtime)
    return max([begun, *(record["time"] for record in journal.read(folder) if record["event"] != "task")])


class Named(NamedTuple):
    """A run, and perhaps a checkpoint, that a user named."""

    folder: Path  # of the run, if there is one
    checkpoint: str  # name of its file, best or a step; empty: none was named

    def chosen(self, asked: str | None) -> str:
        """The checkpoint that a user named with the run or beside it, else `newest`; UsageError if these differ."""
        if asked and self.checkpoint and _plain(asked) != _plain(self.checkpoint):
            raise UsageError(
                f"the run is given with the checkpoint {self.checkpoint}, and CHECKPOINT={asked} is another; give one"
            )
        return asked or self.checkpoint or "newest"


def _plain(checkpoint: str) -> str:
    """The step of a checkpoint's file without zeros; other texts as they are."""
    return re.sub(r"^(?:step-)?0*(\d+)(?:\.pt)?$", r"\1", checkpoint)


def named(given: str | None, argv: Sequence[str] = (), trains: bool = False) -> Named:
    """The run that a user names: by its folder, by a file in it, or by its name in OUTPUT_DIR or in a sweep there.

    The name may be that of TRACKER_RUN_NAME, which differs from the folder's (see `folder_name`). RUN@best, RUN@newest
    and RUN@STEP name a checkpoint of it. `latest`, or nothing, names the latest run (see `latest` for `trains`). A path
    that is not a run is returned as it is, and `Identity.load` reports it. Raises UsageError if sweeps have several
    runs of this name. If .config is broken, names are looked up in the default of OUTPUT_DIR.
    """
    path = files.named(given or "latest")
    if not given or (given == "latest" and not path.exists()):
        return Named(latest(_output_dir(argv), trains), "")
    found = _named(given, argv)
    if not (found.folder / "run.json").exists() and (match := _AT.fullmatch(given)):
        folder, checkpoint = named(match[1], argv, trains)
        return Named(folder, match[2]) if (folder / "run.json").exists() and not checkpoint else Named(path, "")
    return found


def whole(given: str | None, argv: Sequence[str] = ()) -> Path:
    """The folder of the run that a user names (see `named`), for what is about all of it; UsageError for RUN@STEP."""
    folder, checkpoint = named(given, argv)
    if given and checkpoint and given.endswith(f"@{checkpoint}"):
        raise UsageError(f"{given}: is one checkpoint, and this is about the whole run; leave out @{checkpoint}")
    return folder


def _named(given: str, argv: Sequence[str]) -> Named:
    """See `named`; of a text without RUN@STEP."""
    path = files.named(given)
    for folder in (path, path.with_name(folder_name(path.name))) if path.name else (path,):
        if (folder / "run.json").exists():
            return Named(folder, "")
    holder = path.absolute().parent
    if holder.name == FOLDERS[0] and (holder.parent / "run.json").exists():  # a checkpoint, which may not exist
        return Named(path.parent.parent if len(path.parts) > 2 else holder.parent, path.name)
    if path.exists() and (holder / "run.json").exists():
        return Named(path.parent if len(path.parts) > 1 else holder, "")
    try:
        parent = Path(_output_dir(argv))
    except UserError:  # the user asks about a run, so a broken .config is no reason to stop
        parent = Path(_output_dir(argv, "--config", os.devnull))
    for name in (given, folder_name(given)):
        if (parent / name / "run.json").exists():
            return Named(parent / name, "")
    found = [folder for folder in folders(parent) if folder.name in (given, folder_name(given))]
    if len(found) > 1:
        raise UsageError(f"{given}: {' and '.join(map(str, found[:3]))} have this name; give the folder of one")
    return Named(found[0] if found else path, "")


def folders(output_dir: Path) -> list[Path]:
    """The folders of the runs in an output folder and in its sweeps; a run's own folder holds no others.

    Hidden ones are left out: what lib/compare/trainers.py removes has such a name until it is gone.
    """
    found = {path.parent for form in ("*/run.json", "*/journal.jsonl") for path in output_dir.glob(form)}
    inner = {path.parent for form in ("*/*/run.json", "*/*/journal.jsonl") for path in output_dir.glob(form)}
    found |= {folder for folder in inner if folder.parent not in found}
    return sorted(folder for folder in found if not folder.name.startswith("."))


def _output_dir(argv: Sequence[str], *more: str) -> str:
    """OUTPUT_DIR from .config, the environment, the command line and `more` words."""
    words = [word for n, word in enumerate(argv) if "--output-dir" in (word, *argv[max(0, n - 1) : n])]
    words += [word for word in argv if word.startswith(("OUTPUT_DIR=", "--output-dir="))]
    return command_line.resolve("", [*words, *more])[0]["OUTPUT_DIR"]


def _check_links(folder: Path) -> None:
    """Raise UsageError for a link where programs write or delete files: a received folder may have a link to anything.

    `checkpoints` and `wandb` may be links to another disk: programs write only files with known names there. In `wandb`
    the library makes links to its own files, and this code links to folders in $WANDB_DIR.
    """
    for name in _NO_LINKS:
        if (folder / name).is_symlink():
            raise UsageError(
                f"{folder / name}: is a link, and trackers delete files there; put the folder itself there"
            )
    wandb = folder / "wandb"
    for place in (folder, folder / "checkpoints", *(folder / name for name in _NO_LINKS), wandb, *wandb.glob("*")):
        with contextlib.suppress(OSError):  # it does not exist yet
            for entry in os.scandir(place):
                if entry.is_symlink() and not entry.is_dir() and not (place == wandb and _leads_into(entry, wandb)):
                    raise UsageError(f"{entry.path}: is a link, which may lead to any file; put the file itself there")


def _leads_into(link: os.DirEntry, folder: Path) -> bool:
    return folder.resolve() in Path(link.path).resolve().parents


def configuration(folder: Path) -> Path:
    """The configuration file of the run in `folder`; raises UsageError if there is no run."""
    Identity.load(folder)
    return folder / ".config"


def folder_name(name: str) -> str:
    """A name for a file system: letters of any script, digits, `.`, `_`, `-`; at most 100 bytes; not empty or hidden.

    If a character is replaced, six digits of a hash follow, so that two names never get the same folder. Names that
    Windows reserves get the digits too, because WSL may write to disks of Windows.
    """
    plain = re.sub(r"[^\w.-]+", "-", name).strip(".-")
    if _DEVICE.fullmatch(plain):
        plain = f"run-{plain}"
    if plain == name and len(name.encode()) <= 100:
        return name
    short = plain.encode()[:90].decode(errors="ignore") or "run"
    return f"{short}-{hashlib.md5(name.encode(errors='surrogatepass')).hexdigest()[:6]}"


def project_name(root: Path = ROOT) -> str:
    """<the repository's folder>-<8 hex digits of the MD5 of its path>; worktrees have the name of their repository.

    In a job the repository is elsewhere, so `make job` says the name of the one here.
    """
    if root == ROOT and (said := os.environ.get(PROJECT)):
        return said
    home = repository(root)
    return f"{home.name}-{hashlib.md5(str(home).encode()).hexdigest()[:8]}"


def clone(folder: Path) -> Path:
    """The clone or worktree that `folder` is in; without one, `folder`."""
    return next((place for place in (folder, *folder.parents) if (place / ".git").exists()), folder)


def repository(root: Path) -> Path:
    """The real path of the checkout at `root`, or of the clone that it is a worktree of."""
    link = root / ".git"
    if link.is_file():  # a worktree: "gitdir: <clone>/.git/worktrees/<name>"
        gitdir = Path(root, link.read_text(encoding="utf-8").removeprefix("gitdir:").strip())
        common = gitdir / "commondir"
        if common.is_file():
            return (gitdir / common.read_text(encoding="utf-8").strip()).resolve().parent
    return root.resolve()
