"""The machine that a run computes on: device, arithmetic, threads, and what it could do at best."""

import contextlib
import dataclasses
import os
import re
import shlex
import shutil
from collections.abc import Iterator

import torch

from lib.errors import UsageError
from lib.kconf import Options

# Dense matrix rate in TFLOP/s that the maker states, by words of the device's name; no entry, no `mfu`.
_PEAK_TFLOPS = {
    torch.bfloat16: {"H200": 989, "H100 80GB HBM3": 989, "A100": 312, "L40S": 362, "L4": 121, "RTX 4090": 165},
    torch.float16: {"H200": 989, "H100 80GB HBM3": 989, "A100": 312, "L40S": 362, "L4": 121, "T4": 65, "V100": 125},
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


def choose(options: SystemOptions) -> Machine:
    """Set up the machine that the options ask for; raises UsageError for what this one does not have."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind = next(k for k in ("cuda", "mps", "cpu") if available[k]) if options.device == "auto" else options.device
    if not available[kind]:
        raise UsageError(f"--device {kind}: PyTorch {torch.__version__} finds no such device here; use --device auto")
    if options.threads:
        torch.set_num_threads(options.threads)
    dtype = _automatic_dtype(kind) if options.dtype == "auto" else getattr(torch, options.dtype)
    name = torch.cuda.get_device_name() if kind == "cuda" else kind
    threads = f", {torch.get_num_threads()} threads" if kind == "cpu" else ""
    rates = _PEAK_TFLOPS.get(dtype, {}).items()
    peak = next((tflops * 1e12 for words, tflops in rates if re.search(rf"\b{words}\b", name)), None)
    description = f"{name}, {str(dtype).removeprefix('torch.')}{', compiled' if options.compile else ''}{threads}"
    return Machine(torch.device(kind), dtype, description, peak)


def _automatic_dtype(kind: str) -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively: elsewhere it is emulated and slower than float32."""
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = kind == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def check_compiler(device: torch.device) -> None:
    """Raise UsageError if torch.compile, which writes C++ on a CPU, would find no compiler at the first step."""
    compilers = [shlex.split(os.environ["CXX"])[0]] if os.environ.get("CXX") else ["g++", "clang++"]
    if device.type == "cpu" and not any(map(shutil.which, compilers)):
        names = " or ".join(compilers)
        raise UsageError(f"--compile: the C++ compiler {names} is not installed; install one or use --no-compile")
