"""The files of a corpus are the ones that its user means, and what else is there is counted aloud."""

import gzip
import os
import re
import shlex
from pathlib import Path

import pytest

from gpt2.data import local_files
from gpt2.data.local_files import DataError
from lib.base.errors import UsageError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab12" * 16 + "\nsize 146946961\n"


def lay(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return folder


def found(source, base):
    """(names of the files, note) of a source."""
    files = local_files.find(str(source))
    return [path.relative_to(base).as_posix() for path in files.paths], files.note("here")


def refused(source):
    with pytest.raises(UsageError) as caught:
        local_files.find(str(source))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("a.txt", "text"), ("a.md", "text"), ("a.rst", "text"), ("A.TXT", "text"), ("a.txt.gz", "text")),
        *(("a.jsonl", "lines"), ("A.JSONL", "lines"), ("a.jsonl.gz", "lines"), ("A.Jsonl.GZ", "lines")),
        *(("a.parquet", "parquet"), ("A.PARQUET", "parquet"), ("a.parquet.gz", None)),
        *(("a.csv", None), ("a.gz", None), ("a.csv.gz", None), ("txt", None), (".txt", None)),
    ],
)
def test_the_ending_says_how_a_file_is_read(name, kind):
    assert local_files.kind(Path("some.txt", name)) == kind


def test_hidden_files_and_folders_are_left_out(tmp_path):
    lay(tmp_path, "b.txt", "a/c.txt", ".ipynb_checkpoints/b-checkpoint.txt", "a/.git/d.txt", "._b.txt", ".DS_Store")
    assert found(tmp_path, tmp_path) == (["a/c.txt", "b.txt"], "here: left out: 2 hidden folders, 2 hidden files")
    assert found(f"{tmp_path}/**/*.txt", tmp_path) == (["a/c.txt", "b.txt"], "")


def test_a_hidden_name_that_is_given_is_meant(tmp_path):
    lay(tmp_path, ".corpus/a.txt", ".corpus/.b.txt")
    assert found(tmp_path / ".corpus", tmp_path) == ([".corpus/a.txt"], "here: left out: 1 hidden file")
    assert found(tmp_path / ".corpus" / ".b.txt", tmp_path) == ([".corpus/.b.txt"], "")


def test_texts_of_several_endings_are_one_corpus(tmp_path):
    lay(tmp_path, "a.txt", "b.md", "c.rst", "d.TXT", "e.txt.gz", "f.pdf", "g.pdf", "h.csv", "LICENSE", "i.tar.gz")
    names = ["a.txt", "b.md", "c.rst", "d.TXT", "e.txt.gz"]
    files = local_files.find(str(tmp_path))
    assert [path.name for path in files.paths] == names
    assert files.left_out == {".pdf": 2, ".csv": 1, "without ending": 1, ".tar.gz": 1}
    assert files.note("here").startswith("here: left out: 2 .pdf, 1 ")
    assert found(f"{tmp_path}/*.md", tmp_path) == (["b.md"], "")


def test_documentation_beside_data_is_left_out(tmp_path):
    lay(tmp_path, "README.md", "data/a.parquet", "data/b.parquet")
    assert found(tmp_path, tmp_path) == (["data/a.parquet", "data/b.parquet"], "here: left out: 1 .md")


def test_links_and_what_is_no_file_are_counted(tmp_path):
    lay(tmp_path, "a.txt")
    lay(tmp_path / "elsewhere" / "far", "b.txt")
    corpus = lay(tmp_path / "corpus", "c.txt")
    (corpus / "linked.txt").symlink_to(tmp_path / "a.txt")
    (corpus / "broken.txt").symlink_to("/nowhere")
    (corpus / "another.txt").symlink_to("/nowhere")
    (corpus / "folder").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(corpus / "pipe.txt")
    names, note = found(corpus, corpus)
    assert names == ["c.txt", "linked.txt"]
    assert note == "here: left out: 2 broken links, 1 linked folder, 1 special file"


def test_a_pattern_counts_the_folders_that_it_does_not_enter(tmp_path):
    lay(tmp_path, "a.txt", "sub/b.txt")
    assert found(f"{tmp_path}/*", tmp_path) == (["a.txt"], "here: left out: 1 folder")
    assert found(f"{tmp_path}/**", tmp_path) == (["a.txt", "sub/b.txt"], "")


def test_brackets_in_the_name_of_a_folder_are_no_pattern(tmp_path):
    lay(tmp_path / "[2024] notes*", "a.txt", "b.txt")
    lay(tmp_path / "2 notes", "c.txt")
    expected = ["[2024] notes*/a.txt", "[2024] notes*/b.txt"]
    assert found(tmp_path / "[2024] notes*", tmp_path) == (expected, "")
    assert found(f"{tmp_path}/[2024] notes*/*.txt", tmp_path) == (expected, "")
    assert found(f"{tmp_path}/[2024] notes/*.txt", tmp_path) == (["2 notes/c.txt"], "")


