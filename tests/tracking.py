"""Helpers: runs that deliver to trackers in real processes, and functions that read the stored data back."""

import contextlib
import json
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from lib.base.files import write_json
from lib.record import journal
from lib.track.cursor import Cursor, path_of
from tests import forked

ROOT = Path(__file__).resolve().parents[1]
RUN_ID = "0123456789ab"

# Writes a journal and feeds trackers as the trainer does: folder, trackers, first step, end, pause and deadline (s).
TRAINER = """
import math, sys, time
from pathlib import Path
from lib import track
from lib.record import journal
folder, names = Path(sys.argv[1]), [name for name in sys.argv[2].split(",") if name]
first, end, pause, deadline = int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]), float(sys.argv[6])
book = journal.Journal(folder)
event = "resume" if book.seq else "start"
book.write(event, first, config={"tracker": names, "wandb_offline": True, "learning_rate": 0.001, "prompt": ""})
lanes = track.Lanes(folder, names)
notes = []
for step in range(first, end):
    loss = {3: math.nan, 4: math.inf, 5: -math.inf}.get(step, 8 / (1 + step))
    book.write("train", step, {"train_loss": loss, "learning_rate": 0.001, "tokens": 64 * step})
    if step % 5 == 0:
        book.write("eval", step, {"val_loss": 9 / (1 + step)})
    notes += lanes.notes()
    print(step, flush=True)
    time.sleep(pause)
book.write("finish", end - 1, {"final_val_loss": 1.5, "best_val_loss": 1.25}, status="finished")
began = time.monotonic()
lanes.close()
lanes.wait(deadline)
deliveries = lanes.deliveries()
print(round(time.monotonic() - began, 2), flush=True)
print(*notes, track.table(deliveries), sep="\\n", flush=True)
"""

