"""Where rows go: a destination that changes or loses the run gets the complete history; a refusal is said at once."""

import json
import textwrap

import pytest

from lib.base import files
from lib.record import journal, media
from lib.track.cursor import path_of
from tests.tracking import expected, recorded, run, state, sync, train, trainer, wait_for

__all__ = ["run"]  # a fixture

# Keeps rows and media in the folder $PLACE, one file for each run; refuses them while that folder has a file `refuse`.
TRAVELLER = """
import json, os
from pathlib import Path
from lib.track.tracker import Refused
class Tracker:
    def open(self, identity, config, folder):
        self.place = Path(os.environ["PLACE"])
        if (self.place / "refuse").exists():
            raise Refused(f"{self.place}: refuses the key; give another")
        self.file = self.place / identity.run_id
        self.had = self.file.exists()
        self.note("config", dict(config))
        return ""
    def destination(self):
        return str(self.place)
    def holds(self):
        return self.had
    def log(self, rows):
        for row in rows:
            self.note(row.event, row.step)
    def alert(self, alerts):
        for alert in alerts:
            self.note("alert", alert.step)
    def media(self, items):
        for item in items:
            self.note("media", item.step, item.kind, item.name, item.path.read_text())
    def finish(self, status):
        self.note("finish", status)
    def note(self, *what):
        with self.file.open("a") as file:
            print(json.dumps(what), file=file)
"""


@pytest.fixture
def places(run, tmp_path, monkeypatch):
    """Makes and chooses a place for the tracker `traveller`."""
    (tmp_path / "site" / "traveller.py").write_text(textwrap.dedent(TRAVELLER))

    def choose(name):
        monkeypatch.setenv("PLACE", str(tmp_path / name))
        (tmp_path / name).mkdir(exist_ok=True)
        return tmp_path / name

    return choose


def held(place, run_id="0123456789ab"):
    """What a place has of a run, without the calls that begin and end it."""
    lines = [json.loads(line) for line in (place / run_id).read_text().splitlines()]
    return [tuple(line) for line in lines if line[0] not in ("config", "finish")]


def test_a_run_that_continues_with_another_destination_delivers_its_whole_history_there(run, places):
    first = places("first")
    train(run, "traveller", end=10)
    second = places("second")
    output = train(run, "traveller", first=10, end=20)
    assert f"the rows went to {first} before; {second} now gets all of the run" in output
    rows = [(event, step) for event, step in expected(run) if event != "finish"]
    assert sorted(held(second)) == sorted(rows)
    before = held(first)
    assert len(before) < len(rows)
    places("first")
    again = sync(run)
    assert again.returncode == 0, again.stdout
    assert f"the rows went to {second} before; {first} now gets the rest" in again.stdout
    assert held(first)[: len(before)] == before
    assert sorted(held(first)) == sorted(rows)


def test_a_destination_that_lost_the_run_gets_it_again(run, places):
    place = places("first")
    train(run, "traveller", end=10)
    before = held(place)
    (place / "0123456789ab").unlink()
    again = sync(run)
    assert again.returncode == 0, again.stdout
    assert f"{place} does not hold the run any more and gets all of it again" in again.stdout
    assert held(place) == before
    assert sync(run).returncode == 0
    assert held(place) == before


def test_a_refusal_is_said_at_once_and_costs_no_time_at_the_end(run, places):
    place = places("first")
    (place / "refuse").touch()
    process = trainer(run, "traveller", pause=0.05, end=60)
    wait_for(lambda: "refuses the key" in state(run, "traveller").message)
    assert process.poll() is None
    output = process.communicate(timeout=60)[0]
    assert f"traveller: {place}: refuses the key; give another; trying again" in output
    assert "traveller  failed    0 rows delivered, 73 pending" in output
    assert f"deliver the rest with: make sync RUN={run}" in output
    (place / "refuse").unlink()
    assert sync(run).returncode == 0
    assert len(held(place)) == 72


def test_media_arrive_once_and_a_file_that_is_gone_is_left_out(tmp_path, run, places):
    place = places("first")
    folder = recorded(tmp_path / "runs" / "second", ("train", 1, {"train_loss": 1.0}, {}), tracker=["traveller"])
    book = journal.Journal(folder)
    for step in (1, 2):
        media.write(folder, book, "text", "sample", step, f"text of {step}".encode())
    book.write("finish", 3, {"final_val_loss": 1.0}, status="finished")
    book.close()
    (folder / "media" / "sample-00000002.txt").unlink()
    for _ in range(2):
        done = sync(folder)
        assert done.returncode == 0, done.stdout
        assert held(place) == [("train", 1), ("media", 1, "text", "sample", "text of 1")]
    log = path_of(folder, "traveller", "log").read_text()
    assert f"{folder}/media/sample-00000002.txt: is no longer there, so the tracker does not get it" in log


