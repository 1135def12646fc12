"""Of a parquet file the column of texts is read, and nothing else of it matters."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from gpt2.data import parquet
from gpt2.data.local_files import DataError
from lib.base.errors import UsageError

ROOT = Path(__file__).parents[2]
TEXTS = ["one", "", "tröis", None, "five"]
BYTES = [b"one", b"", "tröis".encode(), None, b"five"]


def write(path, _options=(), **columns):
    pyarrow.parquet.write_table(pa.table(columns), path, **dict(_options))
    return path


def contents(path, field="text"):
    return [content for _, content in parquet.rows(path, field)]


@pytest.mark.parametrize("kind", "string large_string string_view binary large_binary binary_view dictionary".split())
def test_text_of_any_type(tmp_path, kind):
    if kind == "dictionary":
        column = pa.array(TEXTS).dictionary_encode()
    else:
        column = pa.array(BYTES if "binary" in kind else TEXTS, getattr(pa, kind)())
    assert contents(write(tmp_path / "a.parquet", text=column)) == BYTES


def test_every_row_has_its_place(tmp_path):
    path = write(tmp_path / "a.parquet", {"row_group_size": 2}, text=TEXTS)
    assert [place for place, _ in parquet.rows(path, "text")] == [f"{path}: row {n}" for n in range(1, 6)]


def test_other_columns_do_not_matter(tmp_path):
    others = {
        "text_": ["x"] * 5,
        "text.x": ["x"] * 5,
        "meta": [{"text": "x", "b": n} for n in range(5)],
        "list": [["x"]] * 5,
        "null": pa.nulls(5),
    }
    assert contents(write(tmp_path / "a.parquet", **others, text=TEXTS)) == BYTES
    assert contents(write(tmp_path / "b.parquet", **{"a.b": TEXTS}), "a.b") == BYTES


def test_a_file_without_rows_or_of_nulls(tmp_path):
    assert contents(write(tmp_path / "a.parquet", text=pa.array([], pa.string()))) == []
    assert contents(write(tmp_path / "a.parquet", text=pa.nulls(2))) == [None, None]


def test_a_column_that_cannot_be_read_names_the_file_and_those_that_are_there(tmp_path):
    path = write(tmp_path / "a.parquet", body=["x"], id=[1], meta=[{"text": "x"}])
    for field, what in (
        ("text", "has no field 'text'; set DATASET_TEXT_FIELD to one of body, id, meta"),
        ("meta.text", "has no field 'meta.text'; set DATASET_TEXT_FIELD to one of body, id, meta"),
        ("id", "field 'id' holds int64, not text; set DATASET_TEXT_FIELD to a field of text"),
        ("meta", "field 'meta' holds struct<text: string>, not text; set DATASET_TEXT_FIELD to a field of text"),
    ):
        with pytest.raises(UsageError) as caught:
            contents(path, field)
        assert str(caught.value) == f"{path}: {what}"


def test_a_damaged_file_is_one_sentence(tmp_path):
    path = write(tmp_path / "a.parquet", {"compression": "none", "use_dictionary": False}, text=["word"] * 10_000)
    whole = path.read_bytes()
    for content in b"", b"nonsense", whole[:-1], whole[: len(whole) // 2], whole[:4] + bytes(100) + whole[104:]:
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            contents(path)
        assert str(caught.value).startswith(f"{path}: cannot be read") and "\n" not in str(caught.value)


def test_batches_are_small_whatever_the_texts(tmp_path):
    for name, size in ("short", 50), ("long", 100_000):
        texts = [os.urandom(size // 2).hex() for _ in range(100)]
        path = write(tmp_path / f"{name}.parquet", id=range(100), text=texts)
        rows = parquet._batch_rows(pyarrow.parquet.ParquetFile(path).metadata)
        assert rows * size <= 1.1 * parquet._BATCH_BYTES and rows in (1024, 167, 166)
        assert contents(path) == [text.encode() for text in texts]


def test_it_needs_no_home_and_no_cache(tmp_path):
    path = write(tmp_path / "a.parquet", text=TEXTS)
    code = (
        "import sys; from gpt2.data import parquet; from pathlib import Path; "
        f"print(len(list(parquet.rows(Path({str(path)!r}), 'text'))), 'datasets' in sys.modules)"
    )
    environment = {"HOME": "/nonexistent", "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("5 False\n", "")
