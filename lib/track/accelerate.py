"""A bridge to trackers of Hugging Face Accelerate, each in a process of its own: `--tracker accelerate:comet_ml`."""

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
# What may follow the colon, and the library that it needs. wandb, trackio and mlflow have trackers of their own here,
# which keep what Accelerate's do not: times, identity, status, and every row once.
ARGUMENT = {name: name for name in ("aim", "clearml", "comet_ml", "dvclive", "swanlab", "tensorboard")}
# What an environment may say of processes that train together, of which a lane is none.
_LAUNCHERS = ("ACCELERATE_", "FORK_LAUNCHED", "OMPI_", "PMI_", "MV2_")


class Tracker:
    """Hands rows to one of Accelerate's trackers.

    These libraries cannot be asked what they hold. So a row is noted in <run>/trackers/accelerate-<name>.sent once the
    library has taken it, and not handed over again. When this process is killed, at most one row comes twice (it was
    taken, not noted), and rows that the library had in its memory alone are lost to it (noted, not stored); when it
    ends otherwise, neither happens. The journal keeps all rows: to send them again, delete accelerate-<name>.*.

    Rows get the time at which they are handed over. What a library makes of NaN, infinities, names with unusual
    characters and its own restarts is its affair.
    """

    def __init__(self, name: str = ""):
        """`name`: a key of ARGUMENT; raises UsageError for others."""
        if name not in ARGUMENT:
            raise UsageError(f"tracker accelerate:{name}: Accelerate has {', '.join(ARGUMENT)}")
        self.name = name

    def open(self, identity: Identity, config: dict[str, Any], folder: Path) -> str:
        """Start the library's run, and tell it the configuration unless it was told before."""
        for variable in [name for name in os.environ if name.startswith(_LAUNCHERS)]:
            del os.environ[variable]
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState(cpu=True)  # Accelerate's trackers refuse to work without
        again = identity.name.removeprefix(Identity.load(folder).name)  # `~2` in the second run there
        self.sent = Sent(path_of(folder, f"accelerate:{self.name}", "sent"), again)
        arguments, settings = _SETTINGS[self.name](identity, folder.resolve(), again)
        self.tracker = LOGGER_TYPE_TO_CLASS[self.name](*arguments, **settings)
        self.tracker.start()
        if "configuration" not in self.sent:
            plain = within_64_bits(config).items()
            plain = {name: v if isinstance(v, bool | int | float | str) else json.dumps(v) for name, v in plain}
            self.tracker.store_init_configuration(plain)
            self.sent.add("configuration")
        return ""

    def log(self, rows: list[Row]) -> None:
        """Hand over the rows that were not handed over before."""
        for row in rows:
            if (key := f"{row.event} {row.step}") not in self.sent:
                self.tracker.log(within_64_bits(row.metrics), step=row.step)
                self.sent.add(key)

    def alert(self, alerts: list[Alert]) -> None:
        """Accelerate's trackers know no alerts."""

    def finish(self, status: str) -> None:
        """End the library's run, which may upload for a while; it is not told how ours ended."""
        self.tracker.finish()


class Sent:
    """What was handed over: a line each, given to the system at once, so that it survives the death of this process.

    A line of a second run there begins with the end of its name, `~2`.
    """

    def __init__(self, path: Path, again: str = ""):
        self.prefix = f"{again} " if again else ""
        self.file = path.open("ab+", buffering=0)
        self.file.seek(0)
        data = self.file.read()
        whole = data.rfind(b"\n") + 1
        self.file.truncate(whole)  # a line that a full disk tore
        self.keys = set(data[:whole].decode().splitlines())
        self.unwritten = b""  # what a full disk did not take yet

    def __contains__(self, key: str) -> bool:
        return self.prefix + key in self.keys

    def add(self, key: str) -> None:
        """Note that this was handed over; raises OSError, and then the line goes on where it ended with the next."""
        self.keys.add(self.prefix + key)
        self.unwritten += f"{self.prefix}{key}\n".encode()
        while self.unwritten:  # a disk that fills up takes a part of a line, and refuses the rest
            self.unwritten = self.unwritten[self.file.write(self.unwritten) :]


def examine(config: dict[str, Any]) -> list[Finding]:
    """Which of Accelerate's trackers can be used here; keys and hosts are in their own settings."""
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
    project = plain_name(identity.project, r"[^0-9A-Za-z_.+-]+", 100)  # SwanLab refuses others
    return (project,), {"name": identity.name, **log}


def _tensorboard(identity: Identity, folder: Path, again: str) -> tuple[tuple, dict[str, Any]]:
    return (f"accelerate-tensorboard{again}", str(folder)), {}


_SETTINGS: dict[str, Callable[[Identity, Path, str], tuple[tuple, dict[str, Any]]]] = {
    "aim": _aim,
    "clearml": _clearml,
    "comet_ml": _comet_ml,
    "dvclive": _dvclive,
    "swanlab": _swanlab,
    "tensorboard": _tensorboard,
}
