"""Saves a run whose folder was removed, replaced or moved while it was trained."""

import time
from pathlib import Path

from lib.base import files
from lib.record import journal, run

_REMOVAL_SECONDS = 1.0  # wait for a removal that is still running: it would remove the restored files too
_KEPT = ("run.json", ".config", "defconfig", "provenance*.json", "changes*.patch")
_LAST = "run.json"  # written last: a folder without it is not a run, so nobody resumes an incomplete one


class Spare:
    """Copies in memory of the small files in a run's folder: some 40 KB, and at most 10 MB of uncommitted changes."""

    def __init__(self, folder: Path):
        self.files = {path.name: path.read_bytes() for pattern in _KEPT for path in folder.glob(pattern)}

    def put_back(self, book: journal.Journal) -> tuple[Path, str]:
        """Find the moved folder, or make a new one with the run's files and journal in it.

        Returns the folder, and what happened to the old one in words. Call `finish` after a checkpoint is saved in it.
        Raises UserError.
        """
        if place := book.place():
            book.move(place)
            return place, f"was moved to {place} while the run was trained"
        time.sleep(_REMOVAL_SECONDS)
        folder = book.path.parent
        try:
            if book.path.exists():  # the file now belongs to another run, or somebody edited it
                folder = run.new_folder(folder.parent, folder.name)[1]
            for name in run.FOLDERS:
                (folder / name).mkdir(parents=True, exist_ok=True)
            book.move(folder)
        except OSError as error:
            raise journal.JournalError(
                f"{folder}: was removed while the run was trained and cannot be put back: {error.strerror}"
            ) from None
        for name, content in self.files.items():
            if name != _LAST and not (folder / name).exists():
                files.write(folder / name, content)
        return (
            folder,
            f"was removed, or its journal removed or replaced, while the run was trained; it is saved in {folder}",
        )

    def finish(self, folder: Path) -> None:
        """Write run.json, which makes the folder a run."""
        if not (folder / _LAST).exists():
            files.write(folder / _LAST, self.files[_LAST])
