"""Media at Weights & Biases: read back from its files and from the server, once, offline, online and after kills."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from lib.base.files import write_json
from lib.track import wandb_private as private
from tests.track.wandb_server import ENTITY
from tests.tracking import ROOT, RUN_ID, new_run, wandb_records

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c49444154789c63f8ffff3f0005fe02fe0def46b80000000049454e44ae426082"
)
TABLE = {"columns": ["layer", "share"], "rows": [["h.0", 0.5], ["h.1", "NaN"], [None, True]]}
# Delivers media as a lane does: <folder> and what to do.
PROGRAM = """
import os, sys
from pathlib import Path
from lib.record.run import Identity
from lib.track.tracker import Configuration, Media, Row
from lib.track.wandb import Tracker
from lib.track.wandb_media import MediaError

folder, actions = Path(sys.argv[1]), sys.argv[2:]
places = {"image": "media/loss.png", "table": "media/layers.json", "text": "media/sample.txt",
          "artifact": "checkpoints/best.pt"}
names = {"image": "loss", "table": "layers", "text": "sample", "artifact": "best"}
items = [Media(kind, names[kind], 20, 1700000000.0, folder / place) for kind, place in places.items()]
tracker = Tracker()
note = tracker.open(Identity.load(folder), Configuration({"n_layer": 2}, {"wandb_offline": False}), folder)
for action in actions:
    if action == "rows":
        tracker.log([Row("train", step, 1700000000.0 + step, {"train_loss": 1.0 / step}) for step in (20, 21)])
    elif action in places:
        try:
            tracker.media([item for item in items if item.kind == action])
        except MediaError as error:
            print(error, flush=True)
    elif action == "media":
        tracker.media(items)
    elif action == "remove":
        (folder / places["artifact"]).unlink()
    elif action == "damage":
        (folder / places["table"]).write_text("[")
        (folder / places["image"]).write_text("no picture")
    elif action == "die":
        print("died", flush=True)
        os.kill(os.getpid(), 9)
    elif action == "finish":
        tracker.finish("finished")
print("done", flush=True)
"""


@pytest.fixture
def media(run):
    """A run with a file of each kind."""
    folder = new_run(run.parent / "media")
    (folder / "media").mkdir()
    (folder / "checkpoints").mkdir()
    (folder / "trackers").mkdir()
    (folder / "media/loss.png").write_bytes(PNG)
    write_json(folder / "media/layers.json", TABLE)
    (folder / "media/sample.txt").write_text("größer <b>\n\nals")
    (folder / "checkpoints/best.pt").write_bytes(b"weights" * 100)
    return folder


def deliver(folder, *actions):
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(folder), *actions]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.stdout.splitlines()[-1:] == ["died" if "die" in actions else "done"], done.stdout + done.stderr
    return done.stdout


def uploaded(folder):
    program = f"from pathlib import Path; from lib.track import wandb; print(wandb.upload(Path({str(folder)!r}), {{}}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    return (done.stdout or done.stderr).splitlines()[-1]


def stored(folder):
    """(step, name) of each row, and the files of its media, in wandb's own files of the run."""
    rows, files = [], {}
    for record in wandb_records(folder):
        if record["type"] == "history":
            item = record["history"]["item"]
            rows += sorted({(item["step"], name.split(".")[0]) for name in item if name[0] != "_" and name != "step"})
            files |= {name.split(".")[0]: path for name, path in item.items() if name.endswith(".path")}
    return rows, files


def assert_is_shown(row, files):
    """A row of the server and its files show what the run has."""
    [name] = [name for name in row if "/" in name]
    content = files.get(row[name]["path"], b"") if isinstance(row[name], dict) else b""
    if name == "media/loss":
        assert (row[name]["_type"], row[name]["caption"], content) == ("image-file", "step 20", PNG)
    elif name == "media/layers":
        assert row[name]["_type"] == "table-file"
        assert json.loads(content) == {"columns": TABLE["columns"], "data": TABLE["rows"]}
    elif name == "media/sample":
        assert row[name]["_type"] == "html-file"
        assert "<p>step 20</p><pre" in content.decode() and "größer &lt;b&gt;\n\nals" in content.decode()
    else:
        assert name == "artifact/best" and row[name].startswith(f"best-{RUN_ID}")
    assert row["step"] == 20 and row["_timestamp"] == 1700000000.0


