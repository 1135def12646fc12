"""What `make job` keeps in the folder of a run: the script, and where its jobs are, so that words need no repeating."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from lib.base import files
from lib.base.errors import UserError
from lib.config import command_line
from lib.jobs.inside import OURS

SCRIPT, CONFIG = "job.py", "config"
_FILE = "job.json"


@dataclasses.dataclass(frozen=True)
class Record:
    """The jobs of a run or sweep."""

    kind: str  # train, finetune or sweep
    name: str  # of the run, which may differ from that of its folder
    flavor: str
    seconds: int  # that the newest job may take
    owner: str
    bucket: str  # empty: the output does not survive
    source: str  # the run that is fine-tuned; empty: none is
    ids: list[str]  # of the jobs, oldest first
    words: Sequence[str] = ()  # options that a fine-tuning begins with

    def save(self, folder: Path, script: str, config: str) -> None:
        """Write the record, the script and the configuration; raises UserError if that fails."""
        (folder / OURS).mkdir(parents=True, exist_ok=True)
        files.write(folder / OURS / SCRIPT, script.encode())
        files.write(folder / OURS / CONFIG, config.encode())
        files.write_json(folder / OURS / _FILE, dataclasses.asdict(self))


def load(folder: Path) -> Record | None:
    """The record in the folder of a run; None if no job was started for it. Raises UserError if it is damaged."""
    path = folder / OURS / _FILE
    try:
        found = Record(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read: {error}; remove it, and give all words of make job again") from None
    return found


def place(given: str) -> Path:
    """The folder of a run or sweep, which is given by that or by its name in OUTPUT_DIR; it may not exist."""
    path = files.named(given)
    if path.exists() or len(path.parts) > 1:
        return path
    return Path(command_line.resolve("", [])[0]["OUTPUT_DIR"]) / given
