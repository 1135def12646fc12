"""Splits: the share is right for documents of any size, and no document is in both splits."""

import gzip
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.data import sources, splits, tokenizer
from gpt2.data.repairs import Repairs

# ---- by share


def prose(size, seed):
    """A text of about so many characters that is like no other."""
    r = random.Random(seed)
    words = []
    while size > 0:
        words.append("".join(r.choices("abcdefgh", k=r.randrange(2, 8))))
        size -= len(words[-1]) + 1
    return " ".join(words)


def assign(documents, fraction):
    found = list(splits.assign(iter(documents), fraction))
    assert sorted("".join(text.text for text in found)) == sorted("".join(documents))
    return {split: [text.text for text in found if text.split == split] for split in ("train", "val")}


def share(found):
    val, train = (sum(map(len, found[split])) for split in ("val", "train"))
    return val / (val + train)


def test_a_large_document_is_cut_so_that_the_share_holds():
    for sizes in [3000, 60_000, 3000], [60_000, 3000], [3000, 60_000], [20_000], [10_000] * 10, [9000] * 3:
        found = assign([prose(size, n) for n, size in enumerate(sizes)], 0.05)
        assert 0.045 < share(found) < 0.0505, sizes


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=100), fraction=st.floats(0.01, 0.5))
def test_the_share_holds_within_a_document(sizes, fraction):
    documents = [f"{n} {prose(size, n)}" for n, size in enumerate(sizes)]
    found, total = assign(documents, fraction), sum(map(len, documents))
    val = sum(map(len, found["val"]))
    assert abs(val - fraction * total) <= max(map(len, documents))
    assert val <= 2 * fraction * total + 8  # a word


def test_most_documents_are_not_cut():
    documents = [prose(200, n) for n in range(2000)]
    found = assign(documents, 0.01)
    assert len(set(found["train"] + found["val"]) - set(documents)) < 20
    assert abs(share(found) - 0.01) < 0.001


def test_a_choice_does_not_depend_on_a_documents_size():
    """Validation holds long and short documents as the corpus does, once that is large beside any of them."""
    documents = [prose(50 if n % 3 else 2000, n) for n in range(1500)]
    long = [text for text in assign(documents, 0.05)["val"] if len(text) > 1500]
    assert abs(len(long) / 25 - 1) < 0.25  # of 500


def test_a_longer_corpus_leaves_earlier_documents_where_they_are():
    documents = [f"document {n} {'x' * (n % 7)}" for n in range(100)]
    long, short = (list(splits.assign(documents[:count], 0.1)) for count in (100, 60))
    assert long[: len(short) - 2] == short[:-2]


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.5])
def test_copies_are_of_one_split(fraction):
    documents = [prose(200 + n, n % 40) for n in range(40)] * 5
    random.Random(1).shuffle(documents)
    found = assign(documents, fraction)
    assert not set(found["train"]) & set(found["val"])
    assert all(found[split].count(text) == 5 for split in found for text in set(found[split]))
    assert found["val"]


def test_a_document_of_more_than_a_megabyte_is_assigned_piece_by_piece_and_so_are_its_copies(monkeypatch):
    monkeypatch.setattr(splits, "_LONG", 5000)
    pieces = [prose(100, n) + "\n" for n in range(1000)]
    documents = [iter(pieces), iter(["short"]), iter(pieces)]
    found = list(splits.assign(documents, 0.05))
    half = (len(found) - 1) // 2
    assert found[:half] == found[half + 1 :]
    assert "".join(text.text for text in found[:half]) == "".join(pieces)
    val = [text for text in found[:half] if text.split == "val"]
    assert 0.045 < sum(len(text.text) for text in val) / sum(map(len, pieces)) < 0.055
    assert all(text.ends for text in val)
    assert [text.ends for text in found[:3]] == [True, True, False]


@pytest.mark.parametrize("errors", ["strict", "replace", "skip"])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize("end", ["", "short end"])
def test_all_text_of_long_documents_between_short_ones_in_one_file_comes_out(tmp_path, monkeypatch, name, errors, end):
    monkeypatch.setattr(splits, "_LONG", 1 << 16)
    monkeypatch.setattr(sources, "PIECE_BYTES", 1 << 12)
    documents = ["short", prose((1 << 16) + 4_500, 1), "", "two", prose((1 << 16) + 1, 2), prose(1 << 17, 3), end]
    content = sources.END_OF_TEXT.join(documents).encode()
    (tmp_path / name).write_bytes(gzip.compress(content, 1) if name.endswith("gz") else content)
    texts = list(splits.assign(sources.texts([tmp_path / name], Repairs(errors), end_of_text=True), 0.1))
    size = sum(map(len, documents))
    assert sum(len(text.text) for text in texts) == size
    assert sorted("".join(text.text for text in texts)) == sorted("".join(documents))
    if errors != "skip":
        assert 0.09 < sum(len(text.text) for text in texts if text.split == "val") / size < 0.11


def test_a_document_that_is_cut_has_the_tokens_of_the_whole():
    gpt2, whole = tokenizer.load("gpt2"), prose(5000, 1)
    head, rest = (text.text for text in splits.assign([whole], 0.1))
    assert (head + rest, len(head)) == (whole, 501)
    parts = gpt2.encode_batch([head, rest])
    assert [i for ids in parts for i in ids] == gpt2.encode_batch([whole])[0].tolist()


@settings(max_examples=30, deadline=None)
@given(numbers=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=300))
def test_a_set_of_numbers_knows_what_was_added(numbers):
    found = splits._Numbers()
    splits_recent, splits._RECENT = splits._RECENT, 10
    try:
        for n, number in enumerate(numbers):
            assert (number in found) == (number in numbers[:n])
            found.add(number)
        assert all(number in found for number in numbers)
    finally:
        splits._RECENT = splits_recent
    assert isinstance(found._sorted, np.ndarray)


# ---- by what repeats


LICENCE = "Permission to use, copy, modify and distribute this file and its documentation is hereby granted to all.\n"


def corpus():
    """300 files: those of each of 30 families share a table, 20 of the others a licence."""
    tables = [
        "".join(f"    0x{n:04x}: 0x{r.randrange(4096):04x},\n" for n in range(60))
        for r in map(random.Random, range(30))
    ]
    documents = []
    for n in range(300):
        own = prose(1500, n)
        documents.append(own + tables[n % 30] if n < 90 else LICENCE + own if n < 110 else own)
    random.Random(0).shuffle(documents)
    return documents


def windows_seen_in_training(found, size=64):
    """How many of the windows of validation occur in the text of training, and how many there are."""
    train, val = ("\0".join(text.text for text in found if text.split == split) for split in ("train", "val"))
    windows = [val[start : start + size] for start in range(0, len(val) - size, size)]
    return sum(window in train for window in windows), len(windows)


def test_no_window_of_validation_occurs_in_training_where_passages_repeat():
    documents = corpus()
    found = list(splits.apart(documents, 0.05))
    assert windows_seen_in_training(found)[0] == 0
    seen, count = windows_seen_in_training(list(splits.assign(documents, 0.05)))
    assert seen > count / 50  # what this is good for
    assert [text.text for text in found] == documents
    assert 0.045 < sum(len(text.text) for text in found if text.split == "val") / sum(map(len, documents)) <= 0.05
    assert found == list(splits.apart(documents, 0.05))
