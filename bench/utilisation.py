"""The share of the machine's best matrix rate that training uses, and the time to its first step."""

import functools

import torch

from bench import Bench, whole
from bench.ceilings import matrix_rate
from bench.timing import Case
from bench.whole import Outcome, Shape
from gpt2 import model as models
from gpt2.data import tokenizer
from lib.config.kconf import Schema

# Model -> (its run, the goal for its share of the best matrix rate).
_CPU = {"gpt2": (Shape(12, 12, 768, 1024, 4, "gpt2", 2, 3), ">= 0.8")}
_CUDA = {
    "gpt2": (Shape(12, 12, 768, 1024, 16, "gpt2", 10, 50), ">= 0.55"),
    "gpt2-medium": (Shape(24, 16, 1024, 1024, 16, "gpt2", 10, 30), ">= 0.6"),
    "gpt2-xl": (Shape(48, 25, 1600, 1024, 8, "gpt2", 10, 20), ">= 0.6"),
}
_NOT_COMPILED = {"COMPILE": "n"}
_START = _CUDA["gpt2"][0]._replace(warmup=1, steps=1)


def utilisation(bench: Bench) -> None:
    """The floating-point operations per second of training, as a share of the best rate of matrix products."""
    cuda = bench.machine.device.type == "cuda"
    runs = _CUDA if cuda else _CPU
    options = {"LOG_INTERVAL": "10"} if cuda else {}  # a record waits for the GPU
    if bench.size == "tiny":
        runs = {"tiny": (whole.TINY, "")}
    rows = {}
    for name, (shape, goal) in runs.items():
        tokens_per_second = shape.tokens / (done := _train(bench, shape, **options)).step_seconds
        rate = tokens_per_second * flops_per_token(shape) / 1e9
        rows[f"{name}, {shape.batch_size} x {shape.block_size} tokens"] = {
            "tokens/s": tokens_per_second, "GFLOP/s": rate, "ratio": rate / matrix_rate(bench, bench.dtype),
            "to": "best matrix product", "goal": goal, "peak MiB": done.peak_bytes / 2**20,
        }  # fmt: skip
        bench.note("utilisation", rows)  # now, because the next run may fail


def start(bench: Bench) -> None:
    """Seconds from the start of a process to the end of its first step, on a GPU."""
    if bench.machine.device.type != "cuda":
        return
    runs = {"compiled": ({}, "<= 60"), "not compiled": (_NOT_COMPILED, "<= 10")}
    first = {name: functools.partial(_first_step, bench, options) for name, (options, _) in runs.items()}
    cases = [Case(f"gpt2 {name}", first[name], goal=goal, reports=True) for name, (_, goal) in runs.items()]
    bench.measure("first step", cases)


def flops_per_token(shape: Shape) -> int:
    """The model's own count for a forward and backward pass."""
    schema = Schema()
    sizes = {"model_name": "custom", **shape.sizes}
    schema.override([(name.upper(), str(value), "bench") for name, value in sizes.items()])
    with torch.device("meta"):
        vocabulary = tokenizer.vocab_size(shape.tokenizer)
        return models.GPT2(schema.bind(models.ModelOptions), vocabulary).flops_per_token()


def _train(bench: Bench, shape: Shape, cold: bool = False, **options: str) -> Outcome:
    with whole.scratch({shape.tokenizer}) as folder:
        return whole.train(shape, folder, bench.machine.device, cold, DTYPE=bench.dtype, **options)


def _first_step(bench: Bench, options: dict[str, str]) -> float:
    return _train(bench, _START, cold=True, **options).first_step_seconds
