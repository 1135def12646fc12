"""A stand-in for the hub's jobs and buckets, for huggingface_hub itself. Only Xet, which moves bytes, is replaced."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "plantedPLANTEDplanted0123456789"
WANDB_KEY = "wandb" + "plantedPLANTED0123456789abcdef"
ENDED = ("COMPLETED", "CANCELED", "ERROR")


class Job:
    """A job that was submitted: what it was asked to be, what it printed, how it ended."""

    def __init__(self, number: int, asked: dict):
        self.id, self.asked = f"job{number}", asked
        self.lines: list[str] = []
        self.stage, self.message, self.seconds = "RUNNING", None, 1
        self.changed = threading.Condition()

    def say(self, *lines: str) -> None:
        with self.changed:
            self.lines += lines
            self.changed.notify_all()

    def end(self, stage: str, message: str | None = None) -> None:
        with self.changed:
            if self.stage not in ENDED:
                self.stage, self.message = stage, message
            self.changed.notify_all()

    def info(self) -> dict:
        return {
            "id": self.id,
            "createdAt": "2026-11-29T10:00:00.000Z",
            "owner": {"id": "1", "name": "me", "type": "user"},
            "status": {"stage": self.stage, "message": self.message},
            "durations": {"runningSecs": self.seconds},
            "labels": self.asked.get("labels"),
            "flavor": self.asked["flavor"],
        }


class Hub(ThreadingHTTPServer):
    """Keeps jobs and what it was asked. A bucket is a folder in `buckets`, as it is for the jobs that mount it."""

    daemon_threads = True

    def __init__(self, buckets: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.buckets = buckets
        self.works: Callable[[Job], None] = lambda job: job.end("COMPLETED")  # what a job does, in its own thread
        self.jobs: list[Job] = []
        self.refuse: dict[str, int] = {}  # part of a path -> the status that answers it
        self.public: set[str] = set()
        self.requests: list[tuple[str, bytes]] = []  # `POST /api/...` and the body
        self.objects: dict[str, bytes] = {}  # what Xet moves, by its hash
        self.breaks = False  # whether downloads break off in the middle

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def mounted(self, job: Job, text: str) -> str:
        """A path in a job as a path here."""
        for volume in job.asked.get("volumes", []):
            if text == volume["mountPath"] or text.startswith(volume["mountPath"] + "/"):
                folder = self.buckets / volume["source"] / volume["path"]
                assert folder.is_dir(), "a folder of a bucket that does not exist cannot be mounted"
                return str(folder) + text.removeprefix(volume["mountPath"])
        return text

    def run(self, job: Job, place: Path, **environment: str) -> None:
        """Do what a rented machine does: run the script, with this Python in place of `uv run`."""
        uv, run, *words = job.asked["command"]
        assert (uv, run) == ("uv", "run")
        place.mkdir()
        plain = {name: os.environ[name] for name in ("PATH", "HOME", "OMP_NUM_THREADS") if name in os.environ}
        process = subprocess.Popen(
            [sys.executable, *(self.mounted(job, word) for word in words)],
            env=plain | {"TMPDIR": str(place)} | job.asked["environment"] | job.asked.get("secrets", {}) | environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        for line in process.stdout:
            job.say(line.rstrip("\n"))
        job.end("ERROR" if process.wait() else "COMPLETED")


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self):
        self._answer_to(b"")

    def do_POST(self):
        self._answer_to(self.rfile.read(int(self.headers["Content-Length"] or 0)))

    def do_HEAD(self):  # of a file in a bucket
        self.send_response(200)
        self.send_header("X-Xet-Hash", "0" * 64)
        self.send_header("X-Xet-Refresh-Route", f"{self.server.address}/refresh")
        self.send_header("Content-Length", "1")
        self.end_headers()

    def _answer_to(self, body: bytes) -> None:
        hub, url = self.server, urlsplit(self.path)
        hub.requests.append((f"{self.command} {url.path}", body))
        assert self.headers["Authorization"] in (None, f"Bearer {TOKEN}")
        for part, status in hub.refuse.items():
            if part in url.path:
                return self._send({"error": "you may not do that"}, status)
        match [unquote(part) for part in url.path.strip("/").split("/")][1:]:
            case ["whoami-v2"]:
                self._send({"name": "me", "type": "user"})
            case ["jobs", "hardware"]:
                self._send([_machine("cpu-basic", 10_000), _machine("a10g-large", 25_000)])
            case ["jobs", _] if self.command == "POST":
                self._send(self._submit(json.loads(body)))
            case ["jobs", _]:
                wanted = dict(label.split("=") for label in parse_qs(url.query).get("label", []))
                found = (job.info() for job in hub.jobs if wanted.items() <= (job.asked.get("labels") or {}).items())
                self._send(list(found))
            case ["jobs", _, name, *more]:
                job = next((job for job in hub.jobs if job.id == name), None)
                if job is None:
                    return self._send({"error": "no such job"}, 404)
                if more == ["logs"]:
                    return self._stream(job)
                if more == ["cancel"]:
                    job.end("CANCELED")
                self._send(job.info())
            case ["buckets", owner, name, *more]:
                self._bucket(f"{owner}/{name}", more, body)
            case _:
                self._send({"error": f"no route {self.path}"}, 404)

    def _submit(self, asked: dict) -> dict:
        job = Job(len(self.server.jobs) + 1, asked)
        self.server.jobs.append(job)
        threading.Thread(target=self.server.works, args=(job,), daemon=True).start()
        return job.info()

    def _stream(self, job: Job) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        sent, over = 0, False
        while not over:
            with job.changed:
                if len(job.lines) == sent and job.stage not in ENDED:
                    job.changed.wait(timeout=30)
                lines, over = job.lines[sent:], job.stage in ENDED
            for line in lines:
                event = json.dumps({"data": line, "timestamp": "2026-11-29T10:00:00.000Z"})
                self.wfile.write(f"data: {event}\n\n".encode())
                self.wfile.flush()
            sent += len(lines)

    def _bucket(self, name: str, more: list[str], body: bytes) -> None:
        hub, folder = self.server, self.server.buckets / name
        match more:
            case [] if self.command == "POST":
                there = folder.exists()
                folder.mkdir(parents=True, exist_ok=True)
                self._send({"url": f"{hub.address}/buckets/{name}", "error": "exists"}, 409 if there else 200)
            case []:
                self._send({
                    "id": name, "private": name not in hub.public, "createdAt": "2026-11-29T10:00:00.000Z",
                    "size": 0, "totalFiles": 0,
                })  # fmt: skip
            case ["batch"]:
                for line in map(json.loads, body.splitlines()):
                    path = folder / line["path"]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(hub.objects[line["xetHash"]])
                self._send({"success": True})
            case ["tree", *prefix]:
                self._send([self._file(folder, path) for path in sorted((folder / "/".join(prefix)).rglob("*"))])
            case _:
                self._send({"error": f"no route {self.path}"}, 404)

    def _file(self, folder: Path, path: Path) -> dict:
        name = str(path.relative_to(folder)).replace("%2E", ".")
        if path.is_dir():
            return {"type": "directory", "path": name}
        content = path.read_bytes()
        self.server.objects[digest := hashlib.sha256(content).hexdigest()] = content
        mtime = datetime.fromtimestamp(int(path.stat().st_mtime), UTC).isoformat().replace("+00:00", ".000Z")
        return {"type": "file", "path": name, "size": len(content), "xetHash": digest, "mtime": mtime}

    def _send(self, content: object, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments: object) -> None:
        pass


def _machine(name: str, micro: int) -> dict:
    return {
        "name": name, "prettyName": name, "cpu": "2 vCPU", "ram": "16 GB", "accelerator": None,
        "unitCostMicroUSD": micro, "unitCostUSD": micro / 1e6, "unitLabel": "minute",
    }  # fmt: skip


class Xet:
    """Stands in for a session of hf_xet."""

    def __init__(self, hub: Hub):
        self.hub = hub

    @contextlib.contextmanager
    def new_upload_commit(self, **_: object) -> Iterator["Xet"]:
        yield self

    new_file_download_group = new_upload_commit

    def start_upload_file(self, path: str, **_: object) -> "_Uploaded":
        return self.start_upload_bytes(Path(path).read_bytes())

    def start_upload_bytes(self, content: bytes, **_: object) -> "_Uploaded":
        self.hub.objects[digest := hashlib.sha256(content).hexdigest()] = content
        self.hub.requests.append(("XET", content))
        return _Uploaded(digest, len(content))

    def start_download_file(self, info: object, path: str) -> None:
        content = self.hub.objects[info.hash]
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content[: len(content) // 2] if self.hub.breaks else content)
        if self.hub.breaks:
            raise RuntimeError("the connection broke")


class _Uploaded:
    def __init__(self, digest: str, size: int):
        self.hash, self.file_size, self.xet_info = digest, size, self

    def result(self) -> "_Uploaded":
        return self


@contextlib.contextmanager
def serve(buckets: Path) -> Iterator[Hub]:
    """A hub that runs."""
    hub = Hub(buckets)
    thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
