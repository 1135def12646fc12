"""Trackio: everything a run has, in its database and on a server, once, as Trackio's own programs show it."""

import contextlib
import http.server
import io
import json
import math
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.record import journal, media
from lib.track import trackio as trackio_adapter
from lib.track import trackio_remote
from lib.track import wandb as wandb_adapter
from lib.track.cursor import path_of
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

    def start(port, storage, **more):
        command = [str(Path(sys.executable).parent / "trackio"), "show", "--project", "demo"]
        env = {**os.environ, "TRACKIO_DIR": str(storage), "TRACKIO_WRITE_TOKEN": TOKEN}
        env |= {"GRADIO_SERVER_PORT": str(port), "BROWSER": "true"} | more
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


# ---- images, tables, texts and artifacts -----------------------------------------------------------------------------

TEXT = "\n# step {}\nif a < b:  # <b>\n\n- größe 漢字"
ROWS = [["h.0", 1, 2**70, None], ["h.1", "NaN", True, "-Infinity"]]
COLUMNS = ["layer", "10", "2", "10"]
FIRST = {"layer": "h.0", "10 ": 1, "2 ": 1180591620717411303424.0, "10  ": None}
SECOND = {"layer": "h.1", "10 ": "NaN", "2 ": True, "10  ": "-Infinity"}
PAGE_OF_TEXT = "<pre>\n\n# step {}\nif a &lt; b:  # &lt;b&gt;\n\n- größe 漢字</pre>"


def picture(step):
    from PIL import Image

    with io.BytesIO() as file:
        Image.new("RGB", (8 * step, 8), "red").save(file, "PNG")
        return file.getvalue()


def with_media(folder, name):
    """A run with media of every kind at two steps."""
    folder = recorded(folder, ("train", 1, {"loss": 1.0}, {}))
    (folder / "run.json").write_text(json.dumps({"run_id": RUN_ID, "project": "demo", "name": name}))
    (folder / "checkpoints").mkdir()
    with contextlib.closing(journal.Journal(folder)) as book:
        for step in (1, 2):
            media.write(folder, book, "image", "loss", step, picture(step))
            media.write(folder, book, "table", "step", step, json.dumps({"columns": COLUMNS, "rows": ROWS}).encode())
            media.write(folder, book, "text", "a/sample", step, TEXT.format(step).encode())
            checkpoint = folder / "checkpoints" / f"step-{step}.pt"
            checkpoint.write_bytes(b"weights" * step)
            media.keep(folder, book, "checkpoint", step, checkpoint)
        book.write("finish", 2, {"final_val_loss": 1.0}, status="finished")
    return folder


def fetched(port, path):
    return urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10).read()


@pytest.mark.parametrize("where", ["database", "server"])
def test_the_dashboard_shows_media_at_their_steps_once(run, serve, port, tmp_path, monkeypatch, where):
    folder, storage = with_media(run.parent / "second", STRANGE), Path(os.environ["TRACKIO_DIR"])
    if where == "server":
        storage = tmp_path / "server"
        monkeypatch.setenv("TRACKIO_SERVER_URL", f"http://127.0.0.1:{port}/?write_token={TOKEN}")
        serve(port, storage)
    for _ in range(2):  # the second time as after a lost cursor
        done = sync(folder, "--tracker", "trackio")
        assert done.returncode == 0, done.stdout
        for state_of in (folder / "trackers").glob("*.json"):
            state_of.unlink()
    shutil.rmtree(folder)  # nothing refers to it
    if where == "database":
        serve(port, storage)
    who = {"run": STRANGE, "run_id": RUN_ID}
    logs = ask(port, "get_logs", **who)
    found = [(row["step"], name, value) for row in logs for name, value in row.items() if isinstance(value, dict)]
    kinds = [(step, name, value["_type"]) for step, name, value in found]
    at_step = [("loss", "trackio.image"), ("__step", "trackio.table"), ("a/sample", "trackio.html")]
    assert kinds == [(step, *kind) for step in (1, 2) for kind in at_step]
    assert [row["loss"] for row in logs if isinstance(row.get("loss"), float)] == [1.0]
    shown, files = ask(port, "get_settings")["media_dir"], {}
    for step, name, value in found:
        if path := value.get("file_path"):
            files[step, name] = fetched(port, f"file?path={urllib.parse.quote(f'{shown}/{path}')}")
    assert [files[step, "loss"] for step in (1, 2)] == [picture(1), picture(2)]
    assert all(PAGE_OF_TEXT.format(step) in files[step, "a/sample"].decode() for step in (1, 2))
    assert [value["_value"] for _, _, value in found if "_value" in value] == [[FIRST, SECOND]] * 2
    assert len(list((storage / "media").rglob("*-*.*ml"))) == 2
    assert ask(port, "get_tab_availability") == {
        **dict.fromkeys(("metrics", "media", "artifacts"), True),
        **dict.fromkeys(("system", "traces", "reports", "files"), False),
    }
    [artifact] = ask(port, "list_artifacts")
    assert (artifact["name"], artifact["type"]) == (f"gr-e-1-..--{RUN_ID}-checkpoint-4345ed97", "file")
    versions = sorted(artifact["versions"], key=lambda one: one["version"])
    assert [sorted(one["aliases"]) for one in versions] == [["step-1"], ["latest", "step-2"]]
    assert len(ask(port, "get_run_artifacts", **who)["output"]) == 2
    for step, alias in enumerate(("step-1", "latest"), 1):
        [file] = ask(port, "get_artifact_manifest", name=artifact["name"], spec=alias)["manifest"]
        assert file["path"] == f"step-{step}.pt"
        assert fetched(port, f"artifact_blob/demo/{file['digest']}") == b"weights" * step


