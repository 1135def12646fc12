"""Chooses how a run computes on a CPU by measuring it once: kernels, number of threads, and whether to compile.

What is fastest differs between processors. So the parts of one layer are timed at the shape of the run, for at most two
seconds, and the result is kept in a folder of the user for all runs of this shape.
"""

import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpt2 import cpu, flops
from gpt2.data import tokenizer
from gpt2.shape import ModelOptions, ShapeOptions
from lib.base import files, load, threads
from lib.base.errors import UserError
from lib.config.kconf import Options, Schema
from lib.machine.device import Machine, SystemOptions
from lib.machine.device import choose as choose_machine
from lib.optim import use_kernels
from lib.optim.muon import Room, newton_schulz
from lib.record import provenance

_VERSION = 2  # of the kernels; raised when one changes, so that what an earlier version measured does not count
_PAYS = 1e12  # operations of a run for which a measurement pays: it then takes 4 to 10 s on 2 cores
_FASTER = 1.05  # a kernel or number of threads is taken only if it is that much faster, so that noise does not choose
_SECONDS, _MOST = 0.3, 15  # of a comparison, and its most rounds
_WIDEST = 768  # rows of Muon's matrices that are timed: 0.2 s for each of 2 cores
_WORK = 2e9  # operations of a timed product at most: 20 ms on 2 cores


@dataclasses.dataclass(frozen=True)
class KernelOptions(Options):
    """How to compute on a CPU."""

    kernels: str  # auto, or what Choice.kernels says
    threads: int
    optimizer: str

    @property
    def muon(self) -> bool:
        """Whether there is a choice for Muon."""
        return self.optimizer == "muon"


@dataclasses.dataclass(frozen=True)
class Choice:
    """How a run computes."""

    kernels: str = "torch"  # or those of cpu.KERNELS and muon, joined by hyphens; empty on other devices
    threads: int = 0  # of PyTorch; 0 on other devices
    reason: str = ""  # why `auto` chose them; empty without `auto`
    rate: float | None = None  # floating-point operations per second of a layer without torch.compile; None: unknown

    def kept(self) -> dict[str, Any]:
        """What a file keeps of it."""
        return {"kernels": self.kernels, "threads": self.threads, "rate": self.rate}

    def apply(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Let `model`, what trains it and this process compute in this way."""
        kernels = self.kernels.split("-")
        cpu.use(model, kernels)
        if optimizer:
            use_kernels(optimizer, kernels)
        if self.threads:
            torch.set_num_threads(self.threads)


def choose(
    options: KernelOptions,
    machine: Machine,
    shape: ModelOptions,
    batch: int,
    operations: float,
    before: Mapping[str, Any] | None = None,
) -> Choice:
    """How a run of so many floating-point `operations` computes, with `batch` sequences at once.

    `before` are the fields of the choice in a checkpoint, which a resumed run keeps: its bits do not change.
    """
    if machine.device.type != "cpu":
        return Choice("")
    default = torch.get_num_threads()
    if options.kernels != "auto":  # perhaps by a sweep, which measured them
        rate = None if machine.deterministic else _rate(machine, shape, batch, options.kernels)
        return Choice(options.kernels, default, rate=rate)
    if before:
        threads = default if options.threads or machine.ranks.size > 1 else min(default, before["threads"])
        return Choice(before["kernels"], threads, "auto: as before", before["rate"])
    if machine.deterministic:
        return Choice("torch", default, "auto: DETERMINISTIC=y takes PyTorch's")
    if operations < _PAYS:
        return Choice("torch", default, "auto: too few operations to measure")
    fixed = options.threads > 0 or machine.ranks.size > 1
    found = machine.ranks.first(lambda: measured(machine, shape, batch, options.muon, fixed))
    return dataclasses.replace(found, threads=default) if fixed else found


def planned(schema: Schema, threads: int) -> dict[str, str]:
    """Options that give a planned run the choice that was measured on this machine; none if it makes its own.

    Each of several runs at a time has so many `threads`; 0: all that it finds.
    """
    if schema["KERNELS"] != "auto":
        return {}
    if schema["DEVICE"] != "cpu" and (torch.cuda.is_available() or torch.backends.mps.is_available()):
        return {}  # and this process takes no memory of a GPU
    machine = choose_machine(schema.bind(SystemOptions))
    threads = schema["THREADS"] or threads
    shape = schema.bind(ShapeOptions)
    operations = flops.training(shape, tokenizer.vocab_size(schema["TOKENIZER"])) * shape.block_size
    operations *= schema["BATCH_SIZE"] * schema["GRADIENT_ACCUMULATION"] * schema["MAX_ITERS"]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        options = dataclasses.replace(schema.bind(KernelOptions), threads=threads)
        choice = choose(options, machine, shape, schema["BATCH_SIZE"], operations)
    finally:
        torch.set_num_threads(before)
    if choice.rate is None:
        return {}
    return {"KERNELS": choice.kernels, "THREADS": str(choice.threads)}


def measured(
    machine: Machine, shape: ModelOptions, batch: int, muon: bool = False, fixed: bool = False, again: bool = False
) -> Choice:
    """The choice for this machine and shape: the one that is kept, or a new one.

    `muon`: the optimizer is Muon; `fixed`: the threads are given; `again`: even if one is kept. Beside programs that
    compute, it is PyTorch's kernels, and nothing is kept.
    """
    path, key = place(), _key(machine, shape, batch, muon, fixed)
    kept = {} if again else read(path)
    if key in kept:
        entry = kept[key]
        return Choice(entry["kernels"], entry["threads"], "auto: measured before", entry["rate"])
    begin = load.read()
    with torch.random.fork_rng(devices=[]):  # dropout does not depend on whether something was measured
        found = _measure(machine, shape, batch, muon, fixed)
    if load.others(begin) >= load.BUSY:
        return Choice("torch", torch.get_num_threads(), "auto: not measured, because other programs compute")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, read(path) | {key: found.kept()})
    except (OSError, UserError):  # a home that cannot be written: the next run measures again
        return dataclasses.replace(found, reason="auto: measured now, but not kept, because the cache is not writable")
    return found


def place() -> Path:
    """The file in which choices are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "espalier", f"kernels-{_VERSION}.json")


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The choices that are kept, by key. What is missing, damaged or of another version is measured again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {key: entry for key, entry in found.items() if _is_sound(entry)} if isinstance(found, dict) else {}


