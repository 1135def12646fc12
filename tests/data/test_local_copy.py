"""Copies of token files: the same batches, made once for all processes of a machine, and anew when the data changes."""

import os
import threading

import numpy as np
import pytest

from gpt2.data import local_copy, prepare, windows
from gpt2.data.local_files import DataError
from lib.base import files
from tests.disk import disk
from tests.training import schema

__all__ = ["disk"]  # a fixture


@pytest.fixture
def load(tmp_path):
    """Opens the tiny corpus, which is prepared in `data`; with a folder, by a copy there."""
    made = schema(tmp_path)
    prepare.ensure(made.bind(windows.DataOptions))

    def opened(place=""):
        made.override([("DATA_CACHE_DIR", str(place), "test")])
        return windows.load(made.bind(windows.DataOptions))

    return opened


def paths(data):
    return [file.path for split in data.files.values() for file in split]


def test_a_copy_gives_the_same_batches_and_names_the_original(load, tmp_path, capsys):
    plain, copied = load(), load(tmp_path / "local/cache")
    [folder] = (tmp_path / "local/cache").iterdir()
    assert {path.parent for path in paths(copied)} == {folder} and folder.name.startswith(f"{plain.folder.name}-")
    assert capsys.readouterr().out == f"copying 0.00 GB of tokens to {folder}\n"
    assert copied.folder == plain.folder and copied.sums() == plain.sums() and copied.fingerprint == plain.fingerprint
    batches = ([data.batch(3, 1), *data.val_batches()] for data in (copied, plain))
    for ours, theirs in zip(*batches, strict=True):
        assert all(np.array_equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_a_copy_is_used_again_and_made_anew_for_other_data(load, tmp_path, capsys):
    before = paths(load(tmp_path / "cache"))
    inodes = [path.stat().st_ino for path in before]
    capsys.readouterr()
    assert [path.stat().st_ino for path in paths(load(tmp_path / "cache"))] == inodes
    os.utime(before[0], ns=(1, 1))  # as if the original had another time
    again = paths(load(tmp_path / "cache"))
    assert capsys.readouterr().out.count("copying") == 1
    assert [path.stat().st_ino == inode for path, inode in zip(again, inodes, strict=True)] == [False, True]


def test_the_folder_may_be_in_the_users_home(load, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert {path.parents[1] for path in paths(load("~/cache"))} == {tmp_path / "home/cache"}


def test_damaged_originals_are_not_copied(load, tmp_path):
    original = paths(load())[0]
    content = bytearray(original.read_bytes())
    content[7] ^= 1
    original.write_bytes(content)
    with pytest.raises(DataError, match=rf"^{original}: has another sha256 than meta\.json says, so it was changed"):
        load(tmp_path / "cache")
    assert [path.name for path in next((tmp_path / "cache").iterdir()).iterdir()] == ["lock"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(load, disk):
    place = disk("size=16k")
    with pytest.raises(DataError) as caught:
        load(place)
    assert str(caught.value).startswith(f"DATA_CACHE_DIR={place}: ")
    assert "cannot be copied there: No space left on device; it takes " in str(caught.value)
    assert str(caught.value).endswith("; make room; or leave DATA_CACHE_DIR out")
    assert not list(place.rglob("*.bin*"))


def test_a_folder_that_cannot_be_written_is_one_sentence(load, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=rf"^DATA_CACHE_DIR={tmp_path}/file: cannot be written: Not a directory"):
        load(tmp_path / "file")


def test_others_of_the_machine_wait_for_the_one_that_copies(load, tmp_path, capsys):
    folder = paths(load(tmp_path / "cache"))[0].parent
    found = []
    with (folder / "lock").open("wb") as lock:
        assert files.locks(lock.fileno(), folder)
        other = threading.Thread(target=lambda: found.append(load(tmp_path / "cache")))
        capsys.readouterr()
        other.start()
        other.join(0.3)
        assert not found and other.is_alive()
    other.join(10)
    assert len(found) == 1
    assert f"{folder}: another process copies the data; waiting for it" in capsys.readouterr().out
    assert local_copy._state(folder / "none") is None