@pytest.mark.parametrize(
    "source", ["corpus [1]", "corpus [1]/", "corpus [1]/*", "corpus [1]/**", "corpus [1]/**/*", "c*/*.*"]
)
def test_the_advice_for_several_kinds_can_be_followed(folder, source):
    lay(Path("corpus [1]"), "a.jsonl", "b.jsonl", "c.txt", "sub/d.jsonl", "sub/e.txt", "sub/.f.jsonl")
    said = refused(source)
    deep = source.endswith(("]", "]/", "**", "**/*"))
    counts = "3 .jsonl, 2 .txt" if deep else "2 .jsonl, 1 .txt"
    assert f"holds {counts} files; name files of one kind, such as DATASET_SOURCE=" in said
    advice = shlex.split(said.partition("such as ")[2])
    assert len(advice) == 1
    files = local_files.find(advice[0].removeprefix("DATASET_SOURCE="))
    names = ["corpus [1]/a.jsonl", "corpus [1]/b.jsonl", *["corpus [1]/sub/d.jsonl"] * deep]
    assert list(map(str, files.paths)) == names


def test_what_is_not_there_is_one_sentence(tmp_path):
    lay(tmp_path, "corpus/a.csv", "corpus/b.csv", "corpus/c.pdf")
    (tmp_path / "empty").mkdir()
    for missing in "none", "none.txt", "corpus/*.txt", "none/*.txt":
        what = f"{tmp_path}/{missing}: there is no such file or folder, and no file matches it as a pattern"
        assert refused(tmp_path / missing) == what
    assert refused(tmp_path / "empty") == f"{tmp_path}/empty: is empty"
    kinds = "a corpus consists of .txt, .md, .rst, .jsonl (each also as .gz) or .parquet files"
    assert refused(tmp_path / "corpus") == f"{tmp_path}/corpus: left out: 2 .csv, 1 .pdf; {kinds}"
    assert refused(tmp_path / "corpus/a.csv") == f"{tmp_path}/corpus/a.csv: is not a {kinds[21:-1]}"


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch):
    lay(tmp_path, "a.txt", "closed/b.txt")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=rf"^{tmp_path}/closed: cannot be read: Permission denied$"):
        local_files.find(str(tmp_path))


def test_the_commonest_endings_are_named_and_the_others_counted(tmp_path):
    endings = [f".x{n:02d}" for n in range(12) for _ in range(12 - n)]
    lay(tmp_path, "a.txt", *(f"{n}{ending}" for n, ending in enumerate(endings)))
    note = found(tmp_path, tmp_path)[1]
    assert note.startswith("here: left out: 12 .x00, 11 .x01, 10 .x02, ")
    assert note.endswith(", 3 .x09 and 2 more endings")
    (tmp_path / "77.x11").unlink()
    assert found(tmp_path, tmp_path)[1].endswith(", 3 .x09 and 1 more ending")


# ---- opening


def test_a_packed_file_is_unpacked_as_it_is_read(tmp_path):
    path = tmp_path / "a.TXT.GZ"
    path.write_bytes(gzip.compress(b"one\n") + gzip.compress(b"two\n"))  # as by cat of two files
    with local_files.opened(path) as file:
        assert file.readlines() == [b"one\n", b"two\n"]
        assert file.seek(0, os.SEEK_END) == 8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(bytes(range(256)))[:200], "Compressed file ended before the end-of-stream marker was reached"),
        (b"hello", r"Not a gzipped file \(b'he'\)"),
        (gzip.compress(b"hello")[:-8] + bytes(8), "CRC check failed .*"),
        (gzip.compress(b"hello")[:10] + b"\xff" * 20, "Error -3 while decompressing data: .*"),
    ],
    ids=["cut off", "not packed", "wrong sum", "wrong data"],  # the same in every process: gzip writes the time
)
def test_a_damaged_packed_file_is_one_sentence(tmp_path, content, message):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught, local_files.opened(path) as file:
        file.read()
    assert re.fullmatch(rf"{path}: is damaged or cut off: {message}; copy it again", str(caught.value))


def test_pointers_are_named_as_such(tmp_path):
    lay(tmp_path, "a.txt", "b.txt", "c.txt", "d.jsonl")
    for name in "b.txt", "c.txt":
        (tmp_path / name).write_text(POINTER)
    (tmp_path / "d.jsonl").write_text(POINTER + " " * 2000)  # a text that only begins like one
    paths = sorted(tmp_path.iterdir())
    advice = r"not the data; run `git lfs pull` in that folder to get the data$"
    with pytest.raises(DataError, match=rf"/b\.txt: is a Git LFS pointer, {advice}"):
        local_files.refuse_pointers(paths[:2])
    with pytest.raises(DataError, match=rf"/b\.txt: and 1 more are Git LFS pointers, {advice}"):
        local_files.refuse_pointers(paths)
    local_files.refuse_pointers([paths[0], paths[3], tmp_path / "none.txt"])
