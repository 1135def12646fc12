"""Repairs: handles nulls and bytes that are not UTF-8 as option TEXT_ERRORS says, and reports where they are."""

import codecs
import sys
from pathlib import Path

from tqdm import tqdm

from gpt2.data.local_files import DataError, kind, opened
from gpt2.data.parquet import rows
from lib.base.errors import UsageError, printable

BYTE_ORDER_MARK = "\ufeff"
_CHUNK_BYTES = 1 << 20
_BAR_SECONDS = 1.0  # a progress bar appears after this much checking
_MOST_NAMED = 20  # files that an error lists


class NotUtf8Error(DataError):
    """A text with a byte that is not UTF-8, under TEXT_ERRORS=strict."""


class Placed(str):
    """A text, or a piece of one, that knows where it was read; later errors name this place."""

    __slots__ = ("place",)

    def __new__(cls, text: str, place: str):
        self = super().__new__(cls, text)
        self.place = place
        return self


class Repairs:
    """Replaces or leaves out texts, counts them, and prints the counts when its context ends."""

    def __init__(self, errors: str = "strict"):
        """`errors` is the value of option TEXT_ERRORS."""
        self.errors = errors
        self._counts: dict[str, tuple[int, int, str]] = {}  # what was done -> times, bytes left out, first place
        self._found = False  # whether any example has had a text in its field

    def decode(self, content: bytes, place: str) -> str | None:
        """Return the text of a line or row, None to leave it out; raises NotUtf8Error if TEXT_ERRORS is strict."""
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            if self.errors == "strict":
                raise NotUtf8Error(not_utf8(place, error)) from None
        return self.mended(content.decode(errors="replace"), len(content), place)

    def mended(self, text: str, size: int, place: str, count: int = 1) -> str | None:
        """Return `text`, or None to leave it out. `text` has U+FFFD for bytes that are not UTF-8; it was `size` bytes.

        `count` is 0 for another part of a line that is counted already.
        """
        if self.errors == "replace":
            self._count("lines or rows with bytes that are not UTF-8, replaced by U+FFFD", place, count)
            return text
        self._count("lines or rows left out because they are not UTF-8", place, count, size)
        return None

    def text(self, example: dict, field: str, place: str) -> str | None:
        """Return the text of an example, None to leave it out; raises UsageError for a field without text."""
        value = example.get(field)
        if isinstance(value, str):
            self._found = True
            return Placed(value.removeprefix(BYTE_ORDER_MARK), place)
        if value is None and (field in example or self._found):
            self._count(f"texts left out because {field!r} is null or missing", place)
            return None
        if field not in example:
            raise UsageError(f"{place}: has no field {field!r}; set DATASET_TEXT_FIELD to one of {', '.join(example)}")
        advice = "fix or remove it" if self._found else "set DATASET_TEXT_FIELD to a field of text"
        raise UsageError(f"{place}: field {field!r} holds no text; {advice}")

    def _count(self, what: str, place: str, count: int = 1, size: int = 0) -> None:
        before, bytes_before, first = self._counts.get(what, (0, 0, place))
        self._counts[what] = before + count, bytes_before + size, first

    def __enter__(self) -> "Repairs":
        return self

    def __exit__(self, *_: object) -> None:
        for what, (count, size, first) in self._counts.items():
            say(f"{what}: {count:,}{f', of {size:,} bytes in all' if size else ''}, the first at {first}")


def say(note: str) -> None:
    """Print a note, above a progress bar if there is one."""
    tqdm.write(f"note: {printable(note)}", file=sys.stderr)


# ---- checking --------------------------------------------------------------------------------------------------------


def check(paths: list[Path], field: str | None = None) -> None:
    """Raise NotUtf8Error if files are not UTF-8; it names the first wrong byte of each of them."""
    with tqdm(
        desc="checking the text", unit="B", unit_scale=True, disable=None, leave=False, delay=_BAR_SECONDS
    ) as bar:
        found = (_bad_row(path, field) if kind(path) == "parquet" else bad_byte(path, bar) for path in paths)
        bad = [sentence for sentence in found if sentence]
    if bad:
        if len(bad) > _MOST_NAMED:
            bad[_MOST_NAMED:] = [f"{len(bad) - _MOST_NAMED:,} more files have bytes that are not UTF-8"]
        bad[-1] += "; convert to UTF-8 (iconv -f ENCODING -t UTF-8), or set TEXT_ERRORS=replace or TEXT_ERRORS=skip"
        raise NotUtf8Error(*bad)


def bad_byte(path: Path, bar: tqdm | None = None) -> str:
    """Return a sentence about the first byte of a file that is not UTF-8, "" if there is no such byte."""
    decoder, line, place = codecs.getincrementaldecoder("utf-8")(), 1, 0
    with opened(path) as file:
        while True:
            chunk, before = file.read(_CHUNK_BYTES), len(decoder.getstate()[0])
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                line += error.object.count(b"\n", 0, error.start)
                return not_utf8(f"{path}:{line}", error, place - before)
            if not chunk:
                return ""
            line, place = line + chunk.count(b"\n"), place + len(chunk)
            if bar is not None:
                bar.update(len(chunk))


def _bad_row(path: Path, field: str) -> str:
    """Return a sentence about the first row of a parquet file that is not UTF-8, "" if there is no such row."""
    for place, content in rows(path, field):
        try:
            (content or b"").decode()
        except UnicodeDecodeError as error:
            return not_utf8(place, error)
    return ""


def not_utf8(place: str, error: UnicodeDecodeError, begin: int = 0) -> str:
    """Return a sentence about the wrong byte; the text that failed to decode begins at byte `begin` of its file."""
    byte, offset = error.object[error.start], begin + error.start
    guess = ", and the file looks like UTF-16" * (offset == 0 and byte in b"\xff\xfe")
    return f"{place}: byte 0x{byte:02x} at offset {offset:,} is not UTF-8{guess}"
