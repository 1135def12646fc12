"""Files of tokens: read piece by piece while a run goes on, and known by the sha256 of all that is in them."""

import hashlib
import os
import resource
import stat
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from gpt2.data.sources import DataError
from lib.base.threads import cores

TOKEN = np.dtype("<u2")
_CHUNK_BYTES = 1 << 20
_BAR_SECONDS = 1.0  # of hashing before a bar shows it
_MOST_THREADS = 16
_MOST_FILES = 10240  # what macOS grants


class Seal(NamedTuple):
    """What the content of a file is known by. A file of this size and time is taken to have it; any other is hashed."""

    bytes: int
    mtime_ns: int | None  # None: not known
    sha256: str


class TokenFile:
    """The tokens in a file, read from any place.

    Reads go to the file, not to a map of it in memory: where a mapped file is cut off or its disk fails, the kernel
    kills the process without a word (SIGBUS). That takes about 1 us for each window of a batch: 0.03 ms for 16 x 1024
    tokens, 0.09 for 64 x 256 and 0.6 for 512 x 32, where a map takes 0.02, 0.02 and 0.05.
    An open file stays what it is when its name is deleted or given to another file.
    """

    def __init__(self, path: Path, offset: int, tokens: int, dtype: np.dtype = TOKEN):
        """`offset` (bytes) is where the first of the `tokens` lies, which have type `dtype`."""
        self.path, self.offset, self.tokens, self.dtype = path, offset, tokens, dtype
        self.seal: Seal | None = None
        self.largest: int | None = None  # token id, if `verify` has read the file
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        self._descriptor = self._file.fileno()

    def __len__(self) -> int:
        return self.tokens

    def read(self, start: int, count: int) -> bytes:
        """`count` tokens from `start` on, as TOKEN; raises DataError when the file does not have them any more."""
        size = count * self.dtype.itemsize
        content = self._read(size, self.offset + start * self.dtype.itemsize)
        if len(content) != size:
            raise DataError(f"{self.path}: was cut off while it was in use; put it back")
        if self.dtype == TOKEN:
            return content
        # What `verify` has seen fits. What has changed since must not become another token that is right.
        return np.frombuffer(content, self.dtype).clip(max=np.iinfo(TOKEN).max).astype(TOKEN).tobytes()

    def state(self) -> tuple[int, int]:
        """Its size in bytes and the time of its last change in ns, as they are now."""
        now = os.fstat(self._descriptor)
        return now.st_size, now.st_mtime_ns

    def digest(self, bar: tqdm, stop: threading.Event) -> tuple[str, int]:
        """The sha256 of the whole file and its largest token; `stop` ends that early, with a result of no use."""
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
        """Bytes of the file; fewer than asked for at its end alone, though some file systems give less at a time."""
        try:
            content = more = os.pread(self._descriptor, size, place)
            while more and len(content) < size:
                more = os.pread(self._descriptor, size - len(content), place + len(content))
                content += more
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from None
        return content


def allow_files() -> None:
    """Let this process have as many files open as the system lets it: every shard stays open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def size(path: Path) -> int:
    """Bytes of a file; raises DataError for what is none."""
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path}: is not a file")
    return found.st_size


def verify(files: Sequence[TokenFile], seals: Mapping[str, Seal], vocab_size: int, otherwise: str) -> None:
    """Make sure that files have the content that `seals` (by file name) know, and give every file a seal of its own.

    A file that has the size and time of its seal is not read, one that has not, or has no seal, is read whole. Raises
    DataError that says `otherwise` for other content, and for token ids beyond the vocabulary.
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
            raise DataError(f"{file.path}: {otherwise}")
        if largest >= vocab_size:
            raise DataError(
                f"{file.path}: holds token id {largest}, beyond the {vocab_size} ids of the tokenizer; choose the "
                "TOKENIZER that it was made with"
            )
        file.seal, file.largest = Seal(*state, sha256), largest


def _digests(files: list[TokenFile]) -> list[tuple[str, int]]:
    """`TokenFile.digest` of each, several at a time: 0.7 s per GB and core, from memory."""
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
