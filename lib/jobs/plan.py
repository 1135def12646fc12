"""What a job is to do, from the user's words: the folder of its run, the words of make, and the files it needs."""

import os
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lib.base import durations
from lib.base.errors import UsageError
from lib.compare import sweep
from lib.config.kconf import ROOT, Schema
from lib.engines import engine
from lib.jobs import code, environment, inputs
from lib.jobs.inputs import Input
from lib.record import run

FOLDER = "runs"  # OUTPUT_DIR in a job
_SPACE = "trackio"  # a Space of the token's user; see TRACKIO_SPACE_ID
_VARIABLE = "TRACKIO_SPACE_ID"  # of Trackio, read where the option of this name is empty
# Job -> the words of make that it takes besides options.
_WORDS = {"train": ("NPROC",), "finetune": ("CHECKPOINT",), "sweep": ("JOBS", "GPUS_PER_RUN", "SWEEP_TIME", "FRESH")}


class Plan(NamedTuple):
    """What a job is to do."""

    kind: str
    name: str  # of the run or sweep
    folder: Path  # here
    begins: list[str]  # words of make
    goes_on: list[str]
    sent: str  # content of .config in the job
    kept: str  # content of the configuration with which the job is begun again
    trackers: tuple[str, ...]
    space: str  # Trackio's; empty: none
    server: str  # of Trackio, in place of a Space; empty: none
    has_tasks: bool
    inputs: list[Input]
    source: str = ""  # the run that is fine-tuned
    words: Sequence[str] = ()  # options that a fine-tuning begins with: only these count beside the run
    environment: Mapping[str, str] = {}

    @property
    def remote(self) -> str:
        """The folder of the run in a job, from that of the code."""
        return f"{FOLDER}/{self.folder.name}"


def check_words(kind: str, passed: Sequence[str], goes_on: bool = False) -> None:
    """Raise UsageError for words of make that a job of this kind does not take, or whose value is wrong."""
    for word in passed:
        name, _, value = word.partition("=")
        if goes_on and name == "CHECKPOINT":
            raise UsageError(f"{word}: a run goes on from its newest checkpoint; leave CHECKPOINT out")
        if name not in _WORDS[kind]:
            raise UsageError(f"{word}: {_WHY.get((kind, name)) or _WHY.get(name) or _no_such_word(kind)}")
        if name in ("NPROC", "JOBS"):
            engine.count(name, value)
        elif name == "GPUS_PER_RUN":
            engine.each_run(value)
        elif name == "SWEEP_TIME" and not durations.seconds(value):
            raise UsageError(f"{word} is over at once; leave it out, or write {durations.EXAMPLES}")


_ONE_MACHINE = "a job is one machine and takes no cluster; leave it out"
_WHY = {
    ("sweep", "NPROC"): engine.ALONE,
    "ENGINE": _ONE_MACHINE,
    "PARTITION": _ONE_MACHINE,
    "SBATCH": _ONE_MACHINE,
    "BASELINE": "a job has only its own runs; leave it out, and compare them after make fetch",
    "ARGS": "a job takes no further arguments; leave it out",
    "SWEEP": "is for a sweep; give JOB=sweep too",
}


def _no_such_word(kind: str) -> str:
    return f"make {kind}, which the job calls, has no such word; leave it out"


