"""What a job gets of the environment here: keys as secrets, and the other variables of its trackers as plain ones."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from huggingface_hub import get_token

from lib.base import redact
from lib.base.errors import UsageError
from lib.config.kconf import Schema
from lib.record import run
from lib.track import mlflow_address, registry, trackio_remote
from lib.track.mlflow_address import MlflowOptions


class _Names(NamedTuple):
    """Variables that the library of a tracker reads. Folders and files of this machine are not among them."""

    keys: tuple[str, ...]  # always secrets
    plain: tuple[str, ...]  # unless there is a password or a token in the value


_OF = {  # tracker -> its variables; docs/tracking.md tells what they do
    "trackio": _Names(
        ("TRACKIO_WRITE_TOKEN",),
        ("TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID", "TRACKIO_DATASET_ID", "TRACKIO_PLOT_ORDER"),
    ),
    "wandb": _Names(
        ("WANDB_API_KEY",),
        ("WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_PROJECT", "WANDB_NAME", "WANDB_MODE", "WANDB_INIT_TIMEOUT",
         "WANDB_FINISH_TIMEOUT"),
    ),
    "mlflow": _Names(
        ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
        ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"),
    ),
    "accelerate:comet_ml": _Names(
        ("COMET_API_KEY",), ("COMET_URL_OVERRIDE", "COMET_WORKSPACE", "COMET_START_ONLINE"),
    ),
    "accelerate:clearml": _Names(
        ("CLEARML_API_ACCESS_KEY", "CLEARML_API_SECRET_KEY"),
        ("CLEARML_API_HOST", "CLEARML_WEB_HOST", "CLEARML_FILES_HOST", "CLEARML_OFFLINE_MODE"),
    ),
    "accelerate:swanlab": _Names(
        ("SWANLAB_API_KEY",), ("SWANLAB_API_HOST", "SWANLAB_WEB_HOST", "SWANLAB_WORKSPACE", "SWANLAB_MODE"),
    ),
}  # fmt: skip
_IN_ALL = ("trackio", "wandb")  # what TRACKER=all is in a job, which has no other packages
_HERE = re.compile(r"localhost|.*\.localhost|127(\.\d+){3}|0\.0\.0\.0|::1?", re.IGNORECASE)  # hosts
_OFFLINE = {"wandb": ("WANDB_MODE", ("offline", "dryrun"))}  # tracker -> the variable and values that send nothing


def secrets(trackers: Sequence[str], env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Name -> value of the secrets that a job gets: the hub's token, and what is set here of its trackers."""
    keys = {name: env[name] for _, names in _chosen(trackers) for name in names.keys if env.get(name)}
    return {"HF_TOKEN": get_token() or ""} | keys | {n: text for n, text in _plain(trackers, env) if _is_secret(text)}


def plain(trackers: Sequence[str], env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Name -> value of the variables that a job gets for everybody to see: those of its trackers that are set here.

    And the name of the project, which without TRACKER_PROJECT is that of the clone: in the job the clone is elsewhere.
    """
    found = {name: text for name, text in _plain(trackers, env) if not _is_secret(text)}
    return found | ({run.PROJECT: run.project_name()} if trackers else {})


def server(schema: Schema, env: Mapping[str, str] = os.environ) -> str:
    """The user's own Trackio server, without its token; "" if a run goes to none."""
    if not {"trackio", "all"} & {*schema["TRACKER"]}:
        return ""
    target = trackio_remote.remote(schema.values(), env)
    return trackio_remote.public(target) if trackio_remote.is_address(target) else ""


def check(schema: Schema, env: Mapping[str, str] = os.environ) -> None:
    """Raise UsageError if a tracker of this run would keep its rows on this machine, or on the disk of the job."""
    trackers = schema["TRACKER"]
    if {"wandb", "all"} & {*trackers} and (problem := registry.misconfigured("wandb", schema.values())):
        raise UsageError(problem)
    for tracker, name, text in _addresses(schema, env):
        mode, quiet = _OFFLINE.get(tracker, ("", ()))
        if _HERE.fullmatch(urlsplit(text).hostname or "") and env.get(mode) not in quiet:
            raise UsageError(
                f"{name}={redact.hide(text)}: is on this machine, where a job does not reach it; name a server that it "
                f"reaches, or leave {tracker} out of TRACKER"
            )
    if "mlflow" in trackers and not mlflow_address.is_server(uri := _mlflow(schema, env)):
        what = f"MLFLOW_TRACKING_URI={mlflow_address.public(uri)}" if uri else "MLFLOW_TRACKING_URI is empty"
        raise UsageError(
            f"{what}: a job reaches only a server of MLflow, http:// or https://, and what is on its own disk is lost; "
            "name a server, or leave mlflow out of TRACKER and use make sync after make fetch"
        )


def _addresses(schema: Schema, env: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Tracker, variable and value of the addresses that are used: an option, or Trackio's Space, may come first."""
    found = []
    for tracker, names in _chosen(schema["TRACKER"]):
        for name in names.plain:
            text = _mlflow(schema, env) if name == "MLFLOW_TRACKING_URI" else env.get(name, "")
            if name == trackio_remote.SERVER and not server(schema, env):
                continue
            if "://" in text:
                found.append((tracker, name, text))
    return found


def _mlflow(schema: Schema, env: Mapping[str, str]) -> str:
    return schema.bind(MlflowOptions).mlflow_tracking_uri or env.get("MLFLOW_TRACKING_URI", "")


def _chosen(trackers: Sequence[str]) -> list[tuple[str, _Names]]:
    wanted = {*trackers, *(_IN_ALL if "all" in trackers else ())}
    return [(tracker, names) for tracker, names in _OF.items() if tracker in wanted]


def _plain(trackers: Sequence[str], env: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(name, env[name]) for _, names in _chosen(trackers) for name in names.plain if env.get(name)]


def _is_secret(text: str) -> bool:
    return redact.found_in(text) or redact.finder()(text.encode(errors="surrogateescape"))
