"""Delivery to trackers, with real processes: whatever a tracker, its process or the trainer does, rows arrive once."""

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
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import journal, track
from lib.errors import UsageError
from lib.files import write_json
from lib.track import trackio as trackio_adapter
from lib.track import wandb as wandb_adapter
from lib.track.cursor import Cursor
from lib.track.tracker import TrackOptions

ROOT = Path(__file__).resolve().parents[1]
RUN_ID = "0123456789ab"

# Writes a journal and feeds trackers as the trainer does: folder, trackers, first step, end, pause and deadline (s).
TRAINER = """
import math, sys, time
from pathlib import Path
from lib import journal, track
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

# A tracker that stores rows as JSON lines and misbehaves as the files in the run's folder say.
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
    def open(self, identity, config, folder, options):
        trouble(folder, "open")
        self.folder = folder
        who = identity.run_id, identity.project, identity.name
        self.note("open", *who, config["learning_rate"], options.wandb_offline)
        return "recording"
    def log(self, rows):
        trouble(self.folder, "log")
        for row in rows:
            self.note(row.event, row.step, row.time, row.metrics)
    def finish(self, status):
        trouble(self.folder, "finish")
        self.note("finished", status)
    def note(self, *what):
        with (self.folder / "got").open("a") as file:
            print(json.dumps(what), file=file)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A new run's folder; processes started from here know the tracker `recorder` and wait little between attempts."""
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
    for name in ("WANDB_MODE", "WANDB_API_KEY", "TRACKIO_SPACE_ID", "TRACKIO_STORAGE_MODE"):
        monkeypatch.delenv(name, raising=False)
    return new_run(tmp_path / "runs" / "first")


def new_run(folder):
    folder.mkdir(parents=True)
    write_json(folder / "run.json", {"run_id": RUN_ID, "project": "demo", "name": folder.name})
    return folder


def trainer(folder, trackers, first=0, end=20, pause=0.0, deadline=30.0):
    words = [str(folder), trackers, str(first), str(end), str(pause), str(deadline)]
    return subprocess.Popen([sys.executable, "-c", TRAINER, *words], stdout=subprocess.PIPE, text=True, cwd=ROOT)


def train(*args, **kwargs):
    process = trainer(*args, **kwargs)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    return output


