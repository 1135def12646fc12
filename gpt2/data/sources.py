"""Sources: reads documents from local files as streams, in pieces of bounded size."""

import codecs
import json
import os
import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from gpt2.data.local_files import DataError, kind, opened
from gpt2.data.parquet import rows
from gpt2.data.repairs import BYTE_ORDER_MARK, NotUtf8Error, Placed, Repairs, bad_byte, not_utf8

# Long texts come in pieces of about this size. With pieces of 1 MB, fragmented memory made the process grow with the
# text, to 137 MiB for 94 MB and to 223 MiB for 900 MB. With this size it takes 87 and 93 MiB, and is faster.
PIECE_BYTES = 1 << 16
_LONGEST_LINE = 1 << 20  # bytes
END_OF_TEXT = "<|endoftext|>"
# Safe places to cut a text: before a single space or newline between two words, and between a word and the punctuation
# after it, as in JSON without spaces. GPT-2's pattern never matches across such a place, so a cut changes no token.
_CUT = re.compile(r"(?<=\S)(?=[ \n]\S)|(?<=[A-Za-z0-9])(?=[!-/:-@\[-`{-~])")
_MARK = re.escape(END_OF_TEXT)
# A mark includes the line end after it. Inside a text this needs the next characters, to know where the line end stops.
_INNER_MARK = re.compile(rf"{_MARK}(?:\r?\n|(?=\r[^\n]|[^\r\n]))")
_LAST_MARK = re.compile(rf"{_MARK}\r?\n?")
_MARK_CHARACTERS = len(END_OF_TEXT) + 2


# ---- documents -------------------------------------------------------------------------------------------------------


def texts(paths: list[Path], repairs: Repairs | None = None, end_of_text: bool = False) -> Iterator[Iterator[str]]:
    """Yield each file as a document, in pieces; with `end_of_text`, END_OF_TEXT also ends a document."""
    for path in paths:
        if end_of_text:
            yield from _documents(_decoded(path, 0, None, repairs or Repairs()), str(path))
        else:
            yield pieces(path, repairs=repairs)


def json_lines(paths: list[Path], field: str, repairs: Repairs | None = None) -> Iterator[str]:
    """Yield the text in each line's `field`; raises DataError or UsageError with file:line for a line without text."""
    repairs = repairs or Repairs()
    for path in paths:
        with opened(path) as file:
            for number, content in enumerate(file, 1):
                place = f"{path}:{number}"
                line = repairs.decode(content, place) if content.strip() else None
                if line and (text := repairs.text(_parse(place, line), field, place)) is not None:
                    yield text


def parquet(paths: list[Path], field: str, repairs: Repairs | None = None) -> Iterator[str]:
    """Yield the text in each row's `field`; raises DataError or UsageError for a file without such a column."""
    repairs = repairs or Repairs()
    for path in paths:
        for place, content in rows(path, field):
            value = None if content is None else repairs.decode(content, place)
            if value is None and content is not None:
                continue  # `repairs` has counted it
            if (text := repairs.text({field: value}, field, place)) is not None:
                yield text


def python_source(path: Path) -> str:
    """Read a Python file in the encoding that it declares."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def text_bytes(paths: list[Path], field: str | None) -> int:
    """Estimate the bytes of text in files (of JSON lines: from the first lines); 0 (unknown) for parquet and .gz."""
    if not paths or kind(paths[0]) == "parquet" or any(path.suffix.lower() == ".gz" for path in paths):
        return 0
    size = sum(path.stat().st_size for path in paths)
    if kind(paths[0]) == "text":
        return size
    with opened(paths[0]) as file:
        lines = [line for line in file.readlines(1 << 20) if line.strip()]
    try:
        texts = [(json.loads(line)[field] or "").encode(errors="replace") for line in lines]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return 0  # reading the corpus will say what is wrong, and where
    return int(size * sum(map(len, texts)) / max(1, sum(map(len, lines))))


def contains_end_of_text(path: Path) -> bool:
    """Look for END_OF_TEXT in the first megabyte of a file."""
    with opened(path) as file:
        return END_OF_TEXT.encode() in file.read(1 << 20)


def _parse(place: str, line: str) -> dict:
    try:
        # float, because Python refuses to make an int of more than 4300 digits
        example = json.loads(line.removeprefix(BYTE_ORDER_MARK), parse_int=float)
    except (ValueError, RecursionError):
        example = None
    if not isinstance(example, dict):
        raise DataError(f"{place}: is not a JSON object; every line must be one")
    return example


# ---- text in pieces --------------------------------------------------------------------------------------------------


def character_start(path: Path, share: float) -> int:
    """Return the offset in bytes of the first character of a UTF-8 file that begins at `share` of it or later."""
    with opened(path) as file:
        offset = int(file.seek(0, os.SEEK_END) * share)
        file.seek(offset)
        return offset + next((n for n, byte in enumerate(file.read(4)) if byte & 0xC0 != 0x80), 0)


def pieces(path: Path, start: int = 0, stop: int | None = None, repairs: Repairs | None = None) -> Iterator[str]:
    """Yield bytes `start` to `stop` of a UTF-8 file in pieces; the cuts between them change no token."""
    offset = start
    for piece in _joined(_decoded(path, start, stop, repairs or Repairs())):
        yield Placed(piece, f"{path}: about byte {offset:,}")
        offset += len(piece) if piece.isascii() else len(piece.encode())


def cut(text: str) -> Iterator[str]:
    """Yield a text in pieces; the cuts between them change no token."""
    place = getattr(text, "place", "")
    for piece in _joined(text[n : n + PIECE_BYTES] for n in range(0, len(text), PIECE_BYTES)):
        yield Placed(piece, place)


def cut_place(text: str, wanted: int) -> int:
    """Return where to cut a text without changing a token: at the first safe place from `wanted` on.

    If there is no such place, it is the last one before `wanted`, or else the end of the text.
    """
    after = _CUT.search(text, wanted)
    return after.start() if after else max((match.start() for match in _CUT.finditer(text)), default=len(text))


def _joined(chunks: Iterable[str]) -> Iterator[str]:
    """Join the chunks and cut the text again at safe places near their ends."""
    rest = ""
    for chunk in chunks:
        cuts = [match.start() for match in _CUT.finditer(rest, max(0, len(rest) - 1_000))]
        if cuts:
            yield rest[: cuts[-1]]
            rest = rest[cuts[-1] :]
        rest += chunk
    yield rest


def _documents(chunks: Iterable[str], place: str) -> Iterator[Iterator[str]]:
    """Cut a text into documents at END_OF_TEXT.

    Each document must be read to its end before the next one is requested. Else text would be lost, and this raises
    RuntimeError.
    """
    parts = _parts(chunks)
    for first in parts:
        document = (Placed(piece, place) for piece in _joined(_until_end(first, parts)))
        yield document
        if next(document, None) is not None:
            raise RuntimeError(f"{place}: a document was not read to its end before the next one was requested")


def _parts(chunks: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Yield (part of a document, whether the document ends with it)."""
    rest = ""
    for chunk in chunks:
        *ended, rest = _INNER_MARK.split(rest + chunk)
        yield from ((text, True) for text in ended)
        if len(rest) > _MARK_CHARACTERS:  # the end of `rest` may be the beginning of a mark
            yield rest[:-_MARK_CHARACTERS], False
            rest = rest[-_MARK_CHARACTERS:]
    yield from ((text, True) for text in _LAST_MARK.split(rest))


