"""Media: files that the journal refers to, written whole, recorded once, and never outside of the run's folder."""

import json
import os

import pytest

from lib.base.errors import UserError
from lib.record import journal, media
from lib.record.journal import Displaced, Journal


@pytest.fixture
def book(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    return Journal(tmp_path / "run", clock=lambda: 100.5)


def test_a_text_is_a_file_of_its_step_and_a_record_that_refers_to_it(tmp_path, book):
    media.write(tmp_path / "run", book, "text", "sample", 250, "Grüße".encode())
    assert (tmp_path / "run" / "media" / "sample-00000250.txt").read_text(encoding="utf-8") == "Grüße"
    assert list(journal.read(tmp_path / "run")) == [
        {
            "seq": 0,
            "time": 100.5,
            "event": "media",
            "step": 250,
            "metrics": {},
            "kind": "text",
            "name": "sample",
            "file": "media/sample-00000250.txt",
            "bytes": 7,
        }
    ]


def test_a_name_with_a_path_stays_in_the_folder(tmp_path, book):
    record = media.write(tmp_path / "run", book, "image", "../../up", 1, b"png")
    assert record["name"] == "../../up"
    assert record["file"] == "media/up-f18224-00000001.png"
    assert [path.name for path in (tmp_path / "run" / "media").iterdir()] == ["up-f18224-00000001.png"]


def test_an_artifact_is_a_copy_and_a_checkpoint_stays_where_it_is(tmp_path, book):
    run = tmp_path / "run"
    (tmp_path / "config.yaml").write_text("first")
    (run / "checkpoints" / "step-000000003.pt").write_bytes(b"weights")
    copied = media.keep(run, book, "settings", 3, tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("second")
    assert (copied["kind"], copied["file"]) == ("artifact", "media/settings-00000003.yaml")
    assert (run / copied["file"]).read_text() == "first"
    there = media.keep(run, book, "best-checkpoint", 3, run / "checkpoints" / "step-000000003.pt")
    assert (there["file"], there["bytes"]) == ("checkpoints/step-000000003.pt", 7)
    with pytest.raises(UserError, match=r"missing\.bin: cannot be copied into the run's folder: No such file"):
        media.keep(run, book, "missing", 3, tmp_path / "missing.bin")
    assert not list((run / "media").glob("missing*"))


def test_a_removed_folder_is_noticed_before_anything_is_written(tmp_path, book):
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(Displaced):
        media.write(tmp_path / "run", book, "text", "sample", 1, b"text")
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_does_not_record_the_media_of_the_same_steps_again(tmp_path, book):
    run = tmp_path / "run"
    for step in (1, 2):
        book.write("train", step, {"train_loss": 5.0 - step})
        media.write(run, book, "text", "sample", step, b"once")
    book.close()
    again = Journal(run)
    assert again.expect(1) == 2  # the row and the text of step 2
    media.write(run, again, "text", "sample", 1, b"once")
    again.write("train", 2, {"train_loss": 3.0})
    media.write(run, again, "text", "sample", 2, b"once")
    assert [(r["event"], r["step"]) for r in journal.read(run)] == [
        ("train", 1), ("media", 1), ("train", 2), ("media", 2)
    ]  # fmt: skip


def test_media_of_a_step_with_another_result_are_recorded_again(tmp_path, book):
    run = tmp_path / "run"
    book.write("start", 0, config={})
    for step in (1, 2, 3):
        book.write("train", step, {"train_loss": 5.0 - step})
        media.write(run, book, "text", "sample", step, b"old")
    book.close()
    again = Journal(run)
    again.expect(1)
    again.write("resume", 1, config={}, changed={})
    again.write("train", 2, {"train_loss": 3.5})
    media.write(run, again, "text", "sample", 2, b"new")
    known = journal.in_force(run).others
    assert {key: record["seq"] for key, record in known.items()} == {("media sample", 1): 2, ("media sample", 2): 9}


@pytest.mark.parametrize(
    "field",
    [
        {"file": "/etc/passwd"},
        {"file": "media/../../secret"},
        {"file": "trackers/wandb.log"},
        {"file": ""},
        {"file": "media/a\0b"},
        {"file": 5},
        {"kind": "program"},
        {"name": None},
    ],
)
def test_a_line_that_refers_to_any_other_file_is_damaged(field):
    """A received run folder must not make a tracker upload the user's own files."""
    good = {"seq": 0, "time": 1.0, "event": "media", "step": 1, "metrics": {}}
    good |= {"kind": "text", "name": "sample", "file": "media/sample-00000001.txt"}
    assert journal.record(json.dumps(good).encode()) == good
    assert journal.record(json.dumps(good | field).encode()) is None
    for name in ("kind", "name", "file"):
        assert journal.record(json.dumps({key: good[key] for key in good if key != name}).encode()) is None


def test_a_file_name_that_is_not_utf8_gets_a_name_that_everybody_accepts(tmp_path, book):
    path = tmp_path / os.fsdecode(b"caf\xe9.b\xe9n")
    path.write_bytes(b"x")
    record = media.keep(tmp_path / "run", book, path.name, 2, path)
    assert record["name"] == "caf?.b?n"
    assert record["file"] == "media/caf-.b-n-c91df6-00000002"
    assert list(journal.read(tmp_path / "run")) == [record]


def test_only_regular_files_of_the_run_may_be_sent(tmp_path, book):
    run = tmp_path / "run"
    path = run / media.write(run, book, "text", "sample", 1, b"four")["file"]
    assert media.size(path, run) == 4
    (tmp_path / "secret").write_text("a key")
    (run / "media" / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(run / "media" / "pipe")
    for name in ("link", "pipe", "../../secret", "."):
        with pytest.raises(UserError, match="is not a file in the run's folder"):
            media.size(run / "media" / name, run)
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        media.size(run / "media" / ("x" * 300), run)
