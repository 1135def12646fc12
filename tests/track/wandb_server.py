"""Stands in for wandb's server: as much of it as its client needs to upload runs with media and artifacts."""

import contextlib
import gzip
import http.server
import json
import signal
import threading

import pytest

from tests.tracking import state, trainer, wait_for

ENTITY = "someone"
KEY = "0" * 40
NOWHERE = "http://127.0.0.1:9"


class Run:
    """What the server has of a run. A row of its history that is sent again, after a failure, has the same `_step`."""

    def __init__(self, project):
        self.project = project
        self.rows = {}  # _step -> row of the history
        self.conflicts = []  # rows that have the `_step` of another row
        self.summary = {}
        self.said = {}  # of the newest mutation that begins or changes the run
        self.files = {}  # name -> bytes
        self.exits = []

    @property
    def history(self):
        return [row for _, row in sorted(self.rows.items())]

    def add(self, row):
        known = self.rows.setdefault(row["_step"], row)
        # As texts, because NaN differs from NaN.
        if json.dumps(known, sort_keys=True) != json.dumps(row, sort_keys=True):
            self.conflicts.append(row)


class Api(http.server.ThreadingHTTPServer):
    """Keeps what it was sent. With `refuses`, paths that end in this get the status `code`."""

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.requests = []  # (path, body) of everything that was not refused
        self.refuses, self.code = "nothing", 403
        self.runs = {}  # (entity, project, run id) -> Run
        self.artifacts = {}  # (collection, digest) -> its input, `id`, `files`, `committed`
        self.lock = threading.Lock()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def run(self):
        [found] = self.runs.values()
        return found

    def answer(self, method, path, body):
        if method == "PUT":
            _, _, kind, key, name = path.split("/", 4)
            where = self.runs[tuple(key.split(","))].files if kind == "runs" else self._artifact(key)["files"]
            where[name] = body
            return {}
        told = {} if "/otel/" in path or not body else json.loads(body)  # wandb's own telemetry is no JSON
        self.requests.append((path, told))
        if path.endswith("file_stream"):
            _, _, entity, project, run_id, _ = path.split("/")
            return self._stream(self.runs[entity, project, run_id], told)
        return {"data": self._graphql(told.get("query", ""), told.get("variables") or {})} if "query" in told else {}

    def _stream(self, run, told):
        files = {name: list(map(json.loads, part["content"])) for name, part in (told.get("files") or {}).items()}
        for row in files.get("wandb-history.jsonl", []):
            run.add(row)
        run.summary = [run.summary, *files.get("wandb-summary.json", [])][-1]
        if told.get("complete"):
            run.exits.append(told["exitcode"])
        return {}

    def _graphql(self, query, said):
        name = next((name for name in _ANSWERS if f" {name} " in query or f" {name}(" in query), None)
        return getattr(self, f"_{_ANSWERS[name]}")(said) if name else {}

    def _begin(self, said):
        key = (said.get("entity") or ENTITY, said["project"], said["name"])
        run = self.runs.setdefault(key, Run(key[1]))
        run.said |= {name: value for name, value in said.items() if value is not None}
        owner = {"id": "p", "name": key[1], "entity": {"id": "e", "name": key[0]}}
        count = len(run.rows)
        bucket = {"id": ",".join(key), "name": key[2], "displayName": said.get("displayName"), "config": "{}"}
        return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": count, "project": owner}, "inserted": True}}

    def _resume(self, said):
        run = self.runs.get((said.get("entity") or ENTITY, said["project"], said["name"]))
        if run is None:
            return {"model": None}
        tail = json.dumps([json.dumps(row) for row in run.history[-1:]])
        counts = {"historyLineCount": len(run.rows), "logLineCount": 0, "eventsLineCount": 0}
        texts = {"summaryMetrics": json.dumps(run.summary), "historyTail": tail, "eventsTail": "[]", "config": "{}"}
        about = {"id": "b", "name": said["name"], "displayName": "n", "tags": [], "wandbConfig": '{"t": 1}'}
        owner = {"id": "e", "name": ENTITY}
        return {"model": {"id": "p", "name": run.project, "entity": owner, "bucket": about | counts | texts}}

    def _files(self, said):
        key = f"{said['entity']},{said['project']},{said['run']}"
        urls = [{"name": name, "uploadUrl": f"{self.address}/store/runs/{key}/{name}"} for name in said["files"]]
        return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": urls}}

    def _artifact(self, wanted):
        return next(one for one in self.artifacts.values() if one["id"] == wanted)

    def _create(self, said):
        said = said["input"]
        known = self.artifacts.setdefault(
            (said["artifactCollectionName"], said["digest"]),
            {**said, "id": f"QXJ0aWZhY3Q{len(self.artifacts)}", "files": {}, "committed": False},
        )
        state = "COMMITTED" if known["committed"] else "PENDING"
        found = {"id": known["id"], "state": state, "artifactSequence": {"id": "s", "latestArtifact": None}}
        return {"createArtifact": {"artifact": found}}

    def _manifest(self, said):
        there = {"id": "f", "uploadUrl": f"{self.address}/store/artifacts/{said['artifactID']}/{said['name']}"}
        return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": {**there, "uploadHeaders": []}}}}

    def _contents(self, said):
        edges = [
            {
                "node": {
                    "storagePath": one["name"],
                    "uploadUrl": f"{self.address}/store/artifacts/{one['artifactID']}/{one['name']}",
                    "uploadHeaders": [],
                    "uploadMultipartUrls": None,
                    "artifact": {"id": one["artifactID"]},
                }
            }
            for one in said["input"]["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _commit(self, said):
        found = self._artifact(said["artifactID"])
        found["committed"] = True
        return {"commitArtifact": {"artifact": {"id": found["id"], "digest": found["digest"]}}}

    def _by_id(self, said):
        found = self._artifact(said["id"])
        owner = {"id": "p", "internalId": "1", "name": found["projectName"], "entity": {"name": found["entityName"]}}
        made = {"createdAt": "2026-01-01T00:00:00", "updatedAt": None, "ttlDurationSeconds": -2, "ttlIsInherited": True}
        texts = {"description": None, "metadata": None, "historyStep": None, "commitHash": None, "tags": []}
        about = {"id": found["id"], "versionIndex": 0, "state": "COMMITTED", "size": 0, "fileCount": 1, "aliases": []}
        sequence = {"__typename": "ArtifactSequence", "name": found["artifactCollectionName"], "project": owner}
        kinds = {"artifactSequence": sequence, "artifactType": {"name": found["artifactTypeName"]}}
        digest = {"__typename": "Artifact", "digest": found["digest"], "digestAlgorithm": "MANIFEST_MD5"}
        return {"artifact": made | texts | about | kinds | digest}

    def _type(self, said):
        return {"project": None}

    def _viewer(self, said):
        about = {"id": "v", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}
        return {"viewer": about}

    def _alerted(self, said):
        return {"notifyScriptableRunAlert": {"success": True}}


_ANSWERS = {
    "UpsertBucket": "begin", "RunResumeStatus": "resume", "CreateRunFiles": "files", "CreateArtifact": "create",
    "CreateArtifactManifest": "manifest", "CreateArtifactFiles": "contents", "CommitArtifact": "commit",
    "ArtifactByID": "by_id", "ArtifactType": "type", "Viewer": "viewer", "GetDefaultEntity": "viewer",
    "NotifyScriptableRunAlert": "alerted",
}  # fmt: skip


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers JSON."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        refused = self.path.endswith(self.server.refuses)
        with self.server.lock:
            told = {"errors": [{"message": "no"}]} if refused else self.server.answer(self.command, self.path, body)
        answer = json.dumps(told).encode()
        self.send_response(self.server.code if refused else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_PUT = do_POST

    def log_message(self, *what):
        pass


def stopped_on_the_way(run, deadline=30):
    """A trainer that stands still between its first row and its end, while wandb has what there is."""
    process = trainer(run, "wandb", end=40, pause=0.01, deadline=deadline)
    process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    wait_for(lambda: state(run, "wandb").rows)
    return process


@contextlib.contextmanager
def serving(server):
    """The server answers in the context."""
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def api(monkeypatch):
    """A key, and a server that stands in for wandb's."""
    with serving(Api()) as server:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        yield server


@pytest.fixture
def unplugged(monkeypatch):
    """A key, and a server that does not answer."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", NOWHERE)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
