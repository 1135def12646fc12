"""Helpers for tests of MLflow: a database for each test, what MLflow has, and a server that stands in for MLflow's."""

import contextlib
import http.server
import json
import os
import shutil
import threading
import urllib.parse
from pathlib import Path

import pytest

from lib.record import journal
from lib.track import mlflow as adapter
from lib.track.tracker import Configuration, Media

API, FILES = "/api/2.0/mlflow/", "/api/2.0/mlflow-artifacts/artifacts/"


@pytest.fixture(scope="session")
def empty(tmp_path_factory):
    """A database without runs, which takes MLflow seconds to make."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def database(run, empty, tmp_path, monkeypatch):
    for name in os.environ:
        if name.startswith(("MLFLOW_", "DATABRICKS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # hides ~/.mlflow/credentials and ~/.databrickscfg
    return shutil.copy(empty, run.parent / "mlflow.db")


def client(folder):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{folder.parent.resolve()}/mlflow.db")


def runs(folder, project="demo"):
    return client(folder).search_runs([client(folder).get_experiment_by_name(project).experiment_id])


def written(folder, *events, config=None):
    """A journal with these events: (event, step, metrics, details)."""
    book = journal.Journal(folder)
    if not book.seq:
        book.write("start", 0, config={"tracker": ["mlflow"], **(config or {})})
    for event, step, metrics, details in events:
        book.write(event, step, metrics, **details)
    book.close()


def opened(folder, **options):
    tracker = adapter.Tracker()
    note = tracker.open(adapter.Identity.load(folder), Configuration({}, options), folder)
    return tracker, note


def text_of(folder, step, text):
    (folder / "media").mkdir(exist_ok=True)
    path = folder / "media" / f"sample-{step}.txt"
    path.write_text(text)
    return Media("text", "sample", step, 1700000000.5, path)


def artifacts(tracker, folder=None):
    """Path -> content of every artifact of the run."""
    found = {}
    for one in tracker.client.list_artifacts(tracker.run_id, folder):
        if one.is_dir:
            found |= artifacts(tracker, one.path)
        else:
            found[one.path] = Path(tracker.client.download_artifacts(tracker.run_id, one.path)).read_bytes()
    return found


class Server(http.server.ThreadingHTTPServer):
    """Answers as much as MLflow's client asks for a run and its artifacts."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.files, self.keys = [], {}, set()  # (path, body), path -> content, headers Authorization
        self.experiment, self.run, self.refuses = None, None, None  # (status, text) for every answer
        self.limit = 10**9  # bytes of a file
        self.address = f"http://127.0.0.1:{self.server_port}"

    def answer(self, path, body):
        """(status, answer) for a path after API."""
        self.asked.append((path, body))
        if path == "experiments/create":
            self.experiment = {"experiment_id": "7", "name": body["name"], "lifecycle_stage": "active"}
            return 200, {"experiment_id": "7"}
        if path in ("experiments/get-by-name", "experiments/get"):
            missing = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such experiment"}
            return (200, {"experiment": self.experiment}) if self.experiment else (404, missing)
        if path == "runs/create":
            info = {"run_id": "abc", "experiment_id": "7", "artifact_uri": "mlflow-artifacts:/7/abc/artifacts"}
            self.run = {"info": {**info, "status": "RUNNING", "lifecycle_stage": "active"}, "data": {}}
        if path == "runs/search":
            return 200, {"runs": [self.run] if self.run else []}
        return 200, {"run": self.run} if path in ("runs/create", "runs/get") else {}

    def metrics(self):
        """(name, step, value) of everything that was logged."""
        batches = [body.get("metrics", []) for path, body in self.asked if path == "runs/log-batch"]
        return [(one["key"], int(one["step"]), one["value"]) for batch in batches for one in batch]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, _, query = self.path.partition("?")
        self.server.keys.add(self.headers.get("Authorization"))
        if self.server.refuses:
            status, text = self.server.refuses
            return self.send(status, text.encode(), "text/plain")
        if len(content) > self.server.limit and self.command == "PUT":
            return self.send(413, b"<html>Request Entity Too Large</html>", "text/html")
        if path.startswith(FILES) and self.command == "PUT":
            self.server.files[urllib.parse.unquote(path.removeprefix(FILES))] = content
        body = json.loads(content or "{}") if path.startswith(API) else {}
        asked = body or dict(urllib.parse.parse_qsl(query))
        status, answer = self.server.answer(path.removeprefix(API), asked) if path.startswith(API) else (200, {})
        self.send(status, json.dumps(answer).encode(), "application/json")

    do_GET = do_PUT = do_POST

    def send(self, status, content, kind):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *what):
        pass


@contextlib.contextmanager
def serving():
    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.clear()  # every server has a run of the same id
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
