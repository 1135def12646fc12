"""Sources: reading documents out of files, off servers and from the Hugging Face hub, as streams of bounded size."""

import codecs
import contextlib
import glob
import http.client
import io
import json
import re
import threading
import tokenize
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from lib.errors import UsageError, UserError

KINDS = (".txt", ".jsonl", ".parquet")
# Long texts come in pieces of about this size. With 1 MB the process grew with the text, its memory in fragments: to
# 137 MiB for 94 MB and to 223 for 900 MB; with this it takes 87 and 93, and is faster.
PIECE_BYTES = 1 << 16
_TIMEOUT_SECONDS = 20  # for a server to answer
_DOWNLOAD_SECONDS = 120  # for a whole file, of a few MB
# Between two words that one space or newline separates, and between a word and the mark that follows it, as in JSON
# without spaces: GPT-2's pattern never looks across such a place, so the parts have the tokens of the whole.
_CUT = re.compile(r"(?<=\S)(?=[ \n]\S)|(?<=[A-Za-z0-9])(?=[!-/:-@\[-`{-~])")


class DataError(UserError):
    """A corpus, or data prepared from it, that cannot be used."""


# ---- files -----------------------------------------------------------------------------------------------------------


def local_files(source: str) -> list[Path]:
    """The files that a path, folder or pattern names, sorted; raises UsageError unless all are of one of KINDS."""
    path = Path(source)
    if path.is_file():
        found = [path]
    elif path.is_dir():
        found = sorted(child for child in path.rglob("*") if child.suffix in KINDS and child.is_file())
    else:
        found = sorted(p for name in glob.glob(source, recursive=True) if (p := Path(name)).is_file())  # noqa: PTH207
    kinds = sorted({file.suffix for file in found})
    if not found or (len(kinds) == 1 and kinds[0] not in KINDS):
        raise UsageError(f"{source}: there is no .txt, .jsonl or .parquet file of this name")
    if len(kinds) > 1:
        raise UsageError(f"{source}: holds {' and '.join(kinds)} files; name files of one kind, such as {source}/*.txt")
    return found


def texts(paths: list[Path]) -> Iterator[Iterator[str]]:
    """Each file as a document, in pieces."""
    return map(pieces, paths)


def json_lines(paths: list[Path], field: str) -> Iterator[str]:
    """The text in each line's `field`; raises DataError with file:line for a line that has none."""
    for path in paths:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    place = f"{path}:{number}"
                    yield _text_of(_parse(place, line), field, place)


def parquet(paths: list[Path], field: str) -> Iterator[str]:
    """The text in each row's `field`."""
    return _documents(" ".join(map(str, paths[:1])), field, "parquet", data_files=[str(path) for path in paths])


