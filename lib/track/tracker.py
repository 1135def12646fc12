"""What a tracker is: lib/track/<name>.py with a class `Tracker` and an entry in lib/track/Kconfig, or a plug-in."""

import dataclasses
import hashlib
import math
import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from lib.config.kconf import Options
from lib.record.run import Identity

T = typing.TypeVar("T", bound=Options)


@dataclasses.dataclass(frozen=True)
class TrackOptions(Options):
    """What trackers are told beside the run's own name, by those that know such a thing."""

    tracker_group: str  # empty: none
    tracker_tags: str  # comma-separated


@dataclasses.dataclass(frozen=True)
class Row:
    """Metrics of one event of a run; NaN and infinities are floats, whole numbers of any size ints."""

    event: str  # train, eval, system or finish; a further series of steps is `train.2`, `eval.2`, ...
    step: int
    time: float  # unix seconds
    metrics: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Alert:
    """What a run's user should be told at once."""

    kind: str  # nan, divergence, sparsity, finished, ...: one alert of a kind per step
    step: int
    time: float  # unix seconds
    level: str  # info, warn or error
    message: str  # one sentence


@dataclasses.dataclass(frozen=True)
class Finding:
    """What `make tracker-doctor` shows of a tracker."""

    what: str  # such as `database` or `API key`
    found: str  # never a secret
    good: bool


class Tracker(Protocol):
    """What the class in lib/track/<name>.py, or the one that an entry point of `espalier.trackers` names, implements.

    It lives in a process of its own, so it may be slow, hang or crash. A method that raises is called again with the
    same arguments, as long as the run trains, and a few times over half a minute after that.

    A retry or a resume may take back rows that a tracker has. One that can replace what it stored has a fifth method,
    `rewrite(rows, alerts)`: from then on it holds these and no others, whatever `open` found; it may be called again
    with more. One without it gets a second run: `finish("interrupted")`, and a new object is opened with another
    identity, `<name>~2`, and gets the whole history.

    Beside the class a module may have MODULE, the name of the library that it needs, which is then imported before the
    run's first step; ARGUMENT, what may follow the tracker's name after a colon and is handed to the class, with the
    library that each needs;
    `also(config, folder) -> list[str]`, further trackers that a run with this one has, in lanes of their own; and
    `examine(config) -> list[Finding]`, which looks at what the tracker needs without a run.
    """

    def open(self, identity: Identity, config: dict[str, Any], folder: Path) -> str:
        """Begin the run, or continue it; returns what its user should know, or "". Import the library in here.

        config    the resolved options by name in lower case
        folder    the run's, for files of the tracker's own
        """

    def log(self, rows: list[Row]) -> None:
        """Store rows; return when they would survive the death of this process.

        Rows that were stored before, by an earlier call or process, may come again and are not to be stored twice. The
        row of the event `finish`, which a run may lack, holds the final metrics.
        """

    def alert(self, alerts: list[Alert]) -> None:
        """Tell the run's user, in the way that the tracker has for it; alerts too may come again."""

    def finish(self, status: str) -> None:
        """End the run: `finished`, `crashed` when the trainer vanished, or what else the journal's last record says."""


def bind(cls: type[T], config: Mapping[str, Any]) -> T:
    """The options that dataclass `cls` declares, from a run's configuration; None for what the run did not have."""
    return cls(**{name: config.get(name) for name in typing.get_type_hints(cls)})


def plain_name(name: str, refused: str, longest: int, reserved: Callable[[str], bool] = lambda _: False) -> str:
    """A name that a backend takes, with at most `longest` characters; other names get other names.

    What matches the regular expression `refused` becomes a `-`. A name that loses something by that, that is too long
    or that the backend has `reserved` carries eight digits of a hash.
    """
    plain = re.sub(refused, "-", name)
    if plain == name and 0 < len(plain) <= longest and not reserved(plain):
        return name
    return f"{plain.strip('-')[: longest - 9] or 'unnamed'}-{hashlib.md5(name.encode()).hexdigest()[:8]}"


def within_64_bits(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics or options for libraries that refuse whole numbers beyond 64 bits: those become the nearest float."""
    return {name: _nearest(value) for name, value in metrics.items()}


def _nearest(value: Any) -> Any:
    if not isinstance(value, int) or -(2**63) <= value < 2**63:
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
