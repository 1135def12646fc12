"""What one-shot pruning by SparseGPT costs: the parts of one block, an estimate for the whole model, and the whole.

The work is counted, not measured: of X^T X only the half that a symmetric matrix needs, of attention the half that a
causal mask leaves. Everything computes in float32, so the ceiling is the best float32 product.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench import VOCABULARY, Bench
from bench.ceilings import matrix_rate
from gpt2.model import GPT2
from gpt2.oneshot import blocks, sparsegpt
from gpt2.oneshot.inputs import Inputs

_PARTS = "one-shot, a block"  # the section
_WINDOWS = {"gpt2": 8, "tiny": 2}  # of which one block's inputs are measured
_CALIBRATION = {"gpt2": 128, "tiny": 4}  # windows of a whole run


@torch.no_grad()
def parts(bench: Bench) -> None:
    """Seconds of each part of a block, and what a whole model would take: inputs grow with the windows, solving not."""
    model, windows = bench.model().eval(), _windows(bench, _WINDOWS[bench.size])
    block, tokens = model.h[0], windows.numel()
    layers = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
    inputs = Inputs(model, windows, asked=lambda: False)
    measure, measured = _time(bench, lambda: inputs.measure(block, layers, sparsegpt.PRODUCTS))
    advance, _ = _time(bench, lambda: inputs.advance(block))
    solve, _ = _time(bench, lambda: [_solve(layer, measured[name].clone()) for name, layer in layers.items()])
    work = _work(model, tokens)
    rows = {
        "inputs and X^T X": {"seconds": measure, "GFLOP/s": work["measure"] / measure},
        "solving": {"seconds": solve},
        "inputs of the next block": {"seconds": advance, "GFLOP/s": work["advance"] / advance},
    }
    factor, count = _CALIBRATION[bench.size] / len(windows), len(model.h)
    seconds = factor * (count * measure + (count - 1) * advance) + count * solve
    rows[f"estimate, {_CALIBRATION[bench.size]} windows"] = _share(bench, model, seconds)
    bench.note(_PARTS, rows)


def whole(bench: Bench) -> None:
    """Prune a whole model once, which takes minutes."""
    model, windows = bench.model(), _windows(bench, _CALIBRATION[bench.size])
    schema = bench.schema(PRUNING_METHOD="sparsegpt", TARGET_SPARSITY="0.5", MAX_ITERS=str(len(model.h)))
    options = schema.bind(blocks.OneshotOptions)

    def prune() -> float:
        dense = bench.model()
        begin = time.perf_counter()
        blocks.prune(dense, windows, bench.machine, options, done=lambda number: None, asked=lambda: False)
        _synchronize(bench)
        return time.perf_counter() - begin

    bench.note("one-shot", {"whole model": _share(bench, model, bench.alone("one-shot", prune))})


def _share(bench: Bench, model: GPT2, seconds: float) -> dict[str, float | str]:
    """Seconds of a whole run, and its work as a share of the ceiling."""
    work = _work(model, _CALIBRATION[bench.size] * model.options.block_size)
    rate = (len(model.h) * work["measure"] + (len(model.h) - 1) * work["advance"]) / seconds
    return {
        "seconds": seconds,
        "GFLOP/s": rate,
        "ratio": rate / matrix_rate(bench, "float32"),
        "to": "best float32 product",
    }


def _work(model: GPT2, tokens: int) -> dict[str, float]:
    """GFLOP of a block: to `measure` its inputs without its last product, and to `advance` through all of it."""
    width, attention = model.options.n_embd, 2 * tokens * model.options.block_size * model.options.n_embd
    square = tokens * width**2
    # Weights: 3 for q, k and v, 1 behind attention, 4 and 4 in the MLP. X^T X: three inputs of C, one of 4 C.
    return {"measure": ((2 * 8 + 3 + 16) * square + attention) / 1e9, "advance": (2 * 12 * square + attention) / 1e9}


def _solve(layer: nn.Linear, products: Tensor) -> None:
    plan = sparsegpt.Plan(damping=0.01, block=128, n=None, m=None)
    weight = layer.weight.detach().clone()
    sparsegpt.prune(weight, products, 8, weight.numel() // 2, plan, "weight")


def _time(bench: Bench, run: Callable[[], object]) -> tuple[float, object]:
    """(median of the seconds of all rounds after one to warm up, what the last returned)."""

    def once() -> tuple[float, object]:
        begin = time.perf_counter()
        result = run()
        _synchronize(bench)
        return time.perf_counter() - begin, result

    once()
    rounds = [bench.alone(_PARTS, once) for _ in range(bench.timer.rounds)]
    return statistics.median(seconds for seconds, _ in rounds), rounds[-1][1]


def _synchronize(bench: Bench) -> None:
    if bench.machine.device.type == "cuda":
        torch.cuda.synchronize()


def _windows(bench: Bench, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    length = bench.model().options.block_size
    return torch.randint(VOCABULARY, (count, length), generator=generator).to(bench.machine.device)
