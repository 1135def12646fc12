"""Splits: which text is for training and which for validation, by the names of files, by share, or by what repeats."""

import itertools
import math
import operator
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from gpt2.data import repeats, sources
from gpt2.data.repairs import Repairs

_NAMES = {
    name: split
    for split, names in {
        "train": "train training trainset",
        "val": "val valid validation valset dev devset development eval evaluation holdout heldout",
        "test": "test testset",
    }.items()
    for name in names.split()
}
_WORDS = re.compile(r"(?:hold|held)[-_ ]out(?![A-Za-z])|[A-Za-z]+", re.IGNORECASE)
_NUMBERS = re.compile(r"[-_. ]*\d+([-_. ]*of[-_. ]*\d+)?")  # of shards: train-00001-of-00008
_SEPARATORS = re.compile(r"[-_. ]+")
_NAMED_SHARE = 0.5  # of the bytes of a corpus, from which on names decide
_LONG = 1 << 20  # characters; a longer document is not held, so its size is not known when its first piece must go
_RECENT = 1 << 16  # numbers that `_Numbers` holds at 70 bytes each

BY_DOCUMENT, NO_FRACTION = "by document, copies on one side", "VAL_FRACTION has no effect"  # parts of words

T = TypeVar("T")


class Text(NamedTuple):
    """A document, or a piece of one that is too long to hold."""

    split: str  # "train" or "val"
    text: str
    ends: bool = True  # whether the document, or this split's part of it, ends with this piece


# ---- by name ---------------------------------------------------------------------------------------------------------


class Parts(NamedTuple):
    """Files by what their names say that they are for."""

    train: list[Path]  # with those whose names say nothing
    val: list[Path]
    test: list[Path]
    others: list[Path]  # those of `train` whose names speak of validation or test, but do not count
    few: bool = False  # whether these do not count because too little of the text is in named files

    def words(self) -> str:
        """What was taken for what; empty if the names say nothing."""
        folder = _common(itertools.chain(self.train, self.val, self.test))
        if self.few:
            return (
                f"{BY_DOCUMENT}; names such as {_few(self.others[:1], folder)} do not count, since less than half of "
                "the text is in files that are named for training, validation or test"
            )
        why, one = "since no file for training has the same name", len(self.others) == 1
        if self.val or self.test:
            val = f"{_few(self.val, folder)}; {NO_FRACTION}" if self.val else "the same by VAL_FRACTION"
            return (
                f"by name: train from {_few(self.train, folder)}, val from {val}"
                + f"; left out: {_few(self.test, folder)}" * bool(self.test)
                + f"; {_few(self.others, folder)} {'is' if one else 'are'} for train, {why}" * bool(self.others)
            )
        if self.others:
            return f"{BY_DOCUMENT}; {_few(self.others, folder)} {'is' if one else 'are'} divided like the others, {why}"
        return ""


def _size(path: Path) -> int:
    return path.stat().st_size


def named(paths: list[Path], size: Callable[[Path], int] = _size) -> Parts:
    """Sort files by the words train, valid or test (and their like) in their names, or in those of their folders.

    Such a word counts only if the name, but for it, numbers and separators, is also that of another part:
    wiki.train.txt and wiki-test.txt are parts of one corpus, and test_results.txt and train_journeys.txt are two of
    somebody's notes. A file's own name goes before those of its folders. So that two such notes do not decide about
    hundreds of other files, names count only where the files that have them hold half of the text.
    """
    names = _names(paths)
    forms = {split: set() for split in ("train", "val", "test")}
    for split, form in itertools.chain(*names.values()):
        forms[split].add(form)
    partners = forms["train"] & (forms["val"] | forms["test"])
    decided = {path: next((split for split, form in names[path] if form in partners), None) for path in paths}
    if "train" not in decided.values() or not {"val", "test"} & set(decided.values()):
        decided = dict.fromkeys(paths)
    speaking = [path for path in paths if decided[path] or "train" in dict(names[path])]
    few = sum(map(size, speaking)) < _NAMED_SHARE * sum(map(size, paths))
    parts = Parts([], [], [], [], few and any(decided.values()))
    for path, split in decided.items():
        getattr(parts, "train" if parts.few else split or "train").append(path)
        speaks = any(split != "train" for split, _ in names[path])
        if len(paths) > 1 and (decided[path] in ("val", "test") if parts.few else not split and speaks):
            parts.others.append(path)
    return parts


