"""Encoding: the texts of a corpus become token ids on all cores, in order, with a display of the progress."""

import functools
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from gpt2.data import corpora, tokenizer
from gpt2.data.corpora import CorpusOptions
from gpt2.data.local_files import DataError, reason
from gpt2.data.splits import Text
from gpt2.data.tokens import TOKEN
from lib.base.errors import UserError
from lib.base.threads import cores

_BATCH_CHARACTERS, _BATCH_TEXTS = 1 << 20, 4096  # a thread encodes one batch in about 0.1 s
_MOST_THREADS = 32  # each needs about 25 MB for its encoder and its batches
_REPORT_SECONDS = 10

Numbered = tuple[int, Text]  # a text with its number in the corpus
Encoded = tuple[Numbered, np.ndarray]  # a text with its token ids, as uint16


def default_threads() -> int:
    """Return one thread for each core that this process may use, at most _MOST_THREADS."""
    return min(cores(), _MOST_THREADS)


def encoded(tokenizer_name: str, texts: Iterable[Numbered], threads: int) -> Iterator[Encoded]:
    """Yield the texts in order, each with its token ids; raises DataError that names a text that cannot be encoded.

    tiktoken computes without the interpreter's lock, so the threads use all cores. At most two batches per thread are
    queued. Only `splits.assign` needs memory that grows with the corpus: it remembers the documents to recognise
    copies. This takes about 10 bytes for each training document (20 for short moments) and about 100 bytes for each
    document of which validation has a part.
    """
    waiting, encode = deque(), functools.partial(_encode, tokenizer.load(tokenizer_name))
    pool = ThreadPoolExecutor(threads)
    try:
        for batch in _batches(texts):
            waiting.append((batch, pool.submit(encode, batch)))
            if len(waiting) > 2 * threads:
                batch, future = waiting.popleft()
                yield from zip(batch, future.result(), strict=True)
        for batch, future in waiting:
            yield from zip(batch, future.result(), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _encode(encoder: tokenizer.Tokenizer, batch: list[Numbered]) -> list[np.ndarray]:
    try:
        return encoder.encode_batch([text.text for _, text in batch])
    except (UserError, MemoryError):
        raise
    except Exception as error:  # tokenizers raise errors of any type
        if len(batch) == 1:
            ((number, text),) = batch
            place = getattr(text.text, "place", "") or f"text {number + 1:,}, which begins {text.text[:40]!r}"
            raise DataError(f"{place}: the tokenizer fails: {reason(error)}; change or remove that text") from None
    return [ids for one in batch for ids in _encode(encoder, [one])]  # one by one, to find the text that fails


def _batches(texts: Iterable[Numbered]) -> Iterator[list[Numbered]]:
    batch, size = [], 0
    for numbered in texts:
        batch.append(numbered)
        size += len(numbered[1].text)
        if size >= _BATCH_CHARACTERS or len(batch) == _BATCH_TEXTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class Progress:
    """How much of the corpus is encoded: a progress bar on a terminal, otherwise a line every 10 seconds.

    It counts training tokens if DATASET_MAX_TOKENS limits them, else bytes of text. The total may be unknown (0).
    """

    def __init__(self, options: CorpusOptions):
        self.limit = options.dataset_max_tokens
        self.total, self.unit = self.limit or corpora.size(options), " tokens" if self.limit else "B"
        self.done = 0  # of `total`, in its unit
        self.tokens = 0  # of both splits

    def show(self, texts: Iterable[Encoded]) -> Iterator[Encoded]:
        """Yield the texts unchanged and show the progress."""
        begin = reported = time.monotonic()
        with tqdm(total=self.total or None, unit=self.unit, unit_scale=True, disable=None, leave=False) as bar:
            for (number, text), ids in texts:
                step = _bytes(text.text) if not self.limit else len(ids) if text.split == "train" else 0
                self.done += step
                self.tokens += len(ids)
                yield (number, text), ids
                bar.set_postfix_str(f"{self.tokens / 1e6:,.1f} M tokens", refresh=False)
                bar.update(step)
                if bar.disable and (now := time.monotonic()) - reported > _REPORT_SECONDS:
                    reported, speed = now, self.tokens / (now - begin)
                    print(f"{self.tokens:,} tokens, {speed:,.0f} per second", file=sys.stderr, flush=True)

    def expected_bytes(self) -> int:
        """Estimate how many bytes the tokens of both splits take; 0 if the size of the corpus is unknown."""
        return int(float(f"{self.tokens / max(1, self.done) * self.total * TOKEN.itemsize:.2g}"))


def _bytes(text: str) -> int:
    """Return the size of a text in UTF-8. ASCII texts, which are most, need no conversion."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
