"""Bins: tokens that nanoGPT, llm.c, modded-nanogpt or others wrote; what a file holds is recognised by its content."""

from pathlib import Path
from typing import BinaryIO

import numpy as np

from gpt2.data.local_files import DataError, refuse_pointers
from gpt2.data.shards import SPLITS
from gpt2.data.tokens import TOKEN, TokenFile, allow_files, size
from lib.base.errors import UsageError

# Of llm.c and modded-nanogpt: 256 int32, which are magic, version, tokens and zeros.
_HEADER_BYTES, _GPT2, _LLAMA3 = 1024, (20240520, 1), (20240801, 7)
_MAGICS = (_GPT2[0], _LLAMA3[0])  # as uint16 the first would be token 55432, which GPT-2 does not have
_NUMPY = b"\x93NUMPY"
_WIDE = (np.dtype("<u8"), np.dtype("<u4"))
_LOOK_BYTES = 1 << 16  # at the beginning, in the middle and at the end
_ENOUGH = 32  # first halves that are not 0, to judge a width by
_FEW = 0.1  # of these, how many second halves may be other than 0


def open_bins(folder: Path) -> dict[str, list[TokenFile]]:
    """The *train*.bin and *val*.bin files in a folder, each kind recognised by its header or its zeros."""
    allow_files()
    paths = {split: sorted(folder.glob(f"*{split}*.bin")) for split in SPLITS}
    for split in SPLITS:
        if not paths[split]:
            numpy = "; .npy files are not read" if any(folder.glob("*.npy")) else ""
            raise UsageError(f"{folder}: holds no *{split}*.bin; DATA_DIR must name the folder of the bins{numpy}")
    return {split: [_open(path) for path in paths[split]] for split in SPLITS}


def notes(folder: Path, files: dict[str, list[TokenFile]], tokenizer: str, vocab_size: int) -> list[str]:
    """What the user should know of bins that were read whole: where they are not what TOKENIZER makes."""
    found, said = [file for split in SPLITS for file in files[split]], []
    if wide := [file for file in found if file.dtype != TOKEN]:
        bits = " and ".join(sorted({str(8 * file.dtype.itemsize) for file in wide}))
        said.append(f"{folder}: {len(wide)} of {len(found)} bins hold tokens of {bits} bits, which are read as such")
    largest = max(file.largest for file in found)
    rows = f"the largest token id is {largest:,}, and the model has {vocab_size:,} rows"
    smaller = "; TOKENIZER=bytes makes 256 of them" if largest < 256 < vocab_size else ""
    if (folder / "meta.pkl").exists():
        said.append(
            f"{folder}/meta.pkl: these bins have a vocabulary of their own, which is not read, since unpickling can "
            f"run any program; {rows}{smaller}; samples would be misspelt, so set SAMPLE_TOKENS=0, or train on the "
            "text itself with DATASET=files TOKENIZER=bytes"
        )
    elif vocab_size > 256 and largest < 0.8 * vocab_size:  # bytes of ASCII are 127 at most, and right
        said.append(
            f"{folder}: {rows}: if TOKENIZER={tokenizer} did not make these bins, samples are misspelt{smaller}"
        )
    return said


def _open(path: Path) -> TokenFile:
    found = size(path)
    refuse_pointers([path])
    try:
        with path.open("rb") as file:
            start = file.read(_HEADER_BYTES)
            if start.startswith(_NUMPY):
                raise DataError(
                    f"{path}: is a file of NumPy's; write its tokens alone: numpy.load(..).astype('uint16').tofile(..)"
                )
            header = np.frombuffer(start[:12].ljust(12, b"\0"), "<i4")
            if header[0] not in _MAGICS:
                return _open_raw(path, found, _width(file, found))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    magic, version, tokens = map(int, header)
    if (magic, version) == _LLAMA3:
        raise DataError(f"{path}: holds tokens of Llama 3's vocabulary; make it anew with GPT-2's, llm.c's -m gpt-2")
    if (magic, version) != _GPT2:
        raise DataError(f"{path}: has version {version} of llm.c's format; only version 1 holds GPT-2 tokens")
    if found != _HEADER_BYTES + tokens * TOKEN.itemsize:
        raise DataError(
            f"{path}: is cut off or damaged: its header promises {tokens} tokens, it holds "
            f"{max(0, found - _HEADER_BYTES) / TOKEN.itemsize:g}; copy it again"
        )
    return TokenFile(path, _HEADER_BYTES, tokens)


def _open_raw(path: Path, found: int, dtype: np.dtype) -> TokenFile:
    if found % dtype.itemsize:
        raise DataError(
            f"{path}: is cut off: {found} bytes are no whole number of uint{8 * dtype.itemsize} tokens; copy it again"
        )
    return TokenFile(path, 0, found // dtype.itemsize, dtype)


def _width(file: BinaryIO, found: int) -> np.dtype:
    """The type of the tokens in a file without a header.

    Of wider numbers nearly all second halves are 0 and first halves are not. Of uint16 both are tokens and much alike,
    also of a vocabulary of two.
    """
    looks = []
    places = (0, found // 2, found - _LOOK_BYTES) if found > 3 * _LOOK_BYTES else (0, _LOOK_BYTES, 2 * _LOOK_BYTES)
    for place in places:
        file.seek(place // 8 * 8)
        content = file.read(_LOOK_BYTES)
        looks.append(np.frombuffer(content[: len(content) // 8 * 8], TOKEN))
    halves = np.concatenate(looks)
    for dtype in _WIDE:
        parts = halves.reshape(-1, dtype.itemsize // TOKEN.itemsize)
        first, second = np.count_nonzero(parts[:, 0]), np.count_nonzero(parts[:, 1])
        # The second half of an id that is too large for GPT-2 is 1 to 3, with a vocabulary of up to 262,144.
        if first >= _ENOUGH and second <= _FEW * first and (parts[:, 1] <= 3).all() and not parts[:, 2:].any():
            return dtype
    return TOKEN