def _until_end(part: tuple[str, bool], parts: Iterator[tuple[str, bool]]) -> Iterator[str]:
    yield part[0]
    while not part[1]:
        part = next(parts)
        yield part[0]


def _decoded(path: Path, start: int, stop: int | None, repairs: Repairs) -> Iterator[str]:
    """Yield bytes `start` to `stop` of a UTF-8 file in chunks, without the byte order mark at its beginning."""
    if repairs.errors != "strict":
        yield from _mended(path, start, stop, repairs)
        return
    decoder, place = codecs.getincrementaldecoder("utf-8" if start else "utf-8-sig")(), start
    with opened(path) as file:
        file.seek(start)
        try:
            while chunk := file.read(PIECE_BYTES if stop is None else min(PIECE_BYTES, stop - place)):
                place += len(chunk)
                yield decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise NotUtf8Error(bad_byte(path) or not_utf8(str(path), error)) from None


def _mended(path: Path, start: int, stop: int | None, repairs: Repairs) -> Iterator[str]:
    """Like `_decoded`, with TEXT_ERRORS applied to every line that is not UTF-8.

    A long line is read in parts. With TEXT_ERRORS=skip a line must be in memory until it is known to be UTF-8, so a
    line of more than _LONGEST_LINE bytes is checked, and left out, in parts of that size.
    """
    longest = PIECE_BYTES if repairs.errors == "replace" else _LONGEST_LINE
    decoder, place, counted = codecs.getincrementaldecoder("utf-8")(), start, False
    with opened(path) as file:
        number = _skip_lines(file, start) + 1
        held, size = [], 0
        while True:
            most = longest if stop is None else min(longest, stop - place)
            part = file.readline(most)
            ends = part.endswith(b"\n") or len(part) < most or place + len(part) == stop
            text, mended = _decode_part(decoder, part, ends)
            if mended:
                text = repairs.mended(text, mended, f"{path}:{number}", count=not counted) or ""
                counted = True
            held.append(text if place else text.removeprefix(BYTE_ORDER_MARK))
            place, size = place + len(part), size + len(part)
            if part.endswith(b"\n"):
                number, counted = number + 1, False
            if size >= PIECE_BYTES or not part:
                yield "".join(held)
                held, size = [], 0
            if not part:
                return


def _decode_part(decoder: codecs.IncrementalDecoder, part: bytes, final: bool) -> tuple[str, int]:
    """Return the text of a part of a line, and the size of the part in bytes if it is not UTF-8, else 0."""
    waiting = len(decoder.getstate()[0])
    decoder.errors = "strict"
    try:
        return decoder.decode(part, final), 0
    except UnicodeDecodeError:
        decoder.errors = "replace"
        text = decoder.decode(part, final)
        return text, waiting + len(part) - len(decoder.getstate()[0])


def _skip_lines(file: BinaryIO, stop: int) -> int:
    """Read the first `stop` bytes of a file; returns how many lines end in them."""
    count = 0
    while chunk := file.read(min(1 << 20, stop)):
        count, stop = count + chunk.count(b"\n"), stop - len(chunk)
    return count
