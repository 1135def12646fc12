"""The speed of inference of a pruned model: dense, with 2:4 kernels on a GPU, and with CSR matrices on a CPU.

Every figure is of the whole model, with its embedding, attention and head, which stay dense. Nothing is compiled.
"""

import copy
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from gpt2.data.local_files import reason
from gpt2.evaluation.result import Result
from lib.machine import device, turns
from lib.machine.device import Machine

_PASS, _SHORTEST = 0.7, 64  # seconds that the dense model takes for a prompt; tokens
_TOLERANCE = {torch.float32: 1e-3}  # of the largest activation; in 16 bits _TOLERANCE_16
_TOLERANCE_16 = 5e-2
_CAPABILITY = (8, 0)  # the first GPUs with 2:4 kernels


class Csr(nn.Module):
    """A linear layer whose weight is a CSR matrix."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that CSR is in beta state
            found = linear.weight.detach().to_sparse_csr()
            # Indices of 32 bits, because MKL would convert those of 64 bits at each product.
            self.weight = torch.sparse_csr_tensor(
                found.crow_indices().int(), found.col_indices().int(), found.values(), found.shape
            )
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        rows = x.flatten(0, -2)
        y = torch.mv(self.weight, rows[0])[None] if len(rows) == 1 else (self.weight @ rows.T).T
        return (y + self.bias).reshape(*x.shape[:-1], -1)


class TwoFour(nn.Module):
    """A linear layer whose weight is compressed for 2:4 kernels."""

    def __init__(self, linear: nn.Linear):
        """Raises RuntimeError if the kernels do not take this shape or dtype."""
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that this is a prototype
            self.weight = torch.sparse.to_sparse_semi_structured(linear.weight.detach())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Variant:
    """A way to compute the model."""

    name: str
    model: nn.Module
    base: str = ""  # the dense variant that it is compared with


def replaced(model: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """A model that has `layers` in the place of its own, path -> layer, and shares all other weights with `model`."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    found = copy.deepcopy(model, shared)
    for path, layer in layers.items():
        found.set_submodule(path, layer)
    return found


