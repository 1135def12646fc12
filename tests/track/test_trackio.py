"""Trackio: everything a run has, in its database and on a server, once, as Trackio's own programs show it."""

import contextlib
import json
import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.record import journal
from lib.track import trackio as trackio_adapter
from lib.track import trackio_remote
from lib.track import wandb as wandb_adapter
from lib.track.tracker import Finding
from tests.tracking import (
    ROOT,
    RUN_ID,
    assert_trackio_holds,
    recorded,
    state,
    sync,
    train,
    trainer,
    wait_for,
)
from tests.tracking import trackio_rows as stored_rows

TOKEN = "a-token-that-only-tests-know"
LONG, STRANGE = "x" * 300, "größe/1 ..漢字"
SYSTEM = {"system/cpu_percent": 12.5, "system/memory_used_gib": 3.0}
ALERT = {"kind": "sparsity", "level": "info", "message": "the run is at its target sparsity"}
RECORDS = (
    ("train", 3, {"train_loss": math.nan, "tokens": 2**63 - 1, "huge": 2**70, "endless": 10**400}, {}),
    ("system", 3, SYSTEM, {}),
    ("eval", 3, {"val_loss": -math.inf}, {}),
    ("alert", 3, {}, ALERT),
    ("system", 4, SYSTEM, {}),
    ("alert", 4, {}, {**ALERT, "kind": "diverged", "level": "error"}),
    ("finish", 4, {"final_val_loss": 2.0}, {"status": "finished"}),
)


def database(query, *values):
    with contextlib.closing(sqlite3.connect(Path(os.environ["TRACKIO_DIR"]) / "demo.db")) as connection:
        return connection.execute(query, values).fetchall()


@pytest.fixture
def serve(tmp_path):
    """Start `trackio show`, Trackio's own program, on a port and a folder; returns its process."""
    processes = []

    def start(port, storage):
        command = [str(Path(sys.executable).parent / "trackio"), "show", "--project", "demo"]
        env = {**os.environ, "TRACKIO_DIR": str(storage), "TRACKIO_WRITE_TOKEN": TOKEN}
        env |= {"GRADIO_SERVER_PORT": str(port), "BROWSER": "true"}
        with (tmp_path / "server.log").open("a") as log:
            processes.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
        wait_for(lambda: answers(port))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def answers(port):
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/version", timeout=5).status == 200
    except OSError:
        return False


def ask(port, what, **details):
    """What the dashboard asks its server."""
    given = {} if what == "get_settings" else {"project": "demo", **details}
    body = json.dumps({"args": [], "kwargs": given}).encode()
    address = f"http://127.0.0.1:{port}/api/{what}"
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=10))["data"]


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


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
    assert (left == right) == (wandb_adapter.wandb_project(left) == wandb_adapter.wandb_project(right))


def test_project_names_in_trackio_are_plain():
    assert trackio_adapter.trackio_project("gpt2-0a1b2c3d") == "gpt2-0a1b2c3d"
    assert trackio_adapter.trackio_project("my.model") == "my-model-82a5272a"
    assert trackio_adapter.trackio_project("..") == "unnamed-58b9e70b"


# ---- a server --------------------------------------------------------------------------------------------------------


def test_a_server_of_ones_own_gets_what_the_database_has_whatever_dies(run, serve, port, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_SERVER_URL", f"http://127.0.0.1:{port}/?write_token={TOKEN}")
    server = serve(port, tmp_path / "server")
    process = trainer(run, "trackio", end=60, pause=0.05, deadline=0)
    wait_for(lambda: state(run, "trackio-space").rows > 10)
    os.kill(int((run / "trackers" / "trackio-space.lock").read_text()), signal.SIGKILL)
    process.communicate(timeout=30)
    server.kill()
    server.wait()
    output = train(run, "trackio", first=60, end=80)
    assert "trackio        finished " in output and "trackio-space  failed " in output
    assert f"ConnectionError: Could not connect to Space 'http://127.0.0.1:{port}/'. Is it running?" in output
    assert f"deliver the rest with: make sync RUN={run}" in output and TOKEN not in output
    assert_trackio_holds(run)
    serve(port, tmp_path / "server")
    again = sync(run, "--tracker", "trackio")
    assert again.returncode == 0, again.stdout + again.stderr
    (run / "trackers" / "trackio-space.json").unlink()  # and once more, as after a lost cursor
    again = sync(run, "--tracker", "trackio")
    assert f"see http://127.0.0.1:{port}/" in again.stdout and TOKEN not in again.stdout
    local = {row_id: (step, metrics) for row_id, step, _, metrics in stored_rows(run)}
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "server"))
    assert {row_id: (step, metrics) for row_id, step, _, metrics in stored_rows(run)} == local
    assert_trackio_holds(run)


