"""Every dataset, from real files and servers, comes as the texts it should, or as one sentence that says why not."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import resource
import sysconfig
import threading
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.data import corpora, servers, sources, tokenizer
from gpt2.data.corpora import Text
from gpt2.data.local_files import DataError
from lib.base.errors import UsageError
from lib.config.kconf import Schema


def options(dataset, source=None, **others):
    schema = Schema()
    named = {"dataset": dataset} | ({} if source is None else {"dataset_source": str(source)}) | others
    schema.override([(name.upper(), str(value), "test") for name, value in named.items()])
    return schema.bind(corpora.CorpusOptions)


def texts(*args, **kwargs):
    return list(corpora.texts(options(*args, **kwargs)))


def write_parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


# ---- the standard library


def test_stdlib_is_this_interpreters_without_tests():
    found = texts("stdlib")
    sizes = {split: sum(len(text.text) for text in found if text.split == split) for split in ("train", "val")}
    assert 0.045 < sizes["val"] / sum(sizes.values()) <= 0.05
    assert sum(sizes.values()) > 8_000_000
    assert 300 < sum(text.ends for text in found) < len(found)  # the longest come in pieces
    bisect = Path(sysconfig.get_paths()["stdlib"], "bisect.py").read_text()
    assert [text for text in found if text.text == bisect]
    assert not [text for text in found if "class TestBisect" in text.text]
    assert found == texts("stdlib")


def test_what_it_was_read_from(tmp_path):
    (tmp_path / "a.txt").write_text("four")
    assert corpora.describe(options("stdlib")).startswith("cpython 3.")
    assert corpora.describe(options("files", tmp_path / "a.txt")) == "1 files, 4 bytes"
    assert corpora.describe(options("finewebedu")) == "HuggingFaceFW/fineweb-edu/sample-10BT"
    assert corpora.describe(options("openwebtext")) == "Skylion007/openwebtext"


# ---- Shakespeare


@contextlib.contextmanager
def server(folder):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    handler.log_message = lambda *args: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{httpd.server_port}"
        finally:
            httpd.shutdown()


def test_shakespeare_by_url_and_from_a_file(tmp_path):
    play = "First Citizen:\nBefore we proceed any further, hear me speak.\n" * 10  # 610 characters
    (tmp_path / "input.txt").write_text(play)
    sha256 = hashlib.sha256(play.encode()).hexdigest()
    expected = [Text("val", play[549:]), Text("train", play[:549])]
    assert list(corpora.shakespeare(options("shakespeare", tmp_path / "input.txt"), sha256)) == expected
    with server(tmp_path) as url:
        assert list(corpora.shakespeare(options("shakespeare", f"{url}/input.txt"), sha256)) == expected
        with pytest.raises(
            DataError, match=r"/none\.txt: cannot be downloaded: File not found; try again, or get the file"
        ):
            texts("shakespeare", f"{url}/none.txt")
        with pytest.raises(DataError, match=r"input\.txt: is not Tiny Shakespeare: its sha256 is not 86c4e6aa9db7"):
            texts("shakespeare", f"{url}/input.txt")


class Hostile(http.server.BaseHTTPRequestHandler):
    """A server that does with each path what a server should not."""

    def do_GET(self):
        """Answer."""
        what, _, where = self.path.lstrip("/").partition("?")
        with contextlib.suppress(OSError):  # the client has had enough
            getattr(self, what)(where)

    def answer(self, code, **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def wrong(self, _):
        self.answer(200)
        self.wfile.write(b"Friends, Romans, countrymen")

    def truncated(self, _):
        self.answer(200, **{"Content-Length": "1115394"})
        self.wfile.write(b"First Citizen:")

    def chunked(self, _):
        self.answer(200, **{"Transfer-Encoding": "chunked"})
        self.wfile.write(b"ffff\r\nFirst Citizen:")

    def slow(self, _):
        self.answer(200)
        for _ in range(100):
            self.wfile.write(b"x")
            time.sleep(0.02)

    def slow_headers(self, _):
        for _ in range(100):
            self.wfile.write(b"x")
            time.sleep(0.02)

    def huge(self, _):
        self.answer(200)
        while True:
            self.wfile.write(bytes(1 << 20))

    def redirect(self, where):
        self.answer(302, Location=where)
        while True:
            self.wfile.write(bytes(1 << 20))

    def nonsense(self, _):
        self.wfile.write(b"no HTTP at all\r\n\r\n")

    def nothing(self, _):
        pass

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def hostile():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as httpd:
        threading.Thread(target=httpd.serve_forever).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("wrong", "is not Tiny Shakespeare: its sha256 is not 86c4e6aa9db7...; get it again"),
        ("truncated", "cannot be downloaded: it ends 1,115,380 bytes early; try again, or get"),
        ("chunked", "cannot be downloaded: IncompleteRead(0 bytes read); try again, or get"),
        ("slow", "cannot be downloaded: it was not complete after 0.5 seconds; try again, or get"),
        ("slow_headers", "cannot be downloaded: it was not complete after 0.5 seconds; try again, or get"),
        ("huge", "is larger than the expected 1,115,394 bytes; choose another DATASET_SOURCE"),
        ("redirect?file:///etc/passwd", "Redirection to url 'file:///etc/passwd' is not allowed; try again, or get"),
        ("redirect?data:,x", "Redirection to url 'data:,x' is not allowed; try again, or get"),
        ("redirect?/redirect?/redirect", "infinite loop. The last 30x error message was: Found; try again, or get"),
        ("redirect?/wrong", "is not Tiny Shakespeare: its sha256 is not 86c4e6aa9db7...; get it again"),
        ("nonsense", "cannot be downloaded: no HTTP at all; try again, or get"),
        ("nothing", "cannot be downloaded: Remote end closed connection without response; try again, or get"),
        ("with space", "URL can't contain control characters. '/with space' (found at least ' '); try again, or get"),
    ],
)
def test_a_server_that_does_what_it_should_not_is_one_sentence_soon(hostile, monkeypatch, path, message):
    monkeypatch.setattr(servers, "_DOWNLOAD_SECONDS", 0.5)
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError) as caught:
        texts("shakespeare", f"{hostile}/{path}")
    said = str(caught.value)
    assert said.startswith(f"{hostile}/{path}: ") and message in said and "\n" not in said, said
    assert time.monotonic() - begin < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB; a body has no end


def test_a_file_without_end_is_not_read_to_it():
    with pytest.raises(DataError, match=r"^/dev/zero: is larger than the expected 1,115,394 bytes; choose"):
        texts("shakespeare", "/dev/zero")


def test_shakespeare_with_a_share_of_0_is_all_for_training(tmp_path):
    (tmp_path / "input.txt").write_text("To be, or not to be")
    sha256 = hashlib.sha256(b"To be, or not to be").hexdigest()
    found = corpora.shakespeare(options("shakespeare", tmp_path / "input.txt", val_fraction=0), sha256)
    assert list(found) == [Text("train", "To be, or not to be")]
    assert corpora.splitting(options("shakespeare", val_fraction=0)) == "all of it is for training"


def test_how_a_corpus_is_split_has_words(tmp_path):
    for name in ("ours.train.txt", "ours.test.txt", "other.txt"):
        (tmp_path / name).write_text("text" if name == "other.txt" else "a longer text")
    by_name = (
        "by name: train from 2 files such as other.txt, val from the same by VAL_FRACTION; left out: ours.test.txt"
    )
    for dataset, source, divided, whole in (
        ("stdlib", None, "by file, those that share a passage on one side", "all of it is for training"),
        ("finewebedu", None, "by document, copies on one side", "all of it is for training"),
        ("files", tmp_path / "other.txt", "the end is for validation", "all of it is for training"),
        ("files", tmp_path, by_name, by_name),
    ):
        assert corpora.splitting(options(dataset, source)) == divided
        assert corpora.splitting(options(dataset, source, val_fraction=0)) == whole


def test_shakespeare_that_cannot_be_had(tmp_path):
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/x: cannot be downloaded: .*Connection refused; try"):
        texts("shakespeare", "http://127.0.0.1:9/x")
    with pytest.raises(DataError, match=r"nowhere: cannot be read: No such file or directory"):
        texts("shakespeare", tmp_path / "nowhere")


# ---- your own files


def test_of_a_single_text_the_end_is_for_validation(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("0123456789" * 10)
    assert texts("files", path, val_fraction="0.2") == [Text("val", "0123456789" * 2), Text("train", "0123456789" * 8)]


def test_a_split_inside_a_character_moves_behind_it(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("ab🙂cd")  # 8 bytes; half of them end inside the smiley
    assert texts("files", path, val_fraction="0.5") == [Text("val", "cd"), Text("train", "ab🙂")]


def test_many_texts_are_documents_each_of_one_split(tmp_path):
    for n in range(10):
        (tmp_path / f"{n}.txt").write_text(f"document {n}")
    found = texts("files", tmp_path, val_fraction="0.25")
    assert "".join(text.text for text in found) == "".join(f"document {n}" for n in range(10))
    assert [text.text for text in found if text.split == "val"] == ["document", "document 4", "document 8"]
    assert found == texts("files", f"{tmp_path}/[0-9].txt", val_fraction="0.25")


@pytest.mark.parametrize("separator", [" ", "\n", "\n\n", "  ", "\t", "'s ", "\r\n "])
def test_long_texts_come_in_pieces_that_tokenise_like_the_whole(tmp_path, monkeypatch, separator):
    monkeypatch.setattr(sources, "PIECE_BYTES", 100)
    whole = separator.join(f"wörd{n} {n}!" for n in range(200))
    (tmp_path / "a.txt").write_bytes(whole.encode())
    pieces = list(sources.pieces(tmp_path / "a.txt"))
    assert "".join(pieces) == whole
    assert len(pieces) > 10
    gpt2 = tokenizer.load("gpt2")
    assert [i for ids in gpt2.encode_batch(pieces) for i in ids] == gpt2.encode_batch([whole])[0].tolist()


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet="ab1.,_'s \n\té🙂\u3000", min_size=1, max_size=60), place=st.integers(0, 60))
def test_a_cut_never_changes_the_tokens(text, place):
    cuts = [m.start() for m in sources._CUT.finditer(text) if m.start() >= place][:1]
    gpt2 = tokenizer.load("gpt2")
    for cut in cuts:
        parts = gpt2.encode_batch([text[:cut], text[cut:]])
        assert [i for ids in parts for i in ids] == gpt2.encode_batch([text])[0].tolist()


def test_the_pieces_of_a_document_stay_together(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PIECE_BYTES", 8)
    for name, last in zip("ab", ("four", "five"), strict=True):
        (tmp_path / f"{name}.txt").write_text(f"one two three {last}")
    found = texts("files", tmp_path, val_fraction="0.5")
    assert [(text.split, text.ends) for text in found] == [("train", False)] * 2 + [("train", True)] + [
        ("val", False)
    ] * 2 + [("val", True)]


def test_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "id": 1}\n\n{"text": "\\u00e9"}\n')
    assert texts("files", path) == [Text("train", "one"), Text("val", "é")]


def test_parquet(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", body=["one", "two", "three"], id=[1, 2, 3])
    expected = [Text("train", "one"), Text("val", "two"), Text("train", "three")]
    assert texts("files", path, dataset_text_field="body") == expected
    assert texts("files", tmp_path, dataset_text_field="body") == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"body": "", "id": 1}\n', r"a\.jsonl:1: has no field 'text'; .* to one of body, id"),
        ("a.jsonl", '{"text": ""}\n{"text": [1]}\n', r"a\.jsonl:2: field 'text' holds no text; fix or remove it"),
        ("a.jsonl", '{"text": 3}\n', r"a\.jsonl:1: field 'text' holds no text; set DATASET_TEXT_FIELD to a field of"),
        ("a.jsonl", "[1]\n", r"a\.jsonl:1: is not a JSON object"),
        ("a.jsonl", "{\n", r"a\.jsonl:1: is not a JSON object"),
        ("a.txt", b"caf\xe9 noir", r"a\.txt:1: byte 0xe9 at offset 3 is not UTF-8; convert .* TEXT_ERRORS=skip"),
        ("a.txt", b"caf\xc3", r"a\.txt:1: byte 0xc3 at offset 3 is not UTF-8; convert to UTF-8"),
        ("a.parquet", b"nonsense", r"a\.parquet: cannot be read as parquet: Parquet .*; copy it again"),
        ("a.csv", "x", r"a\.csv: is not a \.txt, \.md, \.rst, \.jsonl \(each also"),
    ],
)  # fmt: skip
def test_bad_files_are_one_sentence(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((DataError, UsageError), match=message) as caught:
        texts("files", path)
    assert "\n" not in str(caught.value)


def test_a_disk_that_fails_is_not_said_to_be_the_one_written_to(tmp_path):
    for name in "a.txt", "a.jsonl":
        (tmp_path / name).symlink_to("/proc/self/mem")  # whose first page is an error to read
        with pytest.raises(DataError, match=rf"^{tmp_path}/{name}: cannot be read: Input/output error$"):
            texts("files", tmp_path / name)


def test_bad_sources_are_one_sentence(tmp_path):
    with pytest.raises(UsageError, match="DATASET_SOURCE is empty; set it to where the dataset files comes from"):
        texts("files")
    with pytest.raises(UsageError, match=rf"^{tmp_path}: is empty$"):
        texts("files", tmp_path)


def test_a_column_that_is_not_there_names_those_that_are(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", body=["x"], id=[1])
    with pytest.raises(UsageError, match=r"has no field 'text'; set DATASET_TEXT_FIELD to one of body, id"):
        texts("files", path)


def test_every_kind_of_text_in_a_folder_is_read_and_the_rest_is_counted(tmp_path, capsys):
    for name in "a.txt", "b.md", "c.rst", "d.csv", ".e.txt":
        (tmp_path / name).write_text(f"in {name}")
    (tmp_path / "D.TXT.gz").write_bytes(gzip.compress(b"in D.TXT.gz"))
    whole = "".join(text.text for text in texts("files", tmp_path))
    assert whole == "in D.TXT.gzin a.txtin b.mdin c.rst"
    assert capsys.readouterr().err == f"note: {tmp_path}: left out: 1 hidden file, 1 .csv\n"
    size = len("in a.txtin b.mdin c.rst") + (tmp_path / "D.TXT.gz").stat().st_size
    assert corpora.describe(options("files", tmp_path)) == f"4 files, {size} bytes"
    assert corpora.size(options("files", tmp_path)) == 0  # what is packed tells only when it is read


def test_a_packed_text_is_the_text(tmp_path):
    whole = "wörd " * 100_000
    (tmp_path / "a.txt").write_text(whole)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(whole.encode()))
    assert texts("files", tmp_path / "a.txt.gz") == texts("files", tmp_path / "a.txt")
    lines = '{"text": "one"}\n{"text": "two"}\n'
    (tmp_path / "A.JSONL.GZ").write_bytes(gzip.compress(lines.encode()))
    assert texts("files", tmp_path / "A.JSONL.GZ") == [Text("train", "one"), Text("val", "two")]


def test_documents_of_one_text_file(tmp_path, capsys):
    path = tmp_path / "stories.txt"
    path.write_text("one\n<|endoftext|>\ntwo\n<|endoftext|>\n")
    found = texts("files", path, dataset_end_of_text="y")
    assert found == [Text("train", "one\n"), Text("val", "two\n")]
    assert capsys.readouterr().err == ""
    assert "".join(text.text for text in reversed(texts("files", path, val_fraction="0.5"))) == path.read_text()
    assert capsys.readouterr().err == (
        f"note: {path}: contains <|endoftext|>, which is read like any other text; set DATASET_END_OF_TEXT=y to end a "
        "document there\n"
    )


def test_nulls_are_left_out_and_counted(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": null}\n{"text": "three"}\n{"id": 1}\n')
    write_parquet(tmp_path / "a.parquet", text=["one", None, "three", None])
    for file, place in (path, "a.jsonl:2"), (tmp_path / "a.parquet", "a.parquet: row 2"):
        assert texts("files", file) == [Text("train", "one"), Text("val", "three")]
        expected = f"note: texts left out because 'text' is null or missing: 2, the first at {tmp_path}/{place}\n"
        assert capsys.readouterr().err == expected


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
@pytest.mark.parametrize("limit", [0, 1000])
def test_bytes_that_are_not_utf8_are_named_replaced_or_left_out(tmp_path, capsys, kind, limit):
    lines = [b"one", b"caf\xe9", b"three"]
    for name in "ab":
        path = tmp_path / f"{name}.{kind}"
        if kind == "parquet":
            write_parquet(path, text=pyarrow.array(lines, pyarrow.binary()))
        else:
            path.write_bytes(b"".join(b'{"text": "%s"}\n' % n if kind == "jsonl" else n + b"\n" for n in lines))
    first = {"txt": "a.txt:2", "jsonl": "a.jsonl:2", "parquet": "a.parquet: row 2"}[kind]
    offset = {"txt": 7, "jsonl": 29, "parquet": 3}[kind]
    with pytest.raises(DataError) as caught:
        texts("files", tmp_path, dataset_max_tokens=limit)
    sentences = str(caught.value).split("\n")
    assert sentences[0] == f"{tmp_path}/{first}: byte 0xe9 at offset {offset} is not UTF-8"
    assert sentences[1].startswith(f"{tmp_path}/b{first[1:]}: byte 0xe9 at offset {offset} is not UTF-8; convert")
    assert len(sentences) == 2
    for errors, words in ("replace", ["one", "caf\ufffd", "three"] * 2), ("skip", ["one", "three"] * 2):
        found = texts("files", tmp_path, text_errors=errors, dataset_max_tokens=limit)
        assert "".join(text.text for text in found).split() == words or [text.text for text in found] == words
        assert capsys.readouterr().err.endswith(f", the first at {tmp_path}/{first}\n")


def test_parquet_files_with_different_columns(tmp_path):
    write_parquet(tmp_path / "[2024] notes" / "a.parquet", text=["one"], score=[1])
    write_parquet(tmp_path / "[2024] notes" / "b.parquet", lang=["en"], score=[0.5], text=["two"])
    expected = [Text("train", "one"), Text("val", "two")]
    assert texts("files", tmp_path / "[2024] notes") == expected
    assert texts("files", f"{tmp_path}/[2024] notes/*.parquet") == expected
    write_parquet(tmp_path / "[2024] notes" / "c.parquet", body=["three"])
    with pytest.raises(UsageError, match=r"/c\.parquet: has no field 'text'; set DATASET_TEXT_FIELD to one of body$"):
        texts("files", tmp_path / "[2024] notes")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab12" * 16 + "\nsize 146946961\n"


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet", "a.txt.gz"])
def test_a_pointer_is_named_as_one(tmp_path, name):
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(
        DataError, match=rf"^{tmp_path}/{name}: is a Git LFS pointer, .* `git lfs pull` in that folder to get the data$"
    ):
        texts("files", tmp_path)


# ---- the hub


@pytest.fixture
def repository(tmp_path):
    """A local copy of a repository with subsets, laid out and described like FineWeb-Edu's."""
    columns = {"text": ["one", "two", "three", "four"], "id": ["a", "b", "c", "d"], "score": [1.0, 2.0, 3.0, 4.0]}
    write_parquet(tmp_path / "sample" / "10BT" / "000_00000.parquet", **columns)
    write_parquet(
        tmp_path / "data" / "CC-MAIN-2024-10" / "000_00000.parquet", **{**columns, "text": ["1", "2", "3", "4"]}
    )
    configs = [("default", "data/*/*"), ("sample-10BT", "sample/10BT/*"), ("CC-MAIN-2024-10", "data/CC-MAIN-2024-10/*")]
    lines = [f"- config_name: {n}\n  data_files:\n  - split: train\n    path: {p}" for n, p in configs]
    (tmp_path / "README.md").write_text("---\nconfigs:\n" + "\n".join(lines) + "\n---\n# A copy\n")
    return tmp_path


