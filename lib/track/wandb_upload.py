"""Uploads what a run keeps for Weights & Biases: starts `wandb sync`, and checks what it did."""

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.base import files, launch
from lib.base.errors import UserError
from lib.record.run import Identity
from lib.track import wandb_files, wandb_media, wandb_place
from lib.track import wandb_private as private
from lib.track.cursor import path_of

ANSWER_SECONDS = 5  # for the server to answer a question
ASK_SECONDS = 10  # between questions while `wandb sync` works: by itself it waits for a dead server for hours
SILENCES = 2  # questions in a row without an answer that end it


def upload(folder: Path, config: Mapping[str, Any]) -> str:
    """Upload the run's .wandb files that are not uploaded yet; returns what was done, in one sentence.

    Raises UserError if something is missing: a key, an answer of the server, a part of the upload.
    """
    from wandb.errors import AuthenticationError, CommError

    identity = Identity.load(folder)
    place, _ = wandb_place.chosen(identity, config)
    lock = path_of(folder, "wandb", "lock")
    with lock.open("ab", buffering=0) as file:
        if not files.locks(file.fileno(), lock):
            raise UserError(f"{folder}: another process delivers this run to wandb, so nothing is uploaded now")
        file.truncate(0)
        file.write(b"%d\n" % os.getpid())
        wandb_files.check_links(folder)
        found = private.files_of(folder, f"{identity.run_id}*")
        ledger = wandb_files.Ledger(folder, place, identity.run_id)
        here = [path for path in found if place.has(path)]
        if not private.unsent(here):
            return f"everything is uploaded to {place}"
        try:
            problem = _problem(place.server)
            usable, refused = [], ""
            if not problem:
                account = functools.cache(private.default_entity)
                usable, refused = wandb_files.usable(here, ledger, place, folder, account)
        except AuthenticationError as error:
            problem = f"the API key cannot be right: {error}; run: wandb login --relogin"
        except CommError as error:
            problem = f"the server does not say whose key it is: {error}"
        if problem:
            raise UserError(f"{folder}/wandb is not uploaded: {problem}")
        waiting = private.unsent(usable)
        if waiting:
            sync(folder, waiting, place.server)
            ledger.uploaded(waiting)
        if refused:
            raise UserError(f"{folder}/wandb is not completely uploaded: {refused}")
        if not private.unsent(found):
            shutil.rmtree(folder / "wandb" / "artifacts", ignore_errors=True)  # see private.data_folder
        return f"uploaded to {place} ({', '.join(path.parent.name for path in waiting)})"


def _problem(server: str) -> str:
    """What is missing for an upload, or an empty text; raises AuthenticationError."""
    mode = os.environ.get("WANDB_MODE", "")
    if mode not in ("", "online", "shared"):
        return f"WANDB_MODE={mode} forbids it; unset WANDB_MODE"
    if not private.has_key():
        return "there is no API key; run: wandb login, or set WANDB_API_KEY"
    return private.answers(server, ANSWER_SECONDS)


def sync(folder: Path, waiting: list[Path], server: str) -> None:
    """Run `wandb sync` on these files of a run; raises UserError unless it uploaded all of them.

    After a failure it sends rows again. They have the same number at the server, `_step`, which counts them once.
    """
    logs, before = folder / "wandb" / "logs", _logs(folder)
    command = [sys.executable, "-P", "-m", "wandb", "sync", "--include-online", *(str(path.parent) for path in waiting)]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # Its log and what it needs for artifacts are in the run's folder; see Tracker.open.
        env={**launch.without(os.environ), "WANDB_DIR": str(folder.resolve()), **private.data_folder(folder)},
    ) as process:
        output, silent = _watch(process, server)
    errors = re.findall(r"^wandb: ERROR (.*)", output, re.MULTILINE)
    refused = [text for log in sorted(_logs(folder) - before) if (text := private.not_uploaded(log))]
    missing = [path for path in waiting if not private.uploaded_mark(path).exists()]
    if silent or process.returncode or errors or refused or missing:
        for path in waiting:
            if refused:  # wandb marks a file as uploaded whatever the server answers
                private.uploaded_mark(path).unlink(missing_ok=True)
        why = (
            silent
            or "; ".join([*errors, *refused])
            or f"wandb sync ended with exit code {process.returncode}, see {logs}"
        )
        raise UserError(f"{folder}/wandb is not completely uploaded: {why}")
    for path in waiting:
        shutil.rmtree(path.parent / wandb_media.FOLDER, ignore_errors=True)  # uploaded, so no longer needed


def _watch(process: subprocess.Popen, server: str) -> tuple[str, str]:
    """The output of a process until it ends, and why it was ended: the server no longer answers. Else that is empty."""
    silences = 0
    while True:
        try:
            return process.communicate(timeout=ASK_SECONDS)[0], ""
        except subprocess.TimeoutExpired:
            problem = private.answers(server, ANSWER_SECONDS)
        except BaseException:  # Ctrl-C
            process.kill()
            raise
        silences = silences + 1 if problem else 0
        if silences == SILENCES:
            process.kill()
            return process.communicate()[0], problem


def _logs(folder: Path) -> set[Path]:
    return set((folder / "wandb" / "logs").glob("debug-sync*"))