def _names(paths: list[Path]) -> dict[Path, list[tuple[str, str]]]:
    """What the names of a file and of its folders say, from the file's own outwards."""
    folder = _common(paths) if paths else Path()
    return {
        path: [found for part in reversed(path.relative_to(folder).parts) if (found := _name(part))] for path in paths
    }


def _name(part: str) -> tuple[str, str] | None:
    """(split, the rest of the name) of a file or folder that is named after one split."""
    stem = part
    while re.fullmatch(r"\.[A-Za-z]+", ending := Path(stem).suffix) and ending[1:].lower() not in _NAMES:
        stem = stem.removesuffix(ending)
    found = [(match, _split_named(match[0])) for match in _WORDS.finditer(stem)]
    found = [(match, split) for match, split in found if split]
    if len(found) != 1:
        return None
    ((match, split),) = found
    rest = _NUMBERS.sub("", f"{stem[: match.start()]}*{stem[match.end() :]}")
    return split, _SEPARATORS.sub("-", rest).lower()


def _split_named(word: str) -> str | None:
    return _NAMES.get(_SEPARATORS.sub("", word).lower())


def _common(paths: Iterable[Path]) -> Path:
    """The folder that all files lie in, themselves or their folders."""
    return Path(os.path.commonpath([path.parent for path in paths]))


def _few(paths: list[Path], folder: Path) -> str:
    first = paths[0].relative_to(folder).as_posix() if paths else ""
    return first if len(paths) == 1 else f"{len(paths)} files such as {first}"


# ---- by share --------------------------------------------------------------------------------------------------------


class _Document(NamedTuple):
    pieces: Iterable[str]
    size: int | None  # characters; None: more than _LONG
    key: int  # the same for copies; of a long document it is that of its beginning


def assign(documents: Iterable[str | Iterator[str]], fraction: float) -> Iterator[Text]:
    """Give each document to the split that lacks it: validation while it has less than its share of the text so far.

    This looks only at what came before, so it needs no second pass and favours no kind of document. Copies of a
    document go where the first one went. So that the share holds in any corpus, two kinds of documents are divided: the
    beginning of one that is larger than validation's whole share so far makes that share up, and one of more than _LONG
    characters is assigned piece by piece.
    """
    share, train = _Share(fraction), _Numbers()
    places: dict[int, int] = {}  # key of a document -> where its part for validation ends, unless that is at 0
    sides: dict[int, list[str]] = {}  # key of a long document -> the splits of its pieces
    for document, last in _with_last(filter(lambda document: document.size != 0, map(_read, documents))):
        if document.size is None:
            parts = share.piecewise(document.pieces, sides.setdefault(document.key, []))
        else:
            place = 0 if document.key in train else places.get(document.key)
            if place is None:  # it is no copy
                place = _place(document, share.part(document.size, last))
                if place:
                    places[document.key] = place
                else:
                    train.add(document.key)
            parts = _divided(document, place)
        yield from _texts(share.counted(parts))


