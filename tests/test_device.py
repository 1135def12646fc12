"""The machine: what is chosen, and what is refused."""

import pytest
import torch

from lib import device
from lib.device import SystemOptions
from lib.errors import UsageError


def options(**changes):
    return SystemOptions(**{"device": "cpu", "dtype": "float32", "compile": False, "threads": 0} | changes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_chosen_arithmetic_is_used(dtype):
    machine = device.choose(options(dtype=dtype))
    assert machine.name.startswith(f"cpu, {dtype}, ")
    assert machine.peak_flops is None  # nobody states it for this CPU
    with machine.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == getattr(torch, dtype)


def test_automatic_arithmetic_is_what_the_processor_has():
    native = torch.cpu._is_avx512_bf16_supported()
    assert device.choose(options(dtype="auto")).dtype == (torch.bfloat16 if native else torch.float32)


def test_threads_are_set_and_shown():
    before = torch.get_num_threads()
    try:
        assert device.choose(options(threads=1)).name == "cpu, float32, 1 threads"
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match=r"^--device cuda: PyTorch .* finds no such device here; use --device auto$"):
        device.choose(options(device="cuda"))


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/c++ -O2")
    with pytest.raises(UsageError, match=r"^--compile: the C\+\+ compiler /nowhere/c\+\+ is not installed"):
        device.check_compiler(torch.device("cpu"))
