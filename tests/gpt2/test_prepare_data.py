"""Preparation through the real command line: shards, meta.json, limits, interruptions, and what goes wrong."""

import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from gpt2 import prepare_data
from gpt2.data import shards, tokenizer
from gpt2.data.shards import PreparedOptions
from gpt2.data.sources import DataError
from lib.base import files
from lib.base.errors import UsageError
from lib.config.kconf import Schema

ROOT = Path(__file__).parents[2]
LINES = "files-a.jsonl-d99a9e"  # what data made of a.jsonl are called, but for the tokenizer
CUT = Path(f"cut/{LINES}-gpt2")  # what is interrupted
PROGRAM = [sys.executable, str(ROOT / "gpt2" / "prepare_data.py"), "--config", os.devnull]


def run(folder, flags):
    """Run the program in `folder` and return (exit code, standard output, standard error)."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CONFIG_")}
    done = subprocess.run([*PROGRAM, *flags.split()], cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def options(folder, **named):
    schema = Schema()
    named = {"data_dir": folder / "data", "dataset": "files", "tokenizer": "bytes", **named}
    schema.override([(name.upper(), str(value), "test") for name, value in named.items()])
    return schema.bind(shards.PreparedOptions)


def tokens(folder, split):
    return np.concatenate([np.fromfile(path, "<u2") for path in sorted(folder.glob(f"{split}-*.bin"))])


def content(folder):
    """File -> what is in it, for comparison: without the times in meta.json."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return found | {"meta.json": re.sub(rb'"mtime_ns": \d+', b"", found["meta.json"])}


