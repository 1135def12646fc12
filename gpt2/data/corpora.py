"""Corpora: which text a model learns from; one function per dataset, named like the value of option DATASET.

A function takes the options and yields `Text`s, always in the same order, and keeps only a few in memory. A new dataset
is one function here and one entry in Kconfig.
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

from gpt2.data import local_files, repairs, servers, sources, split_names, splits
from gpt2.data.local_files import DataError, Found
from gpt2.data.repairs import Repairs
from gpt2.data.split_names import Parts
from gpt2.data.splits import Text
from lib.base.errors import UsageError
from lib.config.kconf import Options

SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
# What `splitting` returns if the names of files do not decide. meta.json keeps these words and they are compared, so
# another wording would call every prepared dataset outdated.
AT_THE_END, BY_FILE = "the end is for validation", "by file, those that share a passage on one side"
UNDIVIDED = "all of it is for training"  # VAL_FRACTION=0
UNNAMED = (AT_THE_END, BY_FILE, UNDIVIDED, split_names.BY_DOCUMENT)
_SHAKESPEARE_BYTES = 1_115_394
_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test"})


@dataclass(frozen=True)
class CorpusOptions(Options):
    """Which text to learn from; None if the dataset does not have the option."""

    dataset: str
    dataset_source: str | None  # path, pattern, URL or name on the hub
    dataset_subset: str | None  # "": the dataset has only one
    dataset_text_field: str | None
    dataset_max_tokens: int | None  # of training; 0: no limit
    val_fraction: float | None
    dataset_end_of_text: bool | None  # whether <|endoftext|> in a text file ends a document
    text_errors: str | None  # "strict", "replace" or "skip": what to do about bytes that are not UTF-8


def texts(options: CorpusOptions) -> Iterator[Text]:
    """Yield all texts of the dataset; raises DataError or UsageError if they cannot be read."""
    if options.dataset_source == "":
        raise UsageError(f"DATASET_SOURCE is empty; set it to where the dataset {options.dataset} comes from")
    return globals()[options.dataset](options)


def describe(options: CorpusOptions) -> str:
    """Describe the source of the text. If it has changed, preparing the dataset again may give other tokens."""
    if options.dataset == "stdlib":
        return f"{sys.implementation.name} {sys.version.split()[0]}"
    if options.dataset == "shakespeare":
        return f"sha256 {SHAKESPEARE_SHA256}"
    if options.dataset == "files" and options.dataset_source and (paths := _own_files(options)):
        return _counted(paths)
    return "/".join(filter(None, (options.dataset_source, options.dataset_subset)))


def describe_as_before(options: CorpusOptions) -> str:
    """Describe a folder as versions before option TEXT_ERRORS did: with hidden files and without .md, for instance."""
    found = Path(options.dataset_source).rglob("*")
    return _counted([path for path in found if path.suffix in (".txt", ".jsonl", ".parquet") and path.is_file()])


def _counted(paths: list[Path]) -> str:
    return f"{len(paths)} files, {sum(path.stat().st_size for path in paths)} bytes"


def splitting(options: CorpusOptions) -> str:
    """Describe how the text is divided between training and validation. Different ways have different words."""
    if options.dataset in ("stdlib", "shakespeare"):
        whole = BY_FILE if options.dataset == "stdlib" else AT_THE_END
        return whole if options.val_fraction else UNDIVIDED
    paths = _own_files(options) if options.dataset == "files" and options.dataset_source else []
    parts = split_names.sort(paths)
    if paths and parts.words() and (options.val_fraction or parts.val or parts.test):
        return parts.words()
    if not options.val_fraction:
        return UNDIVIDED
    return AT_THE_END if _is_one_text(paths, options) else split_names.BY_DOCUMENT


def size(options: CorpusOptions) -> int:
    """Estimate how many bytes the text has; 0 if only reading it would tell, as with a stream."""
    if options.dataset == "stdlib":
        return sum(path.stat().st_size for path in _library(_root()))
    if options.dataset != "files":
        return 0
    parts = split_names.sort(_own_files(options))
    return sources.text_bytes([*parts.train, *parts.val], options.dataset_text_field)


# ---- the datasets ----------------------------------------------------------------------------------------------------


def stdlib(options: CorpusOptions) -> Iterator[Text]:
    """Python's standard library: the sources of the running interpreter, without its tests.

    Files that share passages of 120 bytes or more, such as the tables of encodings, go to the same split.
    """
    return splits.apart(list(map(sources.python_source, _library(_root()))), options.val_fraction)


def _root() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


@functools.cache  # finding the files takes 0.4 s, and both the reader and the progress bar need them
def _library(root: Path) -> list[Path]:
    paths = [path for path in root.rglob("*.py") if not _NOT_LIBRARY.intersection(path.relative_to(root).parts)]
    if not paths:
        raise DataError(f"{root}: this Python has no sources of its standard library; choose another DATASET")
    return sorted(paths, key=lambda path: path.relative_to(root).as_posix())


def shakespeare(options: CorpusOptions, sha256: str = SHAKESPEARE_SHA256) -> Iterator[Text]:
    """Tiny Shakespeare, by URL or from a local file: its beginning is for training, its end for validation."""
    source = options.dataset_source
    content = servers.fetch(source, _SHAKESPEARE_BYTES)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"{source}: is not Tiny Shakespeare: its sha256 is not {sha256[:12]}...; get it again")
    text = content.decode()
    cut = int(len(text) * (1 - options.val_fraction))
    return iter([Text(split, part) for split, part in (("val", text[cut:]), ("train", text[:cut])) if part])


def finewebedu(options: CorpusOptions) -> Iterator[Text]:
    """FineWeb-Edu from the Hugging Face hub, or from a local copy of its repository."""
    return _hub(options)


def openwebtext(options: CorpusOptions) -> Iterator[Text]:
    """OpenWebText from the Hugging Face hub, or from a local copy of its repository."""
    return _hub(options)


def files(options: CorpusOptions) -> Iterator[Text]:
    """Your own texts (.txt, .md and .rst: one document each), .jsonl or .parquet, or any dataset on the hub.

    The end of a single text is for validation. Several documents are assigned one by one, unless the names of files say
    which split they are for.
    """
    found = _find(options)
    if not found.paths:
        return _hub(options)
    if note := found.note(options.dataset_source):
        repairs.say(note)
    return _read(split_names.sort(found.paths), options)


def _read(parts: Parts, options: CorpusOptions) -> Iterator[Text]:
    """Yield the texts of local files of one kind; raises DataError if a file is not UTF-8 and TEXT_ERRORS is strict."""
    paths = [*parts.train, *parts.val]
    local_files.refuse_pointers(paths)
    kind = local_files.kind(paths[0])
    if options.text_errors == "strict" and kind != "parquet" and not options.dataset_max_tokens:
        repairs.check(paths)  # before hours of reading, which would fail at the first wrong byte
    if kind == "text" and not options.dataset_end_of_text and sources.contains_end_of_text(paths[0]):
        repairs.say(
            f"{paths[0]}: contains {sources.END_OF_TEXT}, which is read like any other text; set "
            "DATASET_END_OF_TEXT=y to end a document there"
        )
    try:
        with Repairs(options.text_errors) as repaired:
            yield from _split(parts, options, repaired)
    except repairs.NotUtf8Error:
        repairs.check(paths, options.dataset_text_field)  # raises an error that names all such files, this one included
        raise


def _split(parts: Parts, options: CorpusOptions, repaired: Repairs) -> Iterator[Text]:
    if parts.val:  # validation first: preparation stops at DATASET_MAX_TOKENS of training
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
    """Return the training files in a local copy of a hub repository, [] if this program cannot read their kind.

    If README.md names several subsets, only the hub's library knows the files of each, unless the subset is a folder.
    """
    folder = Path(options.dataset_source, options.dataset_subset or "")
    if not folder.is_dir() or (not options.dataset_subset and servers.has_subsets(folder)):
        return []
    try:
        found = local_files.find(str(folder))
    except UsageError:  # files of several kinds, or of none that is read here
        return []
    if local_files.kind(found.paths[0]) == "text":
        return []
    parts = split_names.sort(found.paths)
    left_out = found.left_out + Counter({"file for validation or test": len(parts.val) + len(parts.test)})
    if note := Found(parts.train, left_out).note(str(folder)):
        repairs.say(note)
    return parts.train


def _own_files(options: CorpusOptions) -> list[Path]:
    """Return the local files to read, [] if the source is a dataset on the hub or a subset of a local copy."""
    return _find(options).paths


def _find(options: CorpusOptions) -> Found:
    """Find the local files to read, and what is left out."""
    source = options.dataset_source
    looks_like_name = re.fullmatch(r"[\w-]+(/[\w.-]+)?", source) and not local_files.kind(Path(source))
    if options.dataset_subset or (looks_like_name and not Path(source).exists()):
        return Found([], Counter())
    return local_files.find(source)
