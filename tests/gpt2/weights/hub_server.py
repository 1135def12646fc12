"""A local stand-in for the Hugging Face hub: the routes by which huggingface_hub lists and downloads a model."""

import hashlib
import http.server
import json
import re
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_the_token_of_this_test"


class Hub(http.server.ThreadingHTTPServer):
    """Serves `folder` as the repository `name` at COMMIT, which `main` is too. TOKEN opens a gated one."""

    def __init__(self, name: str, folder: Path, gated: bool = False, broken: bool = False):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name, self.folder, self.gated, self.broken = name, folder, gated, broken
        self.requests: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        super().__exit__(*error)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        name, folder = self.server.name, self.server.folder
        if self.server.broken:
            return self._answer(503, b"")
        if not f"{path}/".startswith((f"/api/models/{name}/", f"/{name}/")):
            # The hub answers so to everybody who may not see whether a repository is there.
            return self._answer(401, b'{"error":"Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        found = re.search(r"/(?:revision|tree|resolve)/([^/]+)", path)
        revision = found[1] if found else "main"
        if revision not in ("main", COMMIT):
            return self._answer(404, b'{"error":"Invalid rev id"}', {"X-Error-Code": "RevisionNotFound"})
        if path in (f"/api/models/{name}", f"/api/models/{name}/revision/{revision}"):
            return self._answer(200, json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode())
        if path.startswith(f"/api/models/{name}/tree/"):
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            return self._answer(200, json.dumps([_entry(file, folder) for file in files]).encode())
        if self.server.gated and "/resolve/" in path and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, b'{"error":"Access is restricted"}', {"X-Error-Code": "GatedRepo"})
        file = folder / path.split(f"/resolve/{revision}/")[1]
        if not file.is_file():
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = file.read_bytes()
        self._answer(200, content, {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def _answer(self, code: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *words: object) -> None:
        pass


def _digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(file: Path, folder: Path) -> dict[str, object]:
    content = file.read_bytes()
    return {"type": "file", "path": str(file.relative_to(folder)), "size": len(content), "oid": _digest(content)}
