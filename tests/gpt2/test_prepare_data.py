"""Preparation through the real command line: shards, meta.json, limits, interruptions, and what goes wrong."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from gpt2.data import prepared, tokenizer
from tests import forked
from tests.data.test_prepare import content, options, tokens, write_lines

ROOT = Path(__file__).parents[2]
LINES = "files-a.jsonl-d99a9e"  # the name of data made from a.jsonl, without the tokenizer
CUT = Path(f"cut/{LINES}-gpt2")  # the folder whose preparation is interrupted


def run(folder, flags):
    """Run the program in `folder` and return (exit code, standard output, standard error)."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CONFIG_")}
    words = ["--config", os.devnull, *flags.split()]
    done = forked.run(folder, "gpt2/prepare_data.py", *words, environment=environment)
    return done.returncode, done.stdout, done.stderr


# ---- what it leaves


def test_a_text_file(tmp_path):
    (tmp_path / "book.txt").write_text("It was the best of times.The end")
    flags = "--dataset files --dataset-source book.txt --tokenizer gpt2 --val-fraction 0.2"
    code, out, err = run(tmp_path, flags)
    assert (code, err) == (0, "")
    assert out.startswith("data/files-book.txt-13c7f0-gpt2: 8 tokens for train, 3 tokens for val, in ")
    folder = tmp_path / "data" / "files-book.txt-13c7f0-gpt2"
    assert tokens(folder, "train").tolist() == [1026, 373, 262, 1266, 286, 1661, 13, 50256]
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


# ---- again


def test_prepared_data_is_left_alone(tmp_path):
    write_lines(tmp_path / "a.jsonl", ["one", "two"])
    flags = "--dataset files --dataset-source a.jsonl --tokenizer bytes"
    assert run(tmp_path, flags)[0] == 0
    again = (
        f"data/{LINES}-bytes: 4 tokens for train, 4 tokens for val: prepared before, with the same settings; "
        "the sha256 of every shard is right\n"
    )
    assert run(tmp_path, flags) == (0, again, "")
    (tmp_path / "a.jsonl").write_text('{"text": "changed"}\n')
    changed = (
        f"error: data/{LINES}-bytes: was prepared differently: the source was 1 files, 32 bytes and is 1 files, "
        "20 bytes; undo that change, choose another DATA_DIR, or delete the folder to prepare it again\n"
    )
    assert run(tmp_path, flags) == (2, "", changed)
    (tmp_path / "a.jsonl").unlink()  # prepared data may outlive what it was made from
    options_of_it = options(tmp_path, dataset_source="a.jsonl", tokenizer="bytes", data_dir=tmp_path / "data")
    prepared.check_settings(options_of_it, prepared.read_meta(options_of_it.folder))
    assert run(tmp_path, f"{flags} --val-fraction 0.2") == (
        2,
        "",
        f"error: data/{LINES}-bytes: was prepared differently: VAL_FRACTION was 0.05 and is 0.2; undo that change, "
        "choose another DATA_DIR, or delete the folder to prepare it again\n",
    )


def test_bins_need_no_preparation(tmp_path):
    assert run(tmp_path, "--dataset bins --data-dir bins") == (
        0,
        "bins: bins are read as they are; there is nothing to prepare\n",
        "",
    )


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
from gpt2.data import encoding, prepare, prepared, shards
from lib.base.errors import run_program
from lib.config.kconf import Schema

def main():
    schema = Schema()
    named = {{"DATASET": "files", "DATASET_SOURCE": "a.jsonl", "TOKENIZER": "gpt2", "DATA_DIR": sys.argv[1]}}
    schema.override([(name, value, "test") for name, value in named.items()])
    encoding._BATCH_TEXTS = 10
    add = shards.ShardWriter.add
    shards.ShardWriter.add = lambda *args: time.sleep(float(sys.argv[2])) or add(*args)
    prepare.prepare(schema.bind(prepared.PreparedOptions), shard_tokens=2000, threads=2)

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
    deadline = time.monotonic() + 120
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
    _, err = child.communicate(timeout=120)
    assert child.returncode == code
    if sent == signal.SIGINT:
        assert err == (
            f"\nfinished shards are kept in {CUT}.partial; run the same command again to continue\ninterrupted\n"
        )
    assert group_is_gone(child.pid)

    partial, final = tmp_path / f"{CUT}.partial", tmp_path / CUT
    meta = json.loads((partial / "meta.json").read_text())
    finished = {shard["file"] for split in meta["splits"].values() for shard in split["shards"]}
    assert len(finished) >= 10
    times = {name: (partial / name).stat().st_mtime_ns for name in finished}
    again = subprocess.run([*slow, "cut", "0"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert again.stderr == f"{CUT}.partial: continuing after {len(finished)} finished shards\n"
    assert {name: (final / name).stat().st_mtime_ns for name in finished} == times
    whole = tmp_path / "whole" / CUT.name
    assert content(final) == content(whole)
    assert not partial.exists()


def test_other_settings_start_over_and_say_so(tmp_path, slow):
    child = start_and_wait_for_shards([*slow, "cut", "0.002"], tmp_path)
    child.kill()
    child.communicate()
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    again = subprocess.run([*slow, "cut", "0"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert again.stderr == (
        f"{CUT}.partial: starting over: its shards were made with other settings or from another source\n"
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
    assert out.endswith(": prepared before, with the same settings; the sha256 of every shard is right\n")
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
    assert re.fullmatch(rf"{CUT}\.partial: continuing after \d\d finished shards\n", err)
    assert out.startswith(f"{CUT}: ") and other.returncode == 0


def test_ctrl_c_ends_the_second_program_while_it_waits(tmp_path, slow):
    first = start_and_wait_for_shards([*slow, "cut", "0.002"], tmp_path)
    other = second([*slow, "cut", "0"], tmp_path)
    other.send_signal(signal.SIGINT)
    assert other.communicate(timeout=120) == ("", "interrupted\n")
    assert other.returncode == 130 and first.poll() is None
    first.kill()
    first.communicate()


# ---- what goes wrong


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": "one"}\n', '{"text": ""}\n'])
def test_too_small_a_corpus_is_one_sentence(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content)
    whole = ", or train on all of it with EVALUATE=n VAL_FRACTION=0" * ("one" in content)
    assert run(tmp_path, "--dataset files --dataset-source a.jsonl --tokenizer bytes") == (
        1,
        "",
        "error: files a.jsonl: holds too little text for training and validation; choose a "
        f"corpus of at least two different documents, or one text of several words{whole}\n",
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
        "sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    flags = (
        f"{ROOT}/gpt2/prepare_data.py --config {os.devnull} --dataset files --dataset-source a.jsonl --tokenizer bytes"
    )
    done = subprocess.run([sys.executable, "-c", code, *flags.split()], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        f"error: data/{LINES}-bytes.partial: the rest of the dataset cannot be written: File too large; it takes "
        "400,000 bytes; make room; finished shards are kept; run the same command again to continue\n",
    )


def test_it_starts_without_torch_or_datasets():
    code = "import sys; from gpt2 import prepare_data; print({'torch', 'datasets', 'tiktoken'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
