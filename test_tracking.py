"""Train a tiny model with each tracker, read each tracker's storage back, and compare it with the run's journal.

`python test_tracking.py` prints a table and exits with 1 if anything differs. Nothing is uploaded, and your own data is
not changed: Trackio and MLflow get their own databases, and wandb stays offline. Trackers whose package is not
installed are named and skipped.
"""

import contextlib
import csv
import json
import math
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lib.base.errors import run_program
from lib.record import journal, run
from lib.track import registry
from lib.track.cursor import Backlog

ROOT = Path(__file__).resolve().parent
PROJECT = "test-tracking"
COMBINATIONS = (("trackio",), ("wandb",), ("trackio", "wandb"), ("tensorboard", "mlflow", "csv"))
MODEL = "--model-name custom --n-layer 1 --n-head 2 --n-embd 16 --block-size 16 --tokenizer bytes --dataset files"
LENGTH = "--batch-size 4 --max-iters 20 --eval-interval 10 --eval-samples 8 --log-interval 2 --warmup-steps 2"
SYSTEM = "--device cpu --dtype float32 --threads 1 --checkpoint-interval 0"
MEDIA = "--sample-tokens 4 --sample-at-eval --tracker-artifacts last"
PREFIXES = ("WANDB_", "TRACKIO_", "MLFLOW_", "CONFIG_")  # of environment variables that would redirect the runs
PUBLISHED = {
    "train_loss",
    "val_loss",
    "learning_rate",
    "sparsity",
    "final_val_loss",
    "best_val_loss",
    "total_time_seconds",
}

Rows = list[tuple[str, int, str, float]]  # (event, step, metric, value)
Files = Sequence[tuple[str, str, int]]  # (kind, name, step) of media


class Found(NamedTuple):
    """The data of a run, read back from a tracker."""

    rows: Rows
    names: tuple[str, str] | None = None  # project and run; None: the tracker stores no names
    config: dict[str, Any] | None = None
    option: Callable[[Any], Any] = lambda value: value  # converts an option to the form that is stored
    number: Callable[[float], float] = float  # the same for a metric
    files: Files = ()


