"""The machine that a run computes on: device, dtype, threads and peak rate; and torch's errors as sentences."""

import contextlib
import dataclasses
import errno
import gc
import importlib.util
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from lib.base import spinning
from lib.base.errors import UsageError, UserError
from lib.base.launch import ALONE as UNLAUNCHED
from lib.base.launch import Launch
from lib.config.kconf import Options
from lib.machine import memory
from lib.machine.dist import ALONE, Ranks, join
from lib.machine.use import Use

# COMPILE=auto compiles a run whose steps take at least so many seconds without it, because it then saves more time than
# compiling takes: a quarter of the steps' time, and 5 to 15 s, on 2 cores of an Intel Xeon or an AMD EPYC. It never
# compiles for devices that are not named here.
_COMPILING_PAYS = {"cpu": 45, "cuda": 60}
# Floating-point operations per second for that, where nothing was measured: 4 layers of width 128 on 2 cores of an
# Intel Xeon or an AMD EPYC; a GPU of a server.
_RATES = {"cpu": 1.5e11, "cuda": 3.3e14}
# The maker's TFLOP/s of dense matrix products, by words in the device's name. Other devices have no `mfu`.
_PEAK_TFLOPS = {
    torch.bfloat16: {"H200": 989, "H100 80GB HBM3": 989, "A100": 312, "L40S": 362, "L4": 121, "RTX 4090": 165},
    torch.float16: {"H200": 989, "H100 80GB HBM3": 989, "A100": 312, "L40S": 362, "L4": 121, "T4": 65, "V100": 125},
}
# Messages of the allocators of tensors, C++, oneDNN, CUDA's libraries and compilers. torch.compile passes on only the
# text of an exception, not its type.
_OUT_OF_MEMORY = re.compile(
    "allocate memory|[Oo]ut of memory|not enough memory|memory exhausted|could not create a memory|MemoryError|"
    "bad_alloc|ALLOC_FAILED|can't start new thread"  # whose stack has no room
)


@dataclasses.dataclass(frozen=True)
class SystemOptions(Options):
    """Where and how to compute."""

    device: str
    dtype: str
    threads: int
    deterministic: bool
    sum_dtype: str  # in which ranks send each other gradients


@dataclasses.dataclass(frozen=True)
class Machine:
    """The device that was chosen, and how a run computes on it."""

    device: torch.device
    dtype: torch.dtype
    name: str  # `cpu`, `mps` or the name of the GPU
    peak_flops: float | None  # per second, in dense matrix products in `dtype`; None if unknown
    ranks: Ranks = ALONE  # the processes of the run, each with its own device
    dtype_reason: str = ""  # why `auto` chose `dtype`; empty if the user chose it
    deterministic: bool = False
    gpus: int = 0  # that this process may use; 0 on other devices
    machines: int = 1  # on which the ranks are

    def use(self, compiled: bool | None = None, reason: str = "") -> Use:
        """The fields that the journal keeps; `compiled` and its `reason` are from `compiles`."""
        on_cpu = self.device.type == "cpu"
        return Use(
            device=self.name,
            dtype=str(self.dtype).removeprefix("torch."),
            dtype_reason=self.dtype_reason,
            threads=torch.get_num_threads() if on_cpu else 0,
            spins_little=on_cpu and spinning.is_little(),
            deterministic=self.deterministic,
            compiled=compiled,
            compiled_reason=reason,
            ranks=self.ranks.size,
        )

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute matrix products in `dtype`."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            yield


def choose(options: SystemOptions, launch: Launch = UNLAUNCHED) -> Machine:
    """Set up the device and dtype that the options ask for, and join the other ranks of the job, if there are any.

    Raises UsageError if this machine does not have such a device.
    """
    _determine(options.deterministic)
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind = next(k for k in ("cuda", "mps", "cpu") if available[k]) if options.device == "auto" else options.device
    if not available[kind]:
        raise UsageError(f"--device {kind}: PyTorch {torch.__version__} finds no such device here; use --device auto")
    if options.threads:
        torch.set_num_threads(options.threads)
    device = _device(kind, launch)
    if kind == "cpu":
        memory.keep()
    dtype = _automatic_dtype(kind) if options.dtype == "auto" else getattr(torch, options.dtype)
    name = torch.cuda.get_device_name() if kind == "cuda" else kind
    rates = _PEAK_TFLOPS.get(dtype, {}).items()
    peak = next((tflops * 1e12 for words, tflops in rates if re.search(rf"\b{words}\b", name)), None)
    reason = ""
    if options.dtype == "auto":
        can = "multiplies" if dtype == torch.bfloat16 else "cannot multiply"
        reason = f"auto: this device {can} bfloat16 in hardware"
    ranks = join(launch, device, getattr(torch, options.sum_dtype))
    gpus = torch.cuda.device_count() if kind == "cuda" else 0
    machines = _machines(launch, ranks, device)
    return Machine(device, dtype, name, peak, ranks, reason, options.deterministic, gpus, machines)


def _determine(asked: bool) -> None:
    """Turn deterministic kernels on or off. While they are on, torch.compile does not autotune.

    Deterministic kernels of cuBLAS need their own memory for each stream. cuBLAS reads the size of this memory from the
    environment at its first matrix product.
    """
    if asked:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    if asked != torch.are_deterministic_algorithms_enabled():  # the call imports the compiler, which takes a second
        torch.use_deterministic_algorithms(asked)


