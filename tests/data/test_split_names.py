"""Names of files say what files are for where they belong together, and otherwise they mean nothing."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.data import split_names


def sort(*names, sizes=None):
    """What files of these names and sizes (by default all the same), in some folder, are for: split -> names."""
    root = Path("/corpus/test")  # whose own name means nothing
    paths = [root / name for name in names]
    parts = split_names.sort(paths, dict(zip(paths, sizes or [9] * len(paths), strict=True)).get)
    return {
        split: [str(path.relative_to(root)) for path in found]
        for split in ("train", "val", "test", "ignored")
        if (found := getattr(parts, split))
    }


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        (["wiki.train.txt"], ["wiki.valid.txt"], ["wiki.test.txt"]),
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], ["validation-00000-of-00001.parquet"], []),
        (["data/train/a.jsonl", "data/train/b.jsonl"], ["data/valid/c.jsonl"], ["data/test/d.jsonl"]),
        (["train/00.jsonl", "train/01.jsonl"], ["val.jsonl"], ["test.jsonl"]),
        (["V2-GPT4-Train.TXT"], ["V2-GPT4-Valid.TXT"], []),
        (["training.jsonl.gz"], ["dev.jsonl"], []),
        (["de/train.txt", "en/train.txt"], ["de/dev.txt", "en/dev.txt"], ["de/test.txt"]),
        (["train.txt"], [], ["test.txt"]),
        (["train.txt", "notes.txt", "train/test_results.txt"], ["val.txt"], []),
        (["wiki-train.txt"], ["Wiki.valid.txt"], ["wiki_TEST.txt"]),
        (["wiki.train.txt", "README.md"], ["wiki-valid.txt"], []),
        (["dev/train.md"], ["ops/dev.md"], []),
        (["a/train/x.txt", "a/dev/train.txt"], ["b/train/dev.txt", "b/val/y.txt"], []),
        *(
            (["train.txt"], [f"{word}.txt"], [])
            for word in "val valid validation valset dev devset development eval Evaluation holdout heldout "
            "held-out held_out hold-out".split()
        ),
        (["trainset.txt"], ["wiki/devset/a.txt"], ["testset.txt"]),
        (["wiki-train.txt"], ["wiki_held_out.txt"], []),
    ],
)
def test_names_that_belong_together_say_what_files_are_for(train, val, test):
    expected = {"train": train, "val": val, "test": test}
    assert sort(*train, *val, *test) == {split: names for split, names in expected.items() if names}


@pytest.mark.parametrize(
    ("names", "ignored"),
    [
        (["my_test_notes.txt", "notes.txt"], ["my_test_notes.txt"]),
        (["train_journeys.txt", "test_results.txt", "a.txt"], ["test_results.txt"]),
        (["wiki.train.txt", "news.train.txt"], []),
        (["latest.txt", "trainer.txt", "withheld-out.txt", "contest.txt", "evaluations.txt"], []),
        (["ops/dev.md", "dev/a.md"], ["ops/dev.md", "dev/a.md"]),
        (["train_test.txt", "train_val.txt"], []),
        (["test.txt"], []),
    ],
)
def test_names_without_a_partner_mean_nothing_and_that_is_said(names, ignored):
    found = sort(*names)
    assert (found["train"], found.get("ignored", [])) == (names, ignored)
    assert set(found) <= {"train", "ignored"}


def test_one_pair_of_names_does_not_decide_about_hundreds_of_other_files():
    notes = [f"notes/{n:03d}.txt" for n in range(300)]
    found = sort("train.X.txt", "validation.X.txt", *notes)
    assert found == {"train": ["train.X.txt", "validation.X.txt", *notes], "ignored": ["validation.X.txt"]}
    assert sort("train.txt", "val.txt", "README.md", sizes=[80, 10, 91])["ignored"] == ["val.txt"]
    assert sort("train.txt", "val.txt", "README.md", sizes=[80, 10, 90])["val"] == ["val.txt"]
    assert sort("a.train.txt", "a.val.txt", "b.train.txt", "README.md", sizes=[1, 1, 88, 90])["val"] == ["a.val.txt"]


@given(
    names=st.lists(
        st.lists(st.sampled_from(["train", "dev", "test", "x", "x.train", "x-val"]), min_size=1, max_size=3),
        min_size=1, max_size=8, unique_by=tuple,
    )
)  # fmt: skip
def test_every_file_has_one_place_and_there_is_always_training(names):
    names = ["/".join(["c", *parts]) + ".txt" for parts in names]
    found = sort(*names)
    assert sorted(found["train"] + found.get("val", []) + found.get("test", [])) == sorted(names)
    assert set(found.get("ignored", [])) <= set(found["train"])
    split_names.sort([Path("/", name) for name in names], lambda path: 1).words()


def test_what_was_taken_for_what_in_words():
    def words(*names):
        return split_names.sort([Path("/c", name) for name in names], lambda path: 1).words()

    assert words("wiki.train.txt", "wiki.valid.txt", "wiki.test.txt") == (
        "by name: train from wiki.train.txt, val from wiki.valid.txt; VAL_FRACTION has no effect; left out: "
        "wiki.test.txt"
    )
    assert words("train/a.txt", "train/b.txt", "test/c.txt") == (
        "by name: train from 2 files such as train/a.txt, val from the same by VAL_FRACTION; left out: test/c.txt"
    )
    assert words("my_test_notes.txt", "a.txt") == (
        "by document, copies on one side; my_test_notes.txt is divided like the others, since no file for training has "
        "the same name"
    )
    assert words("valid-en.txt", "test-en.txt", "a.txt").endswith(
        "; 2 files such as valid-en.txt are divided like the others, since no file for training has the same name"
    )
    assert words("train.txt", "val.txt", "valid-en.txt", "a.txt") == (
        "by name: train from 3 files such as train.txt, val from val.txt; VAL_FRACTION has no effect; valid-en.txt is "
        "for train, since no file for training has the same name"
    )
    assert words("train.txt", "val.txt", "a.txt", "b.txt", "c.txt") == (
        "by document, copies on one side; names such as val.txt do not count, since less than half of the text is in "
        "files that are named for training, validation or test"
    )
    assert words("a.txt", "b.txt") == ""
