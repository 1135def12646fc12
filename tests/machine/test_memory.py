"""The memory that a step frees stays with the process, unless the user has decided otherwise."""

import os
import resource
import subprocess
import sys

import pytest

from tests.training import ROOT

# Makes and frees 16 MB ten times, and prints how many pages the kernel had to clear for that.
PROGRAM = """
import resource, torch
from lib.machine import memory
memory.keep()
for _ in range(20):  # until the heap has room at the right addresses
    torch.ones(1 << 22)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(1 << 22)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
GLIBC = "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "" if sys.platform == "linux" else "")


@pytest.mark.skipif(not GLIBC, reason="glibc has the parameters")
@pytest.mark.parametrize(("variables", "stays"), [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "131072"}, False)])
def test_freed_memory_is_used_again_without_asking_the_kernel(variables, stays):
    command, environment = [sys.executable, "-c", PROGRAM], os.environ | variables
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=True)
    pages = 10 * (1 << 24) // resource.getpagesize()
    assert int(done.stdout) < pages / 10 if stays else int(done.stdout) > pages / 2
