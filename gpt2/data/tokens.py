"""Files of tokens: read piece by piece during training, and identified by their sha256."""

import hashlib
import os
import resource
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from gpt2.data.local_files import DataError
from lib.base.threads import cores

TOKEN = np.dtype("<u2")
_CHUNK_BYTES = 1 << 20
_BAR_SECONDS = 1.0  # a progress bar appears after this much hashing
_MOST_THREADS = 16
_MOST_FILES = 10240  # macOS allows no more


class Seal(NamedTuple):
    """Identifies the content of a file. A file of the same size and time is taken as unchanged; others are hashed."""

    bytes: int
    mtime_ns: int | None  # None: unknown
    sha256: str


class TokenFile:
    """The tokens in a file, with random access.

    The file is read with pread and not mapped into memory. If a mapped file is cut off or its disk fails, the kernel
    kills the process without a message (SIGBUS). Time of a batch with pread, and with a map:

    - 16 x 1024 tokens: 0.03 ms, 0.02 ms
    - 64 x 256 tokens: 0.09 ms, 0.02 ms
    - 512 x 32 tokens: 0.6 ms, 0.05 ms

    The open file stays readable and unchanged if its name is deleted or given to another file.
    """

    def __init__(self, path: Path, offset: int, tokens: int, dtype: np.dtype = TOKEN):
        """The file has `tokens` tokens of type `dtype` after `offset` bytes."""
        self.path, self.offset, self.tokens, self.dtype = path, offset, tokens, dtype
        self.seal: Seal | None = None
        self.largest: int | None = None  # the largest token id, if `verify` has read the file
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        self._descriptor = self._file.fileno()

    def __len__(self) -> int:
        return self.tokens

    def read(self, start: int, count: int) -> bytes:
        """Read `count` tokens from `start`, as TOKEN; raises DataError if the file has become shorter."""
        size = count * self.dtype.itemsize
        content = self._read(size, self.offset + start * self.dtype.itemsize)
        if len(content) != size:
            raise DataError(f"{self.path}: was cut off while it was in use; restore it")
        if self.dtype == TOKEN:
            return content
        # `verify` has checked that all ids fit. An id that was changed later is clipped, so it stays invalid.
        return np.frombuffer(content, self.dtype).clip(max=np.iinfo(TOKEN).max).astype(TOKEN).tobytes()

    def content(self) -> Iterator[bytes]:
        """Yield the complete file, piece by piece."""
        place = 0
        while piece := self._read(_CHUNK_BYTES, place):
            yield piece
            place += len(piece)

    def state(self) -> tuple[int, int]:
        """Return the current size in bytes and the time of the last change in ns."""
        now = os.fstat(self._descriptor)
        return now.st_size, now.st_mtime_ns

    def digest(self, bar: tqdm, stop: threading.Event) -> tuple[str, int]:
        """Return the sha256 of the complete file and its largest token id; after `stop` the result is wrong."""
        digest, largest, place = hashlib.sha256(), 0, 0
        while not stop.is_set() and (content := self._read(_CHUNK_BYTES, place)):
            digest.update(content)
            header = max(0, self.offset - place) // self.dtype.itemsize
            tokens = np.frombuffer(content, self.dtype, len(content) // self.dtype.itemsize)
            largest = max(largest, int(tokens[header:].max(initial=0)))
            place += len(content)
            bar.update(len(content))
        return digest.hexdigest(), largest

    def _read(self, size: int, place: int) -> bytes:
        """Read `size` bytes, fewer only at the end of the file; on some file systems one pread returns fewer."""
        try:
            content = more = os.pread(self._descriptor, size, place)
            while more and len(content) < size:
                more = os.pread(self._descriptor, size - len(content), place + len(content))
                content += more
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from None
        return content


def allow_files() -> None:
    """Raise this process's limit of open files as far as the system allows, because every shard stays open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def file_size(path: Path) -> int:
    """Return the size in bytes; raises DataError if the path is not a regular file."""
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path}: is not a file")
    return found.st_size


def verify(files: Sequence[TokenFile], seals: Mapping[str, Seal], vocab_size: int, if_changed: str) -> None:
    """Check the files against `seals` (by file name), and set the seal of every file.

    A file with the size and time of its seal is not read. Any other file is read completely, also one without a seal.
    Raises DataError with the text `if_changed` for other content, and for token ids beyond the vocabulary.
    """
    todo = []
    for file in files:
        seal, state = seals.get(file.path.name), file.state()
        if seal and seal[:2] == state:
            file.seal = seal
        else:
            todo.append((file, seal, state))
    for (file, seal, state), (sha256, largest) in zip(todo, _digests([file for file, *_ in todo]), strict=True):
        if seal and seal.sha256 != sha256:
            raise DataError(f"{file.path}: {if_changed}")
        if largest >= vocab_size:
            raise DataError(
                f"{file.path}: holds token id {largest}, beyond the {vocab_size} ids of the tokenizer; choose the "
                "TOKENIZER that it was made with"
            )
        file.seal, file.largest = Seal(*state, sha256), largest


def _digests(files: list[TokenFile]) -> list[tuple[str, int]]:
    """Return `TokenFile.digest` of each file, several at a time: 0.7 s per GB and core if the file is in memory."""
    if not files:
        return []
    stop, pool = threading.Event(), ThreadPoolExecutor(max(1, min(len(files), cores(), _MOST_THREADS)))
    total = sum(file.state()[0] for file in files)
    with tqdm(
        total=total, desc="checking the data", unit="B", unit_scale=True, disable=None, leave=False, delay=_BAR_SECONDS
    ) as bar:
        try:
            return list(pool.map(lambda file: file.digest(bar, stop), files))
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