def test_a_local_copy_of_a_hub_repository(repository):
    words = ["one", "two", "three", "four"]
    for dataset in "finewebedu", "openwebtext", "files":
        found = texts(dataset, repository, dataset_subset="sample-10BT", val_fraction="0.3")
        assert found == [Text(split, word) for split, word in zip(["train", "val", "train", "val"], words, strict=True)]
    assert [text.text for text in texts("finewebedu", repository, dataset_subset="CC-MAIN-2024-10")] == [
        "1",
        "2",
        "3",
        "4",
    ]


@pytest.mark.parametrize("subset", ["", "en"])
@pytest.mark.parametrize("dataset", ["finewebedu", "openwebtext", "files"])
def test_a_copy_of_a_repository_may_have_brackets_in_its_name_and_columns_that_change(tmp_path, dataset, subset):
    folder = tmp_path / "copy [v1]"
    write_parquet(folder / subset / "train-0.parquet", text=["one", "two"], id=["a", "b"])
    write_parquet(folder / subset / "train-1.parquet", text=["three"], id=[1], extra=[None])
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n---\n")
    found = texts(dataset, folder, dataset_subset=subset)
    assert [text.text for text in found] == ["one", "two", "three"]


@pytest.mark.parametrize("dataset", ["finewebedu", "openwebtext"])
def test_of_a_copy_of_a_repository_the_files_for_training_are_read_as_of_the_hub(tmp_path, dataset, capsys):
    for name, words in ("train", ["one", "two"]), ("validation", ["three"]), ("test", ["four"]):
        write_parquet(tmp_path / f"data/{name}-00000-of-00001.parquet", text=words)
    found = texts(dataset, tmp_path, dataset_subset="")
    assert [text.text for text in found] == ["one", "two"]
    assert capsys.readouterr().err == f"note: {tmp_path}: left out: 2 files for validation or test\n"