def _is_sound(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("kernels"), str)
        and isinstance(entry.get("threads"), int)
        and 0 < entry["threads"] <= 4096
        and isinstance(entry.get("rate"), float)
        and entry["rate"] > 0
    )


def _rate(machine: Machine, shape: ModelOptions, batch: int, kernels: str) -> float | None:
    """The rate that was measured with these kernels and this number of threads; None if none is kept."""
    about, sizes = _about(machine), _sizes(shape, batch)
    for key, entry in read(place()).items():
        alike = key.startswith(f"{about}, ") and key.endswith(f": {sizes}")
        if alike and (entry["kernels"], entry["threads"]) == (kernels, torch.get_num_threads()):
            return entry["rate"]
    return None


def _key(machine: Machine, shape: ModelOptions, batch: int, muon: bool, fixed: bool) -> str:
    threads = torch.get_num_threads()
    at_most = f"{threads} threads" if fixed else f"at most {threads} threads"
    return f"{_about(machine)}, {at_most}{', Muon' * muon}: {_sizes(shape, batch)}"


def _about(machine: Machine) -> str:
    return f"{provenance.cpu()}, PyTorch {torch.__version__}, {str(machine.dtype).removeprefix('torch.')}"


def _sizes(shape: ModelOptions, batch: int) -> str:
    return f"{shape.n_embd} wide, {shape.n_head} heads, {batch} x {shape.block_size} tokens"


def processor() -> str:
    """The processor, what it computes fast, and its cores, in words."""
    features = ["AMX"] if torch.cpu._is_amx_tile_supported() else []
    features += ["AVX-512 with bfloat16"] if torch.cpu._is_avx512_bf16_supported() else []
    features = features or [torch.backends.cpu.get_cpu_capability().replace("AVX512", "AVX-512")]
    return ", ".join([provenance.cpu(), *features, f"{threads.cores()} of {os.cpu_count()} cores"])


# ---- measuring -------------------------------------------------------------------------------------------------------


