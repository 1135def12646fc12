"""Data that has changed, is missing or was never valid: found before training reads it, with a clear sentence."""

import copy
import hashlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.data import prepare, shards, windows
from lib.base import files
from lib.base.errors import UserError
from lib.config.kconf import Schema
from lib.machine.dist import Ranks
from lib.record import checkpoint
from tests import training
from tests.disk import disk
from tests.training import arguments, losses

__all__ = ["disk"]  # a fixture

TEXT = "It was the best of times, it was the worst of times. " * 10


def options(folder, **named):
    schema = Schema()
    named = {"data_dir": folder, "tokenizer": "bytes", "block_size": 8, "batch_size": 4, **named}
    schema.override([(name.upper(), str(value), "test") for name, value in named.items()])
    return schema.bind(windows.DataOptions)


@pytest.fixture
def prepared(tmp_path):
    """Options of a prepared dataset of 3 shards: 2 of training and 1 of validation."""
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name + TEXT)
    (tmp_path / "c.txt").write_text("It was the age of wisdom. " * 10)
    wanted = options(tmp_path / "data", dataset="files", dataset_source=tmp_path / "*.txt")
    prepare.prepare(wanted, shard_tokens=600)
    assert len(list(wanted.folder.iterdir())) == 4
    return wanted


@pytest.fixture
def bins(tmp_path):
    """Options of bins of 3,000,000 tokens for training and 1,000 for validation."""
    (np.arange(3_000_000) % 251).astype("<u2").tofile(tmp_path / "train.bin")
    (np.arange(1000) % 251).astype("<u2").tofile(tmp_path / "val.bin")
    return options(tmp_path, dataset="bins")