def test_nulls_and_pointers_in_a_copy_of_a_hub_repository(repository, capsys):
    file = write_parquet(repository / "sample" / "10BT" / "000_00000.parquet", text=["one", None, "\ufeffthree"])
    found = texts("finewebedu", repository, dataset_subset="sample-10BT")
    assert found == [Text("train", "one"), Text("val", "three")]
    assert capsys.readouterr().err.endswith(f"is null or missing: 1, the first at {repository}: row 2\n")
    file.write_text(POINTER)
    with pytest.raises(DataError, match=r"000_00000\.parquet: is a Git LFS pointer, not the data; run"):
        texts("finewebedu", repository, dataset_subset="sample-10BT")


def test_a_subset_that_is_not_there_is_one_sentence(repository):
    with pytest.raises(
        DataError, match=r"the dataset cannot be read: BuilderConfig 'nope' not found\. Available:"
    ) as caught:
        texts("finewebedu", repository, dataset_subset="nope")
    assert "\n" not in str(caught.value)


def test_a_column_of_a_repository_that_is_not_there(repository):
    with pytest.raises(UsageError, match="has no field 'body'; set DATASET_TEXT_FIELD to one of text, id, score"):
        texts("finewebedu", repository, dataset_text_field="body")


def test_a_hub_that_cannot_be_reached_is_one_sentence_soon(monkeypatch):
    begin = time.monotonic()
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        DataError,
        match=r"HuggingFaceFW/fineweb-edu: there is no such folder, and asking the Hugging Face hub for it failed: "
        r".*; check the name and the network, or set DATASET_SOURCE to a local copy",
    ) as caught:
        texts("finewebedu")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begin < 20