# A tracker that stores rows as JSON lines. Files in the run's folder make it fail in chosen ways.
RECORDER = """
import dataclasses, json, os, time
def trouble(folder, where):
    if (folder / f"raise-at-{where}").exists():
        raise ConnectionError(f"no route at\\n{where}")
    if (folder / f"exit-at-{where}").exists():
        os._exit(7)
    if (folder / f"sleep-at-{where}").exists():
        time.sleep(float((folder / f"sleep-at-{where}").read_text()))
class Tracker:
    def open(self, identity, config, folder):
        trouble(folder, "open")
        self.folder = folder
        who = identity.run_id, identity.project, identity.name
        self.note("open", *who, config["learning_rate"], config["wandb_offline"])
        return "recording"
    def log(self, rows):
        trouble(self.folder, "log")
        for row in rows:
            self.note(row.event, row.step, row.time, row.metrics)
    def alert(self, alerts):
        for alert in alerts:
            self.note("alert", alert.step, alert.kind, alert.level, alert.message)
    def finish(self, status):
        trouble(self.folder, "finish")
        self.note("finished", status)
    def note(self, *what):
        with (self.folder / "got").open("a") as file:
            print(json.dumps(what), file=file)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A new run's folder; child processes know the tracker `recorder` and wait little between attempts."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "recorder.py").write_text(RECORDER)
    (site / "sitecustomize.py").write_text(
        textwrap.dedent(f"""
        import lib.track
        from lib.track import lane
        lib.track.__path__.append({str(site)!r})
        lane.WAITS = (0.05, 0.05)
        """)
    )
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{ROOT}")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for name in os.environ:
        if name.startswith(("WANDB_", "TRACKIO_")) and name != "TRACKIO_DIR":
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))  # hides the user's ~/.netrc, which may have a key of wandb
    return new_run(tmp_path / "runs" / "first")


def new_run(folder):
    folder.mkdir(parents=True)
    write_json(folder / "run.json", {"run_id": RUN_ID, "project": "demo", "name": folder.name})
    return folder


def recorded(folder, *records, **config):
    """A new run with a journal of these (event, step, metrics, details), without a trainer."""
    with contextlib.closing(journal.Journal(new_run(folder))) as book:
        book.write("start", 0, config={"tracker": [], "wandb_offline": True, **config})
        for event, step, metrics, details in records:
            book.write(event, step, metrics, **details)
    return folder


def trainer(folder, trackers, first=0, end=20, pause=0.0, deadline=60.0):
    words = [str(folder), trackers, str(first), str(end), str(pause), str(deadline)]
    return subprocess.Popen([sys.executable, "-c", TRAINER, *words], stdout=subprocess.PIPE, text=True, cwd=ROOT)


def train(*args, **kwargs):
    process = trainer(*args, **kwargs)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0
    return output


def sync(folder, *words):
    return forked.run(Path.cwd(), "scripts/sync.py", str(folder), *words)


def train_while_lanes_die(folder, name, end):
    """Train in two sessions, the second of which repeats some steps, and kill the tracker's process in each of them."""
    chance = random.Random(name)
    for first in range(0, end, end // 2):
        process = trainer(folder, name, first=max(0, first - 5), end=first + end // 2, pause=0.05, deadline=0)
        lock = path_of(folder, name, "lock")
        wait_for(lambda lock=lock: lock.exists() and lock.read_text().strip())
        time.sleep(chance.uniform(0.0, 2.0))
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(lock.read_text()), signal.SIGKILL)
        process.communicate(timeout=120)


def got(folder):
    return [json.loads(line) for line in (folder / "got").read_text().splitlines()]


def expected(folder):
    """(event, step) -> metrics of the valid rows, which trackers must have."""
    known = journal.in_force(folder)
    found = {key: record for key, record in (known.rows | known.others).items() if record["metrics"]}
    return {key: journal.numbers(record) for key, record in found.items() if key[0] in ("train", "eval", "finish")}


def state(folder, name):
    return Cursor.load(folder, name)


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def trackio_stores(folder, monkeypatch):
    """Let Trackio store in the folder in this process: its modules read the environment when they are imported."""
    from trackio import fragments, sqlite_storage  # noqa: F401

    for module in [module for name, module in sys.modules.items() if name.startswith("trackio")]:
        if hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", folder)
    return folder


def trackio_rows(folder):
    """Every row of the run in Trackio's database: its id, step, time and metrics."""
    database = sqlite3.connect(Path(os.environ["TRACKIO_DIR"]) / "demo.db")
    rows = database.execute(
        "select log_id, step, timestamp, metrics from metrics where run_id = ? and run_name = ? order by id",
        (RUN_ID, folder.name),
    ).fetchall()
    database.close()
    return [(log_id, step, moment, json.loads(metrics)) for log_id, step, moment, metrics in rows]


def wandb_records(folder, run_id=RUN_ID):
    """Every record in the run's .wandb files, by the reader of wandb's core, as `wandb leet inspect` starts it."""
    core = Path(find_spec("wandb").origin).parent / "bin" / "wandb-core"  # to import wandb first takes 2 s
    records = []
    for path in sorted((folder / "wandb").glob(f"*run-*/run-{run_id}.wandb")):
        words = ["--no-observability", "--json", "--run-file", str(path), str(path.parents[1])]
        command = [str(core), "leet", "inspect", *words]
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        records += [json.loads(line) for line in output.splitlines()]
    return records


def wandb_rows(folder, run_id=RUN_ID):
    items = [r["history"]["item"] for r in wandb_records(folder, run_id) if r["type"] == "history"]
    return [(i["step"], {name: float(v) for name, v in i.items() if name[0] != "_" and name != "step"}) for i in items]


def same(left, right):
    """Whether two dictionaries of metrics are equal; NaN is equal to NaN."""
    left, right = ({name: float(value) for name, value in side.items()} for side in (left, right))
    return left.keys() == right.keys() and all(
        value == right[name] or (math.isnan(value) and math.isnan(right[name])) for name, value in left.items()
    )


def assert_trackio_holds(folder):
    rows, wanted = trackio_rows(folder), expected(folder)
    assert Counter(log_id for log_id, *_ in rows) == Counter(f"{RUN_ID}-{event}-{step}" for event, step in wanted)
    by_id = {log_id: (step, metrics) for log_id, step, _, metrics in rows}
    for (event, step), metrics in wanted.items():
        assert by_id[f"{RUN_ID}-{event}-{step}"][0] == step
        assert same(by_id[f"{RUN_ID}-{event}-{step}"][1], metrics)


def assert_wandb_holds(folder):
    wanted = sorted(
        (s, sorted(metrics), metrics) for (event, s), metrics in expected(folder).items() if event != "finish"
    )
    rows = sorted((step, sorted(metrics), metrics) for step, metrics in wandb_rows(folder))
    assert [row[:2] for row in rows] == [row[:2] for row in wanted]
    assert all(same(have[2], want[2]) for have, want in zip(rows, wanted, strict=True))