def test_a_link_in_the_place_of_media_is_not_followed(tmp_path, run, places):
    """A received run folder must not make a tracker upload another file of the user."""
    folder = recorded(tmp_path / "runs" / "second", tracker=["traveller"])
    book = journal.Journal(folder)
    media.write(folder, book, "text", "sample", 1, b"text")
    book.close()
    (tmp_path / "secret").write_text("a key")
    (folder / "media" / "sample-00000001.txt").unlink()
    (folder / "media" / "sample-00000001.txt").symlink_to(tmp_path / "secret")
    done = sync(folder)
    assert (done.returncode, "sample-00000001.txt: is a link, which may lead to any file" in done.stderr) == (2, True)


def test_a_tracker_shows_the_parameters_of_a_run_and_still_gets_its_own_options(tmp_path, run, places):
    place = places("first")
    folder = recorded(tmp_path / "runs" / "second", tracker=["traveller"])
    book = journal.Journal(folder)
    book.write("resume", 0, config={"tracker": ["traveller"], "n_layer": 4}, parameters={"layers": 4})
    book.write("finish", 0, {"final_val_loss": 1.0}, status="finished")
    book.close()
    assert sync(folder).returncode == 0
    config = json.loads((place / "0123456789ab").read_text().splitlines()[0])
    assert config == ["config", {"layers": 4}]


# ---- media that cannot be delivered ----------------------------------------------------------------------------------


def with_texts(folder, steps, tracker="traveller"):
    """A run with a text and a row at each step."""
    recorded(folder, tracker=[tracker])
    book = journal.Journal(folder)
    for step in range(1, steps + 1):
        book.write("train", step, {"train_loss": 1.0})
        media.write(folder, book, "text", "sample", step, f"text of {step}".encode())
    book.write("finish", steps, {"final_val_loss": 1.0}, status="finished")
    book.close()
    return folder


def test_a_file_that_a_tracker_cannot_take_is_set_aside_and_tried_again(tmp_path, run, places):
    """The rows behind it arrive, the exit code and the message tell of it, and a later sync delivers it."""
    place, folder = places("first"), with_texts(tmp_path / "runs" / "second", 3)
    (folder / "media" / "sample-00000002.txt").write_bytes(b"\xff")  # the traveller reads text
    done = sync(folder)
    assert done.returncode == 1
    assert "traveller  finished  6 rows delivered, 1 pending" in done.stdout
    assert "sample of step 2 is left out: UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff" in done.stdout
    assert f"deliver the rest with: make sync RUN={folder}" in done.stdout
    there = [("train", 1), ("train", 2), ("train", 3), ("media", 1), ("media", 3)]
    assert [what[:2] for what in held(place)] == there
    (folder / "media" / "sample-00000002.txt").write_text("text of 2")
    done = sync(folder)
    assert (done.returncode, "traveller  finished  7 rows delivered" in done.stdout) == (0, True), done.stdout
    assert held(place)[5:] == [("media", 2, "text", "sample", "text of 2")]


def test_a_folder_of_media_that_leads_out_of_the_run_is_not_followed(tmp_path, run, places):
    place, folder = places("first"), with_texts(tmp_path / "runs" / "second", 1)
    (folder / "media").rename(tmp_path / "private")
    (folder / "media").symlink_to(tmp_path / "private")
    done = sync(folder)
    assert done.returncode != 0
    assert not (place / "0123456789ab").exists() or ("media", 1) not in [what[:2] for what in held(place)]


def test_a_checkpoint_on_another_disk_is_sent(tmp_path, run, places):
    place, folder = places("first"), recorded(tmp_path / "runs" / "second", tracker=["traveller"])
    (tmp_path / "disk").mkdir()
    (folder / "checkpoints").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "step-000000001.pt").write_text("weights")
    book = journal.Journal(folder)
    media.keep(folder, book, "last-checkpoint", 1, folder / "checkpoints" / "step-000000001.pt")
    book.close()
    assert sync(folder).returncode == 0
    assert held(place) == [("media", 1, "artifact", "last-checkpoint", "weights")]


def test_sync_fails_while_another_process_delivers(tmp_path, run, places):
    places("first")
    folder = with_texts(tmp_path / "runs" / "second", 1)
    assert sync(folder).returncode == 0
    with path_of(folder, "traveller", "lock").open("ab") as file:
        assert files.locks(file.fileno(), folder)
        done = sync(folder)
    assert (done.returncode, "is already delivering this run to this tracker" in done.stdout) == (1, True)
