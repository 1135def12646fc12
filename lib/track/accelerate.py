"""A bridge to trackers of Hugging Face Accelerate, each in its own process: `--tracker accelerate:comet_ml`."""

import dataclasses
import hashlib
import json
import os
import re
import shlex
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lib.base import redact
from lib.base.errors import UsageError, UserError
from lib.record.run import Identity
from lib.track import clean
from lib.track.accelerate_media import SHOW
from lib.track.accelerate_sent import list_of
from lib.track.tracker import Alert, Finding, Media, Refused, Row, plain_name, within_64_bits

MODULE = "accelerate"
# Names allowed after the colon, and the library that each needs. Espalier has its own trackers for wandb, trackio and
# mlflow, which keep more than Accelerate's: times, identity, status, and each row once.
ARGUMENT = {name: name for name in ("aim", "clearml", "comet_ml", "dvclive", "swanlab", "tensorboard")}
# Variables of programs that start several training processes. A lane is not one of these processes.
_LAUNCHERS = ("ACCELERATE_", "FORK_LAUNCHED", "OMPI_", "PMI_", "MV2_")


class Tracker:
    """Hands rows to one of Accelerate's trackers.

    These libraries cannot tell what they have. So each row and file is recorded in
    <run>/trackers/accelerate-<name>.sent after the library accepted it, and is not sent again; each server has its own
    list, see `list_of`. If this process is killed, at most one row is sent twice (accepted, but not yet recorded), and
    rows that the library held only in memory are lost there. A normal end has neither problem. The journal keeps
    all rows: to send them again, delete accelerate-<name>.*.

    Rows get the time of delivery. How NaN, infinities, unusual names and restarts are handled depends on the library.
    """

    def __init__(self, name: str = ""):
        """`name`: a key of ARGUMENT; raises UsageError for others."""
        if name not in ARGUMENT:
            raise UsageError(f"tracker accelerate:{name}: Accelerate has {', '.join(ARGUMENT)}")
        self.name = name
        if _LIBRARIES[name].kept:
            self.holds = self._holds  # the others cannot tell

    def open(self, identity: Identity, config: dict[str, Any], folder: Path) -> str:
        """Start the library's run, and store the configuration if this was not done before."""
        for variable in [name for name in os.environ if name.startswith(_LAUNCHERS)]:
            del os.environ[variable]
        from accelerate import PartialState, tracking

        PartialState(cpu=True)  # Accelerate's trackers require it
        again = identity.name.removeprefix(Identity.load(folder).name)  # `~2` for the second run at this tracker
        library = _LIBRARIES[self.name]
        arguments, settings = library.arguments(identity, folder.resolve(), again)
        self.place = redact.hide(library.place())
        self.sent, first = list_of(folder, self.name, self.place, again)
        if self.name == "comet_ml":
            settings["experiment_key"] = _comet_key(identity, first)
        if library.kept:
            self.held = self.sent.has_rows() and any(folder.glob(library.kept.format(again)))
            if not self.held:
                self.sent.forget()
        self.tracker = getattr(tracking, library.tracker)(*arguments, **settings)
        self._start(library.key)
        if first and self.place:
            self.sent.own(self.place)
        if "configuration" not in self.sent:
            plain = within_64_bits(config).items()
            plain = {name: v if isinstance(v, bool | int | float | str) else json.dumps(v) for name, v in plain}
            texts = clean.text(plain)
            self.tracker.store_init_configuration(texts)
            self.sent.add("configuration")
        return library.note(self.tracker.tracker, folder)

    def _start(self, key: str) -> None:
        try:
            self.tracker.start()
        except Exception as error:
            if _refuses(error):
                # Without `from None`, the log would get the message of Comet's exception, which is the key.
                raise Refused(f"the server refuses the API key or the workspace; correct {key}") from None
            raise
        if self.name == "comet_ml" and not self.tracker.tracker.alive:  # it would drop every row without an error
            raise UserError("Comet does not take the run; the log of this tracker, in the folder trackers, says why")

    def destination(self) -> str:
        """The server and the workspace, also for a run that is kept offline to be uploaded there; empty: neither."""
        return self.place

    def _holds(self) -> bool:
        """Whether the files of the library were there before `open`; the user may have deleted them."""
        return self.held

    def log(self, rows: list[Row]) -> None:
        """Send the rows that were not sent before."""
        for row in rows:
            if (key := f"{row.event} {row.step}") not in self.sent:
                values = clean.text(within_64_bits(row.metrics))
                self.tracker.log(values, step=row.step)
                self.sent.add(key)

    def media(self, items: list[Media]) -> None:
        """Hand over what the library can keep and did not get before."""
        for item in items:
            key = f"{item.kind} {item.step} {json.dumps(item.name)}"
            if item.kind in SHOW[self.name] and key not in self.sent:
                item = dataclasses.replace(item, name=clean.text(item.name))
                if SHOW[self.name][item.kind](self.tracker, item) is False:  # ClearML
                    raise UserError(f"{item.path}: the server did not take it; the log of this tracker says why")
                self.sent.add(key)

    def alert(self, alerts: list[Alert]) -> None:
        """Do nothing: Accelerate's trackers do not support alerts."""

    def finish(self, status: str) -> None:
        """End the library's run, which may upload for a while; Accelerate cannot pass the status on."""
        self.tracker.finish()