def test_a_server_that_refuses_the_token_or_has_none_is_one_sentence(run, serve, port, tmp_path, monkeypatch):
    folder = recorded(run.parent / "second", *RECORDS)
    monkeypatch.setenv("TRACKIO_SERVER_URL", f"http://127.0.0.1:{port}/")
    assert "its write token is missing; set TRACKIO_WRITE_TOKEN, as `trackio show` prints it" in deliver(folder)
    serve(port, tmp_path / "server")
    monkeypatch.setenv("TRACKIO_WRITE_TOKEN", "wrong")
    assert "A write_token is required to log metrics" in deliver(folder)


def deliver(folder):
    """Deliver to Trackio where the Space or server fails; returns what is said."""
    done = sync(folder, "--tracker", "trackio")
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert "trackio        finished  7 rows delivered" in done.stdout
    assert "trackio-space  failed    0 rows delivered, 7 pending" in done.stdout
    return done.stdout


def test_a_space_without_token_or_network_leaves_the_local_rows_alone(run, tmp_path, monkeypatch):
    folder = recorded(run.parent / "second", *RECORDS, trackio_space_id="someone/curves")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert "someone/curves: there is no token of the Hugging Face hub; run: hf auth login, or set HF_TOKEN" in deliver(
        folder
    )
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    output = deliver(folder)
    assert "Connection refused" in output and "hf_of_nobody" not in output


def test_the_option_names_the_space_before_the_environment_does():
    env = {"TRACKIO_SPACE_ID": "b/c", "TRACKIO_SERVER_URL": "http://d"}
    assert trackio_remote.remote({"trackio_space_id": "a"}, env) == "a"
    assert trackio_remote.remote({"trackio_space_id": ""}, env) == "b/c"
    assert trackio_remote.remote({}, {"TRACKIO_SERVER_URL": "http://d"}) == "http://d"
    assert trackio_remote.remote({}, {}) == ""


def test_a_space_that_nothing_names_any_more_is_asked_for(run, monkeypatch):
    folder = recorded(run.parent / "second", *RECORDS)
    assert trackio_adapter.also({}, folder) == []
    assert trackio_adapter.also({"trackio_space_id": "a"}, folder) == ["trackio-space"]
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://127.0.0.1:9/")
    assert "its write token is missing" in deliver(folder)
    monkeypatch.delenv("TRACKIO_SERVER_URL")
    left = folder / "trackers" / "trackio-space.json"
    question = (
        "the run used a Space or server, but none is configured now: set TRACKIO_SPACE_ID or TRACKIO_SERVER_URL again, "
    )
    assert f"{question}or delete {left}\n" in deliver(folder)
    left.unlink()
    done = sync(folder, "--tracker", "trackio")
    assert done.returncode == 0 and "trackio-space" not in done.stdout


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
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")


def test_the_doctor_finds_storage_space_and_server(run, serve, port, tmp_path, monkeypatch):
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "there" / "trackio")
    found = trackio_adapter.examine({"tracker_project": "demo", "trackio_space_id": ""})
    assert found[0] == Finding("storage", f"{tmp_path}/there/trackio: writable, rows go to SQLite", True)
    assert found[1].what == "database" and found[1].found.endswith("/demo.db: made by the first run")
    (tmp_path / "there").write_text("a file")
    assert trackio_adapter.examine({})[0] == Finding("storage", f"{tmp_path}/there: cannot be written", False)
    monkeypatch.setenv("TRACKIO_SERVER_URL", f"http://127.0.0.1:{port}/?write_token={TOKEN}")
    down = trackio_adapter.examine({})[2:]
    assert (down[0].what, down[0].good, down[1].good) == ("server", False, True) and TOKEN not in str(down)
    serve(port, tmp_path / "server")
    monkeypatch.setenv("TRACKIO_SERVER_URL", f"http://127.0.0.1:{port}/")
    where = f"http://127.0.0.1:{port}"
    assert trackio_adapter.examine({})[2:] == [
        Finding("server", f"{where}/: {where}/version answers", True),
        Finding("server's token", "missing; set TRACKIO_WRITE_TOKEN", False),
    ]
