"""Corpora: which text a model learns from; one function per dataset, named like the value of option DATASET.

A function takes the options and yields `Text`s one after the other, always in the same order and holding few of them at
a time. Adding a dataset is one function here and one entry in Kconfig.
"""

import functools
import hashlib
import itertools
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt2.data import local_files, repairs, servers, sources, splits
from gpt2.data.local_files import DataError, Found
from gpt2.data.repairs import Repairs
from gpt2.data.splits import Parts, Text
from lib.base.errors import UsageError
from lib.config.kconf import Options

SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
# What `splitting` says where no file's name decides.
AT_THE_END, BY_FILE = "the end is for validation", "by file, those that share a passage on one side"
UNNAMED = (AT_THE_END, BY_FILE, splits.BY_DOCUMENT)
_SHAKESPEARE_BYTES = 1_115_394
_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test"})


@dataclass(frozen=True)
class CorpusOptions(Options):
    """Which text to learn from; an option that the dataset does not have is None."""

    dataset: str
    dataset_source: str | None  # path, pattern, URL or name on the hub
    dataset_subset: str | None  # empty: the only one
    dataset_text_field: str | None
    dataset_max_tokens: int | None  # of training; 0: all
    val_fraction: float | None
    dataset_end_of_text: bool | None  # whether a document ends where <|endoftext|> is spelt in a text file
    text_errors: str | None  # "strict", "replace" or "skip": what is done about bytes that are not UTF-8


def texts(options: CorpusOptions) -> Iterator[Text]:
    """All texts of the dataset; raises DataError or UsageError when they cannot be had."""
    if options.dataset_source == "":
        raise UsageError(f"DATASET_SOURCE is empty: say where the dataset {options.dataset} comes from")
    return globals()[options.dataset](options)


def describe(options: CorpusOptions) -> str:
    """What the text is read from, in words; a change means that preparing it again would give something else."""
    if options.dataset == "stdlib":
        return f"{sys.implementation.name} {sys.version.split()[0]}"
    if options.dataset == "shakespeare":
        return f"sha256 {SHAKESPEARE_SHA256}"
    if options.dataset == "files" and options.dataset_source and (paths := _own_files(options)):
        return _counted(paths)
    return "/".join(filter(None, (options.dataset_source, options.dataset_subset)))


def describe_as_before(options: CorpusOptions) -> str:
    """`describe` for a folder, of the files that versions before option TEXT_ERRORS read: hidden ones too, no .md."""
    found = Path(options.dataset_source).rglob("*")
    return _counted([path for path in found if path.suffix in (".txt", ".jsonl", ".parquet") and path.is_file()])


def _counted(paths: list[Path]) -> str:
    return f"{len(paths)} files, {sum(path.stat().st_size for path in paths)} bytes"


def splitting(options: CorpusOptions) -> str:
    """How the text is divided between training and validation, in words; a change of the way changes the words."""
    if options.dataset == "stdlib":
        return BY_FILE
    if options.dataset == "shakespeare":
        return AT_THE_END
    paths = _own_files(options) if options.dataset == "files" and options.dataset_source else []
    if paths and (words := splits.named(paths).words()):
        return words
    return AT_THE_END if _is_one_text(paths, options) else splits.BY_DOCUMENT


def size(options: CorpusOptions) -> int:
    """How many bytes of text there are, about; 0 where only reading them tells, as with a stream."""
    if options.dataset == "stdlib":
        return sum(path.stat().st_size for path in _library(_root()))
    parts = splits.named(_own_files(options)) if options.dataset == "files" else ([], [])
    return sources.text_bytes([*parts[0], *parts[1]], options.dataset_text_field)


# ---- the datasets ----------------------------------------------------------------------------------------------------


def stdlib(options: CorpusOptions) -> Iterator[Text]:
    """Python's standard library: the sources of the interpreter that runs this, without its tests.

    Files that share passages of 120 bytes or more, such as the tables of encodings, are all of one split.
    """
    return splits.apart(list(map(sources.python_source, _library(_root()))), options.val_fraction)


def _root() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


@functools.cache  # finding them takes 0.4 s, and both the reader and the progress bar ask
def _library(root: Path) -> list[Path]:
    paths = [path for path in root.rglob("*.py") if not _NOT_LIBRARY.intersection(path.relative_to(root).parts)]
    if not paths:
        raise DataError(f"{root}: this Python comes without sources of its standard library; choose another dataset")
    return sorted(paths, key=lambda path: path.relative_to(root).as_posix())


def shakespeare(options: CorpusOptions, sha256: str = SHAKESPEARE_SHA256) -> Iterator[Text]:
    """Tiny Shakespeare, by URL or from a local file: the first part is for training, the rest for validation."""
    source = options.dataset_source
    content = servers.fetch(source, _SHAKESPEARE_BYTES)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"{source}: this is not Tiny Shakespeare: its sha256 is not {sha256[:12]}...; get it anew")
    text = content.decode()
    cut = int(len(text) * (1 - options.val_fraction))
    return iter([Text("val", text[cut:]), Text("train", text[:cut])])


