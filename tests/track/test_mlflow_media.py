"""Media in MLflow, beside its database and on servers, and servers that refuse the user."""

import contextlib
import csv
import json
import os
import re
import shutil

import pytest

from lib.base.errors import UserError
from lib.base.files import write_json
from lib.record import journal, media
from lib.track import mlflow as adapter
from lib.track.tracker import Alert, Configuration, Media, Refused, Row
from tests.track.damaged import chunk, damaged, png
from tests.track.mlflow_runs import artifacts, database, empty, opened, runs, serving, text_of, written
from tests.tracking import RUN_ID, run, state, sync, trainer, wait_for

__all__ = ["database", "empty", "run"]  # fixtures
pytestmark = pytest.mark.extra("mlflow")


def media_of(folder):
    """One item of each kind."""
    text = text_of(folder, 20, "Once upon a time, ä\n")
    picture, table, weights = (folder / "media" / name for name in ("loss.png", "sparsity.json", "step-20.pt"))
    picture.write_bytes(png())
    rows = [["h.0", 0.5, True], ["h,1", "NaN", None], ['"', 3, False]]
    table.write_text(json.dumps({"columns": ["layer", "sparsity", "ok"], "rows": rows}))
    weights.write_bytes(b"weights")
    return [
        Media("image", "plots/loss", 20, 1700000000.5, picture),
        Media("table", "sparsity", 20, 1700000000.5, table),
        text,
        Media("artifact", "best: größe", 20, 1700000000.5, weights),
    ]


def test_media_are_artifacts_beside_the_database_and_there_once(run, tmp_path, monkeypatch):
    import PIL.Image

    monkeypatch.chdir(tmp_path)
    written(run, ("train", 0, {"loss": 1.0}, {}))
    items = media_of(run)
    tracker, _ = opened(run)
    tracker.media(items)
    first = artifacts(tracker)
    left = run.parent / "mlartifacts" / tracker.run_id / "artifacts" / "texts" / ".artifact.uploading.abc"
    left.touch()
    again, _ = opened(run)  # after a kill
    assert not left.exists()
    again.media(items)
    assert artifacts(again) == first
    small, picture = (name for name in sorted(first) if name.startswith("images/"))
    stem = r"images/plots~loss\+step\+20\+timestamp\+1700000000500\+[0-9a-f-]{36}"
    assert re.fullmatch(rf"{stem}\.png", picture) and small == picture.replace(".png", "+compressed.webp")
    assert first.pop(picture) == items[0].path.read_bytes()
    (tmp_path / "small.webp").write_bytes(first.pop(small))
    with PIL.Image.open(tmp_path / "small.webp") as shown:
        assert (shown.format, shown.size) == ("WEBP", (256, 128))
    table = first.pop("tables/sparsity/step-00000020.csv").decode()
    assert list(csv.reader(table.splitlines())) == [
        ["layer", "sparsity", "ok"],
        ["h.0", "0.5", "true"],
        ["h,1", "NaN", ""],
        ['"', "3", "false"],
    ]
    assert first == {
        "texts/sample/step-00000020.txt": "Once upon a time, ä\n".encode(),
        "artifacts/best- gr-e-ba3c7a29/step-00000020/step-20.pt": b"weights",
    }
    assert runs(run)[0].data.tags["mlflow.loggedImages"] == "True"
    assert not (tmp_path / "mlruns").exists()
    assert (run.parent / "mlartifacts" / tracker.run_id / "artifacts" / picture).exists()


def test_a_lane_delivers_media_once(run):
    with contextlib.closing(journal.Journal(run)) as book:
        book.write("start", 0, config={"tracker": ["mlflow"]})
        media.write(run, book, "text", "sample", 1, b"text of 1")
        book.write("train", 1, {"loss": 1.0})
        media.write(run, book, "table", "layers", 2, b'{"columns": ["name"], "rows": [["h.0"]]}')
    wanted = {"texts/sample/step-00000001.txt": b"text of 1", "tables/layers/step-00000002.csv": b"name\nh.0\n"}
    for _ in range(2):
        done = sync(run)
        assert done.returncode == 0 and "3 rows delivered" in done.stdout, done.stdout
        assert artifacts(opened(run)[0]) == wanted
        (run / "trackers" / "mlflow.json").unlink()


