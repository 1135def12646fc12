"""The .wandb files of a run: how much of each was written, what is damaged, and what must not be read or uploaded."""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lib.base.errors import UserError
from lib.base.files import write_json
from lib.track import wandb_private as private
from lib.track.cursor import path_of
from lib.track.wandb_place import Place, is_ours

Account = Callable[[], str | None]
# What a run of Espalier has in its file. Other kinds of records make wandb read or change things at their upload.
_KINDS = {
    "header", "run", "config", "environment", "telemetry", "metric", "history", "summary", "files", "artifact", "alert",
    "stats", "output", "output_raw", "preempting", "exit", "final", "footer",
}  # fmt: skip


class Ledger:
    """How much of the run's .wandb files is known, in <run>/trackers/wandb.files: the folder of a file may be removed.

    An entry has the name of the file in the run's folder, its bytes, its rows, and whether it was uploaded.
    """

    def __init__(self, folder: Path, place: Place, run_id: str):
        self.file, self.place = path_of(folder, "wandb", "files"), str(place)
        self.ending = f"/run-{run_id}.wandb"
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
            self.all = {
                place: {name: [int(size), int(rows), int(sent)] for name, (size, rows, sent) in entries.items()}
                for place, entries in found.items()
            }
        except (OSError, ValueError, TypeError, AttributeError):  # missing or damaged: what is there counts
            self.all: dict[str, dict[str, list[int]]] = {}

    @property
    def mine(self) -> dict[str, list[int]]:
        """Name -> bytes, rows, uploaded, of the files of this run that go to this place."""
        return {name: entry for name, entry in self.all.get(self.place, {}).items() if name.endswith(self.ending)}

    @property
    def rows(self) -> int:
        return sum(rows for _, rows, _ in self.mine.values())

    def misses(self, paths: Iterable[Path]) -> bool:
        """Whether a file that was not uploaded has become shorter, or is not one of `paths`."""
        sizes = {self._name(path): path.stat().st_size for path in paths}
        return any(sizes.get(name, -1) < size and not uploaded for name, (size, _, uploaded) in self.mine.items())

    def note(self, logs: Iterable[private.TransactionLog], forget: bool) -> None:
        """Record what is read of these files; `forget` what was known of all others, and of longer ones."""
        before, mine = self.all.get(self.place, {}), self.mine
        known = {name: entry for name, entry in before.items() if not forget or name not in mine}
        for log in logs:
            name, size = self._name(log.path), log.position
            if size >= known.get(name, [0])[0]:
                known[name] = [size, log.rows, int(private.uploaded_mark(log.path).exists())]
        if known != before:
            self.all[self.place] = known
            self._save()

    def uploaded(self, paths: Iterable[Path]) -> None:
        """Note that these files are uploaded, unless they had lost rows before."""
        for path in paths:
            entry = self.all.get(self.place, {}).get(self._name(path))
            if entry and path.stat().st_size >= entry[0]:
                entry[2] = 1
        self._save()

    def moved(self, path: Path, growth: int) -> None:
        """Note that `usable` wrote a file again, with longer or shorter paths."""
        entry = self.all.get(self.place, {}).get(self._name(path))
        if entry and growth:
            entry[0] += growth
            self._save()

    def _save(self) -> None:
        self.file.parent.mkdir(exist_ok=True)
        write_json(self.file, self.all)

    def _name(self, path: Path) -> str:
        return f"{path.parent.name}/{path.name}"  # each file has its own folder, in <run>/wandb or where WANDB_DIR says


def check_links(folder: Path) -> None:
    """Raise UserError for a link below <run>/wandb that leaves it: wandb writes and uploads what it finds there.

    The link of wandb_start.file_of to WANDB_DIR may leave it, and wandb's own link to a log, which it never follows.
    """
    top = folder.resolve() / "wandb"
    chosen = os.environ.get("WANDB_DIR")
    found = [top, *(Path(at, name) for at, *names in os.walk(top) for some in names for name in some)]
    for path in found:
        target = path.resolve()
        if not path.is_symlink() or top in target.parents or path.match("*run-*/logs/debug-core.log"):
            continue
        wanted = path.parent == top and any(is_ours(file, folder) for file in target.glob("run-*.wandb"))
        if not wanted and not (chosen and Path(chosen).resolve() in target.parents):
            raise UserError(f"{path}: leads out of the run's folder to {target}, so wandb does not use it; remove it")


