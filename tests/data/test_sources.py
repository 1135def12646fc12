"""Documents come out of files whole, without byte order marks, split and mended as the options say."""

import codecs
import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.data import sources
from gpt2.data.repairs import NotUtf8Error, Repairs

MARK = "<|endoftext|>"


def read(paths, **others):
    return ["".join(document) for document in sources.texts(paths, **others)]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize("errors", ["strict", "replace", "skip"])
def test_a_byte_order_mark_at_the_beginning_is_dropped(tmp_path, name, errors):
    content = codecs.BOM_UTF8 + "tröis\n\ufeffend".encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert read([path, path], repairs=Repairs(errors)) == ["tröis\n\ufeffend"] * 2
    assert read([path], repairs=Repairs(errors), end_of_text=True) == ["tröis\n\ufeffend"]
    assert "".join(sources.pieces(path, 0, 7, Repairs(errors))) == "trö"
    assert "".join(sources.pieces(path, 10, None, Repairs(errors))) == "\ufeffend"


def test_a_byte_order_mark_before_json_and_in_its_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(codecs.BOM_UTF8 + b'{"text": "one"}\r\n \r\n{"text": "\\ufefftwo"}')
    assert list(sources.json_lines([path], "text")) == ["one", "two"]


def test_json_of_any_number_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": %s, "text": "one"}\n{"score": NaN, "text": "two"}\n' % ("7" * 5000))
    assert list(sources.json_lines([path], "text")) == ["one", "two"]


def test_places(tmp_path):
    (tmp_path / "a.jsonl").write_text('\n{"text": "one"}')
    (tmp_path / "a.txt").write_text("one two")
    (text,) = sources.json_lines([tmp_path / "a.jsonl"], "text")
    assert text.place == f"{tmp_path}/a.jsonl:2"
    assert [piece.place for piece in sources.cut(text)] == [text.place]
    assert [piece.place for piece in sources.pieces(tmp_path / "a.txt", 3)] == [f"{tmp_path}/a.txt: about byte 3"]


# ---- mending


def test_lines_are_replaced_or_left_out(tmp_path, capsys):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ncaf\xe9\nthree \xe2\x82\nfour\n")
    with pytest.raises(NotUtf8Error, match=r"a\.txt:2: byte 0xe9 at offset 7 is not UTF-8$"):
        read([path])
    with Repairs("replace") as some:
        assert read([path], repairs=some) == ["one\ncaf\ufffd\nthree \ufffd\nfour\n"]
    with Repairs("skip") as some:
        assert read([path, path], repairs=some) == ["one\nfour\n"] * 2
    assert capsys.readouterr().err == (
        f"note: lines or rows with bytes that are not UTF-8, replaced by U+FFFD: 2, the first at {path}:2\n"
        f"note: lines or rows left out because they are not UTF-8: 4, of 28 bytes in all, the first at {path}:2\n"
    )


def test_a_long_line_is_mended_in_parts(tmp_path, monkeypatch, capsys):
    """Also where a part ends within a character."""
    monkeypatch.setattr(sources, "PIECE_BYTES", 8)
    monkeypatch.setattr(sources, "_LONGEST_LINE", 8)
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone é two é three ".encode() + b"\xff" + "four é five é six é\nend \xe2".encode("latin-1"))
    content = path.read_bytes()
    with Repairs("replace") as some:
        parts = list(sources._mended(path, 0, None, some))
    assert "".join(parts) == content.decode(errors="replace").removeprefix("\ufeff")
    assert max(map(len, parts)) <= 12
    path.write_bytes("äöüäö üäöü".encode() + b"\xff123456" + "äöü end\nlast".encode())
    with Repairs("skip") as some:
        assert read([path], repairs=some) == ["äöüäö üä56äöü end\nlast"]
    assert capsys.readouterr().err.endswith(f"not UTF-8: 1, of 9 bytes in all, the first at {path}:1\n")


@pytest.mark.parametrize("errors", ["replace", "skip"])
def test_a_text_without_line_ends_is_not_held_whole(tmp_path, errors):
    path = tmp_path / "a.txt"
    path.write_bytes(b"word " * (1 << 20) + b"\xff")
    found = [len(piece) for piece in sources.pieces(path, repairs=Repairs(errors))]
    assert max(found) <= (sources._LONGEST_LINE if errors == "skip" else sources.PIECE_BYTES) * 1.1


def test_lines_of_json_are_replaced_or_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": "caf\xe9"}\n{"text": "three"}\n')
    with pytest.raises(NotUtf8Error, match=r"a\.jsonl:2: byte 0xe9 at offset 13 is not UTF-8$"):
        list(sources.json_lines([path], "text"))
    assert list(sources.json_lines([path], "text", Repairs("replace"))) == ["one", "caf\ufffd", "three"]
    assert list(sources.json_lines([path], "text", Repairs("skip"))) == ["one", "three"]


@given(content=st.binary(max_size=60) | st.text(max_size=40).map(str.encode), data=st.data(), piece=st.integers(4, 20))
def test_the_parts_of_a_mended_file_are_the_whole(tmp_path_factory, content, data, piece):
    path = tmp_path_factory.getbasetemp() / "mended.txt"
    path.write_bytes(content)
    place = data.draw(st.sampled_from([n for n in range(len(content) + 1) if n == 0 or content[n - 1 : n] == b"\n"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "PIECE_BYTES", piece)
        for errors in "replace", "skip":
            parts = [
                *sources.pieces(path, 0, place, Repairs(errors)),
                *sources.pieces(path, place, None, Repairs(errors)),
            ]
            lines = content.split(b"\n")
            expected = b"\n".join(lines).decode(errors="replace")
            if errors == "skip":
                good = [line + b"\n" * (n < len(lines) - 1) for n, line in enumerate(lines) if _is_utf8(line)]
                expected = b"".join(good).decode()
            assert "".join(parts).lstrip("\ufeff") == expected.lstrip("\ufeff")


def _is_utf8(line):
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


# ---- documents in a file


def test_documents_end_at_the_mark(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(f"one\n{MARK}\ntwo{MARK}three\r\n{MARK}\r\n\nfour <|end\n{MARK}".encode())
    assert read([path], end_of_text=True) == ["one\n", "two", "three\r\n", "\nfour <|end\n", ""]
    assert read([path]) == [path.read_bytes().decode()]
    assert sources.contains_end_of_text(path)


@given(
    documents=st.lists(st.text(alphabet="ab \n<|\r", max_size=30), min_size=1, max_size=6),
    ends=st.lists(st.sampled_from(["", "\n", "\r\n"]), min_size=6, max_size=6),
    piece=st.integers(4, 40),
)
def test_documents_are_found_wherever_the_file_is_cut(tmp_path_factory, documents, ends, piece):
    documents = [d.lstrip("\r\n") if n else d for n, d in enumerate(documents)]  # a line end belongs to the mark
    path = tmp_path_factory.getbasetemp() / "documents.txt"
    text = documents[0] + "".join(f"{MARK}{end}{d}" for d, end in zip(documents[1:], ends, strict=False))
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "PIECE_BYTES", piece)
        assert read([path], end_of_text=True) == documents


def test_a_document_that_is_not_read_before_the_next_is_an_error_and_no_loss(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(f"one{MARK}two{MARK}three")
    found = sources.texts([path], end_of_text=True)
    assert "".join(next(found)) == "one"
    next(found)
    with pytest.raises(RuntimeError, match="was not read to its end"):
        next(found)
