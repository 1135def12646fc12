"""The bridge to Accelerate's trackers: media, servers and keys, read back by the libraries' own readers or files."""

import contextlib
import dataclasses
import http.server
import json
import shutil
import threading
import time
import zipfile

import pytest

from lib.base.errors import UserError
from lib.record import journal
from lib.record.run import Identity
from lib.track import accelerate as bridge
from lib.track.tracker import Media, Row
from tests.tracking import RUN_ID, recorded, run, state, sync

pytest.importorskip("accelerate", reason="needs the optional package accelerate: make test-extras")

__all__ = ["run"]  # a fixture
KEY_OF_EARLIER = "d407ad901895723f32d31e6515f5284b"  # SHA-256 of RUN_ID
KEY = "aWrongKeyOf25Letters00000"
TABLE = {"columns": ["layer", "sparsity"], "rows": [["h_0", 0.5], ["all", "NaN"]]}


def picture(path):
    from PIL import Image

    Image.new("RGB", (3, 2), (0, 128, 0)).save(path, "png")


def media(folder, *steps):
    """An image, a text, a table and an artifact at each step; the files are in the folder `media`."""
    (folder / "media").mkdir(exist_ok=True)
    items = []
    for step in steps:
        for kind, name in (("image", "loss"), ("text", "sample"), ("table", "layers"), ("artifact", "weights")):
            items.append(Media(kind, name, step, 1e9, folder / "media" / f"{name}-{step}"))
        picture(items[-4].path)
        items[-3].path.write_text(f"it was step {step}")
        items[-2].path.write_text(json.dumps(TABLE))
        items[-1].path.write_bytes(b"weights")
    return items


def opened(folder, name="tensorboard", **config):
    tracker = bridge.Tracker(name)
    (folder / "trackers").mkdir(exist_ok=True)
    tracker.open(Identity(RUN_ID, "demo", "first"), {"learning_rate": 0.1} | config, folder)
    return tracker


def accumulated(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "accelerate-tensorboard"), size_guidance={"tensors": 0, "images": 0}).Reload()