def usable(paths: list[Path], ledger: Ledger, place: Place, folder: Path, account: Account) -> tuple[list[Path], str]:
    """Those .wandb files that may be read and uploaded, after a repair, and why the others may not.

    `account` returns the entity of the API key, None if it is not known.
    """
    from google.protobuf.message import DecodeError

    good, problems = [], []
    for path in paths:
        try:
            if not private.uploaded_mark(path).exists():
                _mend(path)
                ledger.moved(path, _relocate(path, folder))
            problem = _problem(path, place, folder, account)
        except DecodeError:
            problem = "wandb cannot read it"
        if problem:
            problems.append(f"{path}: {problem}; remove {path.parent}, then all of the run is sent again")
        else:
            good.append(path)
    return good, "; ".join(problems)


def _mend(path: Path) -> None:
    """Remove what wandb cannot read from the first such byte on: it refuses a torn end, and stops at damage.

    A copy keeps what follows damage. Its rows are missing from the file, so they are sent again.
    """
    log = private.TransactionLog(path)
    for _ in log.bodies():
        pass
    position = log.position if log.begins() else 0
    if position >= path.stat().st_size:
        return
    if log.is_damaged():
        copy = path.with_name(f"{path.name}.damaged")
        print(f"{path}: is damaged at byte {position}; {copy.name} is a copy, and lost rows are sent again", flush=True)
        if not copy.exists():
            shutil.copyfile(path, copy)
    os.truncate(path, position)


def _relocate(path: Path, folder: Path) -> int:
    """Correct the paths of artifacts in the file of a run that was moved; returns by how many bytes it grew."""
    before, bodies, is_moved = path.stat().st_size, [], False
    for body in private.TransactionLog(path).bodies():
        record = private.parsed(body)
        here = [_here(entry.local_path, path, folder) for entry in record.artifact.manifest.contents]
        if any(here):
            is_moved = True
            for entry, place in zip(record.artifact.manifest.contents, here, strict=True):
                entry.local_path = place or entry.local_path
            body = record.SerializeToString()
        bodies.append(body)
    if is_moved:
        private.write_log(path, bodies)
    return path.stat().st_size - before


def _here(local_path: str, path: Path, folder: Path) -> str:
    """Where an artifact's file is after the run was moved, else an empty text; the place below `wandb` stays."""
    if not local_path or _is_inside(Path(local_path), path, folder):
        return ""
    parts = Path(local_path).parts
    for at in range(len(parts) - 1):
        if parts[at] == "wandb" and parts[at + 1] in (path.parent.name, "artifacts"):
            return str(folder.resolve().joinpath(*parts[at:]))
    return ""


def _is_inside(wanted: Path, path: Path, folder: Path) -> bool:
    """Whether a file is one that a run keeps for wandb: below its `wandb`, beside its .wandb file, or staged."""
    data = Path(private.data_folder(folder)["WANDB_DATA_DIR"]) / "artifacts" / "staging"
    roots = [folder.resolve() / "wandb", path.parent.resolve(), data.resolve()]
    return any(root in wanted.resolve().parents for root in roots)


def _problem(path: Path, place: Place, folder: Path, account: Account) -> str:
    """Why a .wandb file is not one that this run made for this place, or an empty text."""
    run_id = path.stem.removeprefix("run-")
    for record in private.TransactionLog(path).records():
        kind = record.WhichOneof("record_type")
        if kind not in _KINDS:
            return f"it has a record of the kind {kind}"
        if kind in ("run", "artifact") and (problem := _owner(getattr(record, kind), run_id, place, account)):
            return problem
        if outside := [name for name in _names(record, path) if not _is_inside(Path(name), path, folder)]:
            return f"it would upload {outside[0]}, which is no file in {folder}/wandb"
    return ""


def _owner(record: Any, run_id: str, place: Place, account: Account) -> str:
    if record.run_id != run_id or record.project != place.project:
        return f"it belongs to the run {record.project}/{record.run_id}, not to {place.project}/{run_id}"
    if record.entity and record.entity != (owner := place.entity or account()) and owner is not None:
        return f"it belongs to {record.entity}, not to {owner}"
    return ""


def _names(record: Any, path: Path) -> list[str]:
    """The files that wandb would upload for a record."""
    if record.HasField("files"):
        return [str(path.parent / "files" / one.path) for one in record.files.files]
    if not record.HasField("artifact") or private.uploaded_mark(path).exists():
        return []
    manifest = record.artifact.manifest
    found = [entry.local_path for entry in manifest.contents] + [manifest.manifest_file_path]
    return [name for name in found if name]
