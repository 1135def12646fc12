"""Bins: files of tokens that nanoGPT, llm.c, modded-nanogpt or others wrote; the content tells which format it is."""

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gpt2.data.local_files import DataError, refuse_pointers
from gpt2.data.shards import SPLITS
from gpt2.data.tokens import TOKEN, TokenFile, allow_files, file_size
from lib.base.errors import UsageError

# The header of llm.c and modded-nanogpt is 256 int32: magic, version, number of tokens, and zeros.
_HEADER_BYTES, _GPT2, _LLAMA3 = 1024, (20240520, 1), (20240801, 7)
_MAGICS = (_GPT2[0], _LLAMA3[0])  # a file without a header cannot begin like this: GPT-2 has no token 55432 (0xd888)
_NUMPY = b"\x93NUMPY"
_WIDE = (np.dtype("<u8"), np.dtype("<u4"))
_LOOK_BYTES = 1 << 16  # read at the beginning, in the middle and at the end
_LEAST_LOW = 32  # the fewest nonzero low halves that tell the width of tokens
_MOST_HIGH = 0.1  # wide tokens have at most this many nonzero high halves per nonzero low half


def open_bins(folder: Path, splits: Iterable[str] = SPLITS) -> dict[str, list[TokenFile]]:
    """Open the files *<split>*.bin of these splits; the header or the zeros of wide tokens tell the format."""
    allow_files()
    paths = {split: sorted(folder.glob(f"*{split}*.bin")) for split in splits}
    for split, found in paths.items():
        if not found:
            without = ", or set EVALUATE=n to train without validation" * (split == "val")
            numpy = "; .npy files are not read" if any(folder.glob("*.npy")) else ""
            raise UsageError(
                f"{folder}: holds no *{split}*.bin; DATA_DIR must name the folder of the bins{without}{numpy}"
            )
    return {split: [_open(path) for path in found] for split, found in paths.items()}


def notes(folder: Path, files: dict[str, list[TokenFile]], tokenizer: str, vocab_size: int) -> list[str]:
    """Return notes about bins that TOKENIZER probably did not make; `verify` must have read the files."""
    found, said = [file for split in files.values() for file in split], []
    if wide := [file for file in found if file.dtype != TOKEN]:
        bits = " and ".join(sorted({str(8 * file.dtype.itemsize) for file in wide}))
        said.append(f"{folder}: {len(wide)} of {len(found)} bins hold tokens of {bits} bits, and are read as such")
    largest = max(file.largest for file in found)
    rows = f"the largest token id is {largest:,}, and the model has {vocab_size:,} rows of embeddings"
    smaller = "; with TOKENIZER=bytes it has 256 rows" if largest < 256 < vocab_size else ""
    if (folder / "meta.pkl").exists():
        said.append(
            f"{folder}/meta.pkl: these bins have their own vocabulary; it is not read, because unpickling can run any "
            f"program; {rows}{smaller}; samples would be wrong text, so set SAMPLE_TOKENS=0, or train on the text "
            "itself with DATASET=files TOKENIZER=bytes"
        )
    elif vocab_size > 256 and largest < 0.8 * vocab_size:  # 256: the largest byte of ASCII text is 127, which is fine
        said.append(
            f"{folder}: {rows}; if these bins were not made with TOKENIZER={tokenizer}, samples are wrong text{smaller}"
        )
    return said


def _open(path: Path) -> TokenFile:
    size = file_size(path)
    refuse_pointers([path])
    try:
        with path.open("rb") as file:
            start = file.read(_HEADER_BYTES)
            if start.startswith(_NUMPY):
                raise DataError(
                    f"{path}: is a NumPy file; write only its tokens: numpy.load(..).astype('uint16').tofile(..)"
                )
            header = np.frombuffer(start[:12].ljust(12, b"\0"), "<i4")
            if header[0] not in _MAGICS:
                return _open_raw(path, size, _token_type(file, size))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    magic, version, tokens = map(int, header)
    if (magic, version) == _LLAMA3:
        raise DataError(
            f"{path}: holds tokens of Llama 3; tokenise the text for GPT-2, with the option -m gpt-2 of llm.c"
        )
    if (magic, version) != _GPT2:
        raise DataError(f"{path}: has version {version} of llm.c's format; only version 1 holds GPT-2 tokens")
    if size != _HEADER_BYTES + tokens * TOKEN.itemsize:
        raise DataError(
            f"{path}: is cut off or damaged: it holds {max(0, size - _HEADER_BYTES) / TOKEN.itemsize:g} tokens, and "
            f"its header says {tokens}; copy it again"
        )
    return TokenFile(path, _HEADER_BYTES, tokens)


def _open_raw(path: Path, size: int, dtype: np.dtype) -> TokenFile:
    if size % dtype.itemsize:
        raise DataError(
            f"{path}: is cut off: its size, {size} bytes, is not a multiple of {dtype.itemsize}, the size of a "
            f"uint{8 * dtype.itemsize} token; copy it again"
        )
    return TokenFile(path, 0, size // dtype.itemsize, dtype)


def _token_type(file: BinaryIO, size: int) -> np.dtype:
    """Return the type of the tokens in a file without a header.

    In uint32 and uint64, nearly all high halves are 0 and low halves are not. In uint16, both "halves" are tokens and
    have similar statistics, even with a vocabulary of two.
    """
    looks = []
    places = (0, size // 2, size - _LOOK_BYTES) if size > 3 * _LOOK_BYTES else (0, _LOOK_BYTES, 2 * _LOOK_BYTES)
    for place in places:
        file.seek(place // 8 * 8)
        content = file.read(_LOOK_BYTES)
        looks.append(np.frombuffer(content[: len(content) // 8 * 8], TOKEN))
    halves = np.concatenate(looks)
    for dtype in _WIDE:
        parts = halves.reshape(-1, dtype.itemsize // TOKEN.itemsize)
        low, high = np.count_nonzero(parts[:, 0]), np.count_nonzero(parts[:, 1])
        # Ids of larger vocabularies, of up to 262,144 tokens, have high halves of up to 3.
        if low >= _LEAST_LOW and high <= _MOST_HIGH * low and (parts[:, 1] <= 3).all() and not parts[:, 2:].any():
            return dtype
    return TOKEN