def main() -> int:
    """Test each combination of trackers and print how many values and files were found; returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="test_tracking-") as name:
        folder = Path(name)
        (folder / "text.txt").write_text("Trained along a trellis, pruned to what bears fruit.\n" * 400)
        here = {name for names in COMBINATIONS for name in names if not registry.problem(name)}
        combinations = [tuple(name for name in names if name in here) for names in COMBINATIONS]
        results = [result for trackers in combinations if trackers for result in check(folder, trackers)]
    print(f"{'trained with':<24}{'read back':<13}{'expected':>8}{'found':>7}{'differ':>8}  verdict")
    for trackers, tracker, expected, found, differences in results:
        verdict = "ok" if not differences else "FAILED"
        print(f"{','.join(trackers):<24}{tracker:<13}{expected:>8}{found:>7}{len(differences):>8}  {verdict}")
        for difference in differences[:10]:
            print(f"  {difference}")
    for name in sorted({name for names in COMBINATIONS for name in names} - here):
        print(f"not tested: {registry.problem(name)}")
    failed = any(differences for *_, differences in results)
    print("some trackers do not hold what the journal says" if failed else "every tracker holds what the journal says")
    return 1 if failed else 0


def check(folder: Path, trackers: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str, int, int, list[str]]]:
    """Train with trackers; yields (trackers, one of them, values expected, values found, differences in words)."""
    name = "-".join(trackers)
    storage = folder / f"trackio-{name}"
    train(folder, name, trackers, storage)
    one = folder / "runs" / name
    expected, shown = journal_rows(one), Backlog(one).update().configs[-1][1]
    for tracker in trackers:
        try:
            found = READERS[tracker](one, storage)
        except Exception as error:  # any error of reading is a difference, which this program reports
            yield trackers, tracker, len(expected), 0, [f"cannot be read back: {type(error).__name__}: {error}"]
            continue
        wanted = journal_files(one, tracker)
        differences = compare(expected, found) + compare_files(wanted, found.files)
        for option, value in shown.items() if found.config is not None else ():
            if option not in found.config or found.config[option] != found.option(value):
                differences.append(f"configuration: {option} is {value!r}, found {found.config.get(option)!r}")
        if found.names not in (None, (PROJECT, name)):
            differences.append(f"project and run are called {found.names}")
        counts = len(expected) + len(wanted), len(found.rows) + len(found.files)
        yield trackers, tracker, *counts, differences


def train(folder: Path, name: str, trackers: tuple[str, ...], storage: Path) -> None:
    """Run the real trainer; its output is shown only if it fails."""
    command = [sys.executable, str(ROOT / "gpt2" / "train.py"), *f"{MODEL} {LENGTH} {SYSTEM} {MEDIA}".split()]
    command += ["--dataset-source", str(folder / "text.txt"), "--data-dir", str(folder / "data")]
    command += ["--output-dir", str(folder / "runs"), "--tracker-project", PROJECT, "--tracker-run-name", name]
    command += ["--tracker", ",".join(trackers)]
    env = {key: value for key, value in os.environ.items() if not key.startswith(PREFIXES)}
    env |= {"WANDB_MODE": "offline", "TRACKIO_DIR": str(storage), "KCONFIG_CONFIG": os.devnull}
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        sys.exit(f"training with {','.join(trackers)} failed\n{done.stdout}{done.stderr}")


# ---- reading --------------------------------------------------------------------------------------------------------


def journal_rows(folder: Path) -> Rows:
    """The values that every tracker must have."""
    events = [record for record in journal.read(folder) if record["event"] in ("train", "eval", "finish")]
    return [(r["event"], r["step"], name, value) for r in events for name, value in journal.numbers(r).items()]


def journal_files(folder: Path, tracker: str) -> Files:
    """The media that a tracker must have. TensorBoard has no place for artifacts."""
    records = [record for record in journal.read(folder) if record["event"] == "media"]
    kept = [r for r in records if not (tracker == "tensorboard" and r["kind"] == "artifact")]
    return [(r["kind"], r["name"], r["step"]) for r in kept]


def read_trackio(folder: Path, storage: Path) -> Found:
    """The run in Trackio's database."""
    identity = run.Identity.load(folder)
    with contextlib.closing(sqlite3.connect(storage / f"{identity.project}.db")) as database:
        names = database.execute("select distinct run_name from metrics where run_id = ?", [identity.run_id]).fetchall()
        [[config]] = database.execute("select config from configs where run_id = ?", [identity.run_id]).fetchall()
        stored = database.execute("select step, metrics from metrics where run_id = ?", [identity.run_id]).fetchall()
        # Trackio stores no step of system metrics; the end of log_id has it.
        query = "select log_id, metrics from system_metrics where run_id = ?"
        system = database.execute(query, [identity.run_id]).fetchall()
        query = "select name, alias from artifacts join artifact_aliases on artifact_id = artifacts.id"
        aliases = database.execute(query).fetchall()
    stored += [(int(log_id.rpartition("-")[2]), metrics) for log_id, metrics in system]
    # A picture or text is in the place of a number.
    values = [(step, name, v) for step, metrics in stored for name, v in json.loads(metrics).items()]
    rows = [(step, {name: float(v)}) for step, name, v in values if not isinstance(v, dict)]
    kinds = {"trackio.html": "text", "trackio.image": "image"}
    files = [(kinds[v["_type"]], name, step) for step, name, v in values if isinstance(v, dict)]
    prefix = f"{identity.name}-{identity.run_id}-"
    for name, alias in aliases:
        if alias.startswith("step-") and name.startswith(prefix):
            files.append(("artifact", name.removeprefix(prefix), int(alias.removeprefix("step-"))))
    who = identity.project, ", ".join(name for [name] in names)
    return Found(with_events(rows), who, json.loads(config), files=files)


def read_wandb(folder: Path, storage: Path) -> Found:
    """The run's .wandb files, one for each delivering process, read by wandb's own reader."""
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json"]
    paths = map(str, sorted((folder / "wandb").glob("*run-*/*.wandb")))
    texts = [subprocess.check_output([*inspect, path], text=True) for path in paths]
    records = [json.loads(line) for text in texts for line in text.splitlines()]
    begun = next(r["run"] for r in records if r["type"] == "run")
    items = [r["history"]["item"] for r in records if r["type"] == "history"]
    other = ("_", "media/", "artifact/")  # wandb's own, and media
    rows = [(i["step"], {k: float(v) for k, v in i.items() if k != "step" and not k.startswith(other)}) for i in items]
    rows = [(step, metrics) for step, metrics in rows if metrics]
    # The final metrics are wandb's summary: they come in one update after the last row.
    final = [r["summary"]["update"] for r in records if "final_val_loss" in r.get("summary", {}).get("update", {})]
    rows += [(items[-1]["step"], {name: float(v) for name, v in update.items()}) for update in final]
    kinds = {"html-file": "text", "image-file": "image"}
    files = [
        (kinds[value], name.removeprefix("media/").removesuffix("._type"), item["step"])
        for item in items
        for name, value in item.items()
        if name.startswith("media/") and name.endswith("._type")
    ]
    files += [
        ("artifact", name.removeprefix("artifact/"), item["step"])
        for item in items
        for name in item
        if name.startswith("artifact/")
    ]
    who = begun["project"], begun["display_name"]
    return Found(with_events(rows), who, begun["config"]["update"], files=files)


