"""What a tracker is: a file lib/track/<name>.py with a class `Tracker`, and an entry in lib/track/Kconfig."""

import dataclasses
from pathlib import Path
from typing import Any, Protocol

from lib.kconf import Options
from lib.run import Identity


@dataclasses.dataclass(frozen=True)
class TrackOptions(Options):
    """Which trackers are fed, and how."""

    tracker: tuple[str, ...]
    wandb_offline: bool | None  # None: wandb is not among them


@dataclasses.dataclass(frozen=True)
class Row:
    """Metrics of one event of a run; NaN and infinities are floats."""

    event: str  # train, eval or finish
    step: int
    time: float  # unix seconds
    metrics: dict[str, float]


class Tracker(Protocol):
    """What the class in lib/track/<name>.py implements; a string PACKAGE beside it names the package to install.

    It lives in a process of its own, so it may be slow, hang or crash. A method that raises is called again with the
    same arguments, a few times over half a minute; then delivery to this tracker ends until `make sync`.
    """

    def open(self, identity: Identity, config: dict[str, Any], folder: Path, options: TrackOptions) -> str:
        """Begin the run, or continue it; returns what its user should know, or "". Import the library in here.

        config    the resolved options by name in lower case
        folder    the run's, for files of the tracker's own
        """

    def log(self, rows: list[Row]) -> None:
        """Store rows; return when they would survive the death of this process.

        Rows that were stored before, by an earlier call or process, may come again and are not to be stored twice. The
        row of the event `finish`, which a run may lack, holds the final metrics.
        """

    def finish(self, status: str) -> None:
        """End the run: `finished`, `crashed` when the trainer vanished, or what else the journal's last record says."""