@contextlib.contextmanager
def server(status, answer):
    """A server that gives every request the same answer; yields the paths that were asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *words):
            pass

        do_GET = do_POST

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}/clientlib/", asked
        listening.shutdown()


# ---- media and lists of what was sent --------------------------------------------------------------------------------


@pytest.mark.extra("accelerate")
def test_each_item_is_handed_over_once(run):
    items = media(run, 5, 10)
    tracker = opened(run)
    tracker.media(items[:4])
    items[4].path.write_bytes(items[4].path.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"^{run}/media/loss-10: this PNG file is cut off or damaged; write it again$"):
        tracker.media(items)
    tracker.finish("finished")
    picture(items[4].path)
    tracker = opened(run)
    tracker.media(items)
    tracker.finish("finished")
    events = accumulated(run)
    assert [(image.step, image.width, image.height) for image in events.Images("image/loss")] == [(5, 3, 2), (10, 3, 2)]
    texts = {tag: events.Tensors(f"{tag}/text_summary") for tag in ("text/sample", "table/layers")}
    assert {tag: [(e.step, e.tensor_proto.string_val[0].decode()) for e in found] for tag, found in texts.items()} == {
        "text/sample": [(5, "it was step 5"), (10, "it was step 10")],
        "table/layers": [(step, "layer\tsparsity\nh_0\t0.5\nall\tNaN") for step in (5, 10)],
    }
    assert (run / "trackers" / "accelerate-tensorboard.sent").read_text().splitlines() == [
        "configuration",
        *(f'{kind} 5 "{name}"' for kind, name in [("image", "loss"), ("text", "sample"), ("table", "layers")]),
        *(f'{kind} 10 "{name}"' for kind, name in [("image", "loss"), ("text", "sample"), ("table", "layers")]),
    ]


@pytest.mark.extra("accelerate")
def test_each_server_gets_every_row(run, monkeypatch):
    rows = [Row("train", step, 1e9, {"loss": 1.0 / step}) for step in (1, 2)]
    library = bridge._LIBRARIES["tensorboard"]
    for place in ("https://one.example/team", "https://me:secret@two.example", "https://one.example/team"):
        monkeypatch.setitem(bridge._LIBRARIES, "tensorboard", library._replace(place=lambda place=place: place))
        tracker = opened(run)
        assert tracker.destination() == place.replace("me:secret", "***")
        tracker.log(rows)
        tracker.finish("finished")
    assert [point.step for point in accumulated(run).Scalars("loss")] == [1, 2, 1, 2]
    lists = [path.read_text() for path in (run / "trackers").glob("accelerate-tensorboard.*.sent")]
    assert lists == ["configuration\ntrain 1\ntrain 2\n"] * 2


@pytest.mark.extra("accelerate")
def test_a_run_of_an_earlier_version_goes_on_with_its_list(run, monkeypatch):
    rows = [Row("train", step, 1e9, {"loss": 1.0 / step}) for step in (1, 2)]
    library = bridge._LIBRARIES["tensorboard"]
    (run / "trackers").mkdir()
    first = run / "trackers" / "accelerate-tensorboard.sent"
    first.write_text("configuration\ntrain 1\n")
    for place in ("https://one.example", "https://one.example", "https://two.example"):
        # Without `kept`, as at a server.
        monkeypatch.setitem(bridge._LIBRARIES, "tensorboard", library._replace(place=lambda p=place: p, kept=""))
        tracker = opened(run)
        tracker.log(rows)
        tracker.finish("finished")
    assert sorted(point.step for point in accumulated(run).Scalars("loss")) == [1, 2, 2]
    assert first.read_text() == "configuration\ntrain 1\nserver caf88497\ntrain 2\n"
    [second] = (run / "trackers").glob("accelerate-tensorboard.*.sent")
    assert second.read_text() == "configuration\ntrain 1\ntrain 2\n"


@pytest.mark.extra("accelerate")
def test_deleted_files_are_written_again_also_after_a_kill(run):
    folder = recorded(run.parent / "second", *(("train", s, {"train_loss": 0.5}, {}) for s in (1, 2)))
    again = f"{folder} does not hold the run any more and gets all of it again"
    sent = folder / "trackers" / "accelerate-tensorboard.sent"
    for lost in (False, False, True, False, True):
        if lost:
            shutil.rmtree(folder / "accelerate-tensorboard")
        done = sync(folder, "--tracker", "accelerate:tensorboard")
        assert (done.returncode, again in done.stdout) == (0, lost)
        assert [point.step for point in accumulated(folder).Scalars("train_loss")] == [1, 2]
        assert sent.read_text() == "configuration\ntrain 1\ntrain 2\n"
    sent.write_text("configuration\n")  # the process was killed when it had opened the empty folder
    assert opened(folder).holds() is False
    assert not hasattr(bridge.Tracker("comet_ml"), "holds") and not hasattr(bridge.Tracker("aim"), "holds")


@pytest.mark.extra("accelerate")
def test_a_name_that_is_not_utf8_gets_an_escape(run):
    item = dataclasses.replace(media(run, 5)[0], name="caf\udce9")
    for _ in range(2):
        tracker = opened(run, prompt="\udce9")
        tracker.media([item])
        tracker.log([Row("train", 5, 1e9, {"\udce9": 2.0})])
        tracker.finish("finished")
    assert [image.step for image in accumulated(run).Images("image/caf\\udce9")] == [5]
    assert [point.value for point in accumulated(run).Scalars("\\udce9")] == [2.0]


@pytest.mark.extra("clearml")
def test_a_wrong_key_of_clearml_is_said_at_once(run, monkeypatch):
    pytest.importorskip("clearml")
    folder = recorded(run.parent / "second", ("train", 1, {"train_loss": 0.5}, {}))
    with server(401, {}) as (address, asked):
        for host in ("API", "WEB", "FILES"):
            monkeypatch.setenv(f"CLEARML_{host}_HOST", address.removesuffix("/clientlib/"))
        monkeypatch.setenv("CLEARML_API_ACCESS_KEY", KEY)
        monkeypatch.setenv("CLEARML_API_SECRET_KEY", KEY)
        done = sync(folder, "--tracker", "accelerate:clearml")
    assert done.returncode == 1 and asked == ["/auth.login"]
    refusal = "the server refuses the API key or the workspace; correct CLEARML_API_ACCESS_KEY and CLEARML_API_SECRET"
    assert refusal in done.stdout


# ---- Comet -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def comet(run, tmp_path, monkeypatch):
    """Comet without a key, with its settings and files in a new home."""
    pytest.importorskip("comet_ml")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("COMET_API_KEY", "COMET_WORKSPACE", "COMET_START_ONLINE", "COMET_URL_OVERRIDE"):
        monkeypatch.delenv(name, raising=False)
    return recorded(tmp_path / "runs" / "second", *(("train", s, {"train_loss": 0.5 * s}, {}) for s in (1, 2)))


def told(folder):
    """Everything that the tracker left in the run's folder for the user."""
    return "".join(path.read_text() for path in (folder / "trackers").glob("accelerate-comet_ml.[jl]*"))