def read_tensorboard(folder: Path, storage: Path) -> Found:
    """The run's event files, read by TensorBoard's reader; values are float32."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    rows = []
    for tag in events.PluginTagToContent("scalars"):
        about = events.SummaryMetadata(tag)
        for point in events.Tensors(tag):
            value = make_ndarray(point.tensor_proto).item()
            rows.append((about.summary_description, point.step, about.display_name, value))
    [text] = (point.tensor_proto.string_val[0].decode() for point in events.Tensors("run"))
    config = dict(line.removeprefix("    ").split(" = ", 1) for line in text.splitlines())

    def option(value: Any) -> str:
        return ",".join(value) if isinstance(value, list) else str(value)

    tags = [tag for tag in events.Tags()["tensors"] if tag.startswith(("text/", "image/"))]
    files = [(*tag.split("/", 1), point.step) for tag in tags for point in events.Tensors(tag)]
    who = config["project"], config["name"]
    return Found(rows, who, config, option, lambda value: float(np.float32(value)), files)


def read_mlflow(folder: Path, storage: Path) -> Found:
    """MLflow's database in the folder of runs, read by its client."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder.parent}/mlflow.db")
    [experiment] = [one for one in client.search_experiments() if one.name == PROJECT]
    [one] = client.search_runs([experiment.experiment_id])
    rows = [
        (event_of(name), point.step, name, point.value)
        for name in one.data.metrics
        for point in client.get_metric_history(one.info.run_id, name)
    ]

    def option(value: Any) -> str:
        return value if isinstance(value, str) else json.dumps(value)

    kept = Path(one.info.artifact_uri.removeprefix("file://"))
    places = {path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file()}
    form = r"texts/(.+)/step-(\d+)\.txt|images/(.+?)\+step\+(\d+)\+.*\.png|artifacts/(.+)/step-(\d+)/.+"
    files = []
    for match in (re.fullmatch(form, place) for place in sorted(places)):
        if match:
            kind = {1: "text", 3: "image", 5: "artifact"}[match.lastindex - 1]
            files.append((kind, match[match.lastindex - 1], int(match[match.lastindex])))
    return Found(rows, (experiment.name, one.info.run_name), one.data.params, option, files=files)


def read_csv(folder: Path, storage: Path) -> Found:
    """The run's metrics.csv."""
    with (folder / "metrics.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    rows = [(line["event"], int(line["step"]), line["metric"], float(line["value"])) for line in lines]
    with (folder / "media.csv").open(newline="") as file:
        files = [(line["kind"], line["name"], int(line["step"])) for line in csv.DictReader(file)]
    return Found(rows, files=files)


READERS = {
    "trackio": read_trackio,
    "wandb": read_wandb,
    "tensorboard": read_tensorboard,
    "mlflow": read_mlflow,
    "csv": read_csv,
}


def event_of(metric: str) -> str:
    """The event that a metric comes from; no two events share a name."""
    if metric in ("final_val_loss", "best_val_loss", "total_time_seconds"):
        return "finish"
    if metric.startswith("system/"):
        return "system"
    return "eval" if metric.startswith(("val_", "sparsity/")) else "train"


def with_events(rows: list[tuple[int, dict[str, float]]]) -> Rows:
    """Values with their events, which follow from the names of the metrics."""
    return [(event_of(name), step, name, value) for step, metrics in rows for name, value in metrics.items()]


def compare(expected: Rows, found: Found) -> list[str]:
    """Differences as sentences: missing, unexpected, repeated or wrong values, and missing published metrics."""
    differences = [f"{name} is in no row" for name in sorted(PUBLISHED - {row[2] for row in found.rows})]
    values: dict[tuple[str, int, str], list[float]] = {}
    for event, step, name, value in found.rows:
        values.setdefault((event, step, name), []).append(value)
    for event, step, name, value in expected:
        have = values.pop((event, step, name), [])
        wanted = found.number(value)
        if len(have) != 1 or not (have[0] == wanted or (math.isnan(have[0]) and math.isnan(value))):
            differences.append(f"{event} {step} {name}: {value!r} in the journal, found {have}")
    return differences + [
        f"{' '.join(map(str, key))}: not in the journal, found {have}" for key, have in values.items()
    ]


def compare_files(expected: Files, found: Files) -> list[str]:
    """Differences as sentences: media that are missing, unexpected or there twice."""
    wanted, here = Counter(expected), Counter(found)
    return [
        f"{kind} {name} of step {step}: {wanted[kind, name, step]} in the journal, found {here[kind, name, step]}"
        for kind, name, step in sorted(wanted.keys() | here.keys())
        if wanted[kind, name, step] != here[kind, name, step]
    ]


if __name__ == "__main__":
    run_program(main)
