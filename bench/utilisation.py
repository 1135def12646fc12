"""The share of the machine's best matrix rate that training uses, and the time to its first step."""

import functools

from bench import Bench, whole
from bench.ceilings import matrix_rate
from bench.timing import Case
from bench.whole import Outcome, Shape

_CPU = {"gpt2": Shape(12, 12, 768, 1024, 4, "gpt2", 2, 3)}
_CUDA = {
    "gpt2": Shape(12, 12, 768, 1024, 16, "gpt2", 10, 50),
    "gpt2-medium": Shape(24, 16, 1024, 1024, 16, "gpt2", 10, 30),
    "gpt2-xl": Shape(48, 25, 1600, 1024, 8, "gpt2", 10, 20),
}
_NOT_COMPILED = {"COMPILE": "n"}
_START = _CUDA["gpt2"]._replace(warmup=1, steps=1)


def utilisation(bench: Bench) -> None:
    """The floating-point operations per second of training, as a share of the best rate of matrix products."""
    cuda = bench.machine.device.type == "cuda"
    runs = _CUDA if cuda else _CPU
    options = {"LOG_INTERVAL": "10"} if cuda else {}  # a record waits for the GPU
    if bench.size == "tiny":
        runs = {"tiny": whole.TINY}
    rows = {}
    for name, shape in runs.items():
        done = bench.alone("utilisation", functools.partial(_train, bench, shape, **options))
        tokens_per_second = shape.tokens / done.step_seconds
        rate = tokens_per_second * whole.flops_per_token(shape) / 1e9
        rows[f"{name}, {shape.batch_size} x {shape.block_size} tokens"] = {
            "tokens/s": tokens_per_second, "GFLOP/s": rate, "ratio": rate / matrix_rate(bench, bench.dtype),
            "to": "best matrix product", "peak MiB": done.peak_bytes / 2**20,
        }  # fmt: skip
        bench.note("utilisation", rows)  # now, because the next run may fail


def start(bench: Bench) -> None:
    """Seconds from the start of a process to the end of its first step, on a GPU."""
    if bench.machine.device.type != "cuda":
        return
    runs = {"compiled": {}, "not compiled": _NOT_COMPILED}
    first = {name: functools.partial(_first_step, bench, options) for name, options in runs.items()}
    cases = [Case(f"gpt2 {name}", run, reports=True) for name, run in first.items()]
    bench.measure("first step", cases)


def _train(bench: Bench, shape: Shape, **options: str) -> Outcome:
    """Train with an empty cache of the compiler."""
    with whole.scratch({shape.tokenizer}) as folder:
        variables = whole.caches(folder / "caches")
        return whole.train(shape, folder, bench.machine.device, variables, DTYPE=bench.dtype, **options)


def _first_step(bench: Bench, options: dict[str, str]) -> float:
    return _train(bench, _START, **options).first_step_seconds