def write_lines(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


# ---- what it leaves


def test_a_text_file(tmp_path):
    (tmp_path / "book.txt").write_text("It was the best of times.The end")
    flags = "--dataset files --dataset-source book.txt --tokenizer gpt2 --val-fraction 0.2"
    code, out, err = run(tmp_path, flags)
    assert (code, err) == (0, "")
    assert out.startswith("data/files-book.txt-13c7f0-gpt2: 8 tokens for train, 3 tokens for val, in ")
    folder = tmp_path / "data" / "files-book.txt-13c7f0-gpt2"
    assert (
        tokens(folder, "train").tolist()
        == [1026, 373, 262, 1266, 286, 1661, 13, 220, 50256][:7] + tokens(folder, "train").tolist()[7:]
    )
    assert sorted(path.name for path in folder.iterdir()) == ["meta.json", "train-00000.bin", "val-00000.bin"]
    decoded = tokenizer.load("gpt2").decode(tokens(folder, "train"))
    assert decoded == b"It was the best of times.<|endoftext|>"


def test_json_lines_with_every_document_ended(tmp_path):
    write_lines(tmp_path / "a.jsonl", ["one", "two", "three"])
    code, _, err = run(tmp_path, "--dataset files --dataset-source a.jsonl --tokenizer bytes --data-dir d")
    assert (code, err) == (0, "")
    folder = tmp_path / "d" / f"{LINES}-bytes"
    assert bytes(tokens(folder, "train").astype(np.uint8)) == b"one\0three\0"
    assert bytes(tokens(folder, "val").astype(np.uint8)) == b"two\0"
    paths = {split: folder / f"{split}-00000.bin" for split in ("train", "val")}
    sha256 = {split: hashlib.sha256(path.read_bytes()).hexdigest() for split, path in paths.items()}
    mtime_ns = {split: path.stat().st_mtime_ns for split, path in paths.items()}
    assert json.loads((folder / "meta.json").read_text()) == {
        "version": 1,
        "dataset": "files",
        "tokenizer": "bytes",
        "vocab_size": 256,
        "settings": {
            "dataset_source": "a.jsonl",
            "dataset_subset": "",
            "dataset_text_field": "text",
            "dataset_max_tokens": 0,
            "val_fraction": 0.05,
            "dataset_end_of_text": False,
            "text_errors": "strict",
        },
        "piece_bytes": 65536,
        "source": "1 files, 50 bytes",
        "split": "by document, copies on one side",
        "splits": {
            "train": {
                "tokens": 10,
                "shards": [
                    {
                        "file": "train-00000.bin",
                        "tokens": 10,
                        "mtime_ns": mtime_ns["train"],
                        "sha256": sha256["train"],
                        "texts": 3,
                    }
                ],
            },
            "val": {
                "tokens": 4,
                "shards": [
                    {
                        "file": "val-00000.bin",
                        "tokens": 4,
                        "mtime_ns": mtime_ns["val"],
                        "sha256": sha256["val"],
                        "texts": 2,
                    }
                ],
            },
        },
    }


def test_parquet_and_a_limit(tmp_path):
    table = pyarrow.table({"body": [f"document {n}" for n in range(1000)]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    flags = "--dataset files --dataset-source a.parquet --tokenizer bytes --dataset-text-field body"
    code, out, err = run(tmp_path, f"{flags} --dataset-max-tokens 100")
    assert (code, err) == (0, "")
    assert out.startswith("data/files-a.parquet-f49162-bytes: 102 tokens for train, 9 tokens for val, in ")


def test_the_standard_library_is_the_default(tmp_path):
    code, out, _ = run(tmp_path, "--tokenizer bytes")
    assert code == 0
    assert out.startswith("data/stdlib-bytes: ")
    meta = json.loads((tmp_path / "data" / "stdlib-bytes" / "meta.json").read_text())
    assert meta["source"].startswith("cpython 3.")
    assert meta["splits"]["train"]["tokens"] > 8_000_000


def test_a_limit_that_the_first_document_reaches_leaves_some_for_validation(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", ["first", "second", "third", "fourth"])
    folder = prepare_data.prepare(options(tmp_path, dataset_source=source, dataset_max_tokens=3))
    assert bytes(tokens(folder, "train").astype(np.uint8)) == b"first\0"
    assert bytes(tokens(folder, "val").astype(np.uint8)) == b"second\0"


def test_a_limit_cuts_a_long_text_and_ends_it(tmp_path, monkeypatch):
    monkeypatch.setattr("gpt2.data.sources.PIECE_BYTES", 10)
    (tmp_path / "a.txt").write_text("aaaa " * 20)
    named = {"dataset_source": tmp_path / "a.txt", "dataset_max_tokens": 12, "val_fraction": "0.1"}
    folder = prepare_data.prepare(options(tmp_path, **named))
    assert bytes(tokens(folder, "train").astype(np.uint8)) == b"aaaa aaaa aaaa\0"
    assert bytes(tokens(folder, "val").astype(np.uint8)) == b"aaaa aaaa \0"


def test_threads_give_what_one_gives(tmp_path, monkeypatch):
    """Small batches, so that several are on their way, and shards of few tokens."""
    monkeypatch.setattr(prepare_data, "_BATCH_TEXTS", 7)
    source = write_lines(tmp_path / "a.jsonl", [f"the document {n} " * (n % 5) for n in range(300)])
    folders = []
    for threads in 1, 2:
        named = {"data_dir": tmp_path / str(threads), "dataset_source": source, "tokenizer": "gpt2"}
        folders.append(prepare_data.prepare(options(tmp_path, **named), shard_tokens=500, threads=threads))
    assert len(list(folders[0].iterdir())) > 4
    assert content(folders[0]) == content(folders[1])


def test_a_text_on_which_the_tokenizer_fails_is_named(tmp_path, monkeypatch):
    class Fails(tokenizer.Bytes):
        def encode_batch(self, texts):
            if any("three" in text for text in texts):
                raise ValueError("Regex error\nwhile tokenizing.")
            return super().encode_batch(texts)

    monkeypatch.setattr(tokenizer, "load", lambda name: Fails())
    words = ["one", "two", "three", "four"]
    write_lines(tmp_path / "a.jsonl", words)
    pyarrow.parquet.write_table(pyarrow.table({"text": words}), tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("one\n" * 50_000 + "three")
    failure = "the tokenizer fails: Regex error while tokenizing; change or remove that text"
    places = {"a.jsonl": "a.jsonl:3", "a.parquet": "a.parquet: row 3", "a.txt": r"a.txt: about byte \d+,\d+"}
    for name, place in places.items():
        with pytest.raises(DataError) as caught:
            prepare_data.prepare(options(tmp_path, dataset_source=tmp_path / name))
        assert re.fullmatch(f"{re.escape(str(tmp_path))}/{place}: {failure}", str(caught.value))


def test_a_folder_prepared_before_there_were_these_options_is_found(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", ["one", "two", "three"])
    folder = prepare_data.prepare(options(tmp_path, dataset_source=source))
    meta = json.loads((folder / "meta.json").read_text())
    for name in "dataset_end_of_text", "text_errors":
        del meta["settings"][name]
    (folder / "meta.json").write_text(json.dumps(meta))
    assert prepare_data.prepare(options(tmp_path, dataset_source=source)) == folder
    with pytest.raises(UsageError, match=r"was prepared with TEXT_ERRORS 'strict', not 'skip'; set that, choose"):
        prepare_data.prepare(options(tmp_path, dataset_source=source, text_errors="skip"))
    with pytest.raises(UsageError, match="was prepared with DATASET_END_OF_TEXT False, not True; set that, choose"):
        prepare_data.prepare(options(tmp_path, dataset_source=source, dataset_end_of_text="y"))


def test_a_folder_prepared_before_hidden_files_were_left_out_is_found(tmp_path, capsys):
    corpus = tmp_path / "corpus"
    for n, name in enumerate(("a.txt", "b.txt", ".hidden/a.txt", "c.md")):
        (corpus / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / name).write_text(f"{n} of words")
    folder = prepare_data.prepare(options(tmp_path, dataset_source=corpus))
    meta = json.loads((folder / "meta.json").read_text())
    del meta["settings"]["dataset_end_of_text"], meta["settings"]["text_errors"]
    (corpus / "c.md").write_text("some other words")
    meta["source"] = "3 files, 30 bytes"  # the hidden one and not c.md
    (folder / "meta.json").write_text(json.dumps(meta))
    capsys.readouterr()
    assert prepare_data.prepare(options(tmp_path, dataset_source=corpus)) == folder
    note = (
        "note: it was made from 3 files, 30 bytes; now there is 3 files, 36 bytes: delete the folder to prepare it anew"
    )
    assert note in capsys.readouterr().out
    meta["source"] = "2 files, 20 bytes"
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UsageError, match="was prepared with 2 files, 20 bytes, and there are 3 files, 36 bytes now"):
        prepare_data.prepare(options(tmp_path, dataset_source=corpus))


def test_what_an_earlier_version_began_to_prepare_is_gone_on_with_or_named(tmp_path, monkeypatch, capsys):
    source = write_lines(tmp_path / "a.jsonl", [f"document {n}" for n in range(50)])
    named, plain = options(tmp_path, dataset_source=source), options(tmp_path).plain_folder
    with monkeypatch.context() as patch:
        patch.setattr(PreparedOptions, "folder", plain)
        patch.setattr(shards.ShardWriter, "finish", interrupted_at(shards.ShardWriter.finish, 3))
        with pytest.raises(KeyboardInterrupt):
            prepare_data.prepare(named, shard_tokens=50)
    other = options(tmp_path, dataset_source=source, val_fraction="0.25")
    assert prepare_data.prepare(other) == other.folder != plain
    assert f"note: {plain}.partial: an earlier version began to prepare other data there; delete it, or set again" in (
        capsys.readouterr().err
    )
    shutil.rmtree(other.folder)
    assert prepare_data.prepare(named, shard_tokens=50) == plain
    assert capsys.readouterr().err == f"{plain}.partial: going on after 2 finished shards\n"
    assert named.folder == plain


def interrupted_at(function, call):
    calls = itertools.count(1)

    def interrupted(*args):
        if next(calls) == call:
            raise KeyboardInterrupt
        return function(*args)

    return interrupted


def test_the_reason_for_a_share_that_is_off_is_the_right_one(tmp_path, capsys):
    source = write_lines(tmp_path / "a.jsonl", ["a document"] * 50 + ["x", "y"])
    for limit, why in (0, "documents are few or large"), (10**6, "documents are few or large"):
        prepare_data.prepare(options(tmp_path / str(limit), dataset_source=source, dataset_max_tokens=limit))
        assert capsys.readouterr().out.endswith(f", since {why}\n")
    write_lines(source, ["first", "second", "third", "fourth"])
    prepare_data.prepare(options(tmp_path / "cut", dataset_source=source, dataset_max_tokens=3))
    assert capsys.readouterr().out.endswith(", since DATASET_MAX_TOKENS ended the training part\n")


# ---- again


def test_prepared_data_is_left_alone(tmp_path):
    write_lines(tmp_path / "a.jsonl", ["one", "two"])
    flags = "--dataset files --dataset-source a.jsonl --tokenizer bytes"
    assert run(tmp_path, flags)[0] == 0
    again = (
        f"data/{LINES}-bytes: 4 tokens for train, 4 tokens for val: prepared before, with the same settings; "
        "every shard has its sha256\n"
    )
    assert run(tmp_path, flags) == (0, again, "")
    (tmp_path / "a.jsonl").write_text('{"text": "changed"}\n')
    changed = (
        f"error: data/{LINES}-bytes: was prepared with 1 files, 32 bytes, and there are 1 files, 20 bytes now; "
        "set that, choose another DATA_DIR, or delete the folder to prepare it again\n"
    )
    assert run(tmp_path, flags) == (2, "", changed)
    (tmp_path / "a.jsonl").unlink()  # prepared data may outlive what it was made from
    options_of_it = options(tmp_path, dataset_source="a.jsonl", tokenizer="bytes", data_dir=tmp_path / "data")
    shards.check_settings(options_of_it, shards.read_meta(options_of_it.folder))
    assert run(tmp_path, f"{flags} --val-fraction 0.2") == (
        2,
        "",
        f"error: data/{LINES}-bytes: was prepared with VAL_FRACTION 0.05, not 0.2; set that, choose another DATA_DIR, "
        "or delete the folder to prepare it again\n",
    )


def test_bins_need_no_preparation(tmp_path):
    assert run(tmp_path, "--dataset bins --data-dir bins") == (
        0,
        "bins: bins are read as they are; there is nothing to prepare\n",
        "",
    )


def test_ensure_prepares_what_is_missing_and_only_that(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", ["one", "two"])
    schema = Schema()
    named = {"DATASET": "files", "DATASET_SOURCE": source, "TOKENIZER": "bytes", "DATA_DIR": tmp_path / "d"}
    schema.override([(name, str(value), "test") for name, value in named.items()])
    prepare_data.ensure(schema)
    meta = schema.bind(shards.PreparedOptions).folder / "meta.json"
    before = meta.stat().st_mtime_ns
    source.unlink()
    prepare_data.ensure(schema)
    assert meta.stat().st_mtime_ns == before


# ---- interruptions


@pytest.fixture
def slow(tmp_path):
    """A corpus of 3000 documents, and a program that prepares it in shards of 2000 tokens, a document a millisecond.

    The program finds locks as NFS has them: for what is open for writing alone.
    """
    write_lines(tmp_path / "a.jsonl", [f"document {n}, {'and so on ' * (n % 20)}" for n in range(3000)])
    program = tmp_path / "slow.py"
    program.write_text(f"""
import errno, fcntl, os, sys, time
sys.path[0] = {str(ROOT)!r}
from gpt2 import prepare_data
from gpt2.data import shards
from lib.base.errors import run_program
from lib.config.kconf import Schema

def main():
    schema = Schema()
    named = {{"DATASET": "files", "DATASET_SOURCE": "a.jsonl", "TOKENIZER": "gpt2", "DATA_DIR": sys.argv[1]}}
    schema.override([(name, value, "test") for name, value in named.items()])
    prepare_data._BATCH_TEXTS = 10
    add = shards.ShardWriter.add
    shards.ShardWriter.add = lambda *args: time.sleep(float(sys.argv[2])) or add(*args)
    prepare_data.prepare(schema.bind(shards.PreparedOptions), shard_tokens=2000, threads=2)

def nfs(fd, kind, flock=fcntl.flock):
    if kind & fcntl.LOCK_EX and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    flock(fd, kind)

fcntl.flock = nfs

if __name__ == "__main__":
    run_program(main)
""")
    return [sys.executable, str(program)]


def wait_for(condition, child):
    deadline = time.monotonic() + 30
    while not condition():
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def start_and_wait_for_shards(command, folder, shard="train-00010.bin"):
    child = subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for((folder / f"{CUT}.partial" / shard).exists, child)
    return child


def group_is_gone(group):
    """Whether no process of the group is left, waiting up to 10 seconds for that."""
    for _ in range(200):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_an_interruption_costs_no_finished_shard(tmp_path, slow, sent, code):
    assert subprocess.run([*slow, "whole", "0"], cwd=tmp_path, capture_output=True).returncode == 0
    child = start_and_wait_for_shards([*slow, "cut", "0.002"], tmp_path)
    if sent == signal.SIGINT:
        os.killpg(child.pid, sent)  # as a terminal does
    else:
        child.send_signal(sent)
    _, err = child.communicate(timeout=30)
    assert child.returncode == code
    if sent == signal.SIGINT:
        assert err == (
            f"\nfinished shards are kept in {CUT}.partial; run the same command again to go on\ninterrupted\n"
        )
    assert group_is_gone(child.pid)

    partial, final = tmp_path / f"{CUT}.partial", tmp_path / CUT
    meta = json.loads((partial / "meta.json").read_text())
    finished = {shard["file"] for split in meta["splits"].values() for shard in split["shards"]}
    assert len(finished) >= 10
    times = {name: (partial / name).stat().st_mtime_ns for name in finished}
    again = subprocess.run([*slow, "cut", "0"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert again.stderr == f"{CUT}.partial: going on after {len(finished)} finished shards\n"
    assert {name: (final / name).stat().st_mtime_ns for name in finished} == times
    whole = tmp_path / "whole" / CUT.name
    assert content(final) == content(whole)
    assert not partial.exists()


@pytest.mark.parametrize("limit", [0, 40])
def test_killed_at_any_shard_it_goes_on_to_the_same_end(tmp_path, monkeypatch, limit):
    """The process dies right after each of the shards in turn, also between the last of training and of validation."""
    source = write_lines(tmp_path / "a.jsonl", [f"document {n}" for n in range(12)])
    named = {"dataset_source": source, "val_fraction": "0.3", "dataset_max_tokens": limit}
    whole = prepare_data.prepare(options(tmp_path, **named), shard_tokens=20)
    expected = content(whole)
    commit, count = files.commit, len(expected) * 2
    for death in range(1, count):
        calls = iter(range(1, 1000))

        def dying(file, path, calls=calls, death=death):
            commit(file, path)
            if next(calls) == death:
                raise SystemExit("killed")

        target = options(tmp_path, **named, data_dir=tmp_path / str(death))
        monkeypatch.setattr(files, "commit", dying)
        try:
            prepare_data.prepare(target, shard_tokens=20)
        except SystemExit:
            monkeypatch.setattr(files, "commit", commit)
            prepare_data.prepare(target, shard_tokens=20)
        assert content(target.folder) == expected


def test_other_settings_start_over_and_say_so(tmp_path, slow):
    child = start_and_wait_for_shards([*slow, "cut", "0.002"], tmp_path)
    child.kill()
    child.communicate()
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    again = subprocess.run([*slow, "cut", "0"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert again.stderr == (
        f"{CUT}.partial: starting over: what is there was made with other settings or from another source\n"
    )


def second(command, folder):
    """Start the same preparation once more, and return when it waits for the first."""
    child = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stderr.readline() == (f"{CUT}.partial: another program is preparing this dataset; waiting for it\n")
    return child


def test_the_second_of_two_programs_waits_and_uses_what_the_first_prepares(tmp_path, slow):
    first = start_and_wait_for_shards([*slow, "cut", "0.0005"], tmp_path, "train-00001.bin")
    out, err = second([*slow, "cut", "0"], tmp_path).communicate(timeout=60)
    assert first.wait(timeout=60) == 0
    assert out.endswith(": prepared before, with the same settings; every shard has its sha256\n")
    assert err == ""
    assert [path.name for path in (tmp_path / "cut").iterdir()] == [CUT.name]
    assert {path.suffix for path in (tmp_path / CUT).iterdir()} == {".bin", ".json"}  # and no lock
    first.communicate()


def test_the_second_program_goes_on_when_the_first_is_killed(tmp_path, slow):
    first = start_and_wait_for_shards([*slow, "cut", "0.002"], tmp_path)
    other = second([*slow, "cut", "0"], tmp_path)
    first.kill()
    first.communicate()
    out, err = other.communicate(timeout=60)
    assert re.fullmatch(rf"{CUT}\.partial: going on after \d\d finished shards\n", err)
    assert out.startswith(f"{CUT}: ") and other.returncode == 0


def test_ctrl_c_ends_the_second_program_while_it_waits(tmp_path, slow):
    first = start_and_wait_for_shards([*slow, "cut", "0.002"], tmp_path)
    other = second([*slow, "cut", "0"], tmp_path)
    other.send_signal(signal.SIGINT)
    assert other.communicate(timeout=30) == ("", "interrupted\n")
    assert other.returncode == 130 and first.poll() is None
    first.kill()
    first.communicate()


def test_a_lock_that_its_holder_has_removed_is_taken_anew(tmp_path):
    """Whoever waited for a lock, and gets it when it has been removed, does not hold the folder."""

    def held(wait):
        return prepare_data._held(tmp_path, wait=wait)

    first = held(False)
    assert held(False) is None
    late = os.open(tmp_path / "lock", os.O_RDWR)  # of a program that waits
    prepare_data._give_back(tmp_path, first)
    tmp_path.mkdir()
    other = held(False)
    fcntl.flock(late, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it has the old lock
    assert not os.path.samestat(os.fstat(late), os.fstat(other))
    prepare_data._give_back(tmp_path, late)  # and removes nothing of the other program's
    assert held(False) is None
    prepare_data._give_back(tmp_path, other)
    assert not tmp_path.exists()


# ---- what goes wrong


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": "one"}\n', '{"text": ""}\n'])
def test_too_small_a_corpus_is_one_sentence(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content)
    assert run(tmp_path, "--dataset files --dataset-source a.jsonl --tokenizer bytes") == (
        1,
        "",
        "error: files a.jsonl: holds too little text for training and validation; it takes two documents that differ, "
        "or a text of several words, at least\n",
    )


def test_mistakes_leave_nothing_behind(tmp_path):
    code, out, err = run(tmp_path, "--dataset shakespeare --dataset-source nowhere.txt --tokenizer bytes")
    assert (code, out, err) == (1, "", "error: nowhere.txt: cannot be read: No such file or directory\n")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_full_disk_is_one_sentence(tmp_path):
    """A limit on the size of files stands for the disk: Python ignores the signal, and writing fails."""
    write_lines(tmp_path / "a.jsonl", ["x" * 100_000, "y" * 100_000])
    code = (
        "import resource, signal, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); "
        f"sys.argv = {PROGRAM[1:]!r} + sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    flags = "--dataset files --dataset-source a.jsonl --tokenizer bytes"
    done = subprocess.run([sys.executable, "-c", code, *flags.split()], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        f"error: data/{LINES}-bytes.partial: the rest of the dataset cannot be written: File too large; it takes "
        "400,000 bytes; make room; finished shards are kept, and the same command goes on\n",
    )


def test_a_folder_in_the_way_is_one_sentence(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", ["one", "two"])
    options(tmp_path, dataset_source=source).folder.mkdir(parents=True)
    with pytest.raises(DataError, match=r"-bytes: is in the way: it holds no meta\.json; remove it or choose"):
        prepare_data.prepare(options(tmp_path, dataset_source=source))


def test_other_tokenizers_live_side_by_side_and_settings_are_named(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", ["one", "two"])
    prepare_data.prepare(options(tmp_path, dataset_source=source))
    prepare_data.prepare(options(tmp_path, dataset_source=source, tokenizer="gpt2"))
    with pytest.raises(
        UsageError, match=r"DATASET_MAX_TOKENS 0, not 5 and VAL_FRACTION 0.05, not 0.5; set that, choose"
    ):
        prepare_data.prepare(options(tmp_path, dataset_source=source, dataset_max_tokens=5, val_fraction="0.5"))


def test_it_starts_without_torch_or_datasets():
    code = "import sys; from gpt2 import prepare_data; print({'torch', 'datasets', 'tiktoken'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