def python_source(path: Path) -> str:
    """A Python file, in the encoding that it declares."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def character_start(path: Path, share: float) -> int:
    """The byte of a UTF-8 file where the character begins that `share` of the file lies before."""
    with _open(path) as file:
        offset = int(path.stat().st_size * share)
        file.seek(offset)
        return offset + next((n for n, byte in enumerate(file.read(4)) if byte & 0xC0 != 0x80), 0)


def pieces(path: Path, start: int = 0, stop: int | None = None) -> Iterator[str]:
    """Bytes `start` to `stop` of a UTF-8 file, in pieces whose tokens are the tokens of the whole."""
    return _joined(_chunks(path, start, stop))


def cut(text: str) -> Iterator[str]:
    """A text in pieces whose tokens are the tokens of the whole."""
    return _joined(text[n : n + PIECE_BYTES] for n in range(0, len(text), PIECE_BYTES))


def text_bytes(paths: list[Path], field: str | None) -> int:
    """About how many bytes of text files of one kind hold; 0 for parquet. JSON lines are judged by the first."""
    size = sum(path.stat().st_size for path in paths)
    if not paths or paths[0].suffix == ".parquet":
        return 0
    if paths[0].suffix == ".txt":
        return size
    with _open(paths[0]) as file:
        lines = [line for line in file.readlines(1 << 20) if line.strip()]
    try:
        texts = [json.loads(line)[field].encode(errors="replace") for line in lines]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return 0  # whoever reads it as a corpus says what is wrong, and where
    return int(size * sum(map(len, texts)) / max(1, sum(map(len, lines))))


def _joined(chunks: Iterable[str]) -> Iterator[str]:
    """The text that is the chunks together, cut where that changes no token: near the ends of the chunks."""
    rest = ""
    for chunk in chunks:
        cuts = [match.start() for match in _CUT.finditer(rest, max(0, len(rest) - 1_000))]
        if cuts:
            yield rest[: cuts[-1]]
            rest = rest[cuts[-1] :]
        rest += chunk
    yield rest


def _chunks(path: Path, start: int, stop: int | None) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with _open(path) as file:
        file.seek(start)
        while chunk := file.read(PIECE_BYTES if stop is None else min(PIECE_BYTES, stop - file.tell())):
            try:
                yield decoder.decode(chunk)
            except UnicodeDecodeError as error:
                raise DataError(f"{path}: is not UTF-8: {error.reason}; convert it first") from None
    if decoder.getstate()[0]:
        raise DataError(f"{path}: is not UTF-8: it ends inside a character; convert it first")


@contextlib.contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _parse(place: str, line: bytes) -> dict:
    try:
        example = json.loads(line)
    except (ValueError, RecursionError):
        example = None
    if not isinstance(example, dict):
        raise DataError(f"{place}: is not a JSON object")
    return example


def _text_of(example: dict, field: str, place: str) -> str:
    """The text of an example; raises UsageError that names the fields when it has none."""
    if field not in example:
        raise UsageError(f"{place}: has no field {field!r}; set DATASET_TEXT_FIELD to one of {', '.join(example)}")
    if not isinstance(example[field], str):
        raise UsageError(f"{place}: field {field!r} holds no text; set DATASET_TEXT_FIELD to one that does")
    return example[field]


# ---- servers ---------------------------------------------------------------------------------------------------------


def fetch(source: str, most: int) -> bytes:
    """The content of a local file or of a URL; raises DataError for one of more than `most` bytes, or without end."""
    if re.match(r"https?://", source):
        content = _download(source, most)
    else:
        with _open(Path(source)) as file:
            content = file.read(most + 1)
    if len(content) > most:
        raise DataError(f"{source}: holds more than the {most:,} bytes that belong there; name another DATASET_SOURCE")
    return content


def _download(url: str, most: int) -> bytes:
    """Up to `most` + 1 bytes from a URL, in _DOWNLOAD_SECONDS at most.

    A socket's time-out is for each piece that arrives, and a server may send a byte a second for ever. So a thread
    waits for the server, and this waits for the thread no longer than that.
    """
    answer: list[bytes | str] = []
    thread = threading.Thread(target=lambda: answer.append(_get(url, most)), daemon=True)
    thread.start()
    thread.join(_DOWNLOAD_SECONDS)
    content = answer[0] if answer else f"it was not there after {_DOWNLOAD_SECONDS} seconds"
    if isinstance(content, str):
        raise DataError(
            f"{url}: cannot be downloaded: {content}; try again, or get the file elsewhere and name it as "
            "DATASET_SOURCE"
        )
    return content


def _get(url: str, most: int) -> bytes | str:
    """What a server sends, or why it cannot be had."""
    try:
        with urllib.request.build_opener(_Redirects).open(url, timeout=_TIMEOUT_SECONDS) as response:
            content = response.read(most + 1)
            cut_off = len(content) <= most and getattr(response, "length", 0)
            return f"it ends {cut_off:,} bytes early" if cut_off else content
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
        return _reason(getattr(error, "reason", error))


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, to http, https and ftp alone, without reading what comes with them, which may have no end."""

    def http_error_302(self, request, response, *rest):
        response.close()
        return super().http_error_302(request, io.BytesIO(), *rest)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def hub(source: str, subset: str, field: str) -> Iterator[str]:
    """Documents of a dataset on the hub, or of a local copy of its repository, as a stream that stores nothing."""
    if not Path(source).is_dir():
        _check_hub(source)
    return _documents(source, field, source, name=subset or None)


def _check_hub(name: str) -> None:
    """Ask for the dataset first: load_dataset retries for half a minute before it admits that there is no network."""
    from huggingface_hub import HfApi

    try:
        HfApi().dataset_info(name, timeout=_TIMEOUT_SECONDS)
    except Exception as error:  # of the HTTP library, of the hub, of the system
        raise DataError(
            f"{name}: there is no such folder, and the Hugging Face hub cannot be asked for it: {_reason(error)}; "
            "check the name and the network, or name a local copy as DATASET_SOURCE"
        ) from None


def _documents(place: str, field: str, *args: object, **kwargs: object) -> Iterator[str]:
    """The texts of a dataset that load_dataset can read; whatever goes wrong in there becomes one sentence."""
    import datasets  # here: it takes a second

    datasets.disable_progress_bars()
    try:
        for example in datasets.load_dataset(*args, split="train", streaming=True, **kwargs):
            yield _text_of(example, field, place)
    except UserError:
        raise
    except Exception as error:  # the libraries behind it raise errors of a dozen families
        raise DataError(f"{place}: the dataset cannot be read: {_reason(error)}") from None


def _reason(error: object) -> str:
    return " ".join(str(error).split())[:300].rstrip(". ") or type(error).__name__