# Delivers a run's media again and again, each time in a process that is killed before a later call; then as a whole.
KILLED = """
import itertools, os, signal, sys
from pathlib import Path
from trackio import fragments, sqlite_storage  # imported once, for all processes
from lib.record.run import Identity
from lib.track import trackio
from lib.track.cursor import Backlog
from lib.track.tracker import Media
folder = Path(sys.argv[1])
backlog = Backlog(folder).update()

def deliver(end):
    tracker, calls = trackio.Tracker(), itertools.count(1)
    def killing(action):
        def call(*arguments):
            if next(calls) == end:
                os.kill(os.getpid(), signal.SIGKILL)
            return action(*arguments)
        return call
    for name in ("put", "put_blob", "put_version", "store"):
        setattr(tracker, name, killing(getattr(tracker, name)))
    tracker.open(Identity.load(folder), backlog.configs[-1][1], folder)
    tracker.media([item for _, item in backlog.items(0) if isinstance(item, Media)])

for end in range(1, 15):
    if not (child := os.fork()):
        deliver(end)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
deliver(0)
"""


def test_media_are_there_once_whenever_their_delivery_is_killed(run):
    folder = with_media(run.parent / "second", "second")
    words = [sys.executable, "-c", KILLED, str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60, cwd=ROOT)
    assert done.stdout.split() == ["-9"] * 14
    stored = database(
        "select log_id, json_extract(metrics, '$.loss.file_path') from metrics where log_id like '%loss%'"
    )
    assert stored == [(f"{RUN_ID}-image-loss-{n}", f"demo/second/{n}/{RUN_ID}-loss.png") for n in (1, 2)]
    assert database("select count(*), count(distinct log_id) from metrics") == [(6, 6)]
    assert database("select version from artifact_versions order by version") == [(0,), (1,)]
    storage = Path(os.environ["TRACKIO_DIR"])
    assert [(storage / "media" / path).read_bytes() for _, path in stored] == [picture(1), picture(2)]
    blobs = [path for path in (storage / "artifacts").rglob("*") if path.is_file()]
    assert sorted(path.read_bytes() for path in blobs) == [b"weights", b"weightsweights"]


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
    assert f"see http://127.0.0.1:{port}\n" in again.stdout and TOKEN not in again.stdout
    local = {row_id: (step, metrics) for row_id, step, _, metrics in stored_rows(run)}
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "server"))
    assert {row_id: (step, metrics) for row_id, step, _, metrics in stored_rows(run)} == local
    assert_trackio_holds(run)


def test_a_server_without_a_token_is_one_sentence(run, port, monkeypatch):
    folder = recorded(run.parent / "second", *RECORDS)
    monkeypatch.setenv("TRACKIO_SERVER_URL", f"http://127.0.0.1:{port}/")
    assert "its write token is missing; set TRACKIO_WRITE_TOKEN, as `trackio show` prints it" in deliver(folder)


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


@pytest.mark.parametrize("what", ["server", "Space"])
def test_a_wrong_token_is_said_while_the_run_trains(run, serve, port, hub, tmp_path, monkeypatch, what):
    if what == "server":
        serve(port, tmp_path / "server")
        monkeypatch.setenv("TRACKIO_SERVER_URL", f"http://127.0.0.1:{port}/")
        monkeypatch.setenv("TRACKIO_WRITE_TOKEN", "a_wrong_token")
        refusal = "127.0.0.1 refuses the token: "
    else:
        monkeypatch.setenv("TRACKIO_SPACE_ID", "curves")
        monkeypatch.setenv("HF_TOKEN", "hf_a_wrong_token")
        refusal = "the Hugging Face hub refuses this token: it is wrong, or may not write to the Space or create it"
    process = trainer(run, "trackio", pause=0.2, end=100)
    wait_for(lambda: refusal in state(run, "trackio-space").message)
    assert process.poll() is None
    process.terminate()
    process.communicate(timeout=30)
    wait_for(lambda: state(run, "trackio-space").state == "failed")
    assert refusal in state(run, "trackio-space").message
    assert "wrong_token" not in path_of(run, "trackio-space", "log").read_text()


