"""A sample of a run's masks, as its journal keeps it: which weights are in it, its bytes, and how much two overlap.

The bytes are a checksum of the names and shapes of the tensors in scope (8), the number of weights (8, big-endian), and
a bit for each weight of the sample, 1 if it is kept. A journal has them in base64. This module does not import torch,
so reports can read samples; lib/prune/sample.py takes them.
"""

import base64
import binascii
import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence

import numpy as np

FIELD = "mask_sample"  # of a finish event
MOST = 16384  # weights in a sample
_HEADER = 16  # bytes

Shapes = Mapping[str, Sequence[int]]  # of the tensors in scope, by name, in the model's order


def positions(shapes: Shapes) -> np.ndarray:
    """The weights of the sample, ascending, counted through all tensors in scope as if they were one.

    All of them if they are at most MOST. Otherwise one from each of MOST equal parts. The choice depends only on names
    and shapes. It comes from a checksum and not from a random generator, so every version of every library makes it.
    """
    total = _total(shapes)
    if total <= MOST:
        return np.arange(total)
    ends = np.arange(MOST + 1, dtype=np.int64) * total // MOST
    drawn = np.frombuffer(hashlib.shake_256(_checksum(shapes)).digest(8 * MOST), dtype="<u8")
    return ends[:-1] + (drawn % np.diff(ends).astype(np.uint64)).astype(np.int64)


def encode(shapes: Shapes, kept: np.ndarray) -> str:
    """The text for a journal; `kept` has a 1 or a 0 for each of the `positions`."""
    header = _checksum(shapes) + _total(shapes).to_bytes(8, "big")
    return base64.b64encode(header + np.packbits(kept).tobytes()).decode()


def decode(text: object) -> bytes | None:
    """The bytes of a sample; None if the text is not one: journals of earlier versions have none."""
    try:
        found = base64.b64decode(str(text), validate=True)
    except (binascii.Error, ValueError):
        return None
    total = int.from_bytes(found[8:_HEADER], "big")
    return found if total and len(found) == _HEADER + (min(total, MOST) + 7) // 8 else None


def kept(sample: bytes) -> np.ndarray:
    """Whether each weight of a sample is kept."""
    bits = np.frombuffer(sample, np.uint8, offset=_HEADER)
    return np.unpackbits(bits, count=min(_weights(sample), MOST)).astype(bool)


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Intersection over union of the weights that two runs keep."""

    value: float
    error: float  # standard error from sampling; 0 if the samples have every weight
    chance: float  # what random masks with the same numbers of weights would have


def overlap(one: bytes, other: bytes) -> Overlap | None:
    """How much two samples overlap; None if they are of different tensors, or if neither keeps a weight."""
    if one[:_HEADER] != other[:_HEADER]:
        return None
    first, second = kept(one), kept(other)
    either, both = int((first | second).sum()), int((first & second).sum())
    if not either:
        return None
    value, total = both / either, _weights(one)
    # A share of the sampled weights that either keeps; the factor is that of drawing without replacement.
    error = math.sqrt(value * (1 - value) / either * (1 - len(first) / total))
    p, q = first.mean(), second.mean()
    return Overlap(value, error, float(p * q / (p + q - p * q)))


def _weights(sample: bytes) -> int:
    return int.from_bytes(sample[8:_HEADER], "big")


def _total(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _checksum(shapes: Shapes) -> bytes:
    text = json.dumps([[name, [int(size) for size in shape]] for name, shape in shapes.items()])
    return hashlib.sha256(text.encode()).digest()[:8]