@pytest.mark.extra("comet_ml")
@pytest.mark.parametrize("status", [400, 401])
def test_a_wrong_key_of_comet_is_said_at_once_and_stays_secret(comet, monkeypatch, tmp_path, status):
    (tmp_path / ".comet.config").write_text(f"[comet]\napi_key={KEY}\n")
    with server(status, {"msg": "API key is not registered", "sdk_error_code": 90212}) as (address, asked):
        monkeypatch.setenv("COMET_URL_OVERRIDE", address)
        began = time.monotonic()
        done = sync(comet, "--tracker", "accelerate:comet_ml")
        assert time.monotonic() - began < 25  # without the waits between attempts; the library takes most of it
        assert set(asked) == {"/clientlib/logger/add/run"}
    refusal = "the server refuses the API key or the workspace; correct COMET_API_KEY and COMET_WORKSPACE, or ~/.comet"
    assert done.returncode == 1 and refusal in done.stdout
    assert f"deliver the rest with: make sync RUN={comet}" in done.stdout
    assert state(comet, "accelerate:comet_ml").rows == 0
    assert KEY not in told(comet) + done.stdout + done.stderr


@pytest.mark.extra("comet_ml")
def test_without_a_key_comet_is_kept_offline_with_media(comet):
    with contextlib.closing(journal.Journal(comet)) as book:
        for item in media(comet, 2):
            place = str(item.path.relative_to(comet))
            book.write("media", item.step, kind=item.kind, name=item.name, file=place, bytes=item.path.stat().st_size)
    done = sync(comet, "--tracker", "accelerate:comet_ml")
    assert done.returncode == 0 and "finished  6 rows delivered" in done.stdout
    upload = f"upload it with: comet upload {comet}/comet/*.zip"
    why = "because neither COMET_API_KEY nor ~/.comet.config has an API key"
    assert f"the run is kept offline, {why}; after its end, {upload}" in done.stdout
    assert state(comet, "accelerate:comet_ml").destination == "https://www.comet.com"
    [path] = (comet / "comet").glob("*.zip")
    with zipfile.ZipFile(path) as packed:
        messages = [json.loads(line) for line in packed.read("messages.json").splitlines()]
        metrics = [m["payload"]["metric"] for m in messages if m["type"] == "metric_msg"]
        assert [(m["metricName"], m["step"], m["metricValue"]) for m in metrics if m["metricName"] == "train_loss"] == [
            ("train_loss", 1, 0.5),
            ("train_loss", 2, 1.0),
        ]
        uploads = [m["payload"] for m in messages if m["type"] == "file_upload"]
        contents = {upload["upload_type"]: packed.read(upload["file_path"]) for upload in uploads[:2]}
        kept = {one["additional_params"]["fileName"]: packed.read(one["file_path"]) for one in uploads[2:]}
    assert contents == {"visualization": (comet / "media" / "loss-2").read_bytes(), "text-sample": b"it was step 2"}
    assert kept == {"layers-2.csv": b"layer,sparsity\r\nh_0,0.5\r\nall,NaN\r\n", "weights-2": b"weights"}


@pytest.mark.extra("comet_ml")
def test_a_run_that_comet_takes_names_its_address_and_its_place(comet, monkeypatch):
    monkeypatch.setenv("COMET_API_KEY", KEY)
    monkeypatch.setenv("COMET_WORKSPACE", "team")
    answer = {"runId": "1", "project_id": "2", "focusUrl": "http://comet.example/team/demo/"}
    with server(200, answer) as (address, _):
        monkeypatch.setenv("COMET_URL_OVERRIDE", address)
        tracker = bridge.Tracker("comet_ml")
        (comet / "trackers").mkdir()
        assert "look at it at http" in tracker.open(Identity(RUN_ID, "demo", "second"), {"learning_rate": 0.1}, comet)
        assert tracker.destination() == f"{address.removesuffix('/clientlib/')}/team"
        tracker.tracker.tracker.end()


@pytest.mark.extra("comet_ml")
def test_a_run_of_an_earlier_version_goes_on_in_its_experiment(comet, monkeypatch):
    (comet / "trackers").mkdir()
    (comet / "trackers" / "accelerate-comet_ml.sent").write_text("configuration\ntrain 1\n")
    for workspace, earlier in (("team", True), ("other", False), ("team", True)):
        monkeypatch.setenv("COMET_WORKSPACE", workspace)
        tracker = bridge.Tracker("comet_ml")
        tracker.open(Identity(RUN_ID, "demo", "second"), {"learning_rate": 0.1}, comet)
        assert (tracker.tracker.tracker.get_key() == KEY_OF_EARLIER) is earlier
        assert ("train 1" in tracker.sent) is earlier
        tracker.finish("finished")
