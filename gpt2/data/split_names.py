"""Splits by name: which files are for training, validation or test, as the names of files and folders say."""

import itertools
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

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
_NAMED_SHARE = 0.5  # names decide if the named files hold at least this share of the bytes

# Sentences about a split are kept in meta.json and compared with those of today. So another wording of BY_DOCUMENT,
# NO_FRACTION or `Parts.words` would call every prepared dataset outdated.
BY_DOCUMENT = "by document, copies on one side"
NO_FRACTION = "VAL_FRACTION has no effect"


class Parts(NamedTuple):
    """The files of each split, as far as their names say it."""

    train: list[Path]  # and the files whose names say nothing
    val: list[Path]
    test: list[Path]
    ignored: list[Path]  # files in `train` whose names say validation or test, which is ignored
    few: bool = False  # whether names are ignored because the named files hold too little of the text

    def words(self) -> str:
        """Describe the split for meta.json and the user; "" if no name says anything."""
        folder = _common(itertools.chain(self.train, self.val, self.test))
        if self.few:
            return (
                f"{BY_DOCUMENT}; names such as {_few(self.ignored[:1], folder)} do not count, since less than half of "
                "the text is in files that are named for training, validation or test"
            )
        why, one = "since no file for training has the same name", len(self.ignored) == 1
        if self.val or self.test:
            val = f"{_few(self.val, folder)}; {NO_FRACTION}" if self.val else "the same by VAL_FRACTION"
            return (
                f"by name: train from {_few(self.train, folder)}, val from {val}"
                + f"; left out: {_few(self.test, folder)}" * bool(self.test)
                + f"; {_few(self.ignored, folder)} {'is' if one else 'are'} for train, {why}" * bool(self.ignored)
            )
        if self.ignored:
            return (
                f"{BY_DOCUMENT}; {_few(self.ignored, folder)} {'is' if one else 'are'} divided like the others, {why}"
            )
        return ""


def _size(path: Path) -> int:
    return path.stat().st_size


def sort(paths: list[Path], size: Callable[[Path], int] = _size) -> Parts:
    """Sort files by the words train, valid or test (or synonyms) in their names or in the names of their folders.

    A word counts only if another split has a file of the same name apart from that word, numbers and separators:
    wiki.train.txt and wiki-test.txt belong together; test_results.txt and train_journeys.txt are just two notes. The
    name of a file counts before the names of its folders. Names count only if the named files hold half of the text:
    two files that happen to match must not decide for hundreds of others.
    """
    names = _names(paths)
    forms = {split: set() for split in ("train", "val", "test")}
    for split, form in itertools.chain(*names.values()):
        forms[split].add(form)
    partners = forms["train"] & (forms["val"] | forms["test"])
    decided = {path: next((split for split, form in names[path] if form in partners), None) for path in paths}
    if "train" not in decided.values() or not {"val", "test"} & set(decided.values()):
        decided = dict.fromkeys(paths)
    named = [path for path in paths if decided[path] or "train" in dict(names[path])]
    few = sum(map(size, named)) < _NAMED_SHARE * sum(map(size, paths))
    parts = Parts([], [], [], [], few and any(decided.values()))
    for path, split in decided.items():
        getattr(parts, "train" if parts.few else split or "train").append(path)
        speaks = any(split != "train" for split, _ in names[path])
        if len(paths) > 1 and (decided[path] in ("val", "test") if parts.few else not split and speaks):
            parts.ignored.append(path)
    return parts


def _names(paths: list[Path]) -> dict[Path, list[tuple[str, str]]]:
    """Map each file to what `_name` finds in its path, from the file's name to the outermost folder."""
    folder = _common(paths) if paths else Path()
    return {
        path: [found for part in reversed(path.relative_to(folder).parts) if (found := _name(part))] for path in paths
    }


def _name(part: str) -> tuple[str, str] | None:
    """Return (split, rest of the name) if a file or folder is named after exactly one split."""
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
    """Return the innermost folder that contains all files."""
    return Path(os.path.commonpath([path.parent for path in paths]))


def _few(paths: list[Path], folder: Path) -> str:
    first = paths[0].relative_to(folder).as_posix() if paths else ""
    return first if len(paths) == 1 else f"{len(paths)} files such as {first}"