# ---- a Space ---------------------------------------------------------------------------------------------------------


class Hub(http.server.BaseHTTPRequestHandler):
    """What a Space and its bucket look like at the Hugging Face hub. A request for /RUNNING ends the Space's build."""

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/RUNNING":
            self.server.stage = "RUNNING"
        volume = {"type": "bucket", "source": "someone/bucket", "mountPath": "/data"}
        hardware = {"current": "cpu-basic", "requested": "cpu-basic"}
        runtime = {"stage": self.server.stage, "hardware": hardware, "volumes": [volume]}
        space = {"id": "someone/curves", "sdk": "gradio", "runtime": runtime, "tags": [], "siblings": []}
        variables = {"TRACKIO_DIR": "/data/trackio", "TRACKIO_BUCKET_ID": "someone/bucket"}
        content = {
            "/api/whoami-v2": {"name": "someone", "orgs": []},
            "/api/spaces/someone/curves": space,
            "/api/spaces/someone/curves/runtime": runtime,
            "/api/spaces/someone/curves/variables": {key: {"key": key, "value": v} for key, v in variables.items()},
            "/api/buckets/someone/bucket": {"url": "https://huggingface.co/buckets/someone/bucket"},
        }.get(self.path, {})
        good = self.headers.get("Authorization", "Bearer hf_a_good_token") == "Bearer hf_a_good_token"
        text = json.dumps(content if good else {"error": "Invalid credentials in Authorization header"}).encode()
        may = self.server.may_write or "auth-check" not in self.path
        self.send_response(401 if not good else 200 if may else 403)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = answer

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A local stand-in for the Hugging Face hub, which has the Space someone/curves; it is being built."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.stage, server.may_write = "BUILDING", True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
        yield server
        server.shutdown()
        thread.join()


