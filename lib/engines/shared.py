"""Whether a worker on another machine sees the same folders, and has the same Python and PyTorch."""

import contextlib
import os
import platform
import time
import uuid
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from lib.base import files
from lib.base.errors import UserError

SHARE = "the repository, the present folder, OUTPUT_DIR and DATA_DIR must be on a file system that all machines see"
_SECONDS = 10  # that a file of another machine may take to be seen


def versions() -> dict[str, str]:
    """What must be the same in a worker, because losses and checkpoints depend on it."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"Python": python, "torch": metadata.version("torch").partition("+")[0]}


def check_versions(node: str, there: dict[str, str]) -> None:
    """Raise UserError if a worker has another Python or PyTorch than this program."""
    here = versions()
    if there != here:
        theirs, ours = (" and ".join(f"{name} {version}" for name, version in one.items()) for one in (there, here))
        raise UserError(
            f"the worker {node} has {theirs}, and this program has {ours}; start it there from the same environment"
        )


@contextlib.contextmanager
def offered(folders: Sequence[Path]) -> Iterator[list[tuple[str, str]]]:
    """A context in which folders (those that are missing: where they will be made) have a file for `look` to find.

    Yields the path and the content of each. The content is empty where nothing may be written, and the path is then
    that of the folder. This process holds the locks of the files.
    """
    with contextlib.ExitStack() as stack:
        made = []
        for folder in folders:
            there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
            path, token = there / f".shared-{uuid.uuid4().hex[:12]}", uuid.uuid4().hex
            if not os.access(there, os.W_OK):  # data that others have prepared
                made.append((str(there), ""))
                continue
            stack.callback(_tidy, path)
            try:
                file = stack.enter_context(path.open("wb"))
                file.write(token.encode())
                file.flush()
                os.fsync(file.fileno())
                files.locks(file.fileno(), there)
            except OSError as error:
                raise UserError(f"{there}: cannot be written: {files.reason(error, there)}") from None
            made.append((str(path), token))
        yield made


def look(here: str, offers: Sequence[tuple[str, str]]) -> tuple[dict[str, str], str]:
    """In a worker: read what is offered, answer beside it, and try the locks. Returns the versions and what is wrong.

    `here` is the folder where the program was started that asks.
    """
    folder = here
    try:
        os.chdir(here)
        for name, token in offers:
            path = Path(name)
            folder = str(path.parent if token else path)
            if not token:
                path.stat()
                continue
            if path.read_text() != token:
                return versions(), f"{folder}: is another folder there"
            files.write(_answer(path), token.encode())
            with path.open("r+b") as file:
                if files.locks(file.fileno(), path):
                    return versions(), (
                        f"{folder}: a lock that this program holds does not hold there, so nothing would keep a lost "
                        "worker that still trains apart from its successor; mount it with locks (Lustre: -o flock, "
                        "NFS: without local_lock)"
                    )
    except OSError as error:
        return versions(), f"{folder}: is not the same there ({error.strerror}); {SHARE}"
    return versions(), ""


def check(node: str, there: dict[str, str], wrong: str, offers: Sequence[tuple[str, str]]) -> None:
    """Raise UserError for what a worker has found wrong, or if its answers do not arrive here."""
    check_versions(node, there)
    if wrong:
        raise UserError(f"{wrong.partition(': ')[0]}: the worker {node} cannot train here: {wrong.partition(': ')[2]}")
    until = time.monotonic() + _SECONDS
    for path, token in ((Path(name), token) for name, token in offers if token):
        while not (_answer(path).exists() and _answer(path).read_text() == token):
            if time.monotonic() > until:
                raise UserError(f"{path.parent}: what the worker {node} writes there is not seen here; {SHARE}")
            time.sleep(0.1)
        _answer(path).unlink()


def _answer(path: Path) -> Path:
    return path.with_name(f"{path.name}.answer")


def _tidy(path: Path) -> None:
    for one in (path, _answer(path), files.partial(_answer(path))):
        one.unlink(missing_ok=True)