def edit(path, place=100, keep_time=False):
    """Another token in the middle of a file, which stays as long as it was."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"!")
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # clocks of file systems are coarse


def one_sentence(call, *args):
    """What a call that fails says."""
    with pytest.raises(UserError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def firsts(found):
    return [found.batch(step, 0)[0].tolist() for step in range(20)]


# ---- between the preparation and a start


@pytest.mark.parametrize("name", ["train-00000.bin", "train-00001.bin", "val-00000.bin"])
def test_a_changed_shard_is_refused(prepared, name):
    edit(prepared.folder / name)
    changed = (
        f"{prepared.folder}/{name}: has another sha256 than meta.json says, so it was changed or damaged; restore it, "
        "or delete the folder and prepare it again"
    )
    assert one_sentence(windows.load, prepared) == changed
    assert one_sentence(prepare.prepare, prepared) == changed


def test_a_copied_or_touched_folder_is_what_it_was(prepared, tmp_path):
    before = windows.load(prepared)
    shutil.copytree(prepared.folder, tmp_path / "copy" / prepared.folder.name, copy_function=shutil.copyfile)
    moved = options(tmp_path / "copy", dataset="files", dataset_source=prepared.dataset_source)
    found = windows.load(moved)
    assert (found.fingerprint, firsts(found)) == (before.fingerprint, firsts(before))
    edit(moved.folder / "train-00000.bin")
    assert f"{moved.folder}/train-00000.bin: has another sha256 than" in one_sentence(windows.load, moved)


def test_a_meta_without_times_is_checked_by_sha256(prepared):
    path = prepared.folder / "meta.json"
    meta = json.loads(path.read_text())
    for split in meta["splits"].values():
        for shard in split["shards"]:
            del shard["mtime_ns"]
    path.write_text(json.dumps(meta))
    windows.load(prepared)
    edit(prepared.folder / "val-00000.bin", keep_time=True)
    assert "val-00000.bin: has another sha256" in one_sentence(windows.load, prepared)


def test_preparing_again_reads_everything_and_learns_new_times(prepared, capsys):
    """A start reads only what has another time than meta.json says; `make data` finds what keeps its time too."""
    meta, shard = prepared.folder / "meta.json", prepared.folder / "train-00001.bin"
    good = shard.read_bytes()
    edit(shard, keep_time=True)
    windows.load(prepared)
    assert "train-00001.bin: has another sha256" in one_sentence(prepare.prepare, prepared)
    shard.write_bytes(good)
    os.utime(shard, ns=(1, 1))
    prepare.prepare(prepared)
    assert capsys.readouterr().out.endswith(
        "prepared before, with the same settings; the sha256 of every shard is right\n"
    )
    assert shards.seals(json.loads(meta.read_text()))[shard.name].mtime_ns == 1


def test_new_times_are_written_by_one_program_at_a_time(prepared):
    meta = prepared.folder / "meta.json"
    before = meta.read_bytes()
    os.utime(prepared.folder / "train-00001.bin", ns=(1, 1))
    holder = os.open(prepared.folder / "lock", os.O_RDWR | os.O_CREAT)
    assert files.locks(holder, prepared.folder)
    assert prepare.prepare(prepared) == prepared.folder
    assert meta.read_bytes() == before
    os.close(holder)
    prepare.prepare(prepared)
    assert shards.seals(json.loads(meta.read_text()))["train-00001.bin"].mtime_ns == 1
    assert not (prepared.folder / "lock").exists()


# ---- files of tokens


def test_more_shards_are_open_than_the_soft_limit_allows(tmp_path):
    for name in ["val.bin", *(f"train-{n}.bin" for n in range(100))]:
        (tmp_path / name).write_bytes(b"ab")
    program = (
        "import resource, sys; from pathlib import Path; from gpt2.data import bins; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1])); "
        "print(len(bins.open_bins(Path(sys.argv[1]))['train']))"
    )
    assert subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True).stdout == "100\n"


def test_a_file_system_that_reads_less_at_a_time_is_read_on(bins, monkeypatch):
    """As FUSE and network file systems may."""
    found = windows.load(bins)
    before, sums = firsts(found), found.sums()
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, place: whole(file, min(size, 7), place))
    assert firsts(found) == before
    monkeypatch.setattr(os, "pread", lambda file, size, place: whole(file, min(size, 1000), place))
    os.utime(bins.folder / "train.bin")
    assert found.sums() == sums


# ---- what the tokens are known by


def test_the_fingerprint_is_of_every_token_and_not_of_names(bins, tmp_path):
    before = windows.load(bins)
    sums = before.sums()
    os.utime(tmp_path / "train.bin")
    (tmp_path / "val.bin").rename(tmp_path / "my_val_0.bin")
    same = windows.load(bins)
    assert same.fingerprint == before.fingerprint
    assert shards.differing(sums, same.sums()) == ""
    edit(tmp_path / "train.bin", place=3_000_000)  # of 6,000,000 bytes
    other = windows.load(bins)
    assert other.fingerprint != before.fingerprint
    assert shards.differing(sums, other.sums()) == "train.bin"


def test_what_differs_is_named():
    def sums(train, val="v"):
        return {"train": {f"train-{n}.bin": sha256 for n, sha256 in enumerate(train)}, "val": {"val-0.bin": val}}

    assert shards.differing(sums("abc"), sums("abc")) == ""
    assert shards.differing(sums("abc"), sums("abd")) == "train-2.bin"
    assert shards.differing(sums("abc"), sums("abc", "w")) == "val-0.bin"
    assert shards.differing(sums("abc"), sums("ab")) == "train-2.bin"
    assert shards.differing(sums("abcdef"), sums("")) == "train-0.bin, train-1.bin, train-2.bin and 3 more"
    assert shards.differing(sums("abc"), sums("acb")) == "the order of the files"


def test_other_ranks_have_what_the_first_has(bins, tmp_path):
    class Second(Ranks):
        """A rank whose first one has told it what its own files are."""

        def first(self, work):
            return known

    known = windows.load(bins).verify({}, "")
    edit(tmp_path / "train.bin", keep_time=True)
    windows.load(bins, Second())  # on one machine these are the same files, which are not read twice
    os.utime(tmp_path / "train.bin")
    assert one_sentence(windows.load, bins, Second()) == (
        f"{tmp_path}/train.bin: differs from the file on rank 0; give all ranks the same data"
    )


# ---- while it is trained on


def test_a_shard_that_is_deleted_or_replaced_stays_what_it_was(prepared):
    found = windows.load(prepared)
    before, sums = firsts(found), found.sums()
    (prepared.folder / "train-00000.bin").unlink()
    (prepared.folder / "new").write_bytes(bytes(10_000))
    (prepared.folder / "new").rename(prepared.folder / "train-00001.bin")
    assert (firsts(found), found.sums()) == (before, sums)


def test_a_shard_that_is_cut_off_is_one_sentence_and_no_signal(prepared):
    found = windows.load(prepared)
    os.truncate(prepared.folder / "train-00000.bin", 4)
    assert one_sentence(firsts, found) == (
        f"{prepared.folder}/train-00000.bin: was cut off while it was in use; restore it"
    )


def test_a_shard_that_is_written_over_ends_in_no_checkpoint(prepared):
    found, shard = windows.load(prepared), prepared.folder / "val-00000.bin"
    sums = found.sums()
    os.utime(shard, ns=(5, 5))
    assert found.sums() == sums  # read once more
    edit(shard)
    assert one_sentence(found.sums) == (
        f"{shard}: was changed while a run trained on it; restore it and resume from the last checkpoint"
    )


def test_a_run_whose_data_change_stops_and_goes_on_when_they_are_back(tmp_path):
    """Written over in place: the next checkpoint is not written, and a resume names the file until it is put back."""
    small = {"n_layer": 1, "n_embd": 16, "gradient_accumulation": 1, "sample_tokens": 0, "lr_schedule": "constant"}
    words = arguments(max_iters=2000, checkpoint_interval=20, eval_interval=0, **small)
    process = training.start(tmp_path, *words)
    run, shard = tmp_path / "runs" / "run", tmp_path / "data" / "files-corpus.txt-574ad6-bytes" / "train-00000.bin"
    while not checkpoint.find(run / "checkpoints"):
        assert process.poll() is None, process.communicate()[0]
    good = shard.read_bytes()
    with shard.open("r+b") as file:
        file.write(b"\7\0" * (len(good) // 2))
    output = process.communicate(timeout=60)[0]
    sentence = f"error: {shard.relative_to(tmp_path)}: was changed while a run trained on it; restore it and resume"
    assert (process.returncode, sentence in output, "Traceback" in output) == (1, True, False), output
    last = checkpoint.find(run / "checkpoints")[-1]
    assert training.records(run, "finish")[-1]["status"] == "failed"
    output = training.train(tmp_path, "--resume", "runs/run", code=1)
    assert "train-00000.bin: has another sha256 than meta.json says" in output
    shard.write_bytes(good)
    steps = int(last.stem.removeprefix("step-")) + 20
    training.train(tmp_path, "--resume", "runs/run", "--max-iters", str(steps))
    training.train(tmp_path, *words, "--max-iters", str(steps), "--output-dir", "elsewhere")
    whole, found = losses(tmp_path / "elsewhere" / "run"), losses(run)
    assert {step: found[step] for step in whole} == whole


# ---- data that were never right

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.integers(1 << 62, 1 << 70) | st.floats() | st.text(max_size=5)
    | st.sampled_from(["../../x", "/etc/passwd", "..", "", "a\0b", "\ud800", "train-00000.bin", "x" * 300, "0" * 64]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip


def places(value, path=()):
    """Every place in a JSON value, as the keys that lead there."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in inner:
        yield (*path, key)
        yield from places(entry, (*path, key))


