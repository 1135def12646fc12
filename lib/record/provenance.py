"""Provenance: the code, packages and machine of a run, kept in its folder so that the run can be repeated."""

import contextlib
import dataclasses
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from lib.base import redact
from lib.base.errors import UserError
from lib.base.files import write, write_json
from lib.config.kconf import ROOT, Schema
from lib.record import run

LIMIT = 10_000_000  # bytes of uncommitted files that a run keeps
_SECONDS = 60  # limit for a git command
# Names of files that often hold keys.
_PRIVATE = re.compile(
    r"\.env(\..+)?|\.(netrc|npmrc|pypirc)|.+\.(pem|key)|id_\w+|.*(credentials|secret).*", re.IGNORECASE
)
_FIELD = re.compile(r"^(Name|Version):[ \t]*(\S.*?)\s*$", re.MULTILINE)
_SHARD = re.compile(r"(train|val)-\d{5}\.bin(\.tmp)?")  # of prepared data
_INPUTS = ("sweeps", "defconfigs")  # folders of what a user writes for the programs to read
_SWEEP = {"results.json", "table.md"}  # of every sweep, from the start of its first trainer
# Of a sweep or a report that only begins, as far as it has files of its own. The lock is held by who writes there.
_BEGINNING = {"lock", "sweep", "base.config", "table.md", "table.md.tmp", "results.json.tmp"}
_REPORT = {"index.html", "report.md", "results.csv", "verdicts.csv"}
# Variables that configure git. Git's other variables name a repository or its parts, or change the output's format.
_SETUP = ("GIT_CONFIG", "GIT_CEILING_DIRECTORIES", "GIT_DISCOVERY_ACROSS_FILESYSTEM", "GIT_EXEC_PATH")


@dataclasses.dataclass(frozen=True)
class Changes:
    """How a checkout differs from its commit, with untracked files that are not ignored."""

    patch: bytes  # for `git apply`; empty without differences
    left_out: tuple[str, ...]  # paths that are not in the patch: too large, or likely to hold keys
    failure: str = ""  # why git failed


def save(
    schema: Schema, folder: Path, argv: list[str], name: str = "provenance.json", begun: dict[str, Any] | None = None
) -> str:
    """Write the uncommitted changes and the file `name` into a run's folder.

    `begun` is what the run's start event says of its first weights and masks (see `lib.record.lineage`).

    Returns a note for the user, or "". Environment variables and words that look like secrets are not kept.
    """
    changes = uncommitted(ROOT, [folder, folder.parent, Path(schema["DATA_DIR"])])
    kept = None
    if changes and changes != Changes(b"", ()):
        kept = {
            "file": _keep(changes.patch, folder, name.replace("provenance", "changes").replace(".json", ".patch")),
            "sha256": hashlib.sha256(changes.patch).hexdigest(),
            "left_out": list(changes.left_out),
            "note": _note(changes),
        }
    known = commit(ROOT)
    why = "" if known else unknown(ROOT)
    content = {
        "options": schema.provenance(),
        "argv": redact.without(argv),
        "folder": str(Path.cwd()),
        "commit": known,
        "commit_unknown": why,
        "uncommitted_changes": kept,
        **(begun or {}),
        **environment(),
    }
    write_json(folder / name, content)
    if why:
        return f"the commit and the uncommitted changes are not kept with the run: {why}"
    return kept["note"] if kept else ""


def _keep(patch: bytes, folder: Path, name: str) -> str | None:
    """Write a patch into a run's folder, unless the first session wrote the same one; returns the file's name."""
    first = folder / "changes.patch"
    if not patch:
        return None
    if first.exists() and first.read_bytes() == patch:
        return first.name
    write(folder / name, patch)
    return name


def _note(changes: Changes) -> str:
    if changes.failure:
        return f"the uncommitted changes are not kept with the run: {changes.failure}"
    if not changes.left_out:
        return ""
    names, more = ", ".join(changes.left_out[:5]), len(changes.left_out) - 5
    return (
        f"not kept with the run's uncommitted changes (at most {LIMIT / 1e6:.0f} MB, no keys, no other repositories): "
        f"{names}{f' and {more} more, see provenance.json' if more > 0 else ''}"
    )


# ---- the machine -----------------------------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """The machine and the packages that this program runs with."""
    import psutil

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu(),
        "processors": os.cpu_count(),
        "cores": psutil.cpu_count(logical=False),
        "memory_bytes": psutil.virtual_memory().total,
        **_gpus(),
        "packages": packages(),
        "host": platform.node(),
        "command": sys.executable,
    }


