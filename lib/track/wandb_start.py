"""Starts a run at Weights & Biases: what it gets to know, and where its files are."""

import dataclasses
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from lib.base.errors import UserError
from lib.config.kconf import ROOT, Options
from lib.record import history
from lib.record.run import Identity
from lib.track import wandb_place
from lib.track import wandb_private as private
from lib.track.tracker import TrackOptions, bind, plain_name
from lib.track.wandb_place import Place

INIT_SECONDS = 15  # for wandb.init to reach the server, unless $WANDB_INIT_TIMEOUT is set
FINISH_SECONDS = 120  # for run.finish to upload the rest, unless $WANDB_FINISH_TIMEOUT is set
FLUSH_SECONDS = 0.5  # how often wandb writes its file; a kill would lose the 15 s of its default


@dataclasses.dataclass(frozen=True)
class StartOptions(Options):
    """What wandb gets to know about the machine."""

    tracker_config: str  # full: also its name, the git remote, the code's version, the packages


def init(identity: Identity, place: Place, config: dict[str, Any], folder: Path, mode: str | None) -> Any:
    """The run that `wandb.init` creates or resumes; raises what `wandb.init` raises."""
    import wandb

    options = bind(TrackOptions, config)
    tags = [tag.strip() for tag in (options.tracker_tags or "").split(",")]
    command = _command(folder) or [""]
    own, sys.argv = sys.argv, command  # wandb has no setting for the arguments of the program, which is the trainer
    try:
        return wandb.init(
            project=place.project,
            entity=place.entity or None,
            group=wandb_place.plain_title(options.tracker_group) if options.tracker_group else None,
            tags=list(dict.fromkeys(plain_name(tag, r"[\x00-\x1f]", 64) for tag in tags if tag)) or None,
            name=place.name,
            id=identity.run_id,
            config=dict(config),
            mode=mode,
            dir=os.environ.get("WANDB_DIR") or str(folder),
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", INIT_SECONDS)),
                finish_timeout=float(os.environ.get("WANDB_FINISH_TIMEOUT", FINISH_SECONDS)),
                finish_timeout_raises=True,
                **private.settings(FLUSH_SECONDS),
                **private.about(bind(StartOptions, config).tracker_config == "full", command[0]),
            ),
        )
    except Exception:
        wandb.teardown()  # otherwise wandb refuses the next attempt, because the run is in use
        raise
    finally:
        sys.argv = own


def file_of(run: Any, folder: Path) -> Path:
    """The run's .wandb file in its folder; with WANDB_DIR, the folder gets a link to where the file is."""
    file = Path(run.settings.sync_file).resolve()
    chosen = Path(os.environ.get("WANDB_DIR") or folder)
    if chosen.resolve() not in file.parents:  # wandb does not tell when it uses another folder
        raise UserError(f"{chosen}: wandb cannot write to this folder and uses {file.parent}; make it writable")
    if folder.resolve() in file.parents:
        return file
    (folder / "wandb").mkdir(exist_ok=True)
    link = folder / "wandb" / file.parent.name
    link.symlink_to(file.parent)
    return link / file.name


def discard(file: Path) -> None:
    """Remove the folder of a .wandb file that adds nothing to the run."""
    shutil.rmtree(file.parent.resolve())
    file.parent.unlink(missing_ok=True)  # the link of `file_of`


def _command(folder: Path) -> list[str]:
    """The program of the run's newest session and its arguments, without secrets; empty if the run does not say it."""
    try:
        found = history.provenances(folder)
    except UserError as error:
        print(f"wandb does not get the command of the run: {error}", flush=True)
        return []
    program, *words = (found[-1].get("argv") if found else None) or [""]
    inside = Path(program).is_relative_to(ROOT)  # the path of the user's clone is nobody's business
    return [str(Path(program).relative_to(ROOT)) if inside else program, *words]