def assert_server_has_all(api):
    [run] = api.runs.values()
    assert run.conflicts == []
    shown = [row for row in run.history if "train_loss" not in row]
    for row in shown:
        assert_is_shown(row, run.files)
    names = sorted(name for row in shown for name in row if "/" in name)
    assert names == ["artifact/best", "media/layers", "media/loss", "media/sample"]
    assert [row["train_loss"] for row in run.history if "train_loss" in row] == [1 / 20, 1 / 21]
    best = [one for one in api.artifacts.values() if one["artifactTypeName"] == "model"]
    [artifact] = best
    assert (artifact["artifactCollectionName"], artifact["committed"]) == (f"best-{RUN_ID}", True)
    assert artifact["files"]["best.pt"] == b"weights" * 100
    assert {alias["alias"] for alias in artifact["aliases"]} == {"latest", "step-20"}
    assert json.loads(artifact["metadata"]) == {"step": 20}


def test_offline_media_are_in_the_runs_folder_once_and_all_of_them_are_uploaded(media, api, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        deliver(media, "rows", "media", "media", "finish")
        deliver(media, "media", "remove", "finish")  # as after a lost cursor; the checkpoint goes before its upload
    rows, files = stored(media)
    assert rows == [
        (20, "train_loss"),
        (21, "train_loss"),
        (20, "media/loss"),
        (20, "media/layers"),
        (20, "media/sample"),
        (20, "artifact/best"),
    ]
    (media.parent / "moved").mkdir()
    media = media.rename(media.parent / "moved" / "media")  # such as to a machine with a network
    [folder] = media.glob("wandb/offline-run-*")
    assert (folder / "files" / files["media/loss"]).read_bytes() == PNG
    assert not (media / "wandb/artifacts/staging").is_symlink() and (media / "wandb/artifacts/staging").exists()
    assert uploaded(media) == f"uploaded to {api.address}/demo ({folder.name})"
    assert_server_has_all(api)
    assert not (media / "wandb/artifacts").exists() and not (folder / "artifacts").exists()


@pytest.mark.extra("wandb")  # slow
def test_online_media_are_at_the_server_once_also_after_kills(media, api):
    deliver(media, "rows", "image", "die")
    deliver(media, "image", "table", "die")
    deliver(media, "media", "die")
    deliver(media, "media", "finish")
    assert sorted(stored(media)[0]) == sorted({*stored(media)[0]}) and len(stored(media)[0]) == 6
    assert uploaded(media).startswith("everything is uploaded")
    assert_server_has_all(api)
    assert {key[0] for key in api.runs} == {ENTITY}


@pytest.mark.extra("wandb")  # slow
def test_a_file_that_is_not_whole_beside_the_row_does_not_count(media, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    deliver(media, "image", "text", "die")
    _, files = stored(media)
    [folder] = media.glob("wandb/offline-run-*")
    os.truncate(folder / "files" / files["media/loss"], 10)
    deliver(media, "image", "text", "finish")
    assert sorted(stored(media)[0]) == [(20, "media/loss"), (20, "media/loss"), (20, "media/sample")]


def test_a_damaged_file_is_an_error_and_costs_only_itself(media, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    output = deliver(media, "damage", "image", "text", "table", "rows", "finish")
    assert stored(media)[0] == [(20, "media/sample"), (20, "train_loss"), (21, "train_loss")]
    assert len(list(media.glob("wandb/offline-run-*"))) == 1  # wandb goes on with the same file
    lines = [line for line in output.splitlines() if "is not sent to wandb, because it cannot be read: " in line]
    assert [line.split(":")[0] for line in lines] == [str(media / "media/loss.png"), str(media / "media/layers.json")]


@pytest.mark.extra("wandb")  # slow
def test_an_artifact_that_the_server_refuses_is_tried_once_and_the_rows_go_on(media, api):
    api.refuses, api.code = "best.pt", 413
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(media), "artifact", "rows", "finish"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert f"{media}/checkpoints/best.pt: wandb does not take it: " in done.stdout
    assert "Refused: wandb could not upload everything; upload the rest with: wandb sync" in done.stderr
    assert len(list(media.glob("wandb/run-*"))) == 1
    api.refuses = "nothing"
    deliver(media, "media", "rows", "finish")
    assert_server_has_all(api)


@pytest.mark.extra("wandb")  # slow
def test_an_artifact_that_the_server_refuses_is_uploaded_later(media, api, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        deliver(media, "rows", "media", "finish")
    [file] = media.glob("wandb/offline-run-*/*.wandb")
    for refused in ("best.pt", ".png"):
        api.refuses = refused
        assert "is not completely uploaded: file transfer: upload: failed to upload: status: 403" in uploaded(media)
        assert not private.uploaded_mark(file).exists()
    api.refuses = "nothing"
    assert uploaded(media).startswith("uploaded to")
    assert_server_has_all(api)
