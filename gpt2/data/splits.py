"""Splits: which text is for training and which is for validation, by share or by the passages that documents share.

A long document comes in pieces, as `sources` cuts it. An iterator of pieces can stand for a document.
"""

import itertools
import math
import operator
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from gpt2.data import repeats, sources
from gpt2.data.repairs import Repairs

_LONG = 1 << 20  # characters; longer documents are streamed, so the first pieces are assigned before the size is known
_RECENT = 1 << 16  # numbers that `_Numbers` keeps in a set, at 70 bytes each

T = TypeVar("T")


class Text(NamedTuple):
    """A document, or a piece of a long one."""

    split: str  # "train" or "val"
    text: str
    ends: bool = True  # whether the document, or this split's part of it, ends with this piece


# ---- by share --------------------------------------------------------------------------------------------------------


class _Document(NamedTuple):
    pieces: Iterable[str]
    size: int | None  # characters; None: more than _LONG
    key: int  # a hash of the content (of the beginning, if long); copies have the same key


def assign(documents: Iterable[str | Iterator[str]], fraction: float) -> Iterator[Text]:
    """Assign each document to validation while it has less than `fraction` of the text so far, else to training.

    Only earlier documents decide, so one pass suffices and no kind of document is favoured. Copies of a document go to
    the same split. Two kinds of documents are divided, so that the share is right in any corpus: a document that is
    larger than validation's share of the text so far gives only its beginning to validation, as much as it lacks.
    A document of more than _LONG characters is assigned piece by piece.
    """
    share, train = _Share(fraction), _Numbers()
    places: dict[int, int] = {}  # key of a document -> length of its part for validation, if it has one
    sides: dict[int, list[str]] = {}  # key of a long document -> the splits of its pieces
    for document, last in _with_last(filter(lambda document: document.size != 0, map(_read, documents))):
        if document.size is None:
            parts = share.piecewise(document.pieces, sides.setdefault(document.key, []))
        else:
            place = 0 if document.key in train else places.get(document.key)
            if place is None:  # it is not a copy
                place = _place(document, share.part(document.size, last))
                if place:
                    places[document.key] = place
                else:
                    train.add(document.key)
            parts = _divided(document, place)
        yield from _texts(share.counted(parts))