def _device(kind: str, launch: Launch) -> torch.device:
    """The device of this rank among those of its machine; raises UsageError when there are too few."""
    if launch.size == 1:
        return torch.device(kind)
    if kind == "mps":
        raise UsageError("--device mps: torch.distributed does not support it; use --device cpu, or one process")
    if kind == "cpu":
        return torch.device(kind)
    count = torch.cuda.device_count()
    # srun and Ray may show each process only its own GPU. torchrun shows all processes the same GPUs.
    if launch.local_rank >= count and (count > 1 or launch.launcher == "torchrun"):
        raise UsageError(
            f"local rank {launch.local_rank} needs its own GPU, and this machine shows {count}; start at most {count} "
            "processes on it"
        )
    device = torch.device(kind, launch.local_rank % count)
    torch.cuda.set_device(device)
    return device


def _machines(launch: Launch, ranks: Ranks, device: torch.device) -> int:
    """The number of machines that the ranks are on: on each, one has the local rank 0."""
    if launch.size == 1:
        return 1
    firsts = torch.full((), float(launch.local_rank == 0), device=device)
    ranks.sum([firsts])
    return int(firsts)


def _automatic_dtype(kind: str) -> torch.dtype:
    """bfloat16 if the hardware multiplies it, else float32: emulated bfloat16 would be slower than float32."""
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = kind == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def compiles(
    option: str, machine: Machine, flops: float, before: bool | None = None, rate: float | None = None
) -> tuple[bool, str]:
    """Whether to compile the model of a run of `flops` operations, and why `auto` chose that ("" without auto).

    `option` is COMPILE's value: y, n or auto. `before` tells whether a resumed run was compiled before. `rate` are the
    operations per second that this machine makes without torch.compile, if that was measured. Raises UsageError if
    `option` is y and there is no compiler.
    """
    kind = machine.device.type
    if option == "n":
        return False, ""
    if option == "y":
        check_compiler(option, machine)
        return True, ""
    if kind not in _COMPILING_PAYS:
        return False, f"auto: only for {' and '.join(_COMPILING_PAYS)}"
    missing = _missing(machine.device)
    seconds = flops / (rate or _RATES[kind])
    pays = seconds >= _COMPILING_PAYS[kind] if before is None else before
    if pays and missing:
        return False, f"auto: {missing}"
    reason = f"about {seconds:,.0f} s of steps are {'enough' if pays else 'too few'} to win back the compile time"
    return pays, f"auto: {reason if before is None else 'as before'}"


def check_compiler(option: str, machine: Machine) -> None:
    """Raise UsageError if `option` is y and torch.compile finds no compiler."""
    if option == "y" and (missing := _missing(machine.device)):
        raise UsageError(f"--compile: {missing}; install it or use --no-compile")


@contextlib.contextmanager
def while_compiling(begin: Callable[[], object], end: Callable[[], object]) -> Iterator[None]:
    """A context in which `begin` is called before torch.compile compiles something, and `end` after it.

    Python's garbage collector pauses while torch compiles, because it would walk many times through what torch keeps.
    """
    from torch._dynamo.callback import callback_handler  # takes a second to import

    def starts(found: object) -> None:
        begin()
        gc.disable()

    def ends(found: object) -> None:
        gc.enable()
        end()

    callback_handler.register_start_callback(starts)
    callback_handler.register_end_callback(ends)
    try:
        yield
    finally:
        gc.enable()
        callback_handler.remove_start_callback(starts)
        callback_handler.remove_end_callback(ends)


def _missing(device: torch.device) -> str:
    """A clause that names what torch.compile needs on this device and cannot find; empty if nothing is missing.

    torch.compile writes C++ for a CPU and Triton for a GPU. Triton compiles a launcher in C.
    """
    if device.type == "cuda":
        programs = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
        if torch.cuda.get_device_capability(device) < (7, 0):
            return "Triton does not compile for a GPU as old as this one"
        if importlib.util.find_spec("triton") is None:
            return "the package triton is not installed"
    else:
        programs = [os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")]
    if not any(map(shutil.which, programs)):
        return f"the compiler {' or '.join(programs)} is not installed"
    header = Path(sysconfig.get_path("include"), "Python.h")
    return "" if header.exists() else f"Python's header {header} is not installed"


def trouble(error: Exception) -> str:
    """What is wrong and what the user can do about a failure of torch; "" if it is unknown or already a UserError."""
    if isinstance(error, UserError):
        return ""
    words = " ".join(str(error).split())
    if is_not_deterministic(error):
        return (
            "DETERMINISTIC=y: PyTorch has no deterministic kernel on this device for a part of this run "
            f"({words.split(', but')[0]}); use DETERMINISTIC=n"
        )
    if is_out_of_memory(error):
        return (
            "memory does not suffice: halve BATCH_SIZE and double GRADIENT_ACCUMULATION, which learns the same; if "
            "that is not enough, use DTYPE=bfloat16, a smaller BLOCK_SIZE or model, or an optimizer with less state, "
            "such as OPTIMIZER=sgd"
        )
    if is_compilers(error):
        return f"torch.compile fails here ({words.partition(' Set TORCHDYNAMO')[0][:300]}); use --no-compile"
    return ""


@contextlib.contextmanager
def errors_for_users() -> Iterator[None]:
    """Turn the failures of torch that `trouble` knows into UserError."""
    try:
        yield
    except Exception as error:
        if sentence := trouble(error):
            raise UserError(sentence) from None
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of torch, Python or the system means that there is too little memory."""
    short = isinstance(error, MemoryError | torch.OutOfMemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    return short or bool(_OUT_OF_MEMORY.search(str(error)))


def is_compilers(error: BaseException) -> bool:
    """Whether the error comes from torch.compile or from the compiler that it called."""
    return type(error).__module__.startswith(("torch._dynamo.", "torch._inductor."))


def is_not_deterministic(error: BaseException) -> bool:
    """Whether torch refused an operation because it has no deterministic kernel for it."""
    return "use_deterministic_algorithms" in str(error)
