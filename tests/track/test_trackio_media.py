"""Trackio's images, tables, texts and artifacts: once, whatever is killed, as its dashboard and a server show them."""

import os
import shutil
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest

from tests.tracking import ROOT, RUN_ID, sync
from tests.trackio_show import STRANGE, TOKEN, ask, database, fetched, picture, port, serve, with_media

__all__ = ["port", "serve"]  # fixtures

FIRST = {"layer": "h.0", "10 ": 1, "2 ": 1180591620717411303424.0, "10  ": None}
SECOND = {"layer": "h.1", "10 ": "NaN", "2 ": True, "10  ": "-Infinity"}
PAGE_OF_TEXT = "<pre>\n\n# step {}\nif a &lt; b:  # &lt;b&gt;\n\n- größe 漢字</pre>"


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
        assert (file["path"], file["size"]) == (f"step-{step}.pt", 7 * step)
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
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
deliver(0)
"""


def test_media_are_there_once_whenever_their_delivery_is_killed(run):
    folder = with_media(run.parent / "second", "second")
    words = [sys.executable, "-c", KILLED, str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60, cwd=ROOT)
    assert done.stdout.splitlines() == ["-9"] * 14
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
