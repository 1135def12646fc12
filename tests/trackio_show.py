"""Helpers: `trackio show` in real processes, what it serves, and runs with every kind of event and of media."""

import contextlib
import io
import json
import math
import os
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from lib.record import journal, media
from tests.tracking import RUN_ID, recorded, wait_for

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

TEXT = "\n# step {}\nif a < b:  # <b>\n\n- größe 漢字"
ROWS = [["h.0", 1, 2**70, None], ["h.1", "NaN", True, "-Infinity"]]
COLUMNS = ["layer", "10", "2", "10"]


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