def sync(folder, *words):
    command = [sys.executable, str(ROOT / "scripts" / "sync.py"), str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def got(folder):
    return [json.loads(line) for line in (folder / "got").read_text().splitlines()]


def expected(folder):
    """(event, step) -> metrics, the first record of each: what trackers have to hold."""
    rows = {}
    for record in journal.read(folder):
        if record["event"] in ("train", "eval", "finish") and record["metrics"]:
            rows.setdefault((record["event"], record["step"]), journal.numbers(record))
    return rows


def state(folder, name):
    return Cursor.load(folder, name)


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def trackio_rows(folder):
    """Every row of the run in Trackio's database: its id, step, time and metrics."""
    database = sqlite3.connect(Path(os.environ["TRACKIO_DIR"]) / "demo.db")
    rows = database.execute(
        "select log_id, step, timestamp, metrics from metrics where run_id = ? and run_name = ? order by id",
        (RUN_ID, folder.name),
    ).fetchall()
    database.close()
    return [(log_id, step, moment, json.loads(metrics)) for log_id, step, moment, metrics in rows]


def wandb_records(folder):
    """Every record in the run's .wandb files, by wandb's own reader."""
    records = []
    for path in sorted((folder / "wandb").glob(f"*run-*/run-{RUN_ID}.wandb")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        records += [json.loads(line) for line in output.splitlines()]
    return records


def wandb_rows(folder):
    items = [r["history"]["item"] for r in wandb_records(folder) if r["type"] == "history"]
    return [(i["step"], {name: float(v) for name, v in i.items() if name[0] != "_" and name != "step"}) for i in items]


def same(left, right):
    """Whether two metrics are equal, NaN to NaN."""
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


# ---- one tracker, well or ill ---------------------------------------------------------------------------------------


def test_rows_arrive_in_order_with_their_times_and_unusual_numbers(run):
    output = train(run, "recorder")
    assert "recorder  finished  25 rows delivered\n          recording" in output
    opened, *rows, last = got(run)
    assert opened == ["open", RUN_ID, "demo", "first", 0.001, True]
    records = [r for r in journal.read(run) if r["event"] in ("train", "eval", "finish")]
    assert [(e, s, t) for e, s, t, _ in rows] == [(r["event"], r["step"], r["time"]) for r in records]
    assert all(same(row[3], journal.numbers(record)) for row, record in zip(rows, records, strict=True))
    assert math.isnan(rows[4][3]["train_loss"])
    assert last == ["finished", "finished"]


def test_a_slow_tracker_costs_training_no_time_and_goes_on_by_itself(run):
    (run / "sleep-at-log").write_text("1.5")
    began = time.monotonic()
    output = train(run, "recorder", pause=0.02, deadline=0.2)
    assert time.monotonic() - began < 3
    assert "still delivering, which goes on by itself (process " in output
    assert f"deliver the rest with: make sync RUN={run}" in output
    wait_for(lambda: state(run, "recorder").state == "finished")
    assert len(got(run)) == 25 + 2


@pytest.mark.parametrize("where", ["open", "log", "finish"])
def test_a_raising_tracker_fails_with_one_sentence_and_sync_delivers_after_the_repair(run, where):
    (run / f"raise-at-{where}").touch()
    output = train(run, "recorder")
    assert f"ConnectionError: no route at {where}" in output
    assert (state(run, "recorder").state, state(run, "recorder").rows) == ("failed", 25 if where == "finish" else 0)
    again = sync(run)
    assert again.returncode == 1
    (run / f"raise-at-{where}").unlink()
    assert sync(run).returncode == 0
    rows = [row for row in got(run) if row[0] in ("train", "eval", "finish")]
    assert len(rows) == 25 and len({(event, step) for event, step, *_ in rows}) == 25
    assert got(run)[-1] == ["finished", "finished"]


def test_a_tracker_that_recovers_in_time_is_no_failure(run):
    process = trainer(run, "recorder", pause=0.02, end=60)
    (run / "raise-at-log").touch()
    assert process.stdout.readline() == "0\n"
    (run / "raise-at-log").unlink()
    assert "recorder  finished  73 rows delivered" in process.communicate(timeout=30)[0]


def test_a_crashing_tracker_is_reported_and_nothing_else_happens(run):
    (run / "exit-at-log").touch()
    output = train(run, "recorder")
    assert f"its process ended with exit code 7, see {run}/trackers/recorder.log" in output
    assert "0 rows delivered, 25 pending" in output


def test_no_trackers_is_a_tracker_too(run):
    train(run, "")
    assert not (run / "trackers").exists()
    assert track.table([]) == ""


def test_a_state_that_cannot_be_read_is_one_sentence_and_not_the_trainers_problem(run):
    (run / "trackers").mkdir()
    (run / "trackers" / "recorder.json").write_text("{")
    output = train(run, "recorder")
    assert f"{run}/trackers/recorder.json: the tracker's state cannot be read: " in output


def test_check_installed_names_the_package_and_the_missing_module(tmp_path):
    track.check_installed(["trackio", "wandb"])
    with pytest.raises(UsageError, match=r"^tracker tensorbard: there is no lib/track/tensorbard\.py$"):
        track.check_installed(["tensorbard"])
    (tmp_path / "wandb").mkdir()  # a folder called like the package is not the package
    code = "from lib import track; track.check_installed(['wandb'])"
    bare = [sys.executable, "-S", "-c", f"import sys; sys.path.append({kconfiglib_only(tmp_path)!r}); {code}"]
    env = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(bare, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert f"tracker wandb: package wandb is not installed; run: {sys.executable} -m pip install wandb" in done.stderr


def kconfiglib_only(folder):
    import kconfiglib

    (folder / "only").mkdir()
    (folder / "only" / "kconfiglib.py").symlink_to(kconfiglib.__file__)
    return str(folder / "only")


# ---- deaths ---------------------------------------------------------------------------------------------------------


def test_a_killed_trainers_last_rows_are_delivered(run):
    (run / "sleep-at-open").write_text("1")
    process = trainer(run, "recorder", end=1000, pause=0.01)
    wait_for(lambda: process.stdout.readline() == "50\n")
    process.kill()
    process.wait()
    wait_for(lambda: state(run, "recorder").state == "finished")
    assert [tuple(row[:2]) for row in got(run)[1:-1]] == list(expected(run))
    assert got(run)[-1] == ["finished", "crashed"]


def test_a_lane_ignores_sigterm_while_the_trainer_lives(run):
    process = trainer(run, "recorder", end=40, pause=0.05)
    wait_for(lambda: state(run, "recorder").rows > 0)
    os.kill(int((run / "trackers" / "recorder.lock").read_text()), signal.SIGTERM)
    assert "recorder  finished  49 rows delivered" in process.communicate(timeout=30)[0]


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_lane_killed_at_any_instant_delivers_every_row_once_in_the_end(run, name):
    chance = random.Random(name)
    for first in range(0, 80, 40):
        process = trainer(run, name, first=max(0, first - 5), end=first + 40, pause=0.05, deadline=0)
        time.sleep(chance.uniform(1.0, 3.0))
        pid = int((run / "trackers" / f"{name}.lock").read_text() or 0)
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=30)
    for _ in range(2):  # the second time there is nothing to deliver
        assert sync(run).returncode == 0
        {"trackio": assert_trackio_holds, "wandb": assert_wandb_holds}[name](run)


def test_a_lane_that_forgot_its_cursor_still_delivers_nothing_twice(run):
    train(run, "trackio,wandb")
    for name in ("trackio", "wandb"):
        (run / "trackers" / f"{name}.json").unlink()
    done = sync(run)
    assert done.returncode == 0 and done.stdout.count("finished  25 rows delivered") == 2
    assert_trackio_holds(run)
    assert_wandb_holds(run)


def test_a_resumed_run_repeats_steps_and_trackers_do_not(run):
    train(run, "recorder,trackio,wandb", end=12)
    train(run, "recorder,trackio,wandb", first=8, end=20)
    rows = [tuple(row[:2]) for row in got(run) if row[0] in ("train", "eval", "finish")]
    assert sorted(rows) == sorted(expected(run))
    assert_trackio_holds(run)
    assert_wandb_holds(run)


def test_only_one_process_delivers_to_a_tracker_of_a_run(run):
    process = trainer(run, "recorder", end=200, pause=0.05)
    wait_for(lambda: state(run, "recorder").rows > 0)
    pid = (run / "trackers" / "recorder.lock").read_text().strip()
    done = sync(run)
    assert f"another process ({pid}) delivers this run to it already" in done.stdout
    process.kill()
    process.communicate()
    wait_for(lambda: state(run, "recorder").state == "finished")
    assert [tuple(row[:2]) for row in got(run)[1:-1]] == list(expected(run))


# ---- trackio --------------------------------------------------------------------------------------------------------


def test_trackio_holds_rows_times_and_configuration(run, monkeypatch):
    monkeypatch.setenv("TRACKIO_SPACE_ID", "nobody/nowhere")  # ours is the local database
    assert "trackio   finished  25 rows delivered" in train(run, "trackio")
    assert_trackio_holds(run)
    times = [datetime.fromisoformat(moment).timestamp() for _, _, moment, _ in trackio_rows(run)]
    assert times == pytest.approx([r["time"] for r in journal.read(run) if r["event"] != "start"], abs=1e-5)
    database = sqlite3.connect(Path(os.environ["TRACKIO_DIR"]) / "demo.db")
    stored = json.loads(database.execute("select config from configs where run_id = ?", (RUN_ID,)).fetchone()[0])
    assert stored == {"tracker": ["trackio"], "wandb_offline": True, "learning_rate": 0.001, "prompt": ""}


def test_an_unwritable_trackio_folder_fails_in_a_sentence_and_is_made_up_for(run):
    blocked = Path(os.environ["TRACKIO_DIR"])
    blocked.write_text("a file where a folder is needed")
    output = train(run, "trackio")
    assert "trackio   failed    0 rows delivered, 25 pending" in output
    assert f"'{blocked}" in output and "Traceback" not in output
    blocked.unlink()
    done = sync(run)
    assert (done.returncode, "finished  25 rows delivered" in done.stdout) == (0, True)
    assert_trackio_holds(run)


def test_on_a_network_file_system_rows_go_to_trackios_inbox(run, monkeypatch):
    monkeypatch.setenv("TRACKIO_STORAGE_MODE", "jsonl")
    train(run, "trackio")
    (run / "trackers" / "trackio.json").unlink()
    sync(run)  # a second time, as after a lost cursor
    code = "from trackio import fragments; fragments.import_inbox_dir()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert_trackio_holds(run)


@settings(deadline=None)  # the first example imports trackio
@given(st.text(min_size=1, max_size=120), st.text(min_size=1, max_size=120))
def test_projects_with_different_names_stay_apart(left, right):
    from trackio.sqlite_storage import SQLiteStorage
    from trackio.utils import canonical_project_name

    for name in (left, right, f"registry-{left}", f"{left}_system"):
        SQLiteStorage.validate_project_name(trackio_adapter.project(name))
        assert canonical_project_name(trackio_adapter.project(name)) == trackio_adapter.project(name)
    assert (left == right) == (trackio_adapter.project(left) == trackio_adapter.project(right))
    assert (left == right) == (wandb_adapter.project(left) == wandb_adapter.project(right))


def test_project_names_in_trackio_are_plain():
    assert trackio_adapter.project("gpt2-0a1b2c3d") == "gpt2-0a1b2c3d"
    assert trackio_adapter.project("my.model") == "my-model-82a5272a"
    assert trackio_adapter.project("..") == "project-58b9e70b"


# ---- wandb ----------------------------------------------------------------------------------------------------------


def test_wandb_holds_rows_configuration_and_final_metrics(run):
    output = train(run, "wandb")
    assert f"offline as configured; upload the run with: wandb sync {run}/wandb/offline-run-*" in output
    assert_wandb_holds(run)
    records = wandb_records(run)
    begun = next(r["run"] for r in records if r["type"] == "run")
    assert (begun["run_id"], begun["project"], begun["display_name"]) == (RUN_ID, "demo", "first")
    config = {name: value for name, value in begun["config"]["update"].items() if name != "_wandb"}
    assert config == {"tracker": ["wandb"], "wandb_offline": True, "learning_rate": 0.001, "prompt": ""}
    summary = {}
    for record in records:
        summary |= record.get("summary", {}).get("update", {})
    assert (summary["final_val_loss"], summary["best_val_loss"]) == (1.5, 1.25)
    assert next(r["metric"] for r in records if r["type"] == "metric")["step_metric"] == "step"
    times = [r["history"]["item"]["_timestamp"] for r in records if r["type"] == "history"]
    assert times == [r["time"] for r in journal.read(run) if r["event"] in ("train", "eval")]


def test_wandb_gets_the_last_end_of_a_run_that_was_extended(run):
    """An extended run has two ends in its journal; they may come in one delivery, and the summary holds one."""
    folder = new_run(run / "run")
    book = journal.Journal(folder)
    book.write("start", 0, config={"tracker": [], "wandb_offline": True})
    for end, loss in ((2, 2.5), (4, 1.5)):
        book.write("train", end, {"train_loss": loss})
        book.write("finish", end, {"final_val_loss": loss}, status="finished")
    book.close()
    done = sync(folder, "--tracker", "wandb")
    assert done.returncode == 0, done.stdout + done.stderr
    assert state(folder, "wandb").state == "finished"
    assert wandb_rows(folder) == [(2, {"train_loss": 2.5}), (4, {"train_loss": 1.5})]
    summaries = [r["summary"]["update"] for r in wandb_records(folder) if r["type"] == "summary"]
    assert [s["final_val_loss"] for s in summaries if "final_val_loss" in s][-1] == 1.5


def test_wandb_can_be_disabled_by_its_variable(run, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    output = train(run, "wandb")
    assert "disabled by WANDB_MODE" in output and "wandb     finished  25 rows delivered" in output
    assert not list(run.glob("wandb/*run-*"))


def test_wandbs_mode_is_the_variable_then_the_option_then_whether_there_is_a_key(tmp_path, monkeypatch):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    def mode(offline, **env):
        return wandb_adapter._mode(TrackOptions(("wandb",), offline), Path("runs/a"), env)

    where = "upload the run with: wandb sync runs/a/wandb/offline-run-*"
    assert mode(True, WANDB_MODE="online") == ("online", "")
    assert mode(False, WANDB_MODE="offline") == ("offline", f"offline by WANDB_MODE; {where}")
    assert mode(True, WANDB_API_KEY="k") == ("offline", f"offline as configured; {where}")
    assert mode(False) == ("offline", f"offline because there is no API key; {where}")
    assert mode(False, WANDB_API_KEY="k") == (None, "")


def test_a_wandb_file_cut_anywhere_yields_the_records_before_the_cut(run, tmp_path):
    train(run, "wandb", end=300)
    path = next(run.glob("wandb/offline-run-*/*.wandb"))
    whole, data = list(wandb_adapter.TransactionLog(path)._bodies()), path.read_bytes()
    assert len(data) > 2 * 32768 and len(whole) == len(wandb_records(run))
    growing = tmp_path / "growing.wandb"
    log, seen = wandb_adapter.TransactionLog(growing), []
    for size in [*range(0, len(data), 997), len(data)]:
        growing.write_bytes(data[:size])
        seen += log._bodies()
        assert seen == whole[: len(seen)]
    assert seen == whole