def packages() -> dict[str, str]:
    """Name -> version of every installed distribution, sorted by name; of several versions, the one in use."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        # `distribution.metadata` parses the description too: 0.1 s in place of 0.03 s for 165 distributions. The last
        # name is for a distribution that is one file.
        text = next(filter(None, map(distribution.read_text, ("METADATA", "PKG-INFO", ""))), "")
        about = dict(_FIELD.findall(text.partition("\n\n")[0]))
        if about.keys() == {"Name", "Version"}:  # a broken installation may have neither
            found.setdefault(about["Name"], about["Version"])
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def cpu() -> str:
    """The model name of the processor, or its architecture if the system does not tell."""
    with contextlib.suppress(OSError):
        if sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        if found := re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1]
    return platform.processor() or platform.machine()


def _gpus() -> dict[str, Any]:
    """The names of the NVIDIA GPUs, and the version of their driver. Other GPUs are not found."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # there is no driver
        return {"gpus": [], "gpu_driver": None}
    try:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return {"gpus": [*map(pynvml.nvmlDeviceGetName, handles)], "gpu_driver": pynvml.nvmlSystemGetDriverVersion()}
    except pynvml.NVMLError as error:
        return {"gpus": [f"unknown: {error}"], "gpu_driver": None}
    finally:
        pynvml.nvmlShutdown()


# ---- the code --------------------------------------------------------------------------------------------------------


class GitError(UserError):
    """A git command failed, or there is no git."""


def commit(root: Path) -> str | None:
    """The commit that is checked out at `root`; None if git does not tell it, see `unknown`."""
    try:
        return git(root, "rev-parse", "--verify", "HEAD").decode().strip()
    except GitError:
        return None


def unknown(root: Path) -> str:
    """Why git does not tell the commit at `root`, and what to do about it; empty if git tells it."""
    try:
        git(root, "rev-parse", "--verify", "HEAD")
        return ""
    except GitError as error:
        words = str(error)
    if not shutil.which("git"):
        return "git is not installed, or not in PATH; install it"
    place = run.clone(root)
    if command := re.search(r"git config --global --add safe\.directory .+", words):
        return f"git does not read {place}, which belongs to another user; to allow it: {command[0]}"
    if not (place / ".git").exists():
        return f"{root} is not in a git clone; get the code with git clone"
    if words.endswith("Needed a single revision"):
        return f"{place} has no commit yet; make one with git commit"
    return f"{words}; repair {place}/.git, or get the code again with git clone"


def uncommitted(root: Path, apart: Iterable[Path] = ()) -> Changes | None:
    """How the checkout at `root` differs from its commit; None if git does not tell the commit.

    Untracked files in the folders `apart`, in runs, sweeps, reports, exports and prepared data are ignored. So are a
    user's own sweeps and presets: they are no code, and a run keeps all its options. Git's index
    and objects are not changed: a copy of the index gets only the names of the untracked files, and `git diff` needs no
    more.
    """
    try:
        places = git(root, "rev-parse", "--show-toplevel", "--git-path", "index", "--verify", "HEAD")
    except GitError:
        return None
    top, own, _ = os.fsdecode(places).rstrip("\n").rsplit("\n", 2)
    try:
        with tempfile.TemporaryDirectory(prefix="espalier-index-") as scratch:
            index = Path(scratch, "index")
            with contextlib.suppress(FileNotFoundError):
                # With its time: git looks into a file that is as new as the index, though its size and second are
                # those of the commit. To a newer index, such a file would be unchanged.
                shutil.copy2(root / own, index)
            return _changes(root, Path(top), index, [folder.resolve() for folder in apart])
    except GitError as error:
        return Changes(b"", (), str(error))
    except OSError as error:  # for instance a full disk
        return Changes(b"", (), f"git's index cannot be copied to a scratch folder: {error.strerror or error}")


def _changes(root: Path, top: Path, index: Path, apart: list[Path]) -> Changes:
    """See `uncommitted`. `top` is the folder of the clone; `index`, a copy of its index, is changed."""
    status = "status --porcelain=v2 -z --no-renames --untracked-files=all -- .".split()
    tracked, untracked = _parse(git(root, *status, index=index))
    # The repository itself may be in `apart`, if runs are made in it. Its files still count as code.
    apart = [folder for folder in apart if not root.resolve().is_relative_to(folder)]
    apart += [root.resolve() / name for name in _INPUTS]
    untracked = {p for p in untracked if not any(Path(top, p).is_relative_to(folder) for folder in apart)}
    untracked -= _products(untracked)
    sizes = _sizes(root, top, tracked) | {path: _size(top / path) for path in untracked}
    new = untracked | {path for path, before in tracked.items() if not before.strip("0")}  # the commit lacks them
    unwanted = {p for p in new if p.endswith("/") or _PRIVATE.fullmatch(Path(p).name)}  # "/": another repository
    secret = redact.finder()
    unwanted |= {path for path in sizes.keys() - unwanted if sizes[path] <= LIMIT and _holds(top / path, secret)}
    kept = set(_within(LIMIT, {path: size for path, size in sizes.items() if path not in unwanted}))
    if added := sorted(untracked & kept):
        paths = b"\0".join(os.fsencode(f":(top,literal){path}") for path in added)
        git(root, "add", "--intent-to-add", "--pathspec-from-file=-", "--pathspec-file-nul", index=index, text=paths)
    patch = b""
    if kept:
        without = [f":(top,exclude,literal){path}" for path in sorted(tracked.keys() - kept)]
        # Each part of the format has a flag here, because git's configuration may change its default.
        form = "--binary --full-index --no-renames --no-color --no-ext-diff --no-textconv --no-relative --unified=3"
        prefixes = ("--src-prefix=a/", "--dst-prefix=b/")
        patch = git(root, "diff", *form.split(), *prefixes, "HEAD", "--", ".", *without, index=index)
        if secret(patch):
            raise GitError("they remove a key or password of the environment from a file")
    return Changes(patch, tuple(sorted(sizes.keys() - kept)))


