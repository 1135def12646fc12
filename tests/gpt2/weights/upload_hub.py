"""A stand-in for the Hugging Face hub that receives uploads as huggingface_hub sends them without Xet."""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

TOKEN = "hf_" + "secretSECRETsecretSECRET0123456789"


class Hub(ThreadingHTTPServer):
    """Keeps what it receives. Files named *.safetensors must come by LFS, others in the commit."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.refuse: dict[str, int] = {}  # part of a path -> the status that answers it
        self.repositories: dict[str, str] = {}  # name -> visibility
        self.objects: dict[str, bytes] = {}  # sha256 -> content, by LFS
        self.commits: list[dict[str, bytes | None]] = []  # path -> content, None if deleted
        self.tokens: set[str] = set()  # what came in the Authorization header to the hub itself
        self.requests: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def environment(self, home: str) -> dict[str, str]:
        """The variables with which huggingface_hub talks to this hub."""
        return {
            "HF_ENDPOINT": self.address, "HF_TOKEN": TOKEN, "HF_HOME": home,
            "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1",
        }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self._path()
        if path is None:
            return
        self.server.tokens.add(self.headers["Authorization"])
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            fresh = name not in self.server.repositories
            self.server.repositories.setdefault(name, asked["visibility"])
            answer = {"url": f"{self.server.address}/{name}", "name": name, "error": "You already created this repo"}
            self._answer(200 if fresh else 409, answer)
        elif path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\n")
            self._answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.server.address}/storage/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            self._commit(body)
        else:
            self._answer(404, {"error": f"no route {path}"})

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if (path := self._path()) is None:
            return
        digest = path.rpartition("/")[2]
        if hashlib.sha256(body).hexdigest() != digest:
            return self._answer(400, {"error": "the content does not have this sha256"})
        self.server.objects[digest] = body
        self._answer(200, {})

    def do_HEAD(self):
        if (path := self._path()) is None:
            return
        name = path.rpartition("/")[2]
        there: dict[str, bytes | None] = {}
        for commit in self.server.commits:
            there |= commit
        self.send_response(200 if there.get(name) is not None else 404)
        if there.get(name) is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            self.send_header("X-Repo-Commit", "c" * 40)
            self.send_header("ETag", '"e"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _commit(self, body: bytes) -> None:
        changes: dict[str, bytes | None] = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                changes[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                changes[value["path"]] = None
        self.server.commits.append(changes)
        oid = f"{len(self.server.commits):040x}"
        self._answer(200, {"commitUrl": f"{self.server.address}/me/model/commit/{oid}", "commitOid": oid})

    def _path(self) -> str | None:
        """The path of the request; None if the hub refuses it, which is then answered."""
        path = urlsplit(self.path).path
        self.server.requests.append(f"{self.command} {path}")
        for part, status in self.server.refuse.items():
            if part in path:
                return self._answer(status, {"error": "you may not do that"})
        return path

    def _answer(self, status: int, content: dict) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """A hub that runs."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
