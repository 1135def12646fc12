"""One run of several processes, as engines see it: how many, the trainer's words, its job, and the output to follow.

The job is the run's for every start: the same command has the same job, so it finds the run that it began. Its folder
in OUTPUT_DIR has what was submitted, and the output of rank 0.
"""

import codecs
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lib.base import durations, files
from lib.base.launch import Launch
from lib.config import command_line, matters
from lib.config.kconf import Schema
from lib.engines.engine import Wishes
from lib.record import run

FOLDER = ".jobs"  # in OUTPUT_DIR; no run has a name that begins with a dot


class Group(NamedTuple):
    """The processes of a run, and what an engine must know of them."""

    engine: str
    count: int
    words: tuple[str, ...]  # of gpt2/train.py
    job: str  # its name, which stays the same when the same command is given again
    folder: Path  # of the job
    run_id: str
    begun: Path | None  # the run's folder, if there is one
    runs: Path  # the folder of the run's folder
    data: Path
    threads: int  # THREADS; 0: open
    device: str  # DEVICE
    run_time: float  # seconds; 0: open
    partition: str = ""
    sbatch: str = ""
    detach: bool = False
    dry_run: bool = False

    @property
    def log(self) -> Path:
        """The output of rank 0."""
        return self.folder / "output.log"

    @property
    def again(self) -> str:
        """The words of make that start as many processes in the same way."""
        given = {"PARTITION": self.partition, "SBATCH": self.sbatch}
        words = [f"NPROC={self.count}", f"ENGINE={self.engine}"]
        return " ".join([*words, *(f"{name}={shlex.quote(value)}" for name, value in given.items() if value)])

    def wishes(self) -> Wishes:
        """What the group asks of an engine."""
        return Wishes(
            folder=self.runs,
            data=self.data,
            threads=self.threads,
            gpus=self.device in ("auto", "cuda"),
            run_time=self.run_time,
            jobs=self.count,
            together=True,
        )


def of(schema: Schema, resumed: Path | None, engine: str, count: int, words: Sequence[str]) -> Group:
    """The processes of a new run, or of the one to resume. Raises UserError if runs have the same id."""
    options = schema.bind(run.RunOptions)
    if resumed:
        job, run_id, begun = run.folder_name(resumed.name), run.Identity.load(resumed).run_id, resumed
        words = _naming(words, resumed)
    else:
        job = run.folder_name(options.tracker_run_name) if options.tracker_run_name else _name(schema)
        run_id = run.job_id(options, Launch(engine, 0, count, 0, job, ""))
        begun = run.find(options.output_dir, run_id)
    output_dir = Path(options.output_dir)
    return Group(
        engine=engine,
        count=count,
        words=tuple(words),
        job=job,
        folder=(resumed.parent if resumed else output_dir) / FOLDER / job,
        run_id=run_id,
        begun=begun,
        runs=resumed.parent if resumed else output_dir,
        data=files.named(schema["DATA_DIR"]),
        threads=schema["THREADS"],
        device=schema["DEVICE"],
        run_time=durations.seconds(schema["RUN_TIME"]) if schema["RUN_TIME"] else 0,
    )


def _name(schema: Schema) -> str:
    """A name for what is to be learned: the same options give the same name."""
    decisive = matters.decisive(schema)
    values = {name: entry["value"] for name, entry in schema.provenance().items() if name in decisive}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode(errors="surrogatepass")).hexdigest()
    return run.folder_name(f"gpt2_{schema['OPTIMIZER']}-{digest[:8]}")


def _naming(words: Sequence[str], resumed: Path) -> list[str]:
    """The words with the folder after --resume: `latest` may be another run when the processes start."""
    found, left = [], iter(words)
    for word in left:
        if word == "--resume" or word.startswith("--resume="):
            found += ["--resume", str(resumed)]
            if word == "--resume":
                next(left)
        else:
            found.append(word)
    return found


def frozen(group: Group, env: Mapping[str, str] = os.environ) -> list[str]:
    """The trainer's words, with what the user may change before the processes start, or start again.

    That are .config, of which the job gets a copy, and CONFIG_ variables. Configurations that the user names are read
    when the processes start. A dry run makes no copy. Raises UserError if it cannot be written.
    """
    schema = Schema()
    known = {*schema.options, *schema.parts, *schema.renames}
    words = [
        f"{name.removeprefix('CONFIG_')}={env[name]}"
        for name in sorted(env)
        if name.startswith("CONFIG_") and name.removeprefix("CONFIG_") in known
    ]
    names = {word.partition("=")[0] for word in group.words}
    if not names & {"--resume", "--config"} and (found := command_line.config_files(None, env)):
        copy = group.folder / "config"
        words = ["--config", str(copy), *words]
        if not group.dry_run:
            files.write(copy, found[0].read_bytes())
    return [*words, *group.words]


class Output:
    """The output of a job, which is a file that grows, on standard output. What is there already is not shown."""

    def __init__(self, path: Path):
        self.path, self.place = path, path.stat().st_size if path.exists() else 0
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def show(self) -> None:
        """Show what was added."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.place)
            while content := file.read(1 << 20):
                self.place += len(content)
                sys.stdout.write(self.decoder.decode(content))
        sys.stdout.flush()