# ---- training or validation


def test_a_long_document_of_json_lines_comes_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PIECE_BYTES", 8)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one two three four"}\n{"text": "five"}\n')
    assert texts("files", path) == [
        Text("train", "one", False),
        Text("train", " two three", False),
        Text("train", " four"),
        Text("val", "five"),
    ]


def test_json_without_spaces_has_places_to_cut():
    whole = '{"a":1,"b":[2,3]}' * 20
    assert len(list(sources._joined(whole[n : n + 50] for n in range(0, len(whole), 50)))) == 7


def test_the_size_of_a_corpus_in_bytes_of_text(tmp_path):
    for n in range(2):
        (tmp_path / f"{n}.txt").write_text("wörd")
    assert corpora.size(options("files", f"{tmp_path}/*.txt")) == 10
    (tmp_path / "a.jsonl").write_text('{"text": "12345", "id": 1}\n' * 4)
    assert corpora.size(options("files", tmp_path / "a.jsonl")) == 20
    (tmp_path / "a.jsonl").write_text('{"text": "12345"}\n[]\n')
    assert corpora.size(options("files", tmp_path / "a.jsonl")) == 0
    assert corpora.size(options("files", "someone/dataset")) == 0
    assert corpora.size(options("shakespeare", "https://example.org/input.txt")) == 0
