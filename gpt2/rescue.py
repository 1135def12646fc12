"""A run's folder that was removed, replaced or moved under its trainer: what was recorded and learned is not lost."""

import time
from pathlib import Path

from lib.base import files
from lib.record import journal, run

_REMOVAL_SECONDS = 1.0  # for a removal that is under way, which would take what is put back too
_KEPT = ("run.json", ".config", "defconfig", "provenance*.json", "changes*.patch")
_LAST = "run.json"  # by which a folder is a run: nobody goes on with one that is not whole


class Spare:
    """The small files of a run's folder, kept in memory: some 40 KB, and the uncommitted changes, at most 10 MB."""

    def __init__(self, folder: Path):
        self.files = {path.name: path.read_bytes() for pattern in _KEPT for path in folder.glob(pattern)}

    def put_back(self, book: journal.Journal) -> tuple[Path, str]:
        """Find or make the folder where the run can be saved, with its files and journal in it.

        Returns the folder, and what happened to the old one in words. `finish` completes it. Raises UserError.
        """
        if place := book.place():
            book.move(place)
            return place, f"was moved to {place} while the run was trained"
        time.sleep(_REMOVAL_SECONDS)
        folder = book.path.parent
        try:
            if book.path.exists():  # of another run, or edited
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
            f"was removed, or its journal removed or replaced, while the run was trained; what is known is in {folder}",
        )

    def finish(self, folder: Path) -> None:
        """Make a run of the folder, once a checkpoint is in it too."""
        if not (folder / _LAST).exists():
            files.write(folder / _LAST, self.files[_LAST])
