"""Repeats: groups documents that share a passage, such as a licence or a table, so that a split keeps them together."""

from collections.abc import Sequence

import numpy as np

# In Python's standard library, passages of 96 bytes link half of the text to one group, and passages of 64 bytes nearly
# all of it.
_PASSAGE_BYTES = 80
# Only one passage in 2^3 is compared. A longer shared text contains one of these, and comparing all passages takes five
# times as long.
_COMPARED_BITS = 3
_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64
_INVERSE, _MIX = pow(_BASE, -1, 1 << 64), 0xD6E8FEB86659FD93


def groups(documents: Sequence[str]) -> list[int]:
    """Return for each document the number of the first document in its group, which may be its own.

    Documents that share a passage are in one group, and so are documents that share passages with the same third
    document. Hashes choose which passages are compared. A shared text of 120 bytes is found with a probability of 0.99,
    of 100 bytes with 0.9, of 80 bytes with 1/8. A shorter one is not found.
    """
    marks = [_marks(document.encode(errors="surrogatepass")) for document in documents]
    owners = np.repeat(np.arange(len(marks)), [len(found) for found in marks])
    every = np.concatenate(marks) if marks else np.empty(0, np.uint64)
    order = np.argsort(every, kind="stable")
    every, owners = every[order], owners[order]
    first = list(range(len(documents)))

    def find(number: int) -> int:
        while first[number] != number:
            first[number] = number = first[first[number]]
        return number

    shared = every[1:] == every[:-1]
    for one, other in np.unique(np.stack([owners[:-1][shared], owners[1:][shared]], 1), axis=0).tolist():
        one, other = sorted((find(one), find(other)))
        first[other] = one
    return [find(number) for number in range(len(documents))]


def _marks(text: bytes) -> np.ndarray:
    """Return the distinct hashes of the passages to compare; a hash does not depend on where the passage is.

    The bytes of a passage are digits to the base _BASE modulo 2^64, and prefix sums over the text give the hashes of
    all passages (Karp and Rabin 1987). A passage is compared if the high bits of its hash are 0.
    """
    if len(text) < _PASSAGE_BYTES:
        return np.empty(0, np.uint64)
    digits = np.frombuffer(text, np.uint8) + np.uint64(1)
    sums = np.cumsum(digits * np.cumprod(np.full(len(digits), _BASE, np.uint64)))
    values = sums[_PASSAGE_BYTES - 1 :].copy()
    values[1:] -= sums[:-_PASSAGE_BYTES]
    values *= np.cumprod(np.full(len(values), _INVERSE, np.uint64)) * np.uint64(_MIX)
    return np.unique(values[values >> np.uint64(64 - _COMPARED_BITS) == 0])
