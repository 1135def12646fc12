"""Train a tiny model once per tracker, read every tracker's own storage back, and compare it with the run's journal.

`python test_tracking.py` prints a table and exits with 1 when anything differs. Nothing is sent anywhere and nothing of
yours is touched: Trackio gets a database of its own, and wandb stays offline.
"""

import contextlib
import json
import math
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lib import journal, run
from lib.track.lane import configuration

ROOT = Path(__file__).resolve().parent
PROJECT = "test-tracking"
COMBINATIONS = (("trackio",), ("wandb",), ("trackio", "wandb"))
MODEL = "--model-name custom --n-layer 1 --n-head 2 --n-embd 16 --block-size 16 --tokenizer bytes --dataset files"
LENGTH = "--batch-size 4 --max-iters 20 --eval-interval 10 --eval-samples 8 --log-interval 2 --warmup-steps 2"
SYSTEM = "--device cpu --dtype float32 --threads 1 --sample-tokens 0 --checkpoint-interval 0"
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


def main() -> int:
    """Test each combination of trackers and print what was found; returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="test_tracking-") as name:
        folder = Path(name)
        (folder / "text.txt").write_text("Trained along a trellis, pruned to what bears fruit.\n" * 400)
        results = [result for trackers in COMBINATIONS for result in check(folder, trackers)]
    print(f"{'trained with':<16}{'read back':<11}{'expected':>8}{'found':>7}{'differ':>8}  verdict")
    for trackers, tracker, expected, found, differences in results:
        verdict = "ok" if not differences else "FAILED"
        print(f"{','.join(trackers):<16}{tracker:<11}{expected:>8}{found:>7}{len(differences):>8}  {verdict}")
        for difference in differences[:10]:
            print(f"  {difference}")
    failed = any(differences for *_, differences in results)
    print("some trackers do not hold what the journal says" if failed else "every tracker holds what the journal says")
    return 1 if failed else 0


def check(folder: Path, trackers: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str, int, int, list[str]]]:
    """Train with trackers; yields (trackers, one of them, values expected, values found, differences in words)."""
    name = "-".join(trackers)
    storage = folder / f"trackio-{name}"
    train(folder, name, trackers, storage)
    one = folder / "runs" / name
    expected = journal_rows(one)
    for tracker in trackers:
        try:
            config, called, found = read_trackio(one, storage) if tracker == "trackio" else read_wandb(one)
        except Exception as error:  # whatever keeps a tracker from being read is what this program is to tell
            yield trackers, tracker, len(expected), 0, [f"cannot be read back: {type(error).__name__}: {error}"]
            continue
        differences = compare(expected, found)
        for option, value in configuration(one).items():
            if option not in config or config[option] != value:
                differences.append(f"configuration: {option} is {value!r}, found {config.get(option)!r}")
        if called != (PROJECT, name):
            differences.append(f"project and run are called {called}")
        yield trackers, tracker, len(expected), len(found), differences


def train(folder: Path, name: str, trackers: tuple[str, ...], storage: Path) -> None:
    """Run the real trainer; its output is shown only if it fails."""
    command = [sys.executable, str(ROOT / "gpt2" / "train.py"), *f"{MODEL} {LENGTH} {SYSTEM}".split()]
    command += ["--dataset-source", str(folder / "text.txt"), "--data-dir", str(folder / "data")]
    command += ["--output-dir", str(folder / "runs"), "--tracker-project", PROJECT, "--tracker-run-name", name]
    command += ["--tracker", ",".join(trackers)]
    env = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "TRACKIO_", "CONFIG_"))}
    env |= {"WANDB_MODE": "offline", "TRACKIO_DIR": str(storage), "KCONFIG_CONFIG": os.devnull}
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        sys.exit(f"training with {','.join(trackers)} failed\n{done.stdout}{done.stderr}")


# ---- reading --------------------------------------------------------------------------------------------------------


def journal_rows(folder: Path) -> Rows:
    """What every tracker is to hold."""
    events = [record for record in journal.read(folder) if record["event"] in ("train", "eval", "finish")]
    return [(r["event"], r["step"], name, value) for r in events for name, value in journal.numbers(r).items()]


def read_trackio(folder: Path, storage: Path) -> tuple[dict, tuple[str, str], Rows]:
    """The configuration, (project, run name) and rows in Trackio's database."""
    identity = run.Identity.load(folder)
    with contextlib.closing(sqlite3.connect(storage / f"{identity.project}.db")) as database:
        names = database.execute("select distinct run_name from metrics where run_id = ?", [identity.run_id]).fetchall()
        [[config]] = database.execute("select config from configs where run_id = ?", [identity.run_id]).fetchall()
        stored = database.execute("select step, metrics from metrics where run_id = ?", [identity.run_id]).fetchall()
    rows = [(step, {name: float(v) for name, v in json.loads(metrics).items()}) for step, metrics in stored]
    return json.loads(config), (identity.project, ", ".join(name for [name] in names)), with_events(rows)


def read_wandb(folder: Path) -> tuple[dict, tuple[str, str], Rows]:
    """The configuration, (project, run name), rows and final metrics in the run's .wandb file (wandb's reader)."""
    [path] = (folder / "wandb").glob("offline-run-*/*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    records = [json.loads(line) for line in subprocess.check_output(command, text=True).splitlines()]
    begun = next(r["run"] for r in records if r["type"] == "run")
    items = [r["history"]["item"] for r in records if r["type"] == "history"]
    rows = [(i["step"], {k: float(v) for k, v in i.items() if k != "step" and not k.startswith("_")}) for i in items]
    # The final metrics are wandb's summary: they come in one update after the last row.
    final = [r["summary"]["update"] for r in records if "final_val_loss" in r.get("summary", {}).get("update", {})]
    rows += [(items[-1]["step"], {name: float(v) for name, v in update.items()}) for update in final]
    return begun["config"]["update"], (begun["project"], begun["display_name"]), with_events(rows)


def with_events(rows: list[tuple[int, dict[str, float]]]) -> Rows:
    """Rows with the event that their metrics show them to come from."""
    found = []
    for step, metrics in rows:
        event = "finish" if "final_val_loss" in metrics else "eval" if "val_loss" in metrics else "train"
        found += [(event, step, name, value) for name, value in metrics.items()]
    return found


def compare(expected: Rows, found: Rows) -> list[str]:
    """Every value that is missing, unexpected, repeated or different, in words; and the published metrics are there."""
    differences = [f"{name} is in no row" for name in sorted(PUBLISHED - {row[2] for row in found})]
    values: dict[tuple[str, int, str], list[float]] = {}
    for event, step, name, value in found:
        values.setdefault((event, step, name), []).append(value)
    for event, step, name, value in expected:
        have = values.pop((event, step, name), [])
        if len(have) != 1 or not (have[0] == value or (math.isnan(have[0]) and math.isnan(value))):
            differences.append(f"{event} {step} {name}: {value!r} in the journal, found {have}")
    return differences + [
        f"{' '.join(map(str, key))}: not in the journal, found {have}" for key, have in values.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