@pytest.fixture(scope="module")
def crafted(tmp_path_factory):
    """Prepared data whose meta.json tests replace, and what it says."""
    folder = tmp_path_factory.mktemp("crafted")
    for name in "abc":
        (folder / f"{name}.txt").write_text(name + TEXT)
    wanted = options(folder, dataset="files", dataset_source=folder / "*.txt")
    prepare.prepare(wanted, shard_tokens=300)
    return wanted, json.loads((wanted.folder / "meta.json").read_text()), firsts(windows.load(wanted))


@settings(max_examples=300)
@given(choice=st.data())
def test_a_crafted_meta_is_refused_or_means_the_same(crafted, choice):
    wanted, meta, batches = crafted
    meta = copy.deepcopy(meta)
    *path, key = choice.draw(st.sampled_from(list(places(meta))))
    target = meta
    for step in path:
        target = target[step]
    if choice.draw(st.booleans()):
        target[key] = choice.draw(JUNK)
    elif isinstance(target, list):
        target.append(copy.deepcopy(target[key]))
    else:
        del target[key]
    (wanted.folder / "meta.json").write_text(json.dumps(meta))
    try:
        found = windows.load(wanted)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert firsts(found) == batches


@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"version": ' + "9" * 5000 + "}", "\xff", "", "null", "NaN", '{"version": 1}', "[1]"]
)
def test_a_meta_that_is_none_is_damaged(prepared, text):
    path = prepared.folder / "meta.json"
    path.write_bytes(text.encode("latin-1"))
    folder = prepared.folder
    assert one_sentence(windows.load, prepared) == f"{path}: is damaged; delete {folder} and prepare it again"


