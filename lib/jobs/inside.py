"""The program of a job: it gets the code, trains with make, and copies the output to a folder that survives the job.

`make job` puts this file into the script that it sends. It imports only the standard library, because the script has
nothing else of Espalier until it has fetched the code.

The run is written on the disk of the machine. The folder that survives is a bucket that is mounted over the network.
Appending to a file, locks and syncs need not work there. So files are only copied to it, whole.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path, PurePath

EVERY = 30.0  # seconds between copies of what has changed
AGAIN = (2.0, 8.0, 20.0)  # seconds before each new attempt at the last copy, if it fails
OURS = "job"  # folder in that of a run, with what `make job` keeps there; no run writes to it


@dataclasses.dataclass(frozen=True)
class Task:
    """What a job does. Words are those of make, as in `train SEED=2`."""

    folder: str  # of the run or sweep, from the folder of the code
    begins: tuple[str, ...]
    goes_on: tuple[str, ...]  # the words once the folder has a run
    config: str  # content of .config; empty: there is none
    url: str = ""  # of the git repository that has the code; empty: an archive is sent
    commit: str = ""
    archive: str = ""  # sha256 of the archive
    inside: str = ""  # folder of the code in the repository


def main(task: Task, argv: Sequence[str]) -> int:
    """Do the task; returns the exit code of make, or 1 if the output could not be copied."""
    parser = argparse.ArgumentParser(description="Train in a job of Hugging Face. `make job` makes this script.")
    parser.add_argument("--code", type=Path, help="archive of the code, if it is not in a git repository")
    parser.add_argument("--output", type=Path, help="folder that survives the job")
    parser.add_argument(
        "--input", nargs="+", action="append", default=[], metavar="NAME PATH", help="a file or folder for NAME=PATH"
    )
    args = parser.parse_args(argv)
    place = Path(tempfile.gettempdir(), "espalier-job")
    shutil.rmtree(place, ignore_errors=True)  # of an earlier attempt on the same machine
    code = get_code(task, place, args.code) / task.inside
    if task.config:
        (code / ".config").write_text(task.config, encoding="utf-8")
    copies = Copies(code / task.folder, args.output) if args.output else None
    words = task.begins
    if copies:
        copies.try_out()
        if task.begins == task.goes_on or (args.output / "run.json").exists():  # else no run has begun
            copies.bring_back()
            words = task.goes_on
    said = {word.partition("=")[0] for word in words}  # once a run has begun, RUN is that run, and not its source
    given = [f"{name}={path}{''.join(more)}" for name, path, *more in args.input if name not in said]
    command = ["make", *words, *given, f"PYTHON={sys.executable}"]
    print(f"$ {' '.join(command)}", flush=True)
    return work(command, code, copies)


def get_code(task: Task, place: Path, archive: Path | None) -> Path:
    """Fetch the commit, or unpack the archive, into `place`; returns the folder of the repository."""
    code = place / "code"
    code.mkdir(parents=True)
    if task.url:
        for words in (
            ["init", "--quiet"],
            ["fetch", "--quiet", "--depth", "1", task.url, task.commit],
            ["checkout", "--quiet", "--detach", "FETCH_HEAD"],
        ):
            if subprocess.run(["git", "-C", code, *words], check=False).returncode:
                sys.exit(f"error: {task.url}: commit {task.commit} cannot be fetched; see git's message above")
        return code
    if archive is None:
        sys.exit("error: the code is missing; give its archive with --code")
    if hashlib.sha256(archive.read_bytes()).hexdigest() != task.archive:
        sys.exit(f"error: {archive}: is not the archive that was sent: its sha256 differs; submit the job again")
    with tarfile.open(archive) as file:
        file.extractall(code, filter="data")
    return code


def work(command: Sequence[str], folder: Path, copies: "Copies | None") -> int:
    """Run make to its end, and copy what it writes meanwhile; SIGTERM and SIGINT are handed on to it, so that it saves.

    make stays in this session: a trainer sees by it that it ends with the container, and waits for its trackers.
    """
    process = subprocess.Popen(command, cwd=folder)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda heard, _: process.send_signal(heard))
    complete = True
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(EVERY)
        ended = process.returncode is not None  # looked at before the copy, which then has all
        if copies:
            complete = copies.make()
        for seconds in AGAIN if ended else ():  # the last steps may be saved nowhere else
            if complete:
                break
            time.sleep(seconds)
            complete = copies.make()
        if ended:
            return process.returncode or int(not complete)


class Copies:
    """Copies of the files of a folder in a target that survives, each of them whole."""

    def __init__(self, folder: Path, target: Path):
        self.folder, self.target = folder, target
        self.there: dict[Path, tuple[int, int]] = {}  # relative path -> size and time of what was copied

    def try_out(self) -> None:
        """End the program unless files can be written, replaced and read in the target, before anything is trained."""
        path = self.target / f".tried-{os.getpid()}"
        try:
            for content in (b"first", b"second"):
                path.with_suffix(".part").write_bytes(content)
                path.with_suffix(".part").replace(path)
            found = path.read_bytes()
            path.unlink()
        except OSError as error:
            sys.exit(f"error: {self.target}: the output cannot be kept there: {error}")
        if found != content:
            sys.exit(f"error: {self.target}: the output cannot be kept there: a file that is replaced stays as it was")

    def bring_back(self) -> None:
        """Copy what an earlier job has left in the target into the folder."""
        for path in _files(self.target):
            mine = self.folder / path
            mine.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.target / path, mine)
            self.there[path] = _state(mine)

    def make(self) -> bool:
        """Copy what has changed, and remove what is gone. Returns whether that worked; prints why not.

        Only files that were there before the first is copied, in the order of `late`. Whenever the job dies, the target
        then has a journal as long as its checkpoints need.
        """
        before = _files(self.folder)
        try:
            for path in sorted(before, key=late):
                with contextlib.suppress(FileNotFoundError):  # a checkpoint that has just been removed
                    self._copy(path)
            for path in self.there.keys() - set(before):
                (self.target / path).unlink(missing_ok=True)
                del self.there[path]
        except OSError as error:
            print(f"warning: {self.target}: the output is not copied: {error}", file=sys.stderr, flush=True)
            return False
        return True

    def _copy(self, path: Path) -> None:
        state = _state(self.folder / path)
        if self.there.get(path) == state:
            return
        target = self.target / path
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        shutil.copyfile(self.folder / path, part)
        part.replace(target)
        self.there[path] = state


def late(path: PurePath) -> tuple[bool, bool]:
    """Sorts files of a run so that a copy that breaks off is one that can go on.

    Checkpoints come last, because they name a place in the journal. Before them comes what says that a checkpoint of
    TRL is complete (lib/record/trl_checkpoints.py), after all other files of it.
    """
    return "checkpoints" in path.parts, path.name == "complete.json"


def _files(folder: Path) -> list[Path]:
    """Relative paths of the files that belong to a run: neither locks nor what is being written."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    names = (path.relative_to(folder) for path in found)
    return sorted(n for n in names if n.parts[0] != OURS and n.name != "lock" and n.suffix not in (".tmp", ".part"))


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
