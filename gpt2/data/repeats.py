"""Repeats: which documents share a passage, such as a licence or a table, so that a split can keep it on one side."""

from collections.abc import Sequence

import numpy as np

# Of Python's standard library, with passages of 96 bytes half of the text belongs together, with 64 nearly all. One in
# eight is compared: a longer passage that is shared holds one of them, and comparing all takes five times as long.
_PASSAGE_BYTES = 80
_COMPARED_BITS = 3
_BASE = 0x9E3779B97F4A7C15  # any odd number has an inverse
_INVERSE, _MIX = pow(_BASE, -1, 1 << 64), 0xD6E8FEB86659FD93


def groups(documents: Sequence[str]) -> list[int]:
    """For each document the number of the first one that it belongs with, itself or another.

    Documents that share a passage of 120 bytes or more belong together, and those that share one with the same third.
    Chance decides which passages are compared: of 120 bytes 99 in 100 are found, of 100 bytes nine in ten, of 80 bytes
    one in eight, and none that is shorter.
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
    """Numbers that stand for some passages of a text, each once; the same ones wherever these passages are.

    The number of a passage is its value as digits to the base _BASE, modulo 2^64, which sums over the text give all at
    once (Karp and Rabin 1987). Its high bits decide whether it is one of those that are compared.
    """
    if len(text) < _PASSAGE_BYTES:
        return np.empty(0, np.uint64)
    digits = np.frombuffer(text, np.uint8) + np.uint64(1)
    sums = np.cumsum(digits * np.cumprod(np.full(len(digits), _BASE, np.uint64)))
    values = sums[_PASSAGE_BYTES - 1 :].copy()
    values[1:] -= sums[:-_PASSAGE_BYTES]
    values *= np.cumprod(np.full(len(values), _INVERSE, np.uint64)) * np.uint64(_MIX)
    return np.unique(values[values >> np.uint64(64 - _COMPARED_BITS) == 0])
