"""Perplexity on fixed windows of a text, as the papers on pruning report it.

SparseGPT (arXiv 2301.00774) and Wanda (arXiv 2306.11695) cut the tokens of the raw text into windows of the context
length T that do not overlap. A window predicts its tokens 2 to T. The perplexity is exp of the mean over windows of
their mean losses. Both papers report models of which 2,048 tokens are the context; GPT-2 has 1,024.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gpt2.data import local_files, servers, sources
from gpt2.data.local_files import DataError
from gpt2.data.tokenizer import Gpt2, Tokenizer, encodable
from gpt2.evaluation import losses
from gpt2.evaluation.harness import Model
from gpt2.evaluation.result import Result
from lib.base.errors import UsageError
from lib.machine.device import Machine

_FIELD = "text"
_GPT2_CONTEXT = 1024


@dataclass(frozen=True)
class Text:
    """A text that papers report, and how their code makes it from the rows of a dataset."""

    dataset: str
    subset: str
    split: str
    file: str  # in the hub's repository of the dataset
    between: str  # the rows
    rows: int | None = None  # the first ones; None: all
    windows: int | None = None


TEXTS = {
    "wikitext2": Text(
        "Salesforce/wikitext", "wikitext-2-raw-v1", "test", "wikitext-2-raw-v1/test-00000-of-00001.parquet", "\n\n"
    ),
    "c4": Text("allenai/c4", "en", "validation", "en/c4-validation.00000-of-00008.json.gz", " ", 1100, 256),
}


def check(names: str, local: str) -> None:
    """Raise UserError for a text that is neither known nor a file, or that neither `local` (TASK_DATA) nor the hub has.

    If `local` is empty, known texts are fetched into the hub's cache.
    """
    given = _given(names)
    if not given:
        raise UsageError(f"PERPLEXITY={names}: names no text; use a file or {' and '.join(TEXTS)}")
    for name in given:
        if name in TEXTS:
            _file(TEXTS[name], local)
        elif not Path(name).is_file() or local_files.kind(Path(name)) is None:
            known = " and ".join(TEXTS)
            if local_files.kind(Path(name)) and not Path(name).exists():
                raise UsageError(f"PERPLEXITY={name}: there is no such file; name a file or one of {known}")
            raise UsageError(f"PERPLEXITY={name}: is neither a .txt, .jsonl or .parquet file nor one of {known}")
    shown = [Path(name).name for name in given]
    if odd := [name for name in shown if not name.isprintable()]:
        raise UsageError(f"PERPLEXITY: the name {odd[0]!r} has characters that cannot be printed; rename the file")
    if twice := [name for name in shown if shown.count(name) > 1]:
        raise UsageError(f"PERPLEXITY names {twice[0]} twice; results are told apart by the names of the files")


def measure(
    names: str, local: str, model: Model, tokenizer: Tokenizer, machine: Machine, batch_size: int
) -> Iterator[Result]:
    """A Result, named perplexity/<text>, for each of the comma-separated `names`, which `check` has accepted.

    A known text comes from the folder `local` (TASK_DATA), as <dataset>/<subset>/<split>.jsonl or .parquet, or from the
    hub if `local` is empty. Of a file with rows, the rows are joined by empty lines. Raises DataError for a text that
    is empty, too short or not to be had.
    """
    T = model.block_size
    if T < 2:
        raise UsageError("BLOCK_SIZE=1: a window of one token predicts nothing; perplexity needs a longer context")
    sizes = tokenizer.text_bytes()
    for name in _given(names):
        text, details = _read(name, local)
        shown, known = Path(name).name, TEXTS.get(name)
        tokens = np.concatenate(tokenizer.encode_batch(sources.cut(text)))
        count = len(tokens) // T
        if count == 0:
            raise DataError(
                f"{name}: has {len(tokens):,} tokens, and a window takes BLOCK_SIZE = {T:,}; use a longer text"
            )
        if known and known.windows:
            count = min(count, known.windows)
        windows = tokens[: count * T].reshape(count, T)
        found = losses.of_windows(model, _batches(windows, batch_size), count, machine, shown)
        nats, size = found.sum().item() * (T - 1), int(sizes[windows[:, 1:]].sum())
        called = f"perplexity/{shown}"  # a task of lm-eval may have the text's name
        values = losses.metrics(called, found, nats / math.log(2) / size if size else math.inf)
        notes = _notes(shown, tokenizer, T) if known else []
        yield Result(called, values, count, details={**details, "block_size": T, "notes": notes})


def _batches(windows: np.ndarray, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for first in range(0, len(windows), size):
        tokens = torch.from_numpy(windows[first : first + size].astype(np.int64))
        yield tokens[:, :-1], tokens[:, 1:]


def _given(names: str) -> list[str]:
    return [name for name in map(str.strip, names.split(",")) if name]


def _read(name: str, local: str) -> tuple[str, dict[str, str]]:
    """The text of that name, and where it is from."""
    if name not in TEXTS:
        path = Path(name)
        text = "".join(sources.pieces(path)) if local_files.kind(path) == "text" else _joined(path, "\n\n", None)
        source = str(path)
    else:
        known = TEXTS[name]
        path, source = _file(known, local)
        text = _joined(path, known.between, known.rows)
    if not text:
        raise DataError(f"{path}: has no text; use another file")
    text = encodable(text)  # JSON may have half of a pair of surrogates
    return text, {"source": source, "sha256_text": hashlib.sha256(text.encode()).hexdigest()}


def _joined(path: Path, between: str, most: int | None) -> str:
    local_files.refuse_pointers([path])
    read = sources.parquet if path.suffix == ".parquet" else sources.json_lines
    try:
        return between.join(islice(read([path], _FIELD), most))
    except UsageError as error:
        what = str(error).partition("; set DATASET_TEXT_FIELD")[0]
        raise UsageError(f"{what}; PERPLEXITY reads the field {_FIELD!r} of each row") from None


def _file(text: Text, local: str) -> tuple[Path, str]:
    """The file of a text, and where it is from: the folder that TASK_DATA names, or the hub if it names none."""
    if not local:
        path, commit = servers.hub_file(text.dataset, text.file)
        return path, f"{text.dataset}@{commit}"
    stem = Path(local, text.dataset, text.subset, text.split)
    found = [path for ending in (".jsonl", ".parquet") if (path := stem.with_name(stem.name + ending)).is_file()]
    if not found:
        raise UsageError(f"{stem}.jsonl: is missing, and so is .parquet; PERPLEXITY needs one, or TASK_DATA empty")
    return found[0], str(found[0])


def _notes(name: str, tokenizer: Tokenizer, T: int) -> list[str]:
    if isinstance(tokenizer, Gpt2) and T == _GPT2_CONTEXT:
        return []
    kind = "GPT-2's tokens" if isinstance(tokenizer, Gpt2) else "bytes"
    return [
        f"{name}: this perplexity is per token, of {kind} in windows of {T:,}; it stands beside published figures of "
        f"GPT-2 only with GPT-2's tokens in windows of {_GPT2_CONTEXT:,}"
    ]