def of_training(
    kind: str,
    schema: Schema,
    words: Sequence[str],
    passed: Sequence[str] = (),
    owner: str = "",
    source: str = "",
    before: Sequence[str] | None = None,
    short: Collection[str] = (),
) -> Plan:
    """The plan of a training, or of a fine-tuning of the run `source`. `schema` gets the values that the job has.

    `words` are options as NAME=value, `passed` other words of make. `before` are the options that a run which goes on
    began with; None: a new run, which gets Trackio if nobody said which tracker. `short` is as for `inputs.of`. Raises
    UsageError for missing inputs, and for trackers that would lose their rows.
    """
    name = schema["TRACKER_RUN_NAME"] or _name(kind, schema)
    folder = Path(schema["OUTPUT_DIR"]) / run.folder_name(name)
    schema.override([("TRACKER_RUN_NAME", name, "make job")])
    if before is None and not schema["TRACKER"] and "TRACKER" not in schema.given:  # nobody said none
        schema.override([("TRACKER", "trackio", "make job")])
    if schema["INIT_FROM"] and before is None and "BLOCK_SIZE" not in schema.given:
        schema.forget("BLOCK_SIZE")  # of .config, so the weights decide it
    # Only a word cuts the weights' positions. `kept` has it for a job that begins the run later.
    cut = [f"BLOCK_SIZE={schema['BLOCK_SIZE']}"] if schema["INIT_FROM"] and "BLOCK_SIZE" in schema.sources else []
    environment.check(schema)
    kept = _minimal(schema)
    space = _space(schema, owner)
    found = inputs.of(schema, source, short)
    for one in found:
        schema.forget("INIT_FROM" if one.name == "RUN" else one.name)
    mine = {"OUTPUT_DIR": FOLDER, "DATA_DIR": "data"} | ({_VARIABLE: space} if space else {})
    schema.override([(option, text, "make job") for option, text in mine.items()] + [("JSON_OUTPUT", "", "make job")])
    left = {"TRACKER_RUN_NAME", "JSON_OUTPUT", *mine, *(one.name for one in found)}

    def kept_of(given: Sequence[str]) -> list[str]:
        return [word for word in given if word.partition("=")[0] not in left]

    given, all_words = kept_of(words), [*(before or ()), *words]
    set_here = [f"TRACKER_RUN_NAME={name}", f"TRACKER={','.join(schema['TRACKER']) or 'none'}"]
    # With RUN the configuration is that of the run, which may have other folders.
    set_here += [f"{option}={text}" for option, text in mine.items() if option not in {one.name for one in found}]
    begins = {"train": ["train", *passed, *cut], "finetune": ["finetune", *kept_of(all_words), *set_here]}[kind]
    return Plan(
        kind, name, folder, begins, ["resume", f"RUN={FOLDER}/{folder.name}", *passed, *given], _minimal(schema),
        kept, schema["TRACKER"], space, environment.server(schema), bool(schema["EVAL_TASKS"]), found, source,
        all_words if kind == "finetune" else [], environment.plain(schema["TRACKER"]),
    )  # fmt: skip


def of_sweep(path: Path | None, words: Sequence[str], passed: Sequence[str] = (), owner: str = "") -> Plan:
    """The plan of a sweep, in a file or over .config; raises ConfigError with every problem of it.

    Raises UsageError for files that its runs read and that do not go along, and as `of_training`.
    """
    read = sweep.read(path, words)
    schemas = [one.schema() for one in read.configurations]
    for one, schema in zip(read.configurations, schemas, strict=True):
        environment.check(schema)
        for needed in () if one.begins else inputs.of(schema):
            if needed.path.is_absolute() or not code.has(ROOT, needed.path):
                raise UsageError(
                    f"{needed.name}={schema[needed.name]}: the runs of a sweep read only files of the repository in a "
                    "job; put it there, or train them one by one"
                )
    trackers = tuple(dict.fromkeys(name for schema in schemas for name in schema["TRACKER"]))
    space = next(filter(None, (_space(schema, owner) for schema in schemas)), "")
    given = [word for word in words if not word.startswith("OUTPUT_DIR=")] + [f"OUTPUT_DIR={FOLDER}"]
    base = Path(".config")
    config = "" if path or not base.is_file() else base.read_text(encoding="utf-8")
    all_words = ["sweep", *passed, *given]
    found = [Input("SWEEP", path)] if path else []
    tasks = any(schema["EVAL_TASKS"] for schema in schemas)
    return Plan(
        "sweep", read.name, read.folder, all_words, all_words, config, config, trackers, space,
        next(filter(None, map(environment.server, schemas)), ""), tasks, found,
        # No word: one more would change the name of a sweep.
        environment=environment.plain(trackers) | ({_VARIABLE: space} if space else {}),
    )  # fmt: skip


def _minimal(schema: Schema) -> str:
    """The options that differ from their defaults, as a configuration file."""
    return schema.content(minimal=True).decode()


def _name(kind: str, schema: Schema) -> str:
    """A name for a run that has none: it must be known before the job makes the run."""
    what = schema["FINETUNE_RECIPE" if kind == "finetune" else "OPTIMIZER"]
    return f"gpt2_{what}_{time.strftime('%Y%m%d-%H%M%S')}"


def _space(schema: Schema, owner: str) -> str:
    """The Space that gets the metrics; empty if Trackio is not among the trackers, or has a server."""
    if not {"trackio", "all"} & {*schema["TRACKER"]} or environment.server(schema):
        return ""
    said = schema["TRACKIO_SPACE_ID"] or os.environ.get(_VARIABLE)
    return said or (f"{owner}/{_SPACE}" if owner else _SPACE)
