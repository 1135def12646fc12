"""A bridge to trackers of Hugging Face Accelerate, each in its own process: `--tracker accelerate:comet_ml`."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lib.base.errors import UsageError
from lib.record.run import Identity
from lib.track.cursor import path_of
from lib.track.tracker import Alert, Finding, Row, plain_name, within_64_bits

MODULE = "accelerate"
# Names allowed after the colon, and the library that each needs. Espalier has its own trackers for wandb, trackio and
# mlflow, which keep more than Accelerate's: times, identity, status, and each row once.
ARGUMENT = {name: name for name in ("aim", "clearml", "comet_ml", "dvclive", "swanlab", "tensorboard")}
# Variables of programs that start several training processes. A lane is not one of these processes.
_LAUNCHERS = ("ACCELERATE_", "FORK_LAUNCHED", "OMPI_", "PMI_", "MV2_")


class Tracker:
    """Hands rows to one of Accelerate's trackers.

    These libraries cannot tell which rows they have. So each row is recorded in <run>/trackers/accelerate-<name>.sent
    after the library accepted it, and is not sent again. If this process is killed, at most one row is sent twice (it
    was accepted, but not yet recorded), and rows that the library held only in memory are lost there. A normal end has
    neither problem. The journal keeps all rows: to send them again, delete accelerate-<name>.*.

    Rows get the time of delivery. How NaN, infinities, unusual names and restarts are handled depends on the library.
    """

    def __init__(self, name: str = ""):
        """`name`: a key of ARGUMENT; raises UsageError for others."""
        if name not in ARGUMENT:
            raise UsageError(f"tracker accelerate:{name}: Accelerate has {', '.join(ARGUMENT)}")
        self.name = name

    def open(self, identity: Identity, config: dict[str, Any], folder: Path) -> str:
        """Start the library's run, and store the configuration if this was not done before."""
        for variable in [name for name in os.environ if name.startswith(_LAUNCHERS)]:
            del os.environ[variable]
        from accelerate import PartialState, tracking

        PartialState(cpu=True)  # Accelerate's trackers require it
        again = identity.name.removeprefix(Identity.load(folder).name)  # `~2` for the second run at this tracker
        self.sent = Sent(path_of(folder, f"accelerate:{self.name}", "sent"), again)
        class_name, arguments_of = _CLASSES[self.name]
        arguments, settings = arguments_of(identity, folder.resolve(), again)
        self.tracker = getattr(tracking, class_name)(*arguments, **settings)
        self.tracker.start()
        if "configuration" not in self.sent:
            plain = within_64_bits(config).items()
            plain = {name: v if isinstance(v, bool | int | float | str) else json.dumps(v) for name, v in plain}
            self.tracker.store_init_configuration(plain)
            self.sent.add("configuration")
        return ""

    def log(self, rows: list[Row]) -> None:
        """Send the rows that were not sent before."""
        for row in rows:
            if (key := f"{row.event} {row.step}") not in self.sent:
                self.tracker.log(within_64_bits(row.metrics), step=row.step)
                self.sent.add(key)

    def alert(self, alerts: list[Alert]) -> None:
        """Do nothing: Accelerate's trackers do not support alerts."""

    def finish(self, status: str) -> None:
        """End the library's run, which may upload for a while; Accelerate cannot pass the status on."""
        self.tracker.finish()


class Sent:
    """The list of sent rows: a file with one line per row, written unbuffered, so that it survives a kill.

    Lines of a second run at this tracker begin with the suffix of its name, `~2`.
    """

    def __init__(self, path: Path, again: str = ""):
        self.prefix = f"{again} " if again else ""
        self.file = path.open("ab+", buffering=0)
        self.file.seek(0)
        data = self.file.read()
        complete = data.rfind(b"\n") + 1
        self.file.truncate(complete)  # a full disk may have left an incomplete last line
        self.keys = set(data[:complete].decode().splitlines())
        self.unwritten = b""  # the rest of a line that a full disk did not take

    def __contains__(self, key: str) -> bool:
        return self.prefix + key in self.keys

    def add(self, key: str) -> None:
        """Record a sent row. After an OSError, the next call writes the rest of the line first."""
        self.keys.add(self.prefix + key)
        self.unwritten += f"{self.prefix}{key}\n".encode()
        while self.unwritten:  # a disk that becomes full takes only a part of a line
            self.unwritten = self.unwritten[self.file.write(self.unwritten) :]


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
    from comet_ml import ExperimentConfig

    names = ("log_code", "parse_args", "auto_output_logging", "log_env_details", "log_graph", "log_git_metadata")
    setting = ExperimentConfig(
        name=identity.name, offline_directory=str(folder / "comet"), **dict.fromkeys(names, False)
    )
    key = hashlib.sha256(identity.run_id.encode()).hexdigest()[:32]  # Comet takes 32 to 50 letters and digits
    return (identity.project,), {"experiment_key": key, "experiment_config": setting}


def _dvclive(identity: Identity, folder: Path, again: str) -> tuple[tuple, dict[str, Any]]:
    place = str(folder / f"dvclive{again}")
    return (identity.name,), {"dir": place, "resume": True, "save_dvc_exp": False, "dvcyaml": False}


def _swanlab(identity: Identity, folder: Path, again: str) -> tuple[tuple, dict[str, Any]]:
    log = {"log_dir": str(folder / "swanlab"), "id": identity.run_id, "resume": "allow"}
    project = plain_name(identity.project, r"[^0-9A-Za-z_.+-]+", 100)  # SwanLab allows no others
    return (project,), {"name": identity.name, **log}


def _tensorboard(identity: Identity, folder: Path, again: str) -> tuple[tuple, dict[str, Any]]:
    return (f"accelerate-tensorboard{again}", str(folder)), {}


# name -> class in accelerate.tracking, and the function that gives its arguments
_CLASSES: dict[str, tuple[str, Callable[[Identity, Path, str], tuple[tuple, dict[str, Any]]]]] = {
    "aim": ("AimTracker", _aim),
    "clearml": ("ClearMLTracker", _clearml),
    "comet_ml": ("CometMLTracker", _comet_ml),
    "dvclive": ("DVCLiveTracker", _dvclive),
    "swanlab": ("SwanLabTracker", _swanlab),
    "tensorboard": ("TensorBoardTracker", _tensorboard),
}
