"""TensorBoard, read back by its own readers and its own server: every value once, whatever was killed, cut or full."""

import contextlib
import dataclasses
import io
import json
import re
import resource
import subprocess
import sys
import urllib.parse
import urllib.request

import numpy as np
import pytest

from lib.base.errors import UserError
from lib.record import journal
from lib.record.run import Identity
from lib.track import tensorboard as adapter
from lib.track.tracker import Alert, Media, Row
from tests.tracking import RUN_ID, expected, new_run, recorded, run, state, sync, train, train_while_lanes_die, wait_for

__all__ = ["run"]  # a fixture
pytestmark = pytest.mark.extra("tensorboard")
IDENTITY = Identity(RUN_ID, "demo", "first")


def accumulated(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0}).Reload()


def points(folder):
    """Tag -> every (time, step, value) of the scalars."""
    from tensorboard.util.tensor_util import make_ndarray

    events = accumulated(folder)
    return {
        tag: [(e.wall_time, e.step, make_ndarray(e.tensor_proto).item()) for e in events.Tensors(tag)]
        for tag in events.PluginTagToContent("scalars")
    }


def texts(folder, tag):
    return [event.tensor_proto.string_val[0].decode() for event in accumulated(folder).Tensors(tag)]


def session_end(folder):
    from tensorboard.plugins.hparams import metadata

    tags = accumulated(folder).PluginTagToContent("hparams")
    return metadata.parse_session_end_info_plugin_data(tags[metadata.SESSION_END_INFO_TAG])


def assert_holds(folder):
    wanted = sorted((name, s, v) for (_, s), metrics in expected(folder).items() for name, v in metrics.items())
    found = sorted((tag, s, v) for tag, series in points(folder).items() for _, s, v in series)
    assert [one[:2] for one in found] == [one[:2] for one in wanted]
    np.testing.assert_array_equal(np.float32([one[2] for one in found]), np.float32([one[2] for one in wanted]))


def opened(folder, **config):
    tracker = adapter.Tracker()
    tracker.open(IDENTITY, {"learning_rate": 0.001} | config, folder)
    return tracker


def rows(first, end):
    return [Row("train", step, 1e9 + step / 4, {"train_loss": step / 8, "tokens": step}) for step in range(first, end)]


SAMPLE = "# no heading\n\n    def f(x):\n        return x | 1  # <b> & *y*\n"
TABLE = {"columns": ["layer", "a|b"], "rows": [["h_0_attn", 0.5], ["*x* <b>", None], ["two\nlines", "NaN"], [True, 7]]}
MARKDOWN = """| layer | a\\|b |
| --- | --- |
| h\\_0\\_attn | 0.5 |
| \\*x\\* &lt;b&gt; | null |
| two lines | NaN |
| true | 7 |
"""


def picture(width, height):
    from PIL import Image

    Image.new("RGB", (width, height), (0, 128, 0)).save(file := io.BytesIO(), "png")
    return file.getvalue()


def media(folder, steps=(5, 10)):
    """An image, a text, a table and an artifact at each step; the files are in the folder `media`."""
    contents = {
        ("image", "loss"): picture(30, 20),
        ("text", "sample"): SAMPLE.encode(),
        ("table", "sparsity"): json.dumps(TABLE).encode(),
        ("artifact", "checkpoint"): b"weights",
    }
    (folder / "media").mkdir(exist_ok=True)
    items = []
    for step in steps:
        for (kind, name), content in contents.items():
            path = folder / "media" / f"{name}-{step}"
            path.write_bytes(content)
            items.append(Media(kind, name, step, 1e9 + step, path))
    return items