def test_pictures_have_the_names_and_the_tag_that_mlflow_gives_them(run):
    import PIL.Image

    written(run, ("train", 0, {"loss": 1.0}, {}))
    tracker, _ = opened(run)
    (run / "media").mkdir()
    (run / "media" / "a.png").write_bytes(png())
    tracker.media([Media("image", "plots/loss", 20, 1700000000.5, run / "media" / "a.png")])
    ours, tags = list(artifacts(tracker)), tracker.client.get_run(tracker.run_id).data.tags
    other = tracker.client.create_run(tracker.client.get_run(tracker.run_id).info.experiment_id).info.run_id
    picture = PIL.Image.open(run / "media" / "a.png")
    tracker.client.log_image(other, picture, key="plots/loss", step=20, timestamp=1700000000500)
    tracker.run_id = other
    assert [re.sub(r"[0-9a-f-]{36}", "*", name) for name in artifacts(tracker)] == [
        re.sub(r"[0-9a-f-]{36}", "*", name) for name in ours
    ]
    assert tags["mlflow.loggedImages"] == tracker.client.get_run(other).data.tags["mlflow.loggedImages"]


def test_a_damaged_file_is_one_sentence(run):
    written(run, ("train", 0, {"loss": 1.0}, {}))
    tracker, _ = opened(run)
    for item in damaged(run / "media"):
        with pytest.raises(UserError, match=rf"{item.name}: .*(PNG|table)"):
            tracker.media([item])
    assert artifacts(tracker) == {}


def test_a_picture_that_is_too_large_for_a_small_copy_is_kept_without_it(run, capsys):
    written(run, ("train", 0, {"loss": 1.0}, {}))
    tracker, _ = opened(run)
    (run / "media").mkdir()
    start, end = png()[:33], png()[-12:]
    contents = {"bomb": png(20_000, 20_000), "other": b"".join([start, chunk(b"IDAT", b"not compressed"), end])}
    for name, content in contents.items():
        path = run / "media" / f"{name}.png"
        path.write_bytes(content)
        tracker.media([Media("image", name, 1, 1700000000.5, path)])
    assert sorted(artifacts(tracker).values()) == sorted(contents.values())
    assert "other.png: MLflow gets no small copy, because Pillow cannot read it: " in capsys.readouterr().out


def test_names_and_texts_that_are_no_utf_8_arrive(run):
    name = os.fsdecode(b"gr\xf6\xdfe")
    written(run, ("train", 0, {name: 1.0}, {}))
    (run / "media").mkdir()
    path = run / "media" / "table.json"
    path.write_text(json.dumps({"columns": [name], "rows": [[name]]}))
    identity = adapter.Identity(RUN_ID, name, name)
    tracker = adapter.Tracker()
    tracker.open(identity, Configuration({"file": name}, {"tracker_tags": name, "tracker_group": name}), run)
    tracker.log([Row("train", 0, 1700000000.0, {name: 1.0})])
    tracker.alert([Alert(name, 0, 1700000000.0, "warn", name)])
    for kind in ("table", "text", "artifact"):
        tracker.media([Media(kind, name, 1, 1700000000.5, path)])
    held = tracker.client.get_run(tracker.run_id).data
    assert held.metrics == {"gr-e-9cc9c823": 1.0}
    assert held.params == {"file": r"gr\udcf6\udcdfe"}
    assert artifacts(tracker)["tables/gr-e-9cc9c823/step-00000001.csv"] == rb"gr\udcf6\udcdfe" b"\n" * 2


def test_a_run_with_only_media_or_alerts_is_held(run):
    written(run, ("train", 0, {"loss": 1.0}, {}))
    tracker, _ = opened(run)
    tracker.media([text_of(run, 1, "text")])
    assert opened(run)[0].holds() is True
    second = run.parent / "second"
    shutil.copytree(run, second)
    write_json(second / "run.json", {"run_id": "ba9876543210", "project": "demo", "name": "second"})
    opened(second)[0].alert([Alert("nan", 1, 1700000000.0, "warn", "loss is NaN")])
    assert opened(second)[0].holds() is True


