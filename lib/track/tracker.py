"""The interface of a tracker: a file lib/track/<name>.py with an entry in lib/track/Kconfig, or a plug-in."""

import dataclasses
import hashlib
import math
import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from lib.base.errors import UserError
from lib.config.kconf import Options
from lib.record.run import Identity

T = typing.TypeVar("T", bound=Options)


@dataclasses.dataclass(frozen=True)
class TrackOptions(Options):
    """Options for the trackers that support groups and tags."""

    tracker_group: str  # empty: none
    tracker_tags: str  # comma-separated


@dataclasses.dataclass(frozen=True)
class Row:
    """Metrics of one event of a run; NaN and infinities are floats, and integers can have any size."""

    event: str  # train, eval, system, finish or `task <name>`; further series of steps are `train.2`, `eval.2`, ...
    step: int
    time: float  # unix seconds
    metrics: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Alert:
    """A message that the user should see immediately."""

    kind: str  # nan, divergence, sparsity, finished, ...: one alert of a kind per step
    step: int
    time: float  # unix seconds
    level: str  # info, warn or error
    message: str  # one sentence


@dataclasses.dataclass(frozen=True)
class Media:
    """A file of the run that the user wants to see or to keep beside the metrics."""

    kind: str  # image (PNG), table (JSON: {"columns": [...], "rows": [[...]]}), text (UTF-8) or artifact (any file)
    name: str  # such as `sample`: one item of a name per step
    step: int
    time: float  # unix seconds
    path: Path  # in the run's folder


class Configuration(dict[str, Any]):
    """What a tracker shows as the run's configuration. `options` are Espalier's, by name in lower case, for `bind`."""

    def __init__(self, shown: Mapping[str, Any], options: Mapping[str, Any]):
        super().__init__(shown)
        self.options = options


class Refused(UserError):
    """The destination refuses the key or the run. The user hears of it at once; the end of the run does not wait."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of `make tracker-doctor` about a tracker."""

    what: str  # such as `database` or `API key`
    found: str  # never a secret
    good: bool


class Tracker(Protocol):
    """The interface of the class in lib/track/<name>.py, or of a plug-in (an entry point of `espalier.trackers`).

    A tracker has its own process, so it may be slow, hang or crash. A method that raises is called again with the same
    arguments: without limit while the run trains, and a few times within half a minute after that.

    A tracker may also have these methods:

    media(items)           shows or keeps the files in a list of Media; without it, a tracker gets none. If it raises a
                           few times, the item is set aside, the user is told, and `make sync` tries it again
    rewrite(rows, alerts)  replaces everything that is stored, whatever `open` found; may be called again
    destination() -> str   where the rows of the opened run go, without secrets: a path, a server, a project
    holds() -> bool        whether the destination had this run before `open`

    A retry or a resume may withdraw rows that a tracker has. A tracker with `rewrite` then gets all valid rows, and
    after it all valid media. Any other tracker gets a second run. `finish("interrupted")` is called, then a new object
    is opened with another identity, `<name>~2`, and receives the complete history.

    If `destination` differs from the one that has the earlier rows, or if it no longer holds the run, the complete
    history is delivered there. How much each destination has is remembered.

    The module of a tracker may also have:

    MODULE      the library that it needs, which is imported before the run's first step
    ARGUMENT    what may follow its name after a colon, each with the library that it needs; the class gets the argument
    PRIVATE     what it uses beyond the documented interface of the library; tests/track/test_private.py guards it
    also(config, folder) -> list[str]     further trackers of the run, in their own lanes
    problem(config) -> str                why the options do not fit, in one sentence, before the run's first step
    examine(config) -> list[Finding]      checks what the tracker needs, without a run
    SERVER_OPTION                         the option that names the server, and a variable of the same name; needs:
    secret(config) -> str                 which of the user's secrets the server would get, or "" (lib/track/trust.py)
    upload(folder, config) -> str         sends what the tracker keeps offline in the run's folder: `make sync` calls it
                                          after the delivery; returns a sentence, and raises UserError
    """

    def open(self, identity: Identity, config: dict[str, Any], folder: Path) -> str:
        """Begin or continue the run; returns a note for the user, or "". Import the library here.

        config    a Configuration: as a dict, what the tracker shows; `bind` reads the options of trackers from it
        folder    of the run, where the tracker may keep files
        """

    def log(self, rows: list[Row]) -> None:
        """Store rows; return when they would survive a kill of this process.

        Rows of an earlier call or process may be delivered again and must not be stored twice. The row of the event
        `finish`, if the run has one, has the final metrics.
        """

    def alert(self, alerts: list[Alert]) -> None:
        """Show alerts to the user in the tracker's own way; alerts too may be delivered again."""

    def finish(self, status: str) -> None:
        """End the run: `finished`, `crashed` if the trainer vanished, or the status in the journal's last record."""


def bind(cls: type[T], config: Mapping[str, Any]) -> T:
    """The options of dataclass `cls` from a run's configuration; an option that the run did not have is None."""
    options = config.options if isinstance(config, Configuration) else config
    return cls(**{name: options.get(name) for name in typing.get_type_hints(cls)})


def plain_name(name: str, refused: str, longest: int, reserved: Callable[[str], bool] = lambda _: False) -> str:
    """A name that a backend accepts, with at most `longest` characters; different names stay different.

    What matches the regular expression `refused` becomes `-`, and so do surrogates, which have no UTF-8. A name that
    is changed, too long or `reserved` by the backend gets eight digits of a hash.
    """
    plain = re.sub(rf"{refused}|[\ud800-\udfff]", "-", name)
    if plain == name and 0 < len(plain) <= longest and not reserved(plain):
        return name
    digits = hashlib.md5(name.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{plain.strip('-')[: longest - 9] or 'unnamed'}-{digits}"


def within_64_bits(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics or options in which integers beyond 64 bits are the nearest float, for libraries that refuse them."""
    return {name: _nearest(value) for name, value in metrics.items()}


def _nearest(value: Any) -> Any:
    if not isinstance(value, int) or -(2**63) <= value < 2**63:
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