def shown(folder):
    """Tag -> (time, step, content) of each image and each text, which may be a table."""
    events = accumulated(folder)
    return {
        tag: [(e.wall_time, e.step, e.tensor_proto.string_val[-1]) for e in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
        if tag != "run" and events.SummaryMetadata(tag).plugin_data.plugin_name in ("images", "text")
    }


def steps_shown(folder):
    return {tag: tuple(step for _, step, _ in values) for tag, values in shown(folder).items()}


def assert_shows(folder, steps=(5, 10)):
    block = "".join(f"    {line}\n" for line in SAMPLE.split("\n")).encode()
    wanted = {"image/loss": picture(30, 20), "text/sample": block, "table/sparsity": MARKDOWN.encode()}
    assert shown(folder) == {tag: [(1e9 + step, step, content) for step in steps] for tag, content in wanted.items()}


# ---- what arrives ----------------------------------------------------------------------------------------------------


def test_rows_times_configuration_and_end_arrive(run):
    from tensorboard.plugins.hparams import api_pb2, metadata

    output = train(run, "tensorboard")
    assert f"finished  25 rows delivered\n             look at it with: tensorboard --logdir {run.parent}" in output
    assert_holds(run)
    records = [r for r in journal.read(run) if r["event"] == "train"]
    assert [(t, s) for t, s, _ in points(run)["train_loss"]] == [(r["time"], r["step"]) for r in records]
    tags = accumulated(run).PluginTagToContent("hparams")
    start = metadata.parse_session_start_info_plugin_data(tags[metadata.SESSION_START_INFO_TAG])
    assert (start.group_name, start.start_time_secs) == (RUN_ID, records[0]["time"])
    options = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    assert options == {"tracker": "tensorboard", "wandb_offline": True, "learning_rate": 0.001, "prompt": ""}
    last = next(r for r in journal.read(run) if r["event"] == "finish")
    assert (session_end(run).status, session_end(run).end_time_secs) == (api_pb2.STATUS_SUCCESS, last["time"])
    [about] = texts(run, "run")
    assert f"run_id = {RUN_ID}\n    project = demo\n    name = first\n    status = finished\n" in about
    assert "    learning_rate = 0.001\n" in about


def test_its_server_shows_runs_values_and_results(run):
    train(run, "tensorboard")
    recorded(run.parent / "two words", ("train", 1, {"train_loss": 0.5}, {}))
    assert sync(run.parent / "two words", "--tracker", "tensorboard").returncode == 0
    with served(run.parent) as get:
        tags = get("scalars/tags")
        assert set(tags) == {"first/tensorboard", "two words/tensorboard"}
        names = ["best_val_loss", "final_val_loss", "learning_rate", "tokens", "train_loss", "val_loss"]
        assert sorted(tags["first/tensorboard"]) == names
        shown = get("scalars/scalars", run="first/tensorboard", tag="train_loss")
        assert [step for _, step, _ in shown] == list(range(20))
        assert [value for *_, value in shown[:6]] == [8, 4, np.float32(8 / 3), "NaN", "Infinity", "-Infinity"]
        [about] = get("text/text", run="two words/tensorboard", tag="run")
        assert "name = two words\nstatus = crashed\n" in about["text"]
        statuses = ["STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING", "STATUS_UNKNOWN"]
        asked = {"allowedStatuses": statuses, "startIndex": 0, "sliceSize": 9}
        groups = get("hparams/session_groups", body=asked)["sessionGroups"]
    sessions = {session["name"]: session for group in groups for session in group["sessions"]}
    assert {name: one["status"] for name, one in sessions.items()} == {
        "first/tensorboard": "STATUS_SUCCESS",
        "two words/tensorboard": "STATUS_FAILURE",
    }
    final = {m["name"]["tag"]: m["value"] for m in sessions["first/tensorboard"]["metricValues"]}
    assert (final["final_val_loss"], final["best_val_loss"]) == (1.5, 1.25)


@contextlib.contextmanager
def served(folder):
    """TensorBoard's server on a folder, once it has loaded it; asks its plug-ins."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        home = next(found[0] for line in server.stderr if (found := re.search(r"http://\S+", line)))

        def get(path, body=None, **query):
            address = f"{home}data/plugin/{path}?{urllib.parse.urlencode(query)}"
            data = None if body is None else json.dumps(body).encode()
            headers = {"Content-Type": "application/json"}
            with urllib.request.urlopen(urllib.request.Request(address, data, headers), timeout=30) as answer:
                return json.load(answer) if "json" in answer.headers["Content-Type"] else answer.read()

        wait_for(lambda: len(get("scalars/tags")) == 2)
        yield get
    finally:
        server.terminate()
        server.communicate()


def test_alerts_are_texts(run):
    alert = {"kind": "diverged", "level": "error", "message": "the loss is no number"}
    folder = recorded(
        run / "run", ("train", 1, {"train_loss": 1.0}, {}), ("alert", 1, {}, alert), ("alert", 2, {}, alert)
    )
    for _ in range(2):
        assert sync(folder, "--tracker", "tensorboard").returncode == 0
        assert texts(folder, "alert/diverged") == ["error: the loss is no number"] * 2
        (folder / "trackers" / "tensorboard.json").unlink()


def test_images_texts_and_tables_are_shown_once(tmp_path):
    tracker = opened(tmp_path)
    tracker.media(media(tmp_path, steps=[5]))
    for _ in range(2):
        tracker = opened(tmp_path)
        tracker.media(media(tmp_path))
        tracker.media(media(tmp_path))
        tracker.log([Row("train", 5, 1e9, {"image/loss": 2.0, "loss": 1.0})])
        assert_shows(tmp_path)
        assert points(tmp_path) == {"train/image/loss": [(1e9, 5, 2.0)], "loss": [(1e9, 5, 1.0)]}


def test_a_rewrite_has_only_the_media_that_come_after_it(tmp_path):
    tracker = opened(tmp_path)
    tracker.log(rows(0, 3))
    tracker.media(media(tmp_path))
    for _ in range(2):  # the second time by a process that finds a rewritten file
        tracker.rewrite(rows(0, 2), [])
        assert shown(tmp_path) == {}
        tracker.media(media(tmp_path, steps=[5]))
        assert_shows(tmp_path, steps=[5])
        tracker = opened(tmp_path)


def test_a_run_that_goes_back_shows_its_valid_media(run):
    folder = recorded(run.parent / "second", ("train", 5, {"loss": 1.0}, {}))

    def write(step):
        with contextlib.closing(journal.Journal(folder)) as book:
            for item in media(folder, steps=[step]):
                file = f"media/{item.path.name}"
                book.write("media", step, kind=item.kind, name=item.name, file=file, bytes=item.path.stat().st_size)

    for step in (5, 10):
        write(step)
    assert sync(folder, "--tracker", "tensorboard").returncode == 0
    assert steps_shown(folder) == dict.fromkeys(("image/loss", "text/sample", "table/sparsity"), (5, 10))
    with contextlib.closing(journal.Journal(folder)) as book:
        book.write("resume", 5, config={"tracker": []}, changed={"SEED": ["1", "2"]})
    write(15)
    for _ in range(2):  # the second time without the cursor
        assert sync(folder, "--tracker", "tensorboard").returncode == 0
        assert steps_shown(folder) == dict.fromkeys(("image/loss", "text/sample", "table/sparsity"), (5, 15))
        (folder / "trackers" / "tensorboard.json").unlink()


def test_a_damaged_file_is_a_sentence_and_does_not_count(tmp_path):
    image, text, table, _ = media(tmp_path, steps=[5])
    whole = image.path.read_bytes()
    tracker = opened(tmp_path)
    damage = [
        (image, b"", "is not a PNG file; write it again"),
        (image, b"GIF89a", "is not a PNG file; write it again"),
        (image, whole[:8], "this PNG file is cut off or damaged; write it again"),
        (image, whole[:-1], "this PNG file is cut off or damaged; write it again"),
        (image, whole.replace(b"IDAT", b"IDAX"), "this PNG file is cut off or damaged; write it again"),
        (image, whole[:8] + whole[33:], "this PNG file has no header; write it again"),
        (text, b"caf\xe9", "this text is not UTF-8: "),
        (table, b"", "this table is not JSON: "),
        (table, json.dumps(TABLE).encode()[:-9], "this table is not JSON: "),
        (table, b"[" * 9**5, "this table is not JSON: "),
        (table, b"[]", 'this table is not an object with the lists "columns" and "rows"'),
        (table, b'{"columns": ["a"]}', 'this table is not an object with the lists "columns" and "rows"'),
        (table, b'{"columns": ["a"], "rows": [[1], [1, 2]]}', "row 2 of this table is not a list of 1 cells"),
        (table, b'{"columns": ["a"], "rows": [7]}', "row 1 of this table is not a list of 1 cells"),
    ]
    for item, content, why in damage:
        before = item.path.read_bytes()
        item.path.write_bytes(content)
        with pytest.raises(UserError, match=f"^{re.escape(f'{item.path}: {why}')}"):
            tracker.media([item])
        item.path.write_bytes(before)
    tracker.media([image, text, table])
    assert_shows(tmp_path, steps=[5])


def test_a_name_that_is_not_utf8_gets_an_escape(tmp_path):
    image = dataclasses.replace(media(tmp_path, steps=[5])[0], name="caf\udce9")
    for _ in range(2):
        tracker = opened(tmp_path, prompt="\udce9")
        tracker.media([image])
        tracker.log([Row("train", 5, 1e9, {"\udce9": 2.0})])
    assert "    prompt = \\udce9\n" in texts(tmp_path, "run")[0]
    assert steps_shown(tmp_path) == {"image/caf\\udce9": (5,)}
    assert points(tmp_path) == {"\\udce9": [(1e9, 5, 2.0)]}


def test_a_rewrite_deletes_only_its_own_files(tmp_path):
    (tmp_path / "tensorboard").mkdir()
    theirs = tmp_path / "tensorboard" / "events.out.tfevents.1700000000.host"
    theirs.write_bytes(b"precious")
    tracker = opened(tmp_path)
    assert not tracker.holds()
    tracker.log(rows(0, 3))
    tracker = opened(tmp_path)
    assert tracker.holds()
    tracker.rewrite(rows(0, 2), [])
    assert theirs.read_bytes() == b"precious"
    assert [step for _, step, _ in points(tmp_path)["tokens"]] == [0, 1]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 3


def test_its_server_shows_pictures_code_as_it_is_and_tables(tmp_path):
    for name in ("one", "two"):
        folder = new_run(tmp_path / name)
        tracker = opened(folder)
        tracker.log(rows(0, 2))
        tracker.media(media(folder, steps=[5]))
    with served(tmp_path) as get:
        wait_for(lambda: "two/tensorboard" in get("images/tags"))
        run = "two/tensorboard"
        [image] = get("images/images", run=run, tag="image/loss", sample=0)
        assert image["step"] == 5
        assert get("images/individualImage", **dict(urllib.parse.parse_qsl(image["query"]))) == picture(30, 20)
        [sample] = get("text/text", run=run, tag="text/sample")
        code = "# no heading\n\n    def f(x):\n        return x | 1  # &lt;b&gt; &amp; *y*\n"
        assert sample["text"] == f"<pre><code>{code}</code></pre>"
        [table] = get("text/text", run=run, tag="table/sparsity")
        cells = re.findall(r"<t[hd]>(.*)</t[hd]>", table["text"])
        assert cells == ["layer", "a|b", "h_0_attn", "0.5", "*x* &lt;b&gt;", "null", "two lines", "NaN", "true", "7"]


def test_the_same_metric_of_two_events_is_two_series(tmp_path):
    both = [Row("train", 1, 1e9, {"loss": 1.0, "eval/loss": 2.0}), Row("eval", 1, 1e9, {"loss": 3.0})]
    for _ in range(2):
        opened(tmp_path).log(both)
        assert points(tmp_path) == {
            "loss": [(1e9, 1, 1.0)],
            "eval/loss": [(1e9, 1, 2.0)],
            "eval/eval/loss": [(1e9, 1, 3.0)],
        }


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_numbers_are_rounded_to_float32(tmp_path):
    numbers = {"a": 2**24 + 1, "b": 2**70, "c": 10**400, "d": -(10**400), "e": 1e300, "f": True, "g": 1e-50}
    opened(tmp_path).log([Row("train", 1, 1e9, numbers)])
    found = {tag: series[0][2] for tag, series in points(tmp_path).items()}
    assert found == {"a": 2**24, "b": 2**70, "c": np.inf, "d": -np.inf, "e": np.inf, "f": 1, "g": 0}


def test_a_run_that_crashed_and_went_on_has_finished(run):
    from tensorboard.plugins.hparams import api_pb2

    folder = recorded(run / "run", ("train", 1, {"train_loss": 1.0}, {}))
    assert sync(folder, "--tracker", "tensorboard").returncode == 0
    assert session_end(folder).status == api_pb2.STATUS_FAILURE
    with contextlib.closing(journal.Journal(folder)) as book:
        book.write("resume", 1, config={"learning_rate": 0.5})
        book.write("train", 2, {"train_loss": 0.5})
        book.write("finish", 2, {}, status="interrupted")
    assert sync(folder, "--tracker", "tensorboard").returncode == 0
    assert session_end(folder).status == api_pb2.STATUS_UNKNOWN
    assert [(s, v) for _, s, v in points(folder)["train_loss"]] == [(1, 1.0), (2, 0.5)]
    assert "status = interrupted" in texts(folder, "run")[0] and "learning_rate = 0.5" in texts(folder, "run")[0]


def test_it_needs_neither_pytorch_nor_tensorflow(tmp_path):
    code = (
        "import sys; from pathlib import Path; from lib.record.run import Identity; from lib.track import tensorboard\n"
        "from lib.track.tracker import Row\n"
        f"t = tensorboard.Tracker(); t.open(Identity('{RUN_ID}', 'demo', 'first'), {{}}, Path({str(tmp_path)!r}))\n"
        "t.log([Row('train', 1, 1e9, {'x': 1.0})]); t.finish('finished')\n"
        "print({'torch', 'tensorflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# ---- deaths ----------------------------------------------------------------------------------------------------------


def test_a_lane_killed_at_any_instant_delivers_every_row_once_in_the_end(run):
    train_while_lanes_die(run, "tensorboard", 60)
    for _ in range(2):  # the second time without the cursor, which a kill may lose
        assert sync(run).returncode == 0
        assert_holds(run)
        (run / "trackers" / "tensorboard.json").unlink()


def test_a_file_cut_anywhere_and_continued_holds_every_value_once(tmp_path):
    opened(tmp_path).log(rows(0, 3))
    [path] = (tmp_path / "tensorboard").glob("*tfevents.[1-9]*")
    whole, name = path.read_bytes(), path.name
    for size in range(0, len(whole) + 1, 7):
        folder = new_run(tmp_path / str(size))
        (folder / "tensorboard").mkdir()
        (folder / "tensorboard" / name).write_bytes(whole[:size])
        opened(folder).log(rows(0, 5))
        opened(folder).log(rows(2, 6))
        assert [(t, s, v) for t, s, v in points(folder)["train_loss"]] == [
            (1e9 + step / 4, step, step / 8) for step in range(6)
        ]


def test_a_file_cut_in_its_media_shows_each_once(tmp_path):
    opened(tmp_path).media(media(tmp_path))
    [path] = (tmp_path / "tensorboard").glob("*tfevents.[1-9]*")
    whole, name = path.read_bytes(), path.name
    for size in range(0, len(whole) + 1, 61):
        folder = new_run(tmp_path / str(size))
        (folder / "tensorboard").mkdir()
        (folder / "tensorboard" / name).write_bytes(whole[:size])
        opened(folder).media(media(folder))
        assert_shows(folder)


def test_files_sort_in_the_order_they_were_made_even_when_the_clock_goes_back(tmp_path):
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events.out.tfevents.4000000000.host").touch()
    opened(tmp_path).log(rows(0, 1))
    names = sorted(path.name for path in (tmp_path / "tensorboard").iterdir())
    assert names == [
        "events.out.tfevents.0000000000.session",
        "events.out.tfevents.4000000000.host",
        "events.out.tfevents.4000000001",
    ]


def test_a_full_disk_leaves_whole_records_and_goes_on_when_there_is_room(tmp_path):
    tracker = opened(tmp_path)
    tracker.log(rows(0, 2))
    size, limits = tracker.size, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot be written: File too large; it takes \d+ bytes; make room$"):
            tracker.log(rows(2, 4))
        assert tracker.path.stat().st_size == size
        assert [s for _, s, _ in points(tmp_path)["tokens"]] == [0, 1]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    tracker.log(rows(2, 4))
    assert [s for _, s, _ in points(tmp_path)["tokens"]] == [0, 1, 2, 3]


def test_nothing_new_makes_no_file(tmp_path):
    opened(tmp_path).log(rows(0, 2))
    tracker = opened(tmp_path)
    tracker.log(rows(0, 2))
    tracker.alert([])
    tracker.finish("finished")
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_a_folder_that_cannot_be_made_is_a_sentence(run):
    (run / "tensorboard").write_text("a file where a folder is needed")
    output = train(run, "tensorboard")
    assert "tensorboard failed" in re.sub(" +", " ", output)
    assert f"FileExistsError: [Errno 17] File exists: '{run}/tensorboard'" in output and "Traceback" not in output
    (run / "tensorboard").unlink()
    assert sync(run).returncode == 0 and state(run, "tensorboard").state == "finished"
    assert_holds(run)


def test_alerts_that_come_again_are_not_stored_again(tmp_path):
    alerts = [Alert("finished", 9, 1e9, "info", "trained to the end")]
    for _ in range(2):
        tracker = opened(tmp_path)
        tracker.alert(alerts)
        tracker.alert(alerts)
    assert texts(tmp_path, "alert/finished") == ["info: trained to the end"]
