"""Nulls and bytes that are not UTF-8 are named with their place, or counted, as TEXT_ERRORS says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.data import repairs
from gpt2.data.repairs import NotUtf8Error, Placed, Repairs
from lib.base.errors import UsageError


def test_a_placed_text_is_the_text():
    text = Placed("one", "a.txt:1")
    assert (text, text.place, hash(text)) == ("one", "a.txt:1", hash("one"))


def test_what_is_done_about_bytes():
    assert Repairs("strict").decode("é".encode(), "a:1") == "é"
    with pytest.raises(NotUtf8Error, match=r"^a:1: byte 0xe9 at offset 3 is not UTF-8$"):
        Repairs("strict").decode(b"caf\xe9", "a:1")
    assert Repairs("replace").decode(b"caf\xe9", "a:1") == "caf\ufffd"
    assert Repairs("skip").decode(b"caf\xe9", "a:1") is None


def test_nulls_are_left_out_and_a_byte_order_mark_dropped():
    some = Repairs()
    assert some.text({"text": None}, "text", "a:1") is None
    with pytest.raises(UsageError, match=r"^a:2: has no field 'text'; set DATASET_TEXT_FIELD to one of body, id$"):
        some.text({"body": "x", "id": 1}, "text", "a:2")
    with pytest.raises(
        UsageError, match=r"^a:2: field 'text' holds no text; set DATASET_TEXT_FIELD to a field of text$"
    ):
        some.text({"text": 3}, "text", "a:2")
    text = some.text({"text": "\ufeffone\ufeff"}, "text", "a:3")
    assert (text, text.place) == ("one\ufeff", "a:3")
    assert some.text({"id": 1}, "text", "a:4") is None  # the field was there before
    with pytest.raises(UsageError, match=r"^a:5: field 'text' holds no text; fix or remove it$"):
        some.text({"text": 3}, "text", "a:5")


def test_what_was_done_is_said_with_the_first_place(capsys):
    with Repairs("skip") as some:
        for number in range(3):
            some.decode(b"\xff", f"a:{number}")
            some.text({"text": None}, "text", f"b\n:{number}")
        assert capsys.readouterr() == ("", "")
    assert capsys.readouterr().err == (
        "note: lines or rows left out because they are not UTF-8: 3, of 3 bytes in all, the first at a:0\n"
        "note: texts left out because 'text' is null or missing: 3, the first at b\\n:0\n"
    )
    with Repairs("replace") as some:
        some.decode(b"fine", "a:1")
    assert capsys.readouterr() == ("", "")


def test_every_bad_file_is_named_at_once(tmp_path):
    contents = {"a": b"fine\n", "b": b"one\ntw\xf6\n", "c": "two\n".encode("utf-16"), "d": b"cut \xe2\x82"}
    for name, content in contents.items():
        (tmp_path / f"{name}.txt").write_bytes(content)
    paths = sorted(tmp_path.iterdir())
    repairs.check(paths[:1])
    with pytest.raises(NotUtf8Error) as caught:
        repairs.check(paths)
    assert str(caught.value).split("\n") == [
        f"{paths[1]}:2: byte 0xf6 at offset 6 is not UTF-8",
        f"{paths[2]}:1: byte 0xff at offset 0 is not UTF-8, and the file looks like UTF-16",
        f"{paths[3]}:1: byte 0xe2 at offset 4 is not UTF-8; convert to UTF-8 (iconv -f ENCODING -t UTF-8), or set "
        "TEXT_ERRORS=replace or TEXT_ERRORS=skip",
    ]


def test_many_bad_files_are_counted(tmp_path):
    for number in range(30):
        (tmp_path / f"{number:02d}.txt").write_bytes(b"\xff")
    with pytest.raises(NotUtf8Error) as caught:
        repairs.check(sorted(tmp_path.iterdir()))
    lines = str(caught.value).split("\n")
    assert len(lines) == 21
    assert lines[20].startswith("10 more files have bytes that are not UTF-8; convert")


@given(good=st.text(max_size=30), bad=st.binary(max_size=5), chunk=st.integers(1, 7))
def test_the_byte_is_the_one_that_python_finds(tmp_path_factory, good, bad, chunk):
    path = tmp_path_factory.getbasetemp() / "found.txt"
    content = good.encode() + bad + b"\nend"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repairs, "_CHUNK_BYTES", chunk)
        found = repairs.bad_byte(path)
    try:
        content.decode()
        assert found == ""
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        assert found.startswith(
            f"{path}:{line}: byte 0x{content[error.start]:02x} at offset {error.start} is not UTF-8"
        )
