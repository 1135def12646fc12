"""Where a run goes at Weights & Biases, under which name, and which of its .wandb files hold rows of that place."""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.base.files import write_json
from lib.config.kconf import Options
from lib.record.run import Identity
from lib.track import wandb_private as private
from lib.track.tracker import bind, plain_name


@dataclasses.dataclass(frozen=True)
class PlaceOptions(Options):
    """Where the run goes; None if the run has no such option, and its identity says it."""

    tracker_project: str  # empty: WANDB_PROJECT, then the run's own
    tracker_run_name: str  # empty: WANDB_NAME, then the run's own
    wandb_entity: str  # empty: WANDB_ENTITY, then the default entity of the API key


@dataclasses.dataclass(frozen=True)
class Place:
    """A project at a server, and the run's name there."""

    server: str  # address
    entity: str  # empty: the default entity of the API key
    project: str
    name: str

    def __str__(self) -> str:
        return "/".join(filter(None, [self.server, self.entity, self.project]))

    def mark(self, file: Path, account: str, folder: Path) -> None:
        """Record beside a .wandb file of a run's folder that it goes here.

        `account` is the entity that the server chose, or empty.
        """
        content = {"server": self.server, "entity": self.entity, "project": self.project, "account": account}
        write_json(_mark_of(file), {**content, "run": str(folder.resolve())})

    def has(self, file: Path, account: str = "") -> bool:
        """Whether a .wandb file goes here; an earlier version recorded nothing, and then it does.

        `account` is the entity that the server chose for this run, or empty.
        """
        try:
            found = json.loads(_mark_of(file).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return True
        except (OSError, ValueError):  # damaged: the rows of the file are sent again
            return False
        theirs, ours = found.get("account") or found.get("entity"), account or self.entity
        same_owner = theirs == ours if theirs and ours else found.get("entity") == self.entity
        server = private.without_user(str(found.get("server")))  # an earlier version kept the password
        return (server, found.get("project")) == (self.server, self.project) and same_owner


def chosen(identity: Identity, config: Mapping[str, Any], env: Mapping[str, str] = os.environ) -> tuple[Place, str]:
    """Where the run goes, and a note about variables of wandb that differ from what the run says."""
    options, notes = bind(PlaceOptions, config), []

    def choose(option: str | None, name: str, own: str, variable: str) -> str:
        theirs = env.get(variable, "")
        if option == "" and theirs:
            return theirs
        if theirs not in ("", own):
            notes.append(f"{name}={own} is used, not {variable}={theirs}")
        return own

    again = re.search(r"_(\d+)$", identity.run_id)  # the run began again as `<name>~2`, see Cursor.identity
    ending = f"~{again[1]}" if again else ""
    project = choose(options.tracker_project, "TRACKER_PROJECT", identity.project, "WANDB_PROJECT")
    name = choose(options.tracker_run_name, "TRACKER_RUN_NAME", identity.name.removesuffix(ending), "WANDB_NAME")
    entity = choose(options.wandb_entity or "", "WANDB_ENTITY", options.wandb_entity or "", "WANDB_ENTITY")
    place = Place(private.server_address(), entity, project_name(project), plain_title(name + ending))
    return place, "; ".join(notes)


def is_ours(file: Path, folder: Path) -> bool:
    """Whether the run in this folder made a .wandb file: the mark beside the file says it."""
    try:
        return json.loads(_mark_of(file).read_text(encoding="utf-8")).get("run") == str(folder.resolve())
    except (OSError, ValueError, AttributeError):
        return False


def project_name(name: str) -> str:
    """The name of a project at wandb, which refuses some characters."""
    return plain_name(name, r"[/\\#?%:\x00-\x1f]", 100)


def plain_title(name: str) -> str:
    """The name of a run or group at wandb."""
    return plain_name(name, r"[\x00-\x1f]", 128)


def _mark_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.destination")
