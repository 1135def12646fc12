"""The machine: what is chosen, and what is refused."""

import errno

import pytest
import torch

from lib.base.errors import UsageError, UserError
from lib.base.launch import Launch
from lib.machine import device
from lib.machine.device import SystemOptions


def options(**changes):
    return SystemOptions(
        **{"device": "cpu", "dtype": "float32", "threads": 0, "deterministic": False, "sum_dtype": "float32"} | changes
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_chosen_arithmetic_is_used(dtype):
    machine = device.choose(options(dtype=dtype))
    assert machine.use().words().startswith(f"cpu, {dtype}, ")
    assert machine.peak_flops is None  # nobody states it for this CPU
    with machine.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == getattr(torch, dtype)


def test_automatic_arithmetic_is_what_the_processor_has():
    native = torch.cpu._is_avx512_bf16_supported()
    found = device.choose(options(dtype="auto"))
    assert found.dtype == (torch.bfloat16 if native else torch.float32)
    words = "bfloat16 (auto: this device multiplies" if native else "float32 (auto: this device cannot multiply"
    assert found.use().words().startswith(f"cpu, {words} ")


def test_threads_are_set_and_shown():
    before = torch.get_num_threads()
    try:
        found = device.choose(options(threads=1)).use()
        assert found.words() == "cpu, float32, 1 thread (sleeping while they wait, because other programs compute)"
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match=r"^--device cuda: PyTorch .* finds no such device here; use --device auto$"):
        device.choose(options(device="cuda"))


def test_ranks_that_would_share_a_gpu_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)

    def place(count, launcher, local_rank):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        return device._device("cuda", Launch(launcher, local_rank, 4, local_rank, "", "")).index

    assert [place(4, "torchrun", 3), place(1, "torchrun", 0), place(1, "slurm", 3), place(1, "ray", 3)] == [3, 0, 0, 0]
    for count, launcher, local_rank in ((1, "torchrun", 1), (2, "torchrun", 2), (2, "slurm", 3)):
        with pytest.raises(
            UsageError, match=rf"^local rank {local_rank} needs its own GPU, .* shows {count}; start at most "
        ):
            place(count, launcher, local_rank)


def test_one_process_knows_how_many_gpus_it_could_use(monkeypatch):
    """As CUDA_VISIBLE_DEVICES leaves them. No GPU is at hand, so PyTorch's answers are given."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    found = device.choose(options(device="cuda"))
    assert (found.gpus, found.machines, found.name) == (8, 1, "NVIDIA H200")
    assert device.choose(options()).gpus == 0


def machine(kind="cpu"):
    return device.Machine(torch.device(kind), torch.float32, kind, None)


def test_compiling_without_a_compiler_is_refused_or_left(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(UsageError, match=r"^--compile: the compiler /nowhere/c\+\+ is not installed; install it or"):
        device.compiles("y", machine(), 1e20)
    words = "auto: the compiler /nowhere/c++ is not installed"
    assert device.compiles("auto", machine(), 1e20) == (False, words)
    assert device.compiles("auto", machine(), 1e20, before=True) == (False, words)
    assert device.compiles("n", machine(), 1e20) == (False, "")


def test_compiling_without_pythons_headers_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "/bin/sh")
    monkeypatch.setattr(device.sysconfig, "get_path", lambda name: "/nowhere")
    with pytest.raises(UsageError, match=r"^--compile: Python's header /nowhere/Python.h is not installed; "):
        device.compiles("y", machine(), 1e20)


@pytest.mark.parametrize("before", [True, False])
def test_a_run_that_goes_on_is_compiled_as_before(monkeypatch, before):
    monkeypatch.setattr(device, "_missing", lambda device: "")
    words = "auto: as before"
    assert device.compiles("auto", machine(), 2e13, before) == (before, words)
    assert device.compiles("auto", machine(), 1e13, before) == (before, words)
    assert device.compiles("y", machine(), 1e13, before) == (True, "")


@pytest.mark.parametrize(
    ("kind", "flops", "rate", "compiled", "words"),
    [
        ("cpu", 4.4e12, 1e11, False, "auto: about 44 s of steps are too few to win back the compile time"),
        ("cpu", 4.5e12, 1e11, True, "auto: about 45 s of steps are enough to win back the compile time"),
        ("cpu", 6.7e12, None, False, "auto: about 45 s of steps are too few to win back the compile time"),
        ("cpu", 6.75e12, None, True, "auto: about 45 s of steps are enough to win back the compile time"),
        ("cuda", 1.9e16, None, False, "auto: about 58 s of steps are too few to win back the compile time"),
        ("cuda", 2e16, None, True, "auto: about 61 s of steps are enough to win back the compile time"),
        ("mps", 1e20, None, False, "auto: only for cpu and cuda"),
    ],
)
def test_long_runs_are_compiled(monkeypatch, kind, flops, rate, compiled, words):
    monkeypatch.setattr(device, "_missing", lambda device: "")
    assert device.compiles("auto", machine(kind), flops, rate=rate) == (compiled, words)


# What torch 2.13 and what is under it said when memory was short, as limits on a process and `strings` tell.
@pytest.mark.parametrize(
    "error",
    [
        MemoryError("std::bad_alloc"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 3145728 bytes. Error code 12 (Cannot allocate memory)"
        ),
        RuntimeError("unable to mmap 134217728 bytes from file </a/b>: Cannot allocate memory (12)"),
        RuntimeError("could not create a memory object"),
        RuntimeError("can't start new thread"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cc1plus: out of memory allocating 65536 bytes after a total of 1000000 bytes"),
        RuntimeError("backend='inductor' raised:\nMemoryError: \n\nSet TORCHDYNAMO_VERBOSE=1 for"),
    ],
)
def test_lack_of_memory_is_known_by_all_its_names(error):
    assert device.is_out_of_memory(error)
    assert device.trouble(error) == (
        "memory does not suffice: halve BATCH_SIZE and double GRADIENT_ACCUMULATION, which learns the same; if that is "
        "not enough, use DTYPE=bfloat16, a smaller BLOCK_SIZE or model, or an optimizer with less state, such as "
        "OPTIMIZER=sgd"
    )


def test_a_compiler_that_fails_is_one_sentence():
    from torch._dynamo.exc import InternalTorchDynamoError

    error = InternalTorchDynamoError(
        "backend='inductor' raised:\nCppCompileError: C++ compile error\n\n Set TORCHDYNAMO_"
    )
    assert device.trouble(error) == (
        "torch.compile fails here (backend='inductor' raised: CppCompileError: C++ compile error); use --no-compile"
    )


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), UserError("a.bin: Cannot allocate memory")])
def test_other_failures_are_left_as_they_are(error):
    assert device.trouble(error) == ""
