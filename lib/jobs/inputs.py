"""The files and folders of this machine that go with a job, because its options name them; and names that are wrong."""

import glob
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from lib.base import files
from lib.base.errors import UsageError
from lib.config.kconf import Schema
from lib.config.option import Option
from lib.record import checkpoint_file, lineage, run

_WRITTEN = ("_DIR", "_OUTPUT")  # ends of options that are paths of what a job writes
_MODELS = (*lineage.OPTIONS.values(),)
_OF_HUB = ("DATASET_SOURCE", "FINETUNE_DATA", "FINETUNE_EVAL_DATA", *_MODELS)  # options that may be a name on the hub
_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?", re.ASCII)  # OWNER/NAME or OWNER/NAME@REVISION
_SHORT = re.compile(r"[\w-]+", re.ASCII)  # of a dataset without an owner
_FILE = re.compile(r".+\.(txt|md|rst|jsonl?|csv|parquet|gz|pt|bin|safetensors|jinja|py)", re.IGNORECASE)
_OF_MODELS = ("run.json", "config.json", "masks.safetensors")  # what the folder of a model or of masks has
_ZEROS = ("INIT_MASKS", "zeros")  # no path, in spite of the option
# What make finetune reads: the corpus of the model's own training is not among it.
_OF_FINETUNING = ("INIT_FROM", "INIT_MASKS")


class Input(NamedTuple):
    """A file or folder that goes with the job, as the value of a word of make."""

    name: str
    path: Path
    suffix: str = ""  # @best, or another checkpoint of a run; the function in a file of rewards


def of(schema: Schema, source: str = "", short: Collection[str] = ()) -> list[Input]:
    """What a training or fine-tuning reads of this machine. Raises UsageError for a name that leads to nothing.

    `source` is the run that is fine-tuned, in place of INIT_FROM. `short` are models of the hub without an owner.
    """
    tunes = schema["FINETUNE_RECIPE"] != "none"
    found = []
    for name, option in schema.options.items():
        if tunes and not (option.menu[0] == "Fine-tuning" or name in _OF_FINETUNING):
            continue
        if schema[name] and _is_read(option, schema) and not (name == "INIT_FROM" and source):
            found += _named(name, schema, short)
    return [*found, *_rewards(schema), *([of_run("RUN", source)] if source else [])]


def of_run(name: str, given: str, words: Sequence[str] = ()) -> Input:
    """A run of this machine; raises UsageError if there is none of this name."""
    folder, checkpoint = run.named(given, words)
    if not (folder / "run.json").exists():
        raise UsageError(f"{name}={given}: there is no such run here; to go on with a job's run, leave out JOB")
    if checkpoint:
        checkpoint_file.chosen(folder, checkpoint)  # raises if there is no such checkpoint
        checkpoint = f"@{checkpoint.removeprefix('step-').removesuffix('.pt')}"
    return Input(name, folder, checkpoint)


def _is_read(option: Option, schema: Schema) -> bool:
    """Whether an option is a path of what a run reads."""
    if option.name == "DATA_DIR":
        return schema["DATASET"] == "bins"
    return option.is_path and not option.name.endswith(_WRITTEN) and (option.name, schema[option.name]) != _ZEROS


def _named(name: str, schema: Schema, short: Collection[str]) -> list[Input]:
    """What goes along for the value of an option: nothing for a name on the hub, an address or a pattern."""
    given = schema[name]
    path, words = files.named(given), [f"OUTPUT_DIR={schema['OUTPUT_DIR']}"]
    if name in _MODELS and checkpoint_file.may_be_run(path) and (run.named(given, words).folder / "run.json").exists():
        return [of_run(name, given, words)]
    if path.is_file() or (path.is_dir() and (name not in _MODELS or any((path / one).exists() for one in _OF_MODELS))):
        return [Input(name, path)]
    if "://" in given or (name in _OF_HUB and _may_be_on_hub(name, given, short)):
        return []
    if name == "DATASET_SOURCE" and glob.glob(given, recursive=True):  # noqa: PTH207
        if not path.is_absolute() and ".." not in path.parts:
            return []  # of files that are part of the code
        raise UsageError(f"{name}={given}: files of a pattern do not go with a job; name their folder")
    raise _missing(name, given)


def _missing(name: str, given: str) -> UsageError:
    return UsageError(f"{name}={given}: there is no such file or folder here to send with the job; check the name")


def _may_be_on_hub(name: str, given: str, short: Collection[str]) -> bool:
    """Whether this can be a name on the hub. One that ends like a file is meant as a file."""
    if _FILE.fullmatch(given):
        return False
    if name in _MODELS and given.partition("@")[0] in short:
        return True
    return bool(_HUB.fullmatch(given) or (name == "DATASET_SOURCE" and _SHORT.fullmatch(given)))


def _rewards(schema: Schema) -> list[Input]:
    """The file of rewards, if it is one alone. Files in a list do not go along, but must be there."""
    given = [reward.strip().partition(":") for reward in (schema["FINETUNE_REWARD"] or "").split(",")]
    for file, colon, function in given:
        if file.endswith(".py") and not files.named(file).is_file():
            raise _missing("FINETUNE_REWARD", file + colon + function)
    (file, colon, function), *others = given
    is_alone = file.endswith(".py") and not others
    return [Input("FINETUNE_REWARD", files.named(file), colon + function)] if is_alone else []
