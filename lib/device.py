"""The machine that a run computes on: device, arithmetic, threads, and what it could do at best."""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator

import torch

from lib.errors import UsageError
from lib.kconf import Options

# Dense matrix rate in TFLOP/s that the maker states, by a part of the device's name; no entry, no `mfu`.
_PEAK_TFLOPS = {
    torch.bfloat16: {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "RTX 4090": 165, "RTX 3090": 71},
    torch.float16: {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "T4": 65, "V100": 125},
}


@dataclasses.dataclass(frozen=True)
class SystemOptions(Options):
    """Where and how to compute."""

    device: str
    dtype: str
    compile: bool
    threads: int


@dataclasses.dataclass(frozen=True)
class Machine:
    """What was chosen."""

    device: torch.device
    dtype: torch.dtype
    name: str  # for people: "cpu, bfloat16, 2 threads"
    peak_flops: float | None  # per second, dense matrix products in `dtype`; None where it is not known

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute matrix products in `dtype`."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            yield

    def synchronize(self) -> None:
        """Wait for the device, so that a clock read after this measures work done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        elif self.device.type == "mps":
            torch.mps.synchronize()


def choose(options: SystemOptions) -> Machine:
    """Set up the machine that the options ask for; raises UsageError for what this one does not have."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind = next(k for k in ("cuda", "mps", "cpu") if available[k]) if options.device == "auto" else options.device
    if not available[kind]:
        raise UsageError(f"--device {kind}: PyTorch {torch.__version__} finds no such device here; use --device auto")
    if options.threads:
        torch.set_num_threads(options.threads)
    dtype = _automatic_dtype(kind) if options.dtype == "auto" else getattr(torch, options.dtype)
    if options.compile:
        _check_compiler(kind)
    name = torch.cuda.get_device_name() if kind == "cuda" else kind
    threads = f", {torch.get_num_threads()} threads" if kind == "cpu" else ""
    peak = next((tflops * 1e12 for part, tflops in _PEAK_TFLOPS.get(dtype, {}).items() if part in name), None)
    description = f"{name}, {str(dtype).removeprefix('torch.')}{', compiled' if options.compile else ''}{threads}"
    return Machine(torch.device(kind), dtype, description, peak)


def _automatic_dtype(kind: str) -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively: elsewhere it is emulated and slower than float32."""
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = kind == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def _check_compiler(kind: str) -> None:
    """On a CPU torch.compile writes C++: say at once that there is no compiler, not at the first step."""
    compiler = os.environ.get("CXX") or ("clang++" if shutil.which("clang++") and not shutil.which("g++") else "g++")
    if kind == "cpu" and not shutil.which(compiler):
        raise UsageError(f"--compile: the C++ compiler {compiler} is not installed; install one or use --no-compile")