def test_a_run_with_only_pictures_is_uploaded_once(run):
    with contextlib.closing(journal.Journal(run)) as book:
        book.write("start", 0, config={"tracker": ["mlflow"]})
        media.write(run, book, "image", "loss", 1, png())
        book.write("finish", 1, status="finished")
    for _ in range(2):
        done = sync(run)
        assert done.returncode == 0 and "again" not in done.stdout, done.stdout


# ---- servers ---------------------------------------------------------------------------------------------------------


def test_a_server_gets_metrics_and_media_with_the_credentials_of_its_address(run, monkeypatch):
    with serving() as server:
        written(run, ("train", 3, {"loss": 1.0}, {}))
        items = media_of(run)
        tracker, note = opened(run, mlflow_tracking_uri=server.address.replace("//", "//me:secret@"))
        assert note == f"see {server.address}/#/experiments/7/runs/abc"
        assert tracker.destination() == f"{server.address}, experiment demo"
        tracker.log([Row("train", 3, 1700000000.5, {"loss": 1.0})])
        tracker.media(items)
        tracker.media(items)
    assert server.metrics() == [("loss", 3, 1.0)]
    assert server.keys == {"Basic bWU6c2VjcmV0"}
    assert len(server.files) == 5
    assert server.files["7/abc/artifacts/texts/sample/step-00000020.txt"] == items[2].path.read_bytes()


def test_a_file_that_is_too_large_for_the_server_is_one_sentence(run):
    with serving() as server:
        written(run, ("train", 3, {"loss": 1.0}, {}))
        tracker, _ = opened(run, mlflow_tracking_uri=server.address)
        server.limit = 3
        with pytest.raises(UserError, match=r"refuses what it gets as too large \(HTTP 413\); raise the limit"):
            tracker.media([text_of(run, 1, "text")])


def test_a_server_that_refuses_the_user_is_told_of_while_the_run_trains(run, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-wrong-token")
    with serving() as server:
        server.refuses = (401, "You are not authenticated.")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        process = trainer(run, "mlflow", end=10_000, pause=0.05, deadline=0)
        try:
            wait_for(lambda: "refuses this user (HTTP 401)" in state(run, "mlflow").message)
            assert process.poll() is None
        finally:
            process.kill()
            process.communicate(timeout=120)
        done = sync(run)
    sentence = f"{server.address} refuses this user (HTTP 401); check MLFLOW_TRACKING_USERNAME"
    assert done.returncode == 1 and sentence in done.stdout, done.stdout
    assert "a-wrong-token" not in done.stdout and server.keys == {"Bearer a-wrong-token"}


def test_databricks_gets_the_run_with_its_token_and_its_refusal_is_recognised(run, monkeypatch):
    written(run, ("train", 3, {"loss": 1.0}, {}))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "/Users/me/gpt2")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks")
    with pytest.raises(Refused, match="Databricks finds no credentials; set DATABRICKS_HOST and DATABRICKS_TOKEN"):
        opened(run)
    found = adapter.examine({"output_dir": str(run.parent)})
    assert [(one.what, one.good) for one in found] == [("tracking URI", True), ("credentials", False)]
    with serving() as server:
        monkeypatch.setenv("DATABRICKS_HOST", server.address)
        monkeypatch.setenv("DATABRICKS_TOKEN", "a-token-of-databricks")
        tracker, note = opened(run)
        assert note == f"see the experiment /Users/me/gpt2 at databricks ({server.address})"
        assert tracker.destination() == f"databricks ({server.address}), experiment /Users/me/gpt2"
        tracker.log([Row("train", 3, 1700000000.5, {"loss": 1.0})])
        assert server.metrics() == [("loss", 3, 1.0)]
        assert "Bearer a-token-of-databricks" in server.keys
        server.refuses = (403, json.dumps({"error_code": "PERMISSION_DENIED", "message": "no"}))
        with pytest.raises(Refused, match=r"refuses this user \(HTTP 403\)"):
            opened(run)
        found = adapter.examine({"output_dir": str(run.parent)})[1]
        assert (found.found, found.good) == (f"pat for {server.address}", True)