def finewebedu(options: CorpusOptions) -> Iterator[Text]:
    """FineWeb-Edu from the Hugging Face hub, or from a local copy of its repository."""
    return _hub(options)


def openwebtext(options: CorpusOptions) -> Iterator[Text]:
    """OpenWebText from the Hugging Face hub, or from a local copy of its repository."""
    return _hub(options)


def files(options: CorpusOptions) -> Iterator[Text]:
    """Your own texts (.txt, .md and .rst: one document each), .jsonl or .parquet, or any dataset on the hub.

    Of a single text the end is for validation; many documents are assigned one by one, unless the files' names say what
    they are for.
    """
    found = _find(options)
    if not found.paths:
        return _hub(options)
    if note := found.note(options.dataset_source):
        repairs.say(note)
    return _read(splits.named(found.paths), options)


def _read(parts: Parts, options: CorpusOptions) -> Iterator[Text]:
    """The texts of local files of one kind; raises DataError for bytes that are not UTF-8 in any of them."""
    paths = [*parts.train, *parts.val]
    local_files.refuse_pointers(paths)
    kind = local_files.kind(paths[0])
    if options.text_errors == "strict" and kind != "parquet" and not options.dataset_max_tokens:
        repairs.check(paths)  # now, since the first of them may come after hours
    if kind == "text" and not options.dataset_end_of_text and sources.spells_end_of_text(paths[0]):
        repairs.say(
            f"{paths[0]}: spells {sources.END_OF_TEXT}, which is read like any other text; with DATASET_END_OF_TEXT=y "
            "a document ends there"
        )
    try:
        with Repairs(options.text_errors) as repaired:
            yield from _split(parts, options, repaired)
    except repairs.NotUtf8Error:
        repairs.check(paths, options.dataset_text_field)  # raises for all such files, and this one among them
        raise


def _split(parts: Parts, options: CorpusOptions, repaired: Repairs) -> Iterator[Text]:
    if parts.val:  # first, so that a limit on training tokens leaves it whole
        named = (splits.all_of(_documents(getattr(parts, name), options, repaired), name) for name in ("val", "train"))
        return itertools.chain(*named)
    if _is_one_text(parts.train, options):
        return splits.one_text(parts.train[0], options.val_fraction, repaired)
    return splits.assign(_documents(parts.train, options, repaired), options.val_fraction)


def _is_one_text(paths: list[Path], options: CorpusOptions) -> bool:
    return len(paths) == 1 and local_files.kind(paths[0]) == "text" and not options.dataset_end_of_text


def _documents(paths: list[Path], options: CorpusOptions, repaired: Repairs) -> Iterator[str | Iterator[str]]:
    kind = local_files.kind(paths[0])
    if kind == "text":
        return sources.texts(paths, repaired, options.dataset_end_of_text)
    read = sources.json_lines if kind == "lines" else sources.parquet
    return read(paths, options.dataset_text_field, repaired)


def _hub(options: CorpusOptions) -> Iterator[Text]:
    paths = _local_copy(options)
    if not paths:
        documents = servers.hub(options.dataset_source, options.dataset_subset, options.dataset_text_field)
        yield from splits.assign(documents, options.val_fraction)
        return
    local_files.refuse_pointers(paths)
    with Repairs(options.text_errors or "strict") as repaired:
        yield from splits.assign(_documents(paths, options, repaired), options.val_fraction)


def _local_copy(options: CorpusOptions) -> list[Path]:
    """The files for training of a hub repository's copy, if they are of a kind that is read here.

    Its README.md may name several subsets. Which files belong to which is for the hub's own library to say, unless the
    subset is a folder.
    """
    folder = Path(options.dataset_source, options.dataset_subset or "")
    if not folder.is_dir() or (not options.dataset_subset and servers.has_subsets(folder)):
        return []
    try:
        found = local_files.find(str(folder))
    except UsageError:  # several kinds of files, or other ones
        return []
    if local_files.kind(found.paths[0]) == "text":
        return []
    parts = splits.named(found.paths)
    left_out = found.left_out + Counter({"file for validation or test": len(parts.val) + len(parts.test)})
    if note := Found(parts.train, left_out).note(str(folder)):
        repairs.say(note)
    return parts.train


def _own_files(options: CorpusOptions) -> list[Path]:
    """The local files to read, or none for a dataset's name; a folder with subsets is a copy of a hub repository."""
    return _find(options).paths


def _find(options: CorpusOptions) -> Found:
    """`_own_files`, and what is left out of them."""
    source = options.dataset_source
    looks_like_name = re.fullmatch(r"[\w-]+(/[\w.-]+)?", source) and not local_files.kind(Path(source))
    if options.dataset_subset or (looks_like_name and not Path(source).exists()):
        return Found([], Counter())
    return local_files.find(source)