# The address of a Space has https and the hub's domain, so a local server can only take its place inside the client.
INTO_A_SPACE = """
import os, sys, urllib.request
from pathlib import Path
from trackio import remote_client
from lib.base.errors import UserError
from lib.record.run import Identity
from lib.track import trackio_space
from lib.track.cursor import Backlog
from lib.track.tracker import Media, Row
folder = Path(sys.argv[1])
remote_client._space_id_to_url = lambda space: sys.argv[2]
trackio_space._PATIENCE = trackio_space._POLL = 0.1
backlog, tracker = Backlog(folder).update(), trackio_space.Tracker()
items = [item for _, item in backlog.items(0)]

def rows():
    tracker.log([item for item in items if isinstance(item, Row)])

print(tracker.open(Identity.load(folder), backlog.configs[-1][1], folder))
try:
    rows()
except UserError as error:
    print(error)
urllib.request.urlopen(os.environ["HF_ENDPOINT"] + "/RUNNING").close()
try:
    print(tracker.destination(), tracker.holds())
    rows()
    tracker.media([item for item in items if isinstance(item, Media)])
    print(tracker.holds())
except UserError as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.mark.parametrize("may_write", [True, False])
def test_a_space_that_is_being_built_is_waited_for_and_then_has_all(
    run, serve, port, hub, tmp_path, monkeypatch, may_write
):
    folder, hub.may_write = with_media(run.parent / "second", "second"), may_write
    owner = {"SPACE_AUTHOR_NAME": "someone", "SPACE_REPO_NAME": "curves", "SYSTEM": "spaces"}
    serve(port, tmp_path / "space", HF_TOKEN="hf_of_the_owner", **owner)
    monkeypatch.setenv("TRACKIO_SPACE_ID", "curves")
    monkeypatch.setenv("HF_TOKEN", "hf_a_good_token")
    words = [sys.executable, "-c", INTO_A_SPACE, str(folder), f"http://127.0.0.1:{port}/"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)
    said = [line for line in done.stdout.splitlines() if not line.startswith("* ")]
    where = "https://huggingface.co/spaces/someone/curves"
    assert said[:2] == [
        f"see {where}; the Space is built first, which takes minutes",
        f"{where}: the Space is being built, which takes minutes",
    ], done.stdout + done.stderr
    if not may_write:
        assert said[2].startswith("Refused: 127.0.0.1 refuses the token: ")
        return
    assert said[2:] == [f"{where} False", "True"]
    assert [row["step"] for row in ask(port, "get_logs", run="second", run_id=RUN_ID)] == [1, 2, 1, 1, 1, 2, 2, 2]
    [artifact] = ask(port, "list_artifacts")
    assert sorted(one["version"] for one in artifact["versions"]) == [0, 1]


def test_the_option_comes_before_variables_and_a_note_says_what_wins():
    env = {"TRACKIO_SPACE_ID": "b/c", "TRACKIO_SERVER_URL": "http://d/?write_token=secret"}
    assert trackio_remote.remote({"trackio_space_id": "a"}, env) == "a"
    assert trackio_remote.notes({"trackio_space_id": "a"}, env) == [
        "the option TRACKIO_SPACE_ID=a wins over the variable, which is b/c",
        "the Space a wins over TRACKIO_SERVER_URL",
    ]
    assert trackio_remote.remote({"trackio_space_id": ""}, env) == "b/c"
    assert trackio_remote.notes({}, env) == ["the Space b/c wins over TRACKIO_SERVER_URL"]
    assert trackio_remote.remote({}, {"TRACKIO_SERVER_URL": "http://d"}) == "http://d"
    assert trackio_remote.notes({}, {"TRACKIO_SERVER_URL": "http://d"}) == []
    assert (trackio_remote.remote({}, {}), trackio_remote.notes({}, {})) == ("", [])


def test_a_bucket_or_dataset_belongs_to_a_space():
    bucket, dataset = {"TRACKIO_BUCKET_ID": "b/k"}, {"TRACKIO_DATASET_ID": "d/s"}
    space = {"trackio_space_id": "a"}
    assert trackio_remote.kept_in({}) == (None, None)
    assert (trackio_remote.kept_in(bucket), trackio_remote.notes(space, bucket)) == ((None, "b/k"), [])
    assert trackio_remote.kept_in(dataset) == ("d/s", None)
    assert trackio_remote.notes(space, dataset) == [
        "Trackio will drop TRACKIO_DATASET_ID; use TRACKIO_BUCKET_ID instead"
    ]
    assert trackio_remote.kept_in(bucket | dataset) == (None, "b/k")
    assert trackio_remote.notes(space, bucket | dataset) == ["TRACKIO_BUCKET_ID wins over TRACKIO_DATASET_ID"]
    for env in (bucket, bucket | {"TRACKIO_SERVER_URL": "http://d"}):
        assert trackio_remote.notes({}, env) == ["TRACKIO_BUCKET_ID has no effect without a Space"]


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


def test_the_doctor_finds_storage_server_and_what_is_set(run, serve, port, tmp_path, monkeypatch):
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "there" / "trackio")
    found = trackio_adapter.examine({"tracker_project": "demo", "trackio_space_id": ""})
    assert found[0] == Finding("storage", f"{tmp_path}/there/trackio: writable, rows go to SQLite", True)
    assert found[1].what == "database" and found[1].found.endswith("/demo.db: made by the first run")
    folder = f"TRACKIO_DIR={tmp_path}/trackio"
    assert found[2:] == [Finding("environment", folder, True)]
    (tmp_path / "there").write_text("a file")
    assert trackio_adapter.examine({})[0] == Finding("storage", f"{tmp_path}/there: cannot be written", False)
    where = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("TRACKIO_SERVER_URL", f"{where}/?write_token={TOKEN}")
    down = trackio_adapter.examine({})[2:]
    assert down[0] == Finding("environment", f"{folder}, TRACKIO_SERVER_URL={where}/?write_token=***", True)
    assert (down[1].what, down[1].good) == ("server", False)
    assert down[2] == Finding("server's token", "there", True)
    serve(port, tmp_path / "server")
    up = Finding("server", f"{where} answers", True)
    assert trackio_adapter.examine({})[3:] == [up, Finding("server's token", "accepted", True)]
    monkeypatch.setenv("TRACKIO_BUCKET_ID", "someone/bucket")
    monkeypatch.setenv("TRACKIO_SERVER_URL", f"{where}/")
    assert trackio_adapter.examine({})[3:] == [
        Finding("settings", "TRACKIO_BUCKET_ID has no effect without a Space", True),
        up,
        Finding("server's token", "missing; set TRACKIO_WRITE_TOKEN", False),
    ]
    monkeypatch.setenv("TRACKIO_WRITE_TOKEN", "wrong-token")
    refused = Finding("server's token", "refused; set TRACKIO_WRITE_TOKEN", False)
    assert trackio_adapter.examine({})[4:] == [up, refused]
