"""Sources: reading documents out of files, off servers and from the Hugging Face hub, as streams of bounded size."""

import codecs
import glob
import json
import re
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
    except (ValueError, LookupError, TypeError, AttributeError):
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


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _parse(place: str, line: bytes) -> dict:
    try:
        example = json.loads(line)
    except ValueError:
        example = None
    if not isinstance(example, dict):
        raise DataError(f"{place}: is not a JSON object")
    return example


def _text_of(example: dict, field: str, place: str) -> str:
    """The text of an example; raises DataError that names the fields when it has none."""
    if field not in example:
        raise DataError(f"{place}: has no field {field!r}; set DATASET_TEXT_FIELD to one of {', '.join(example)}")
    if not isinstance(example[field], str):
        raise DataError(f"{place}: field {field!r} holds no text; set DATASET_TEXT_FIELD to one that does")
    return example[field]


# ---- servers ---------------------------------------------------------------------------------------------------------


def fetch(source: str) -> bytes:
    """The content of a local file or of a URL."""
    if not re.match(r"https?://", source):
        with _open(Path(source)) as file:
            return file.read()
    try:
        with urllib.request.urlopen(source, timeout=_TIMEOUT_SECONDS) as response:
            return response.read()
    except (OSError, ValueError) as error:  # URLError and time-outs are OSErrors
        raise DataError(
            f"{source}: cannot be downloaded: {getattr(error, 'reason', error)}; try again, or get the file elsewhere "
            "and name it as DATASET_SOURCE"
        ) from None


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


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(". ") or type(error).__name__
