"""Files are complete or absent, and one process at a time holds a folder."""

import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from lib.base import files
from lib.base.errors import UserError
from lib.config.kconf import ROOT
from tests import training
from tests.forked import Trainer


def test_a_file_gets_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "a.bin"
    with files.whole(path) as file:
        file.write(b"first half")
        file.flush()
        assert not path.exists()
        assert files.partial(path).read_bytes() == b"first half"
    assert path.read_bytes() == b"first half"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_half_way_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), files.whole(path) as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_is_written_and_stays(tmp_path):
    """As /dev/null does, which a test must not risk."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    files.write(path, b"here")
    assert os.read(reader, 100) == b"here"
    assert path.is_fifo()
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_readable_by_people_and_programs(tmp_path):
    files.write_json(tmp_path / "a.json", {"name": "опыт", "n": 1})
    assert (tmp_path / "a.json").read_text() == '{\n "name": "опыт",\n "n": 1\n}\n'
    assert json.loads((tmp_path / "a.json").read_text()) == {"name": "опыт", "n": 1}


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"/none/a.json: cannot be written: No such file or directory$"):
        files.write_json(tmp_path / "none" / "a.json", {})


def test_a_folder_is_held_by_one_process_at_a_time(tmp_path):
    folder = tmp_path / "new"
    code = f"import pathlib, lib.base.files as f\nwith f.held(pathlib.Path({str(folder)!r}), 'writing'): print('held')"

    def other():
        return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)

    with files.held(folder, "writing"):
        done = other()
        assert done.returncode == 1
        assert f"{folder}: another process is writing; wait for it or stop it" in done.stderr
    assert other().stdout == "held\n"
    with pytest.raises(UserError, match="cannot be written"), files.held(folder / "lock", "writing"):
        pass


def test_whether_a_folder_is_held_can_be_asked_without_writing(tmp_path):
    assert not files.is_held(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with files.held(tmp_path, "training"):
        assert files.is_held(tmp_path)
    assert not files.is_held(tmp_path)


def test_a_look_at_a_lock_stops_nobody_from_taking_it(tmp_path, monkeypatch):
    with files.held(tmp_path, "training"):
        pass
    look = os.open(tmp_path / "lock", os.O_RDONLY)
    fcntl.flock(look, fcntl.LOCK_SH)
    monkeypatch.setattr(files.time, "sleep", lambda seconds: os.close(look))  # the look is over meanwhile
    with files.held(tmp_path, "training"):
        assert files.is_held(tmp_path)


def test_of_many_that_come_at_once_one_holds_a_folder(tmp_path):
    barrier, holding, refused = threading.Barrier(8), threading.Event(), []

    def come():
        barrier.wait()
        try:
            with files.held(tmp_path, "training"):
                holding.wait(10)
        except UserError as error:
            refused.append(str(error))
            if len(refused) == 7:
                holding.set()

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(come) for _ in range(8)]:
            future.result()
    assert refused == [f"{tmp_path}: another process is training; wait for it or stop it"] * 7


def test_a_folder_is_held_under_all_its_names_and_a_copy_is_another(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    with files.held(tmp_path / "run", "training"):
        with pytest.raises(UserError, match="another process is training"), files.held(tmp_path / "link", "training"):
            pass
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        with files.held(tmp_path / "copy", "training"):
            pass


def test_what_is_appended_takes_the_place_of_what_a_kill_left(tmp_path):
    path = tmp_path / "a.log"
    files.append(path, b"one\n", after=0)
    path.write_bytes(path.read_bytes() + b"tw")
    files.append(path, b"two\n", after=4)
    assert path.read_bytes() == b"one\ntwo\n"


def test_a_lack_of_room_says_how_much_it_takes_and_other_reasons_do_not(tmp_path):
    def reason(number, size=1234):
        return files.reason(OSError(number, os.strerror(number)), tmp_path, size)

    assert re.fullmatch(
        r"No space left on device; it takes 1,234 bytes and [\d,]+ bytes are free there; make room",
        reason(errno.ENOSPC),
    )
    assert reason(errno.EDQUOT) == "Disk quota exceeded; it takes 1,234 bytes; make room"
    assert reason(errno.EFBIG, 0) == "File too large; make room"
    assert reason(errno.EROFS) == "Read-only file system"
    gone = files.reason(OSError(errno.ENOSPC, "No space left on device"), tmp_path / "gone", 1)
    assert gone == "No space left on device; it takes 1 bytes; make room"


@pytest.mark.parametrize("name", ["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def test_where_the_file_system_has_no_locks_work_goes_on_after_one_note(tmp_path, name):
    code = f"""
import errno, fcntl, os, pathlib
def flock(fd, kind): raise OSError(errno.{name}, os.strerror(errno.{name}))
fcntl.flock = flock
from lib.base import files
for run in "one", "two":
    with files.held(pathlib.Path({str(tmp_path)!r}, run), "training"):
        print(files.is_held(pathlib.Path({str(tmp_path)!r}, run)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    reason = os.strerror(getattr(errno, name))
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "False\nFalse\n",
        f"note: {tmp_path}/one: this file system has no locks ({reason}); do not start a second program that prepares "
        "the same data or trains the same run, and ignore the status crashed of a run that is training\n",
    )


@pytest.mark.parametrize("name", ["EIO", "EBADF"])  # NFS has locks, and answers EBADF where it is asked wrongly
def test_another_failure_of_a_lock_is_raised(tmp_path, monkeypatch, name):
    def flock(fd, kind):
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match=os.strerror(getattr(errno, name))), files.held(tmp_path, "training"):
        pass


def test_a_home_is_expanded_wherever_a_path_is_said(tmp_path, program):
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    (home / "corpus.txt").write_text(training.TEXT)
    (here / ".config").write_text('CONFIG_OUTPUT_DIR="~/runs"\n')
    words = ["JSON_OUTPUT=~/out.json", *training.arguments(max_iters=2, dataset_source="~/corpus.txt")]
    environment = training.environment() | {"HOME": str(home), "CONFIG_DATA_DIR": "~/data"}
    output, _ = Trainer(here, words, environment).communicate(120)
    assert {"corpus.txt", "data", "runs", "out.json"} <= {path.name for path in home.iterdir()}, output
    assert [path.name for path in here.iterdir()] == [".config"]
    assert 'CONFIG_OUTPUT_DIR="~/runs"\n' in (home / "runs/run/.config").read_text()
    start = json.loads((home / "runs/run/journal.jsonl").read_text().splitlines()[0])
    assert start["config"]["output_dir"] == str(home / "runs")
    for words in (["show", "~/runs/run"], ["export", "~/runs/run", "--out", "~/steps.csv"], ["list", "~/runs"]):
        done = program("scripts/runs.py", *words, HOME=str(home))
        assert done.returncode == 0, done.stderr
    assert (home / "steps.csv").exists()
    assert not (here / "~").exists()