class Layer:
    """The parts of one layer that have several kernels, with random inputs, forward and backward."""

    def __init__(self, machine: Machine, shape: ModelOptions, batch: int):
        """`batch` sequences, or so many of their tokens that nothing takes long."""
        self.machine, width, length = machine, shape.n_embd, shape.block_size
        rows = max(1, min(batch * length, int(_WORK / (8 * width * width))))
        batch = max(1, min(batch, rows // length))
        self.linear = cpu.Linear(width, 4 * width)
        self.attend = cpu.CausalAttention()
        self.heads, self.scores = shape.n_head, (batch, shape.n_head, length)
        self.x = torch.randn(rows, width, requires_grad=True)
        self.qkv = torch.randn(batch, length, 3 * width, dtype=machine.dtype, requires_grad=True)
        scores = 2 * batch * length * length * width  # causal: half of the products of attention
        self.flops = 3 * (8 * rows * width * width + scores)  # backward takes twice as many

    def product(self) -> Tensor:
        """The widest product, of the MLP."""
        with self.machine.autocast():
            return self.linear(self.x)

    def attention(self) -> Tensor:
        """Attention."""
        return self.attend(self.qkv, self.heads, 0.0)

    def all(self) -> None:
        """Everything, GELU included, forward and backward."""
        _both(lambda: cpu.gelu_tanh(self.product()))
        _both(self.attention)


def _measure(machine: Machine, shape: ModelOptions, batch: int, muon: bool, fixed: bool) -> Choice:
    layer, default = Layer(machine, shape, batch), torch.get_num_threads()
    kernels = []
    if machine.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        kernels += ["onednn"] * _wins("onednn", layer.linear, layer.product)
    if cpu.scores_fit(*layer.scores):
        kernels += ["attention"] * _wins("attention", layer.attend, layer.attention)
    for part in (layer.linear, layer.attend):
        cpu.use(part, kernels)
    threads = default if fixed else _threads(layer, default)
    torch.set_num_threads(threads)
    seconds = statistics.median(_time(layer.all) for _ in range(3))
    if muon and machine.dtype == torch.bfloat16:
        kernels += ["muon"] * _orthogonalises_faster(shape.n_embd)
    torch.set_num_threads(default)
    return Choice("-".join(kernels) or "torch", threads, "auto: measured now", layer.flops / seconds)


def _wins(kernel: str, part: nn.Module, forward: Callable[[], Tensor]) -> bool:
    """Whether `part` is faster with its own kernel than with torch's."""
    return _ratio(lambda: _both(forward), lambda own: cpu.use(part, [kernel] * own)) >= _FASTER


def _orthogonalises_faster(width: int) -> bool:
    """Whether Muon is faster in bfloat16 for the largest matrices of a layer, or smaller ones to save time."""
    width = min(width, _WIDEST)
    matrices, room, kind = torch.randn(torch.get_num_threads(), width, 4 * width), Room(), {}
    return _ratio(lambda: newton_schulz(matrices, room, **kind), lambda own: kind.update(bfloat16=own)) >= _FASTER


def _threads(layer: Layer, default: int) -> int:
    """The number of threads with which a layer is fastest: `default`, a half, a quarter and so on."""
    best = default
    while best > 1:
        half = best // 2
        if _ratio(layer.all, lambda fewer, n=(best, half): torch.set_num_threads(n[fewer])) < _FASTER:
            break
        best = half
    return best


def _ratio(run: Callable[[], object], switch: Callable[[bool], object]) -> float:
    """How many times as fast `run` is when `switch` was called with True: the median over rounds of both."""
    ratios, began = [], time.perf_counter()
    for on in (False, True):
        switch(on)
        run()
    while not ratios or (len(ratios) < _MOST and time.perf_counter() < began + _SECONDS):
        seconds = {}
        for on in (False, True) if len(ratios) % 2 else (True, False):
            switch(on)
            seconds[on] = _time(run)
        ratios.append(seconds[False] / seconds[True])
    return statistics.median(ratios)


def _time(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _both(forward: Callable[[], Tensor]) -> None:
    """Forward and backward."""
    y = forward()
    y.backward(torch.ones_like(y))