@torch.no_grad()
def measure(model: nn.Module, layers: Sequence[str], machine: Machine) -> Result:
    """Tokens per second: of a prompt, and of single tokens, as in decoding.

    The prompt fills the context. A slow device gets a half, a quarter, ... of it, as its length in the notes says.
    `layers` are the paths of the pruned linear layers. A sparse variant is timed only if its activations are those of
    the dense one up to rounding. The figures are those of the fastest rounds: see turns.fastest.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.vocab_size, (1, model.block_size), generator=generator).to(machine.device)
    tokens = _prompt(model, tokens, machine)
    variants, notes = _variants(model, list(layers), machine, tokens)
    values, counts = {}, []
    for what, length in {"prompt": tokens.shape[1], "decoding": 1}.items():
        seconds, rounds = _time(variants, tokens[:, :length], machine)
        counts.append(rounds)
        values |= {f"speed/{name}_{what}_tokens_per_second": length / fastest for name, fastest in seconds.items()}
        of = f"a prompt of {length:,} tokens" if what == "prompt" else "one token without a cache of earlier ones"
        for variant in variants:
            if variant.base:
                notes.append(f"{variant.name}: {_words(seconds[variant.base] / seconds[variant.name])} dense for {of}")
    threads = torch.get_num_threads() if machine.device.type == "cpu" else None
    dtype = str(variants[0].model.get_submodule(layers[0]).weight.dtype).removeprefix("torch.")  # of dense and sparse
    details = {"device": machine.name, "threads": threads, "dtype": dtype, "prompt_tokens": tokens.shape[1]}
    details["notes"] = notes
    return Result("speed", values, min(counts), details=details)


def _prompt(model: nn.Module, tokens: Tensor, machine: Machine) -> Tensor:
    """The beginning of `tokens` that the dense model reads in _PASS seconds."""
    model.hidden(tokens[:, :1])  # a device's first work takes longer
    while True:
        turns.wait(machine.device)
        start = time.perf_counter()
        model.hidden(tokens)
        turns.wait(machine.device)
        if time.perf_counter() - start <= _PASS or tokens.shape[1] <= _SHORTEST:
            return tokens
        tokens = tokens[:, : max(_SHORTEST, tokens.shape[1] // 2)]


def _words(ratio: float) -> str:
    """How fast a variant is; `ratio` is its speed relative to the dense one."""
    return f"is {ratio:.2f} times as fast as" if ratio >= 1 else f"takes {1 / ratio:.2f} times as long as"


def _variants(model: nn.Module, layers: list[str], machine: Machine, tokens: Tensor) -> tuple[list[Variant], list[str]]:
    """The ways that can be timed here, and sentences about the others."""
    found, notes = [], []
    if machine.device.type == "cpu":
        found.append(Variant("dense", model))
        _add("csr", Csr, found, layers, tokens, notes)
        notes.append("2to4: not timed: a CPU has no 2:4 kernels; they need a CUDA device of compute capability 8.0")
        if machine.dtype != torch.float32:
            half = copy.deepcopy(model).to(machine.dtype)
            found.append(Variant(f"dense_{str(machine.dtype).removeprefix('torch.')}", half, "dense"))
            notes.append("dense and csr compute in float32, because torch has no CSR products in 16 bits on a CPU")
        return found, notes
    ours = model if machine.dtype == torch.float32 else copy.deepcopy(model).to(machine.dtype)
    found.append(Variant("dense", ours))
    notes.append("csr: not timed: it is timed on a CPU, with DEVICE=cpu")
    if why := _no_two_four(ours, layers, machine):
        notes.append(f"2to4: not timed: {why}")
    else:
        _add("2to4", TwoFour, found, layers, tokens, notes)
    return found, notes


def _no_two_four(model: nn.Module, layers: list[str], machine: Machine) -> str:
    """Why 2:4 kernels cannot be used; "" if they can."""
    if machine.device.type != "cuda" or torch.cuda.get_device_capability(machine.device) < _CAPABILITY:
        return f"{machine.name} has no 2:4 kernels; they need a CUDA device of compute capability 8.0"
    for path in layers:
        if not is_two_four(model.get_submodule(path).weight):
            return f"{path} keeps more than 2 of 4 neighbours; prune with PRUNING_DISTRIBUTION=n-m, 2 of 4"
    return ""


def is_two_four(weight: Tensor) -> bool:
    """Whether at most 2 of each 4 neighbours along the input are not zero."""
    return weight.shape[1] % 4 == 0 and int((weight.reshape(-1, 4) != 0).sum(1).max()) <= 2


def _add(
    name: str,
    kind: Callable[[nn.Linear], nn.Module],
    found: list[Variant],
    layers: list[str],
    tokens: Tensor,
    notes: list[str],
) -> None:
    """Append the variant to `found` if it computes here what the dense one does; else say why not in `notes`."""
    dense = found[0]
    try:
        model = replaced(dense.model, {path: kind(dense.model.get_submodule(path)) for path in layers})
        hidden = model.hidden(tokens).float()
    except (RuntimeError, NotImplementedError) as error:
        if device.is_out_of_memory(error):
            raise
        notes.append(f"{name}: not timed: torch refuses it here: {reason(error)}")
        return
    expected = dense.model.hidden(tokens).float()
    off = ((hidden - expected).abs().max() / expected.abs().max()).item()
    dtype = dense.model.get_submodule(layers[0]).weight.dtype
    if not off <= _TOLERANCE.get(dtype, _TOLERANCE_16):  # NaN is not
        notes.append(f"{name}: not timed: its activations are off by {off:.1e} of the largest one, so it is wrong here")
        return
    notes.append(f"{name}: its activations are those of dense up to {off:.1e} of the largest one")
    found.append(Variant(name, model, "dense"))


def _time(variants: list[Variant], tokens: Tensor, machine: Machine) -> tuple[dict[str, float], int]:
    """The seconds of a forward pass of each variant in its fastest round, and the number of rounds."""

    def work(model: nn.Module) -> turns.Work:
        return lambda: model.logits(model.hidden(tokens)[:, -1])

    with tqdm(desc=f"speed, {tokens.shape[1]} tokens", unit=" rounds", disable=None, leave=False) as bar:
        seconds, rounds = turns.fastest([work(variant.model) for variant in variants], machine.device, bar.update)
    return dict(zip((variant.name for variant in variants), seconds, strict=True)), rounds
