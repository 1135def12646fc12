"""Preparation: limits, threads, folders of earlier versions, and settings that have changed."""

import itertools
import json
import re
import shutil

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from gpt2.data import encoding, prepare, shards, tokenizer
from gpt2.data.local_files import DataError
from gpt2.data.prepared import PreparedOptions
from lib.base import files
from lib.base.errors import UsageError
from lib.config.kconf import Schema


def options(folder, **named):
    schema = Schema()
    named = {"data_dir": folder / "data", "dataset": "files", "tokenizer": "bytes", **named}
    schema.override([(name.upper(), str(value), "test") for name, value in named.items()])
    return schema.bind(PreparedOptions)


def tokens(folder, split):
    return np.concatenate([np.fromfile(path, "<u2") for path in sorted(folder.glob(f"{split}-*.bin"))])


def content(folder):
    """File -> what is in it, for comparison: without the times in meta.json."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return found | {"meta.json": re.sub(rb'"mtime_ns": \d+', b"", found["meta.json"])}


def write_lines(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_a_limit_that_the_first_document_reaches_leaves_some_for_validation(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", ["first", "second", "third", "fourth"])
    folder = prepare.prepare(options(tmp_path, dataset_source=source, dataset_max_tokens=3))
    assert bytes(tokens(folder, "train").astype(np.uint8)) == b"first\0"
    assert bytes(tokens(folder, "val").astype(np.uint8)) == b"second\0"


def test_a_limit_cuts_a_long_text_and_ends_it(tmp_path, monkeypatch):
    monkeypatch.setattr("gpt2.data.sources.PIECE_BYTES", 10)
    (tmp_path / "a.txt").write_text("aaaa " * 20)
    named = {"dataset_source": tmp_path / "a.txt", "dataset_max_tokens": 12, "val_fraction": "0.1"}
    folder = prepare.prepare(options(tmp_path, **named))
    assert bytes(tokens(folder, "train").astype(np.uint8)) == b"aaaa aaaa aaaa\0"
    assert bytes(tokens(folder, "val").astype(np.uint8)) == b"aaaa aaaa \0"


# ---- without validation ----------------------------------------------------------------------------------------------


def test_all_text_is_for_training_with_a_share_of_0(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("one two three four")
    lines = write_lines(tmp_path / "b.jsonl", ["first", "second", "third"])
    (tmp_path / "docs").mkdir()
    for name, text in (("a.md", "one"), ("b.md", "two")):
        (tmp_path / "docs" / name).write_text(text)
    for source, expected in (("a.txt", b"one two three four\0"), ("b.jsonl", b"first\0second\0third\0"),
                             ("docs", b"one\0two\0")):  # fmt: skip
        named = {"dataset_source": tmp_path / source, "evaluate": "n", "val_fraction": "0"}
        folder = prepare.prepare(options(tmp_path, **named))
        assert bytes(tokens(folder, "train").astype(np.uint8)) == expected
        assert [path.name for path in folder.glob("*.bin")] == ["train-00000.bin"]
        meta = json.loads((folder / "meta.json").read_text())
        assert (meta["split"], meta["splits"]["val"]) == ("all of it is for training", {"tokens": 0, "shards": []})
        assert "tokens for train, 0 tokens for val" in capsys.readouterr().out
        assert prepare.prepare(options(tmp_path, **named)) == folder
    with pytest.raises(UsageError, match=r"VAL_FRACTION was 0\.0 and is 0\.05"):
        prepare.prepare(options(tmp_path, dataset_source=lines))


def test_whether_a_run_evaluates_does_not_change_what_a_folder_holds(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", [f"the document {n}" for n in range(50)])
    for name, evaluate in (("with", "y"), ("without", "n")):
        prepare.prepare(options(tmp_path, data_dir=tmp_path / name, dataset_source=source, evaluate=evaluate))
    (with_,), (without,) = ((tmp_path / name).iterdir() for name in ("with", "without"))
    assert len(tokens(with_, "val")) > 0
    assert content(with_) == content(without)


def test_with_a_share_of_0_preparation_stops_at_the_limit(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(encoding, "_BATCH_TEXTS", 1)
    source = write_lines(tmp_path / "a.jsonl", [f"{n:04}" for n in range(500)])
    whole = encoding._encode
    monkeypatch.setattr(encoding, "_encode", lambda *words: read.append(1) or whole(*words))
    named = {"dataset_source": source, "dataset_max_tokens": 12, "evaluate": "n", "val_fraction": "0"}
    folder = prepare.prepare(options(tmp_path, **named), threads=1)
    assert bytes(tokens(folder, "train").astype(np.uint8)) == b"0000\x000001\x000002\0"
    assert len(read) < 20


def test_a_text_too_short_to_divide_is_enough_without_evaluation(tmp_path, capsys):
    source = write_lines(tmp_path / "a.jsonl", ["word", "word"])
    few = (
        f"files {source}: holds too little text for {{}}; choose a corpus of at least two different documents, or one "
        "text of several words"
    )
    with pytest.raises(DataError) as error:
        prepare.prepare(options(tmp_path, dataset_source=source))
    everything = ", or train on all of it with EVALUATE=n VAL_FRACTION=0"
    assert str(error.value) == few.format("training and validation") + everything
    folder = prepare.prepare(options(tmp_path, dataset_source=source, evaluate="n"))
    assert bytes(tokens(folder, "train").astype(np.uint8)) == b"word\0word\0"
    shutil.rmtree(folder)
    write_lines(source, ["word"])  # all of it is for validation
    with pytest.raises(DataError) as error:
        prepare.prepare(options(tmp_path, dataset_source=source, evaluate="n"))
    assert str(error.value) == few.format("training") + everything
    prepare.prepare(options(tmp_path, dataset_source=source, evaluate="n", val_fraction="0"))
    shutil.rmtree(folder)
    write_lines(source, [""])
    with pytest.raises(DataError) as error:
        prepare.prepare(options(tmp_path, dataset_source=source, evaluate="n", val_fraction="0"))
    assert str(error.value) == few.format("training")


def test_threads_give_what_one_gives(tmp_path, monkeypatch):
    """Small batches, so that several are on their way, and shards of few tokens."""
    monkeypatch.setattr(encoding, "_BATCH_TEXTS", 7)
    source = write_lines(tmp_path / "a.jsonl", [f"the document {n} " * (n % 5) for n in range(300)])
    folders = []
    for threads in 1, 2:
        named = {"data_dir": tmp_path / str(threads), "dataset_source": source, "tokenizer": "gpt2"}
        folders.append(prepare.prepare(options(tmp_path, **named), shard_tokens=500, threads=threads))
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
            prepare.prepare(options(tmp_path, dataset_source=tmp_path / name))
        assert re.fullmatch(f"{re.escape(str(tmp_path))}/{place}: {failure}", str(caught.value))


def test_a_folder_prepared_before_there_were_these_options_is_found(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", ["one", "two", "three"])
    folder = prepare.prepare(options(tmp_path, dataset_source=source))
    meta = json.loads((folder / "meta.json").read_text())
    for name in "dataset_end_of_text", "text_errors":
        del meta["settings"][name]
    (folder / "meta.json").write_text(json.dumps(meta))
    assert prepare.prepare(options(tmp_path, dataset_source=source)) == folder
    with pytest.raises(UsageError, match=r"differently: TEXT_ERRORS was 'strict' and is 'skip'; undo that change"):
        prepare.prepare(options(tmp_path, dataset_source=source, text_errors="skip"))
    with pytest.raises(UsageError, match="differently: DATASET_END_OF_TEXT was False and is True; undo that"):
        prepare.prepare(options(tmp_path, dataset_source=source, dataset_end_of_text="y"))


def test_a_folder_prepared_before_hidden_files_were_left_out_is_found(tmp_path, capsys):
    corpus = tmp_path / "corpus"
    for n, name in enumerate(("a.txt", "b.txt", ".hidden/a.txt", "c.md")):
        (corpus / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / name).write_text(f"{n} of words")
    folder = prepare.prepare(options(tmp_path, dataset_source=corpus))
    meta = json.loads((folder / "meta.json").read_text())
    del meta["settings"]["dataset_end_of_text"], meta["settings"]["text_errors"]
    (corpus / "c.md").write_text("some other words")
    meta["source"] = "3 files, 30 bytes"  # the hidden one and not c.md
    (folder / "meta.json").write_text(json.dumps(meta))
    capsys.readouterr()
    assert prepare.prepare(options(tmp_path, dataset_source=corpus)) == folder
    note = (
        "note: it was made from 3 files, 30 bytes, and the source is now 3 files, 36 bytes; delete the folder to "
        "prepare it again\n"
    )
    assert note in capsys.readouterr().out
    meta["source"] = "2 files, 20 bytes"
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UsageError, match="the source was 2 files, 20 bytes and is 3 files, 36 bytes; undo"):
        prepare.prepare(options(tmp_path, dataset_source=corpus))


def test_what_an_earlier_version_began_to_prepare_is_gone_on_with_or_named(tmp_path, monkeypatch, capsys):
    source = write_lines(tmp_path / "a.jsonl", [f"document {n}" for n in range(50)])
    named, plain = options(tmp_path, dataset_source=source), options(tmp_path).plain_folder
    with monkeypatch.context() as patch:
        patch.setattr(PreparedOptions, "folder", plain)
        patch.setattr(shards.ShardWriter, "finish", interrupted_at(shards.ShardWriter.finish, 3))
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare(named, shard_tokens=50)
    other = options(tmp_path, dataset_source=source, val_fraction="0.25")
    assert prepare.prepare(other) == other.folder != plain
    assert f"note: {plain}.partial: an earlier version began to prepare data with other settings there; delete it" in (
        capsys.readouterr().err
    )
    shutil.rmtree(other.folder)
    assert prepare.prepare(named, shard_tokens=50) == plain
    assert capsys.readouterr().err == f"{plain}.partial: continuing after 2 finished shards\n"
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
    for limit, why in (0, "the documents are few or large"), (10**6, "the documents are few or large"):
        prepare.prepare(options(tmp_path / str(limit), dataset_source=source, dataset_max_tokens=limit))
        assert capsys.readouterr().out.endswith(f", because {why}\n")
    write_lines(source, ["first", "second", "third", "fourth"])
    prepare.prepare(options(tmp_path / "cut", dataset_source=source, dataset_max_tokens=3))
    assert capsys.readouterr().out.endswith(", because DATASET_MAX_TOKENS ended the training part\n")


def test_ensure_prepares_what_is_missing_and_only_that(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", ["one", "two"])
    schema = Schema()
    named = {"DATASET": "files", "DATASET_SOURCE": source, "TOKENIZER": "bytes", "DATA_DIR": tmp_path / "d"}
    schema.override([(name, str(value), "test") for name, value in named.items()])
    prepare.ensure(schema.bind(PreparedOptions))
    meta = schema.bind(PreparedOptions).folder / "meta.json"
    before = meta.stat().st_mtime_ns
    source.unlink()
    prepare.ensure(schema.bind(PreparedOptions))
    assert meta.stat().st_mtime_ns == before


@pytest.mark.parametrize("limit", [0, 40])
def test_killed_at_any_shard_it_goes_on_to_the_same_end(tmp_path, monkeypatch, limit):
    """The process dies right after each of the shards in turn, also between the last of training and of validation."""
    source = write_lines(tmp_path / "a.jsonl", [f"document {n}" for n in range(12)])
    named = {"dataset_source": source, "val_fraction": "0.3", "dataset_max_tokens": limit}
    whole = prepare.prepare(options(tmp_path, **named), shard_tokens=20)
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
            prepare.prepare(target, shard_tokens=20)
        except SystemExit:
            monkeypatch.setattr(files, "commit", commit)
            prepare.prepare(target, shard_tokens=20)
        assert content(target.folder) == expected


def test_a_folder_in_the_way_is_one_sentence(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", ["one", "two"])
    options(tmp_path, dataset_source=source).folder.mkdir(parents=True)
    with pytest.raises(DataError, match=r"-bytes: holds no meta\.json, so it is not a prepared dataset; remove it, or"):
        prepare.prepare(options(tmp_path, dataset_source=source))


def test_other_tokenizers_live_side_by_side_and_settings_are_named(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", ["one", "two"])
    prepare.prepare(options(tmp_path, dataset_source=source))
    prepare.prepare(options(tmp_path, dataset_source=source, tokenizer="gpt2"))
    with pytest.raises(
        UsageError, match=r"DATASET_MAX_TOKENS was 0 and is 5, VAL_FRACTION was 0\.05 and is 0\.5; undo that change"
    ):
        prepare.prepare(options(tmp_path, dataset_source=source, dataset_max_tokens=5, val_fraction="0.5"))