def test_a_shard_of_other_ids_is_one_sentence(prepared):
    """meta.json agrees with it in everything, as somebody who wanted it to be read could arrange."""
    shard, meta = prepared.folder / "train-00000.bin", prepared.folder / "meta.json"
    before = meta.read_text()
    content = b"\xff" * shard.stat().st_size
    shard.write_bytes(content)
    seal = shards.seals(json.loads(before))[shard.name]
    meta.write_text(before.replace(seal.sha256, hashlib.sha256(content).hexdigest()))
    wanted = f"{shard}: holds token id 65535, beyond the 256 ids of the tokenizer; choose the TOKENIZER that it was"
    assert wanted in one_sentence(windows.load, prepared)
    os.utime(shard, ns=(seal.mtime_ns, seal.mtime_ns))
    assert wanted in one_sentence(prepare.prepare, prepared)
    assert one_sentence(firsts, windows.load(prepared)) == (
        f"{prepared.folder}: the training split holds token id 65535, beyond the 256 ids of the tokenizer bytes; "
        "delete the folder and prepare it again"
    )


@settings(max_examples=200)
@given(content=st.binary(max_size=64), header=st.booleans())
def test_bins_of_any_bytes_are_read_or_refused(tmp_path_factory, content, header):
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    (folder / "val.bin").write_bytes(bytes(100))
    start = np.array([20240520, 1, len(content) // 2], "<i4").tobytes().ljust(1024, b"\0") if header else b""
    (folder / "train.bin").write_bytes(start + content)
    try:
        found = windows.load(options(folder, dataset="bins"))
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert found.train.tokens == len(content) // 2
        assert max(max(row) for row in firsts(found)[0]) < 256


@pytest.mark.parametrize(
    ("put", "message"),
    [
        (lambda path: path.mkdir(), "is not a file"),
        (os.mkfifo, "is not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a file"),
        (lambda path: path.symlink_to("nowhere"), "cannot be read: No such file or directory"),
        (lambda path: path.symlink_to(path.name), "cannot be read: Too many levels of symbolic links"),
    ],
)
def test_what_is_no_file_is_one_sentence(bins, prepared, tmp_path, put, message):
    for wanted, path in (bins, tmp_path / "train.bin"), (prepared, prepared.folder / "train-00000.bin"):
        path.unlink()
        put(path)
        assert one_sentence(windows.load, wanted) == f"{path}: {message}"


# ---- preparation


def test_many_programs_at_once_prepare_one_dataset(tmp_path):
    """One prepares it, the others wait for that, and what is there in the end is whole."""
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name + TEXT)
    for attempt in range(15):
        wanted = options(tmp_path / str(attempt), dataset="files", dataset_source=tmp_path / "*.txt")
        with ThreadPoolExecutor(3) as pool:
            ends = [pool.submit(prepare.prepare, wanted, threads=1) for _ in range(3)]
        assert [end.result() for end in ends] == [wanted.folder] * 3
        assert list(wanted.folder.parent.iterdir()) == [wanted.folder]


def test_a_full_disk_says_what_is_needed_and_the_same_command_goes_on(tmp_path, disk):
    (tmp_path / "a.txt").write_text(TEXT * 400)  # 212,000 characters: 424,000 bytes of tokens
    wanted = options(disk("size=256k"), dataset="files", dataset_source=tmp_path / "a.txt")
    message = one_sentence(lambda: prepare.prepare(wanted, shard_tokens=40_000))
    partial = wanted.folder.with_name(f"{wanted.folder.name}.partial")
    assert message.startswith(
        f"{partial}: the rest of the dataset cannot be written: No space left on device; it takes"
    )
    finished = sum(path.stat().st_size for path in partial.glob("*.bin"))
    needed = int(message.split("it takes ")[1].split(" bytes")[0].replace(",", ""))
    assert finished > 50_000 and abs(finished + needed - 424_000) < 10_000
    assert message.endswith("make room; finished shards are kept; run the same command again to continue")
    assert not wanted.folder.exists()
    disk("size=1m")
    prepare.prepare(wanted, shard_tokens=40_000)
    whole = options(tmp_path / "whole", dataset="files", dataset_source=tmp_path / "a.txt")
    prepare.prepare(whole, shard_tokens=40_000)
    assert windows.load(wanted).sums() == windows.load(whole).sums()
