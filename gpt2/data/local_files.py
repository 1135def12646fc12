"""Local files: finds the files of a corpus by path, folder or pattern, and opens them."""

import contextlib
import glob
import gzip
import io
import os
import re
import shlex
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lib.base.errors import UsageError, UserError

_KINDS = {".txt": "text", ".md": "text", ".rst": "text", ".jsonl": "lines", ".parquet": "parquet"}
_READABLE = ".txt, .md, .rst, .jsonl (each also as .gz) or .parquet"
_POINTER = b"version https://git-lfs.github.com/spec/"
_MOST_NAMED = 10  # endings that a note about files that are left out lists
_POINTER_BYTES = 1024  # the pointers of Git LFS are shorter


class DataError(UserError):
    """A corpus, or data prepared from it, that cannot be used."""


class Found(NamedTuple):
    """The files of a corpus, sorted, and a count of the files that are left out, by endings such as `.csv`."""

    paths: list[Path]
    left_out: Counter

    def note(self, source: str) -> str:
        """Say what is left out; "" if nothing is."""
        counts = ", ".join(
            f"{count:,} {_plural(what) if count > 1 else what}"
            for what, count in self.left_out.most_common(_MOST_NAMED)
        )
        more = len(self.left_out) - _MOST_NAMED
        counts += f" and {more:,} more endings" if more > 1 else " and 1 more ending" * (more == 1)
        return f"{source}: left out: {counts}" if counts else ""


def _plural(what: str) -> str:
    return re.sub(r"(?:^|(?<= ))(file|link|folder)\b", r"\1s", what)


# ---- finding ---------------------------------------------------------------------------------------------------------


def kind(path: Path) -> str | None:
    """Tell by the ending of its name whether a file is read as `text`, JSON `lines` or `parquet`; None: not at all."""
    name = path.name.lower()
    found = _KINDS.get(Path(name.removesuffix(".gz")).suffix)
    return None if found == "parquet" and name.endswith(".gz") else found


def find(source: str) -> Found:
    """Find the files that a path, folder or pattern names; raises UsageError unless they exist and are of one kind."""
    path, left_out = Path(source), Counter()
    if path.is_file():
        paths = [path]
    else:
        paths = sorted(_in_folder(path, left_out) if path.is_dir() else _matching(source, left_out))
    kinds = {name: [file for file in paths if kind(file) == name] for name in ("text", "lines", "parquet")}
    other = [file for file in paths if kind(file) is None]
    if kinds["lines"] or kinds["parquet"]:
        documentation = [file for file in kinds["text"] if _ending(file).lower() in (".md", ".rst")]
        if len(documentation) == len(kinds["text"]):  # README.md and the like beside data
            other += kinds.pop("text")
    found = [files for files in kinds.values() if files]
    left_out.update(map(_ending, other))
    if not paths and not left_out:
        what = "is empty" if path.is_dir() else "there is no such file or folder, and no file matches it as a pattern"
        raise UsageError(f"{source}: {what}")
    if not found and path.is_file():
        raise UsageError(f"{source}: is not a {_READABLE} file")
    if not found:
        raise UsageError(f"{Found([], left_out).note(source)}; a corpus consists of {_READABLE} files")
    if len(found) > 1:
        counts = Counter(_ending(file) for files in found for file in files)
        what = ", ".join(f"{count:,} {ending}" for ending, count in sorted(counts.items()))
        advice = shlex.quote(_one_kind(source, max(found, key=len)))
        raise UsageError(f"{source}: holds {what} files; name files of one kind, such as DATASET_SOURCE={advice}")
    return Found(found[0], left_out)


def _in_folder(folder: Path, left_out: Counter) -> Iterator[Path]:
    """Yield the files below a folder, without hidden files and without what is in hidden or linked folders."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}")

    for where, folders, names in os.walk(folder, onerror=refuse):
        left_out.update("hidden folder" for name in folders if name.startswith("."))
        left_out.update("hidden file" for name in names if name.startswith("."))
        folders[:] = [name for name in folders if not name.startswith(".")]
        left_out.update("linked folder" for name in folders if Path(where, name).is_symlink())
        yield from _files((Path(where, name) for name in names if not name.startswith(".")), left_out)


def _matching(source: str, left_out: Counter) -> Iterator[Path]:
    """Yield the files that match a pattern. Folders that exist are taken literally: their names may contain * or [."""
    base = next((parent for parent in Path(source).parents if parent.is_dir()), Path())
    pattern = str(Path(source).relative_to(base))
    matches = [base / name for name in set(glob.glob(pattern, root_dir=base, recursive=True))]  # noqa: PTH207
    folders = [path for path in matches if path.is_dir()]
    if "**" not in pattern:
        left_out.update("folder" for _ in folders)
    yield from _files((path for path in matches if path not in folders), left_out)


def _files(paths: Iterable[Path], left_out: Counter) -> Iterator[Path]:
    for path in paths:
        if path.is_file():
            yield path
        else:
            left_out["broken link" if path.is_symlink() else "special file"] += 1


def _ending(path: Path) -> str:
    """Return the ending of a file's name, such as `.txt` or `.txt.gz`, or the words `without ending`."""
    return "".join(path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:]) or "without ending"


def _one_kind(source: str, files: list[Path]) -> str:
    """Return a pattern for an error's advice: it matches only files with the most common ending among `files`."""
    ending = Counter(map(_ending, files)).most_common(1)[0][0]
    root = source.rstrip("/")
    anywhere = f"{os.path.commonpath([file.parent for file in files])}/**/*{ending}"
    if Path(source).is_dir() or root.endswith("**"):
        return anywhere
    tries = f"{root}{ending}", f"{root.removesuffix('.*')}{ending}"
    return next((pattern for pattern in tries if any(_matching(pattern, Counter()))), anywhere)


# ---- opening ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, and unpack it if it is a .gz; errors of reading become DataErrors."""
    try:
        with path.open("rb") as file:
            if path.suffix.lower() == ".gz":
                with io.BufferedReader(gzip.GzipFile(fileobj=file)) as unpacked:
                    yield unpacked
            else:
                yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: is damaged or cut off: {reason(error)}; copy it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or reason(error)}") from None


def refuse_pointers(paths: Iterable[Path]) -> None:
    """Raise DataError if there are Git LFS pointers among files."""
    if pointers := [path for path in paths if _is_pointer(path)]:
        what = "is a Git LFS pointer" if len(pointers) == 1 else f"and {len(pointers) - 1:,} more are Git LFS pointers"
        raise DataError(f"{pointers[0]}: {what}, not the data; run `git lfs pull` in that folder to get the data")


def _is_pointer(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return os.fstat(file.fileno()).st_size < _POINTER_BYTES and file.read(len(_POINTER)) == _POINTER
    return False  # reading a file that cannot be opened will say why


def reason(error: object) -> str:
    """Return what an error of another library says, short and without line ends, as a part of a sentence."""
    return " ".join(str(error).split())[:300].rstrip(". ") or type(error).__name__
