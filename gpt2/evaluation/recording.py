"""Keeps what was measured: each result is in the run's journal as soon as it is known, so that no failure loses it."""

import shlex
import time
from pathlib import Path

from gpt2.evaluation import result
from gpt2.evaluation.result import Result
from lib.base import files
from lib.base.errors import UserError
from lib.record import journal
from lib.terminal.console import say

_PAUSE = 1.0  # seconds between attempts to record, while another process trains the run


class Recording:
    """The results of one model so far. `end` belongs into a `finally`: a failure or Ctrl-C must not lose them."""

    def __init__(self, name: str, step: int, about: dict[str, str], folder: Path | None):
        """`about` is in each record. `folder` is that of the run; None: results are only shown."""
        self.name, self.step, self.about, self.folder = name, step, about, folder
        self.found: list[Result] = []
        self.recorded = 0  # how many of `found` the journal has

    def add(self, one: Result) -> None:
        """Take in a result, and record it; while another process trains the run, that is left to `end`."""
        self.found.append(one)
        if self.folder:
            self._record(self.folder)

    def end(self, output: Path | None) -> None:
        """Show the results, write them to the JSON file `output`, and record those that the journal lacks.

        Waits while another process trains the run.
        """
        if not self.found:
            return
        records = [one.record(self.step, self.about) for one in self.found]
        result.show(records, self.found, say)
        try:
            if output:
                files.write_json(output, {"model": self.name, "step": self.step, **self.about, "results": records})
        finally:
            if self.folder:
                self._finish(self.folder)

    def _finish(self, folder: Path) -> None:
        told = False
        while not self._record(folder):
            if not told:
                say(f"{folder}: another process trains this run; waiting for it, to record these results")
            told = True
            time.sleep(_PAUSE)
        say(f"recorded in {folder / journal.FILE}; see make show RUN={shlex.quote(str(folder))}")

    def _record(self, folder: Path) -> bool:
        """Append the results that the journal lacks. Returns False if another process trains the run."""
        try:
            with files.held(folder, "training this run"):
                book = journal.Journal(folder)
                try:
                    for one in self.found[self.recorded :]:
                        book.write("task", self.step, one.metrics, **one.fields(self.about))
                        self.recorded += 1
                    book.sync()
                finally:
                    book.close()
        except UserError:
            if files.is_held(folder):
                return False
            raise
        return True
