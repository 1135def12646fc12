"""Prepared data are found by what they were made from, those of earlier versions too, and notes say what differs."""

import json

import pytest

from gpt2.data import prepare, prepared, windows
from lib.base.errors import UsageError
from tests.data.test_windows import options


def folder_name(**named):
    return options("d", tokenizer="gpt2", **named).folder.name


def test_a_dataset_is_named_by_its_source_where_that_can_vary():
    assert folder_name(dataset="stdlib") == "stdlib-gpt2"
    assert folder_name(dataset="shakespeare") == "shakespeare-gpt2"
    assert folder_name(dataset="openwebtext") == "openwebtext-openwebtext-d7c885-gpt2"
    assert folder_name(dataset="finewebedu") == "finewebedu-sample-10BT-303664-gpt2"
    assert folder_name(dataset="files", dataset_source="/home/me/corpora/letters") == "files-letters-1da9da-gpt2"
    assert folder_name(dataset="files", dataset_source="letters/*.txt") == "files-letters-9c0483-gpt2"
    assert folder_name(dataset="files", dataset_source="[2024] notes") == "files-2024-notes-68cbcb-gpt2"
    assert folder_name(dataset="files", dataset_source="*.txt") == "files-all-71ef66-gpt2"


def test_two_corpora_live_in_one_data_folder_and_spellings_of_one_are_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in "one", "two":
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(f"{name} and the rest of it " * 10)
    made = {
        source: prepare.prepare(options("data", dataset="files", dataset_source=source))
        for source in ("one", "two", "./one/", "one/a.txt", "two/../one")
    }
    assert made["one"] == made["./one/"] == made["two/../one"]
    assert len(set(made.values())) == 3
    assert capsys.readouterr().out.count("prepared before, with the same settings") == 2


@pytest.fixture
def earlier(tmp_path):
    """Options of a dataset of two files that an earlier version prepared: in a folder without the source's name."""
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"{name} and the rest of it, which is long enough " * 10)
    wanted = options(tmp_path / "data", dataset="files", dataset_source=tmp_path / "*.txt")
    folder = prepare.prepare(wanted).rename(tmp_path / "data" / "files-bytes")
    meta = json.loads((folder / "meta.json").read_text())
    del meta["split"]
    (folder / "meta.json").write_text(json.dumps(meta))
    return wanted


NOTE = (
    "was split between training and validation in another way than today (by document, copies on one side), so its "
    "validation losses cannot be compared with those of new data; choose another DATA_DIR, or delete the folder to "
    "prepare it again, unless a run still needs it\n"
)


def test_what_an_earlier_version_prepared_is_found_and_used_with_a_note(tmp_path, earlier, capsys):
    capsys.readouterr()
    assert earlier.folder == tmp_path / "data" / "files-bytes"
    assert windows.load(earlier).folder == earlier.folder
    assert capsys.readouterr().out == f"note: {earlier.folder}: {NOTE}"
    assert prepare.prepare(earlier) == earlier.folder
    assert capsys.readouterr().out.endswith(f"note: {earlier.folder}: {NOTE}")
    assert len(list((tmp_path / "data").iterdir())) == 1


def test_what_an_earlier_version_prepared_from_something_else_is_left_alone(tmp_path, earlier):
    other = options(tmp_path / "data", dataset="files", dataset_source=tmp_path / "a.txt")
    assert prepare.prepare(other) != tmp_path / "data" / "files-bytes"
    assert earlier.folder == tmp_path / "data" / "files-bytes"


def test_a_single_text_is_split_as_it_always_was(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a and the rest of it, which is long enough " * 10)
    wanted = options(tmp_path / "data", dataset="files", dataset_source=tmp_path / "a.txt")
    meta = json.loads((prepare.prepare(wanted) / "meta.json").read_text())
    assert meta.pop("split") == "the end is for validation"
    assert prepared.outdated(wanted, meta) == ""


def test_the_names_of_a_split_are_respected_said_and_recorded(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, size in {"wiki.train.txt": 60_000, "wiki.valid.txt": 3000, "wiki.test.txt": 2000}.items():
        (tmp_path / name).write_text(f"{name} " * (size // len(name)))
    named = {"dataset": "files", "dataset_source": "wiki.*.txt"}
    folder = prepare.prepare(options("data", **named))
    words = (
        "by name: train from wiki.train.txt, val from wiki.valid.txt; VAL_FRACTION has no effect; left out: "
        "wiki.test.txt"
    )
    assert capsys.readouterr().out.startswith(f"wiki.*.txt: split {words}\n{folder}: 64,")
    assert json.loads((folder / "meta.json").read_text())["split"] == words
    assert {path.read_bytes()[: 2 * 10 : 2] for path in folder.glob("val-*")} == {b"wiki.valid"}
    found = windows.load(options("data", **named, val_fraction="0.3"))  # which has no effect
    assert (found.train.tokens, found.val.tokens) == (64_276, 3211)


def test_without_a_validation_part_it_is_a_share_of_training_and_test_is_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text("".join(f'{{"text": "learn {n}"}}\n' for n in range(100)))
    (tmp_path / "test.jsonl").write_text('{"text": "judge"}\n')
    folder = prepare.prepare(options("data", dataset="files", dataset_source="*.jsonl"))
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["split"] == "by name: train from train.jsonl, val from the same by VAL_FRACTION; left out: test.jsonl"
    content = b"".join(path.read_bytes()[::2] for path in folder.glob("*.bin"))
    assert b"judge" not in content
    assert b"learn 99" in content
    with pytest.raises(UsageError, match=r"differently: VAL_FRACTION was 0\.05 and is 0\.3; undo"):
        windows.load(options("data", dataset="files", dataset_source="*.jsonl", val_fraction="0.3"))


def test_a_share_that_is_far_from_what_was_asked_for_is_told(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    prepare.prepare(options(tmp_path / "data", dataset="files", dataset_source=tmp_path / "a.jsonl"))
    assert capsys.readouterr().out.endswith(
        "note: validation has 50.00% of the tokens instead of VAL_FRACTION=5.00%, because the documents are few or "
        "large\n"
    )
