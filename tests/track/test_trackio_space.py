"""Trackio on a server of one's own or on a Space: everything arrives once, and a refusal is said at once."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from lib.base.errors import UserError
from lib.track import trackio as trackio_adapter
from lib.track import trackio_remote, trackio_space
from lib.track.cursor import path_of
from lib.track.tracker import Finding
from tests.tracking import ROOT, RUN_ID, assert_trackio_holds, recorded, state, sync, train, trainer, wait_for
from tests.tracking import trackio_rows as stored_rows
from tests.trackio_show import RECORDS, TOKEN, answers, ask, port, serve, with_media

__all__ = ["port", "serve"]  # fixtures

# ---- a server --------------------------------------------------------------------------------------------------------


def test_a_server_of_ones_own_gets_what_the_database_has_whatever_dies(run, serve, port, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_SERVER_URL", f"http://127.0.0.1:{port}/?write_token={TOKEN}")
    server = serve(port, tmp_path / "server")
    process = trainer(run, "trackio", end=60, pause=0.05, deadline=0)
    wait_for(lambda: state(run, "trackio-space").rows > 10)
    os.kill(int((run / "trackers" / "trackio-space.lock").read_text()), signal.SIGKILL)
    process.communicate(timeout=120)
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


class TooLarge(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(413)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *what):
        pass


def test_what_is_too_large_for_the_server_is_one_sentence():
    from trackio.remote_client import _TrackioHTTPClient

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), TooLarge) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tracker = trackio_space.Tracker()
        tracker.client = _TrackioHTTPClient(f"http://127.0.0.1:{server.server_port}/")
        with pytest.raises(UserError, match=r"^127.0.0.1 refuses what it gets as too large \(HTTP 413\); raise the"):
            tracker._call("/bulk_log", logs=[], hf_token=None)
        server.shutdown()


def test_a_space_without_token_or_network_leaves_the_local_rows_alone(run, tmp_path, monkeypatch):
    folder = recorded(run.parent / "second", *RECORDS, trackio_space_id="someone/curves")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert "someone/curves: there is no token of the Hugging Face hub; run: hf auth login, or set HF_TOKEN" in deliver(
        folder
    )
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    monkeypatch.setenv("TRACKIO_SPACE_ID", "someone/curves")
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
    process.communicate(timeout=120)
    wait_for(lambda: state(run, "trackio-space").state == "failed")
    assert refusal in state(run, "trackio-space").message
    assert "wrong_token" not in path_of(run, "trackio-space", "log").read_text()


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


# ---- a Space ---------------------------------------------------------------------------------------------------------


class Hub(http.server.BaseHTTPRequestHandler):
    """What a Space and its bucket look like at the Hugging Face hub. A request for /RUNNING ends the Space's build."""

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(self.path)
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
        server.stage, server.may_write, server.asked = "BUILDING", True, []
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


def test_the_doctor_asks_the_hub_about_the_token(run, hub, monkeypatch):
    where = f"http://127.0.0.1:{hub.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", where)
    monkeypatch.setenv("HF_TOKEN", "hf_a_good_token")
    up = Finding("Space", f"someone/curves: {where} answers", True)
    found = trackio_adapter.examine({"trackio_space_id": "someone/curves"})
    assert found[3:] == [up, Finding("Space's token", "accepted, from HF_TOKEN", True)]
    monkeypatch.setenv("HF_TOKEN", "hf_a_wrong_token")
    refused = Finding("Space's token", "refused, from HF_TOKEN; run hf auth login, or set HF_TOKEN", False)
    assert trackio_adapter.examine({"trackio_space_id": "someone/curves"})[3:] == [up, refused]


def test_a_bucket_does_not_replace_the_local_databases(run, hub, port, monkeypatch):
    """Trackio itself downloads the databases of the bucket over those in $TRACKIO_DIR when it opens one."""
    monkeypatch.setenv("TRACKIO_BUCKET_ID", "someone/bucket")
    monkeypatch.setenv("HF_TOKEN", "hf_a_good_token")
    folder = recorded(run.parent / "second", *RECORDS)
    done = sync(folder, "--tracker", "trackio")
    assert "TRACKIO_BUCKET_ID has no effect without a Space" in done.stdout
    command = [sys.executable, str(ROOT / "scripts" / "dashboard.py"), str(folder), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as dashboard:
        wait_for(lambda: answers(port))
        assert [one["name"] for one in ask(port, "get_runs_for_project")] == ["second"]
        dashboard.send_signal(signal.SIGINT)
    assert (done.returncode, [path for path in hub.asked if "bucket" in path]) == (0, [])


# ---- options and variables -------------------------------------------------------------------------------------------


def test_the_option_comes_before_variables_and_a_note_says_what_wins():
    env = {"TRACKIO_SPACE_ID": "b/c", "TRACKIO_SERVER_URL": "http://d/?write_token=secret"}
    assert trackio_remote.remote({"trackio_space_id": "a"}, env) == "a"
    assert trackio_remote.notes({"trackio_space_id": "a"}, env) == [
        "the option TRACKIO_SPACE_ID=a wins over the environment variable, which is b/c",
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
        "TRACKIO_DATASET_ID is deprecated, and Trackio will remove it; use TRACKIO_BUCKET_ID"
    ]
    assert trackio_remote.kept_in(bucket | dataset) == (None, "b/k")
    assert trackio_remote.notes(space, bucket | dataset) == ["TRACKIO_BUCKET_ID wins over TRACKIO_DATASET_ID"]
    for env in (bucket, bucket | {"TRACKIO_SERVER_URL": "http://d"}):
        assert trackio_remote.notes({}, env) == ["TRACKIO_BUCKET_ID has no effect without a Space"]