def _refuses(error: Exception) -> bool:
    """Whether a library's error means that its server refuses the key. SwanLab has the same error without a network."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    comet = type(error).__name__ in ("InvalidAPIKey", "InvalidWorkspace")
    clearml = re.search(r"\(error 40[13] ", str(error))
    return status in (401, 403) or comet or bool(clearml)


def examine(config: dict[str, Any]) -> list[Finding]:
    """Which of Accelerate's trackers are installed; API keys and hosts are not checked."""
    from lib.track.registry import installed

    there = [name for name, library in ARGUMENT.items() if installed(library)]
    return [Finding("its trackers", f"installed: {', '.join(there) or 'none'}; known: {', '.join(ARGUMENT)}", True)]


def _aim(identity: Identity, folder: Path, again: str) -> tuple[tuple, dict[str, Any]]:
    return (identity.name, str(folder.parent)), {"experiment": identity.project, "system_tracking_interval": None}


def _clearml(identity: Identity, folder: Path, again: str) -> tuple[tuple, dict[str, Any]]:
    automatic = (
        "auto_connect_arg_parser",
        "auto_connect_frameworks",
        "auto_resource_monitoring",
        "auto_connect_streams",
    )
    return (identity.project,), {"task_name": identity.name, **dict.fromkeys(automatic, False)}


def _comet_ml(identity: Identity, folder: Path, again: str) -> tuple[tuple, dict[str, Any]]:
    from comet_ml import ExperimentConfig, get_config

    names = ("log_code", "parse_args", "auto_output_logging", "log_env_details", "log_graph", "log_git_metadata")
    setting = ExperimentConfig(
        name=identity.name, offline_directory=str(folder / "comet"), **dict.fromkeys(names, False)
    )
    settings = {"experiment_config": setting}
    if not get_config("comet.api_key"):
        settings["online"] = False
    return (identity.project,), settings


def _comet_key(identity: Identity, first: bool) -> str:
    """The key of the experiment, 32 letters and digits; a key belongs to one workspace of a server.

    `first`: the run's only list is that of an earlier version, whose key did not depend on the workspace.
    """
    from comet_ml import get_config

    workspace = "" if first else get_config("comet.workspace") or ""
    return hashlib.sha256(f"{identity.run_id}{workspace}".encode()).hexdigest()[:32]


def _dvclive(identity: Identity, folder: Path, again: str) -> tuple[tuple, dict[str, Any]]:
    place = str(folder / f"dvclive{again}")
    return (identity.name,), {"dir": place, "resume": True, "save_dvc_exp": False, "dvcyaml": False}


def _swanlab(identity: Identity, folder: Path, again: str) -> tuple[tuple, dict[str, Any]]:
    log = {"log_dir": str(folder / "swanlab"), "id": identity.run_id, "resume": "allow"}
    project = plain_name(identity.project, r"[^0-9A-Za-z_.+-]+", 100)  # SwanLab allows no others
    return (project,), {"name": identity.name, **log}


def _tensorboard(identity: Identity, folder: Path, again: str) -> tuple[tuple, dict[str, Any]]:
    return (f"accelerate-tensorboard{again}", str(folder)), {}


def _comet_place() -> str:
    from comet_ml import get_config

    address = get_config("comet.url_override") or "https://www.comet.com/clientlib/"
    return f"{address.partition('/clientlib')[0].rstrip('/')}/{get_config('comet.workspace') or ''}".rstrip("/")


def _comet_note(experiment: Any, folder: Path) -> str:
    from comet_ml import OfflineExperiment, get_config

    if not isinstance(experiment, OfflineExperiment):
        return f"look at it at {experiment.url}"
    why = "" if get_config("comet.api_key") else ", because neither COMET_API_KEY nor ~/.comet.config has an API key"
    files = f"{shlex.quote(str(folder / 'comet'))}/*.zip"
    return f"the run is kept offline{why}; after its end, upload it with: comet upload {files}"


def _clearml_place() -> str:
    from clearml.backend_api import Session

    return Session.get_api_server_host()


def _swanlab_place() -> str:
    from swanlab import Settings

    settings = Settings()
    return f"{settings.api_host}/{settings.project.workspace or ''}".rstrip("/")


class _Library(typing.NamedTuple):
    tracker: str  # a class in accelerate.tracking
    arguments: Callable[[Identity, Path, str], tuple[tuple, dict[str, Any]]]  # of this class
    kept: str = ""  # glob of its files in the run's folder, with the run's suffix; empty: its `holds` cannot be told
    key: str = "its API key"  # where the user sets the key and the workspace
    place: Callable[[], str] = lambda: ""  # see `destination`
    note: Callable[[Any, Path], str] = lambda run, folder: ""  # for the user, from the library's own object for the run


_LIBRARIES = {
    "aim": _Library("AimTracker", _aim),
    "clearml": _Library(
        "ClearMLTracker", _clearml, "", "CLEARML_API_ACCESS_KEY and CLEARML_API_SECRET_KEY", _clearml_place
    ),
    "comet_ml": _Library(
        "CometMLTracker",
        _comet_ml,
        "",
        "COMET_API_KEY and COMET_WORKSPACE, or ~/.comet.config",
        _comet_place,
        _comet_note,
    ),
    "dvclive": _Library("DVCLiveTracker", _dvclive, "dvclive{}/*"),
    "swanlab": _Library("SwanLabTracker", _swanlab, "", "SWANLAB_API_KEY and SWANLAB_WORKSPACE", _swanlab_place),
    "tensorboard": _Library("TensorBoardTracker", _tensorboard, "accelerate-tensorboard{}/events.out.tfevents*"),
}