class _Share:
    """Counts the text so far and validation's part of it, to keep that part at `fraction`."""

    def __init__(self, fraction: float):
        self.fraction, self.seen, self.val = fraction, 0, 0

    def part(self, size: int, last: bool) -> int:
        """Return how many characters of a document are for validation: all, none, or as many as validation lacks."""
        lacks, share = self.val < self.fraction * self.seen, self.fraction * (self.seen + size)
        if size <= share:
            return size if lacks else 0
        # Otherwise validation would get a few characters of every other document: wait until half is missing.
        return max(0, math.ceil(share - self.val)) if last or 2 * self.val < self.fraction * self.seen else 0

    def piecewise(self, pieces: Iterable[str], sides: list[str]) -> Iterator[tuple[str, str]]:
        """Yield (split, piece); `sides` collects the splits, and for a copy it has them already."""
        for number, piece in enumerate(pieces):
            if number == len(sides):
                sides.append("val" if self.val < self.fraction * self.seen else "train")
            yield sides[number], piece

    def counted(self, parts: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        """Yield (split, piece) unchanged and count the characters."""
        for split, piece in parts:
            self.seen += len(piece)
            self.val += len(piece) * (split == "val")
            yield split, piece


class _Numbers:
    """A set of 64-bit integers that needs about 8 bytes for each."""

    def __init__(self):
        self._recent, self._sorted = set(), np.empty(0, np.int64)

    def add(self, number: int) -> None:
        self._recent.add(number)
        if len(self._recent) > max(_RECENT, len(self._sorted) // 32):
            recent = np.sort(np.fromiter(self._recent, np.int64))
            self._recent = set()
            self._sorted = np.append(self._sorted, recent)
            self._sorted.sort(kind="stable")  # merges the two sorted parts, which needs little memory

    def __contains__(self, number: int) -> bool:
        if number in self._recent:
            return True
        place = self._sorted.searchsorted(number)
        return place < len(self._sorted) and self._sorted[place] == number


def _read(document: str | Iterator[str]) -> _Document:
    """Read a document, but only the beginning of a long one. Keys stay in this process, so Python's hash suffices."""
    pieces, held, size = sources.cut(document) if isinstance(document, str) else document, [], 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size > _LONG:
            return _Document(itertools.chain(held, pieces), None, hash(tuple(held)))
    return _Document(held, size, hash("".join(held)))


def _with_last(documents: Iterable[_Document]) -> Iterator[tuple[_Document, bool]]:
    """Yield (document, whether it is the last); for a long document always False.

    A long document must be read before the next one is fetched, since both may come from one file.
    """
    before = []
    for document in documents:
        yield from ((held, False) for held in before)
        before = [document]
        if document.size is None:
            yield document, False
            before = []
    yield from ((held, True) for held in before)


def _place(document: _Document, wanted: int) -> int:
    """Return where to cut a document to give validation about `wanted` characters; the cut changes no token."""
    return sources.cut_place("".join(document.pieces), wanted) if 0 < wanted < document.size else wanted


def _divided(document: _Document, place: int) -> Iterator[tuple[str, str]]:
    """Yield (split, piece): the first `place` characters for validation, the others for training."""
    if 0 < place < document.size:
        text = "".join(document.pieces)
        parts = {"val": sources.cut(text[:place]), "train": sources.cut(text[place:])}
    else:
        parts = {"val" if place else "train": document.pieces}
    return ((split, piece) for split, pieces in parts.items() for piece in pieces)


def one_text(path: Path, fraction: float, repaired: Repairs) -> Iterator[Text]:
    """Cut one text file: its end is for validation.

    Validation comes first. Preparation stops at DATASET_MAX_TOKENS of training and would not reach it at the end.
    """
    cut = sources.character_start(path, 1 - fraction)
    parts = {"val": sources.pieces(path, cut, None, repaired), "train": sources.pieces(path, 0, cut, repaired)}
    return _texts((split, piece) for split, pieces in parts.items() for piece in pieces)


def all_of(documents: Iterable[str | Iterator[str]], split: str) -> Iterator[Text]:
    """Assign all documents to one split."""
    for document in documents:
        pieces = sources.cut(document) if isinstance(document, str) else document
        yield from _texts((split, piece) for piece in pieces)


def _texts(parts: Iterable[tuple[str, str]]) -> Iterator[Text]:
    """Make texts of (split, piece) without the empty pieces; the last piece before the split changes has `ends`."""
    for split, group in itertools.groupby(parts, operator.itemgetter(0)):
        for (_, piece), last in _marked(part for part in group if part[1]):
            yield Text(split, piece, last)


def _marked(items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Yield (item, whether it is the last)."""
    before = []
    for item in items:
        if before:
            yield before.pop(), False
        before.append(item)
    if before:
        yield before.pop(), True


# ---- by shared passages ----------------------------------------------------------------------------------------------


def apart(documents: Sequence[str], fraction: float) -> Iterator[Text]:
    """Assign documents so that all that share a passage (see `repeats`) are in the same split.

    The groups of such documents come in pseudo-random order (by CRC-32). A group goes to validation if it still fits
    into `fraction` of the text.
    """
    group, sizes = repeats.groups(documents), Counter()
    for first, document in zip(group, documents, strict=True):
        sizes[first] += len(document)
    room, val = fraction * sizes.total(), set()
    for first in sorted(sizes, key=lambda first: zlib.crc32(documents[first].encode(errors="surrogatepass"))):
        if sizes[first] <= room:
            val.add(first)
            room -= sizes[first]
    for first, document in zip(group, documents, strict=True):
        yield from all_of([document], "val" if first in val else "train")