class _Share:
    """How much of the text so far validation has, and how much of it it should have."""

    def __init__(self, fraction: float):
        self.fraction, self.seen, self.val = fraction, 0, 0

    def part(self, size: int, last: bool) -> int:
        """How many characters of a document are for validation: all, none, or what makes up its share."""
        lacks, whole = self.val < self.fraction * self.seen, self.fraction * (self.seen + size)
        if size <= whole:
            return size if lacks else 0
        # Not each time that it lacks something, which would be a few characters of every other document.
        return max(0, math.ceil(whole - self.val)) if last or 2 * self.val < self.fraction * self.seen else 0

    def piecewise(self, pieces: Iterable[str], sides: list[str]) -> Iterator[tuple[str, str]]:
        """The pieces of a document with their splits, which are kept in `sides`, or given there for a copy."""
        for number, piece in enumerate(pieces):
            if number == len(sides):
                sides.append("val" if self.val < self.fraction * self.seen else "train")
            yield sides[number], piece

    def counted(self, parts: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        """Pass on what goes to a split, and count it."""
        for split, piece in parts:
            self.seen += len(piece)
            self.val += len(piece) * (split == "val")
            yield split, piece


class _Numbers:
    """A set of 64-bit numbers that holds nearly all of them at 8 bytes each."""

    def __init__(self):
        self._recent, self._sorted = set(), np.empty(0, np.int64)

    def add(self, number: int) -> None:
        self._recent.add(number)
        if len(self._recent) > max(_RECENT, len(self._sorted) // 32):
            recent = np.sort(np.fromiter(self._recent, np.int64))
            self._recent = set()
            self._sorted = np.append(self._sorted, recent)
            self._sorted.sort(kind="stable")  # which merges two sorted parts, and takes little memory for that

    def __contains__(self, number: int) -> bool:
        if number in self._recent:
            return True
        place = self._sorted.searchsorted(number)
        return place < len(self._sorted) and self._sorted[place] == number


def _read(document: str | Iterator[str]) -> _Document:
    """A document with its size, and what its copies are known by: Python's own hash, which only has to be equal."""
    pieces, held, size = sources.cut(document) if isinstance(document, str) else document, [], 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size > _LONG:
            return _Document(itertools.chain(held, pieces), None, hash(tuple(held)))
    return _Document(held, size, hash("".join(held)))


def _with_last(documents: Iterable[_Document]) -> Iterator[tuple[_Document, bool]]:
    """(document, whether it is the last), where one that is not held is never called the last.

    A document that is not held has to be read before the next is fetched, since both may come out of one file.
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
    """Where to cut a document so that about `wanted` characters come before, in a way that changes no token."""
    return sources.cut_place("".join(document.pieces), wanted) if 0 < wanted < document.size else wanted


def _divided(document: _Document, place: int) -> Iterator[tuple[str, str]]:
    """The pieces with their splits: validation's end at `place`."""
    if 0 < place < document.size:
        text = "".join(document.pieces)
        parts = {"val": sources.cut(text[:place]), "train": sources.cut(text[place:])}
    else:
        parts = {"val" if place else "train": document.pieces}
    return ((split, piece) for split, pieces in parts.items() for piece in pieces)


def one_text(path: Path, fraction: float, repaired: Repairs) -> Iterator[Text]:
    """A file whose end is for validation; that comes first, so that a limit on training tokens does not cut it off."""
    cut = sources.character_start(path, 1 - fraction)
    parts = {"val": sources.pieces(path, cut, None, repaired), "train": sources.pieces(path, 0, cut, repaired)}
    return _texts((split, piece) for split, pieces in parts.items() for piece in pieces)


def all_of(documents: Iterable[str | Iterator[str]], split: str) -> Iterator[Text]:
    """Documents that are all for one split."""
    for document in documents:
        pieces = sources.cut(document) if isinstance(document, str) else document
        yield from _texts((split, piece) for piece in pieces)


def _texts(parts: Iterable[tuple[str, str]]) -> Iterator[Text]:
    """The pieces of a document with their splits as texts, without the empty ones; each run of one split ends."""
    for split, run in itertools.groupby(parts, operator.itemgetter(0)):
        for (_, piece), last in _marked(part for part in run if part[1]):
            yield Text(split, piece, last)


def _marked(items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """(item, whether it is the last)."""
    before = []
    for item in items:
        if before:
            yield before.pop(), False
        before.append(item)
    if before:
        yield before.pop(), True


# ---- by what repeats -------------------------------------------------------------------------------------------------


def apart(documents: Sequence[str], fraction: float) -> Iterator[Text]:
    """Documents that are known as a whole, such that those that share a passage are of one split.

    Groups of them are taken for validation in an order that has nothing to do with what they are, if they fit into its
    share of the text.
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
