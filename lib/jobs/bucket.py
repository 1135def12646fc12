"""The bucket in which a run survives its job: making it, and bringing the run home from it."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from huggingface_hub import BucketFile, constants
from huggingface_hub.errors import HfHubHTTPError

from lib.base import files
from lib.base.errors import UserError
from lib.jobs.api import Jobs
from lib.jobs.inside import OURS, late
from lib.record import journal

NAME = "espalier"  # of the owner's bucket, unless the user names another
OF_SCRIPTS = constants.HF_JOBS_ARTIFACTS_BUCKET_NAME
_ARRIVING = ".arriving"  # folder in that of the run, for files on their way


def named(given: str, owner: str) -> str:
    """OWNER/NAME of the bucket; empty for `none`."""
    if given == "none":
        return ""
    return given if "/" in given else f"{owner}/{given or NAME}"


def make(jobs: Jobs, bucket: str) -> None:
    """Make a bucket that only its owner sees, if it is missing; raises UserError if there is one that all can read."""
    with jobs.told(f"making the bucket {bucket}"):
        jobs.api.create_bucket(bucket, private=True, exist_ok=True)
        if jobs.api.bucket_info(bucket).private:
            return
    where = f"{jobs.api.endpoint}/buckets/{bucket}"
    raise UserError(f"{bucket}: this bucket is public, and would show your code and runs; make it private at {where}")


def put(jobs: Jobs, bucket: str, name: str, content: bytes) -> None:
    """Write a file of the bucket. A folder of it can be mounted only if it has a file."""
    with jobs.told(f"writing to the bucket {bucket}"):
        jobs.api.batch_bucket_files(bucket, add=[(content, name)])


def fetch(jobs: Jobs, bucket: str, folder: Path, say: Callable[[str], object]) -> int:
    """Bring the files of a run that are new or changed from the bucket into `folder`; returns how many.

    All files arrive beside the run first. So a broken connection changes nothing of it, and a file is whole or absent.
    Raises UserError if the run was continued here, because that would be lost.
    """
    with jobs.told(f"looking into the bucket {bucket}"):
        try:
            there = dict(_listed(jobs, bucket, folder.name))
        except HfHubHTTPError as error:
            if error.response.status_code != 404:
                raise
            there = {}
    if not there:
        raise UserError(f"{bucket}: has nothing of {folder.name} yet; see make jobs, and check the names")
    wanted = {path: file for path, file in there.items() if _state(folder / path) != _remote(file)}
    if not wanted:
        return 0
    size = sum(file.size for file in wanted.values())
    say(f"fetching {len(wanted)} files, {size / 1e6:,.1f} MB, from {bucket}/{folder.name}")
    with files.held(folder, "training or fetching this run"), _arriving(folder) as place:
        with jobs.told(f"fetching from the bucket {bucket}"):
            jobs.api.download_bucket_files(bucket, [(file, place / path) for path, file in wanted.items()])
        _check(place, wanted)
        _check_journals(folder, place)
        for path in sorted(wanted, key=late):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            seconds = _remote(wanted[path])[1]
            os.utime(place / path, (seconds, seconds))  # by which the next fetch sees that it has this one
            (place / path).replace(target)
    return len(wanted)


def _listed(jobs: Jobs, bucket: str, name: str) -> Iterator[tuple[PurePosixPath, BucketFile]]:
    """Path in the run's folder -> file, of what the bucket has of a run. Raises UserError for a path that leads out."""
    for file in jobs.api.list_bucket_tree(bucket, prefix=name, recursive=True):
        if not isinstance(file, BucketFile) or not file.path.startswith(f"{name}/"):
            continue
        path = PurePosixPath(file.path[len(name) + 1 :])
        if path.is_absolute() or ".." in path.parts or "\\" in file.path:
            raise UserError(f"{bucket}: has a file whose path leads out of the run's folder: {file.path}")
        if path.parts[0] != OURS and path.suffix != ".part":
            yield path, file


def _remote(file: BucketFile) -> tuple[int, int]:
    """Size, and time in whole seconds."""
    return file.size, int(time.timestamp()) if (time := file.mtime or file.uploaded_at) else 0


def _state(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_size, int(status.st_mtime)
    return None


@contextlib.contextmanager
def _arriving(folder: Path) -> Iterator[Path]:
    """A new folder beside the files of a run, removed at the end."""
    place = folder / _ARRIVING
    shutil.rmtree(place, ignore_errors=True)  # of a fetch that was killed
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _check(place: Path, wanted: dict[PurePosixPath, BucketFile]) -> None:
    """Raise UserError unless every file has arrived with its size. The library checks the content by its hash."""
    for path, file in wanted.items():
        if (found := _state(place / path)) is None or found[0] != file.size:
            got = "nothing" if found is None else f"{found[0]:,} bytes"
            raise UserError(f"{path}: {got} of {file.size:,} bytes arrived; nothing was changed; fetch again")


def _check_journals(folder: Path, place: Path) -> None:
    """Raise UserError if a journal here is not the beginning of the one that arrived."""
    for path in place.rglob(journal.FILE):
        mine = folder / path.relative_to(place)
        if mine.exists() and not path.read_bytes().startswith(mine.read_bytes()):
            raise UserError(
                f"{mine.parent}: this run was continued here too, and fetching would lose that; move the folder away "
                "to fetch the one of the job"
            )
