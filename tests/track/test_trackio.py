"""Trackio: everything a run has, in its database, once, as Trackio's own programs show it."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.record import journal
from lib.track import trackio as trackio_adapter
from lib.track import wandb_place
from lib.track.tracker import Finding
from tests.tracking import ROOT, RUN_ID, assert_trackio_holds, recorded, sync, trackio_stores, train, wait_for
from tests.tracking import trackio_rows as stored_rows
from tests.trackio_show import LONG, RECORDS, STRANGE, SYSTEM, TOKEN, answers, ask, database, port, serve

__all__ = ["port", "serve"]  # fixtures

# ---- the database ----------------------------------------------------------------------------------------------------


def test_trackio_holds_rows_times_and_configuration(run):
    assert "trackio   finished  25 rows delivered" in train(run, "trackio")
    assert_trackio_holds(run)
    times = [datetime.fromisoformat(moment).timestamp() for _, _, moment, _ in stored_rows(run)]
    assert times == pytest.approx([r["time"] for r in journal.read(run) if r["event"] != "start"], abs=1e-5)
    [[stored]] = database("select config from configs where run_id = ?", RUN_ID)
    options = {"tracker": ["trackio"], "wandb_offline": True, "learning_rate": 0.001, "prompt": ""}
    assert json.loads(stored) == {**options, "_Group": None}


@pytest.mark.parametrize("mode", ["sqlite", "jsonl"])
def test_every_kind_of_event_arrives_once_in_its_table(run, monkeypatch, mode):
    monkeypatch.setenv("TRACKIO_STORAGE_MODE", mode)  # jsonl: an inbox, what Trackio takes on network file systems
    folder = recorded(run.parent / "second", *RECORDS, tracker_group="warm")
    for _ in range(2):  # the second time as after a lost cursor
        done = sync(folder, "--tracker", "trackio")
        assert "trackio   finished  7 rows delivered" in done.stdout, done.stdout + done.stderr
        (folder / "trackers" / "trackio.json").unlink()
    if mode == "jsonl":
        code = "from trackio import fragments; fragments.import_inbox_dir()"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    rows = database("select log_id, step, metrics from metrics order by id")
    train, evaluation, finish = [(row_id, step, json.loads(metrics)) for row_id, step, metrics in rows]
    exact = {
        "train_loss": "NaN",
        "tokens": 9223372036854775807,
        "huge": 1180591620717411303424.0,
        "endless": "Infinity",
    }
    assert train == (f"{RUN_ID}-train-3", 3, exact)
    assert evaluation == (f"{RUN_ID}-eval-3", 3, {"val_loss": "-Infinity"})
    assert finish == (f"{RUN_ID}-finish-4", 4, {"final_val_loss": 2.0})
    times = {(r["event"], r["step"]): r["time"] for r in journal.read(folder)}
    found = database("select log_id, timestamp, metrics from system_metrics order by id")
    assert [(row_id, json.loads(metrics)) for row_id, _, metrics in found] == [
        (f"{RUN_ID}-system-3", SYSTEM),
        (f"{RUN_ID}-system-4", SYSTEM),
    ]
    assert datetime.fromisoformat(found[0][1]).timestamp() == pytest.approx(times["system", 3], abs=1e-5)
    assert database("select title, text, level, step, run_name from alerts order by step") == [
        ("second: sparsity", "the run is at its target sparsity", "info", 3, "second"),
        ("second: diverged", "the run is at its target sparsity", "error", 4, "second"),
    ]
    [[config]] = database("select config from configs where run_id = ?", RUN_ID)
    assert json.loads(config)["_Group"] == "warm"


def test_the_configuration_waits_for_the_first_row_that_can_carry_it(run):
    folder = recorded(run.parent / "second", ("system", 1, SYSTEM, {}), learning_rate=0.25)
    assert sync(folder, "--tracker", "trackio").returncode == 0
    with contextlib.closing(journal.Journal(folder)) as book:
        book.write("train", 2, {"train_loss": 1.0})
    assert sync(folder, "--tracker", "trackio").returncode == 0
    [[config]] = database("select config from configs where run_id = ?", RUN_ID)
    assert json.loads(config)["learning_rate"] == 0.25


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


@settings(deadline=None)  # the first example imports trackio
@given(st.text(min_size=1, max_size=120), st.text(min_size=1, max_size=120))
def test_projects_with_different_names_stay_apart(left, right):
    from trackio.sqlite_storage import SQLiteStorage
    from trackio.utils import canonical_project_name

    for name in (left, right, f"registry-{left}", f"é-registry-registry-{left}", f"{left}_system"):
        SQLiteStorage.validate_project_name(trackio_adapter.trackio_project(name))
        assert canonical_project_name(trackio_adapter.trackio_project(name)) == trackio_adapter.trackio_project(name)
    assert (left == right) == (trackio_adapter.trackio_project(left) == trackio_adapter.trackio_project(right))
    assert (left == right) == (wandb_place.project_name(left) == wandb_place.project_name(right))


def test_project_names_in_trackio_are_plain():
    assert trackio_adapter.trackio_project("gpt2-0a1b2c3d") == "gpt2-0a1b2c3d"
    assert trackio_adapter.trackio_project("my.model") == "my-model-82a5272a"
    assert trackio_adapter.trackio_project("..") == "unnamed-58b9e70b"


# ---- the destination -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sqlite", "jsonl"])
def test_a_run_that_continues_in_another_trackio_folder_has_its_history_in_both(run, tmp_path, monkeypatch, mode):
    monkeypatch.setenv("TRACKIO_STORAGE_MODE", mode)
    first, second = (str(tmp_path / name / "demo.db") for name in ("trackio", "elsewhere"))
    train(run, "trackio", end=10)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "elsewhere"))
    output = train(run, "trackio", first=10, end=20)
    assert f"the rows went to {first} before; {second} now gets all of the run" in output
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    again = sync(run)
    assert f"the rows went to {second} before; {first} now gets the rest" in again.stdout
    assert "trackio   finished  26 rows delivered" in again.stdout  # 24, and the final metrics of both ends
    for place in ("elsewhere", "trackio"):
        monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / place))
        if mode == "jsonl":
            code = "from trackio import fragments; fragments.import_inbox_dir()"
            subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
        assert_trackio_holds(run)


def test_a_database_of_the_same_path_without_the_run_gets_all_of_it(run):
    train(run, "trackio", end=10)
    place = Path(os.environ["TRACKIO_DIR"])
    shutil.rmtree(place)  # such as on another machine
    output = train(run, "trackio", first=10, end=20)
    assert f"{place}/demo.db does not hold the run any more and gets all of it again" in output
    assert_trackio_holds(run)


# ---- its programs ----------------------------------------------------------------------------------------------------

# As Trackio's documentation has it: https://huggingface.co/docs/trackio
GROUPS = """
import trackio
trackio.init(project="demo", name="theirs", group="warm", auto_log_cpu=False)
trackio.log({"train_loss": 1.0})
trackio.finish()
"""


def test_trackio_show_shows_runs_of_any_name_their_groups_system_metrics_and_alerts(run, serve, port, tmp_path):
    subprocess.run([sys.executable, "-c", GROUPS], check=True, capture_output=True, timeout=60)
    for number, name in enumerate((LONG, STRANGE)):
        folder = recorded(run.parent / str(number), *RECORDS, tracker_group="warm")
        identity = {"run_id": f"{RUN_ID[:-1]}{number}", "project": "demo", "name": name}
        (folder / "run.json").write_text(json.dumps(identity))
        assert sync(folder, "--tracker", "trackio").returncode == 0
    serve(port, os.environ["TRACKIO_DIR"])
    assert sorted(one["name"] for one in ask(port, "get_runs_for_project")) == sorted(["theirs", LONG, STRANGE])
    configurations = ask(port, "get_run_configs").values()
    assert [one["_Group"] for one in configurations] == ["warm", "warm", "warm"]
    who = {"run": STRANGE, "run_id": f"{RUN_ID[:-1]}1"}
    assert [{name: row[name] for name in SYSTEM} for row in ask(port, "get_system_logs", **who)] == [SYSTEM, SYSTEM]
    assert [(a["title"], a["step"]) for a in ask(port, "get_alerts", **who)] == [
        (f"{STRANGE}: diverged", 4),
        (f"{STRANGE}: sparsity", 3),
    ]
    assert [row["step"] for row in ask(port, "get_logs", **who)] == [3, 3, 4]


def test_the_dashboard_has_the_port_that_trackio_show_has_not(run, port):
    folder = recorded(run.parent / "second", *RECORDS)
    command = [sys.executable, str(ROOT / "scripts" / "dashboard.py"), str(folder), "--port", str(port)]
    nothing = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert nothing.returncode == 1 and "demo: Trackio has nothing of this project in " in nothing.stderr
    assert sync(folder, "--tracker", "trackio").returncode == 0
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: answers(port))
    assert [one["name"] for one in ask(port, "get_runs_for_project")] == ["second"]
    assert ask(port, "get_settings")["plot_order"][:3] == ["val_loss", "train_loss", "sparsity"]
    taken = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert f"port {port}: in use already; choose another with --port" in taken.stderr
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")


def test_the_doctor_finds_storage_server_and_what_is_set(run, serve, port, tmp_path, monkeypatch):
    storage = trackio_stores(tmp_path / "there" / "trackio", monkeypatch)
    found = trackio_adapter.examine({"tracker_project": "demo", "trackio_space_id": ""})
    assert found[0] == Finding("storage", f"{storage}: writable, rows go to SQLite", True)
    assert found[1] == Finding("database", f"{storage}/demo.db: made by the first run", True)
    folder = f"TRACKIO_DIR={tmp_path}/trackio"
    assert found[2:] == [Finding("environment", folder, True)]
    (tmp_path / "there").write_text("a file")
    assert trackio_adapter.examine({})[0] == Finding("storage", f"{tmp_path}/there: cannot be written", False)
    where = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("TRACKIO_SERVER_URL", f"{where}/?write_token={TOKEN}")
    down = trackio_adapter.examine({})[2:]
    assert down[0] == Finding("environment", f"{folder}, TRACKIO_SERVER_URL={where}/?write_token=***", True)
    assert (down[1].what, down[1].good) == ("server", False)
    assert down[2] == Finding("server's token", "there, from TRACKIO_SERVER_URL", True)
    serve(port, tmp_path / "server")
    up = Finding("server", f"{where} answers", True)
    assert trackio_adapter.examine({})[3:] == [up, Finding("server's token", "accepted, from TRACKIO_SERVER_URL", True)]
    monkeypatch.setenv("TRACKIO_BUCKET_ID", "someone/bucket")
    monkeypatch.setenv("TRACKIO_SERVER_URL", f"{where}/")
    assert trackio_adapter.examine({})[3:] == [
        Finding("settings", "TRACKIO_BUCKET_ID has no effect without a Space", True),
        up,
        Finding("server's token", "missing; set TRACKIO_WRITE_TOKEN", False),
    ]
    monkeypatch.setenv("TRACKIO_WRITE_TOKEN", "wrong-token")
    refused = Finding("server's token", "refused, from TRACKIO_WRITE_TOKEN; set TRACKIO_WRITE_TOKEN", False)
    assert trackio_adapter.examine({})[4:] == [up, refused]
