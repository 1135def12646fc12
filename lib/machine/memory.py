"""Keeps the memory that a step frees for the next step, so that the kernel need not clear pages for it again."""

import ctypes
import os

# Parameters of mallopt in malloc.h, and their environment variables: if one is set, the user has decided.
_TRIM, _MAPPED = -1, -3
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")
_MOST = 2**31 - 1  # bytes: mallopt takes an int


def keep() -> None:
    """Let glibc keep up to 2 GiB of freed memory, and give tensors of up to 2 GiB from it. Other systems stay as is.

    By default glibc returns large blocks to the kernel as soon as they are free. A step of 6 layers of width 384 in
    bfloat16 then had 10,000 to 85,000 page faults, and took 1.1 to 1.15 times as long (Intel Xeon with AMX, 2 cores).
    """
    if os.environ.keys() & set(_VARIABLES):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # of glibc alone
    if mallopt:
        mallopt(_TRIM, _MOST)
        mallopt(_MAPPED, _MOST)
