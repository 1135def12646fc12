"""Keeps the user's secrets from servers that only a run's own options name: its folder may come from somebody else."""

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from lib.base import redact
from lib.base.errors import UsageError
from lib.config import command_line
from lib.track import lane, registry


def check(folder: Path, names: Iterable[str]) -> None:
    """Raise UsageError if a tracker of the run would send a secret to a server that the user has not named.

    The user names it with a variable of the environment, which may be a word of `make sync`, or in the configuration.
    """
    config = lane.configuration(folder) or {}
    for name in registry.along(names, config, folder):
        module = None if name in registry.plugins() else registry.module(name.partition(":")[0])
        option = getattr(module, "SERVER_OPTION", "")
        server = config.get(option.lower())
        if not server or server == os.environ.get(option) or not (secret := module.secret(config)):
            continue
        if server != command_line.resolve("", [])[0][option]:
            shown = redact.hide(str(server))
            raise UsageError(
                f"{folder}: the run names the server {shown}, which would get {secret} of this user; if you trust it, "
                f"say: make sync RUN={shlex.quote(str(folder))} {option}={shown}"
            )