def _products(paths: Iterable[str]) -> set[str]:
    """The paths that programs have made, also outside the present OUTPUT_DIR and DATA_DIR: see `_is_product`.

    The log of a run is beside its folder.
    """
    inside: dict[str, set[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        inside.setdefault(folder, set()).add(name)
    made = {folder for folder, names in inside.items() if folder and _is_product(folder, names)}
    logs = {f"{folder}.log" for folder in made}
    return {path for path in paths if path in logs or any(str(one) in made for one in PurePosixPath(path).parents)}


def _is_product(folder: str, names: set[str]) -> bool:
    """Whether a folder with these files is a run, a sweep, a report, an exported model or prepared data.

    Complete or not: another program may write there now.
    """
    prepared = "meta.json" in names or folder.endswith(".partial")
    exported = {"espalier.json", "config.json"} <= names
    begins = bool(names & {"lock", "base.config"}) and names <= _BEGINNING
    if begins or exported or any(whole <= names for whole in ({"run.json", "journal.jsonl"}, _SWEEP, _REPORT)):
        return True
    return prepared and any(map(_SHARD.fullmatch, names))


def _holds(path: Path, secret: Callable[[bytes], bool]) -> bool:
    """Whether a file has a secret in its content. False for anything except a file."""
    try:
        return path.is_file() and secret(path.read_bytes())
    except OSError:  # git will report it
        return False


def _parse(status: bytes) -> tuple[dict[str, str], set[str]]:
    """Changed path -> hash of what the commit has there, and the untracked paths, of `git status --porcelain=v2 -z`."""
    tracked, untracked = {}, set()
    for line in os.fsdecode(status).split("\0"):
        if line.startswith("1 "):
            *fields, path = line.split(" ", 8)
            tracked[path] = fields[6]
        elif line.startswith("u "):  # in conflict: stage 2 is what was checked out
            *fields, path = line.split(" ", 10)
            tracked[path] = fields[8]
        elif line.startswith("? "):
            untracked.add(line[2:])
    return tracked, untracked


def _sizes(root: Path, top: Path, tracked: dict[str, str]) -> dict[str, int]:
    """Bytes of each tracked path, in the commit or now, whichever is larger, because a patch may hold both."""
    if not tracked:
        return {}
    objects = "\n".join(tracked.values()).encode()
    found = git(root, "cat-file", "--batch-check=%(objectsize)", text=objects).decode().splitlines()
    before = [int(size) if size.isdigit() else 0 for size in found]  # a new file has no object
    return {path: max(size, _size(top / path)) for path, size in zip(tracked, before, strict=True)}


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:  # deleted
        return 0


def _within(limit: int, sizes: dict[str, int]) -> Iterator[str]:
    """The smallest of the paths that together fit into `limit` bytes."""
    for path, size in sorted(sizes.items(), key=lambda item: (item[1], item[0])):
        limit -= size
        if limit < 0:
            return
        yield path


def git(root: Path, *words: str, index: Path | None = None, text: bytes = b"") -> bytes:
    """The output of a git command in the clone at `root`, even if the environment names another repository.

    The command reads `text` and uses `index` in place of the clone's index. Raises GitError.
    """
    plain = {
        name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name.startswith(_SETUP)
    }
    environment = {**plain, "LC_ALL": "C"}
    if index:
        environment["GIT_INDEX_FILE"] = str(index)
        if words[0] == "add":  # it stores an object for the empty file
            environment["GIT_OBJECT_DIRECTORY"] = str(index.parent)
    try:
        command = ["git", "-C", str(root), *words]
        done = subprocess.run(command, input=text, capture_output=True, timeout=_SECONDS, env=environment, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GitError(f"git {words[0]} in {root} cannot be run: {error}") from None
    if done.returncode:
        reason = " ".join(done.stderr.decode(errors="replace").split()) or f"exit code {done.returncode}"
        raise GitError(f"git {words[0]} in {root} failed: {reason}")
    return done.stdout
