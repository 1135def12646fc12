"""Media at Weights & Biases: pictures, tables and texts are rows that refer to files, other files are artifacts."""

import contextlib
import html
import json
import os
import shutil
from pathlib import Path
from typing import Any

from lib.track import wandb_private as private
from lib.track.tracker import Media, Refused, plain_name

PATIENCE = 120  # seconds in which an artifact must be uploaded, and 1 s more for each SLOWEST bytes
SLOWEST = 200_000
FOLDER = "artifacts"  # beside a .wandb file: the files that are not uploaded yet


class MediaError(Refused):
    """This file cannot be sent, now or after some seconds; others can."""


def content(item: Media) -> Any:
    """What `send` logs: an object of wandb or, for an artifact, its path; raises MediaError for a damaged file."""
    import wandb

    try:
        if item.kind == "image":
            return wandb.Image(str(item.path), caption=f"step {item.step}")
        if item.kind == "table":
            table = json.loads(item.path.read_text(encoding="utf-8"))
            return wandb.Table(columns=table["columns"], data=table["rows"], allow_mixed_types=True)
        if item.kind == "artifact":
            return item.path
        text = item.path.read_text(encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise MediaError(f"{item.path}: is not sent to wandb, because it cannot be read: {error}") from None
    return wandb.Html(f"<p>step {item.step}</p><pre style='white-space: pre-wrap'>{html.escape(text)}</pre>")


def send(run: Any, item: Media, content: Any, beside: Path) -> None:
    """Log media as a row of their step. An artifact comes first, and its row means that it is stored.

    The file of an artifact is linked into the folder `beside`: the run may remove an old checkpoint before its upload.
    """
    if item.kind == "artifact":
        content = _log_artifact(run, item, beside / FOLDER)
    run.log({"step": item.step, private.media_name(item): content, "_timestamp": item.time})


def await_artifacts(run: Any) -> None:
    """Let `run.log_artifact` return when the artifact is uploaded, also for those that wandb makes from tables.

    wandb writes rows into its file, but not an artifact of an online run: a kill before its upload would lose it.
    """
    log = run.log_artifact

    def log_and_wait(artifact: Any, **options: Any) -> Any:
        return log(artifact, **options).wait(timeout=int(PATIENCE + artifact.size / SLOWEST))

    run.log_artifact = log_and_wait


def _log_artifact(run: Any, item: Media, folder: Path) -> str:
    import wandb

    kept = _kept(item, folder)
    kind = "model" if item.path.parent.name == "checkpoints" else "file"
    name = plain_name(f"{private.unicode_name(item.name)}-{run.id}", r"[^A-Za-z0-9_.-]", 128)
    artifact = wandb.Artifact(name, type=kind, metadata={"step": item.step})
    artifact.add_file(str(kept), name=kept.name, policy="immutable", skip_cache=True)
    try:
        logged = run.log_artifact(artifact, aliases=["latest", f"step-{item.step}"])
    except ValueError as error:
        raise MediaError(f"{item.path}: wandb does not take it: {error}") from None
    if not run.offline:
        kept.unlink()
    return logged.name


def _kept(item: Media, folder: Path) -> Path:
    """A hard link to the file, or a copy if the file system has no links."""
    path = folder.resolve() / f"{item.step:08d}" / private.unicode_name(item.path.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        os.link(item.path, path)
        return path
    shutil.copyfile(item.path, path)
    return path
