"""The machine's peak rates of matrix products and of memory, so that figures can be compared across machines."""

import torch
import torch.nn.functional as F

from bench import Bench
from bench.timing import Case
from bench.whole import Shape


def shapes(bench: Bench) -> list[tuple[int, int, int]]:
    """The (n, k, m) of matrix products: square ones, and those of GPT-2's blocks."""
    if bench.size == "tiny":
        return [(64, 64, 64)]
    square, tokens = (4096, 4096) if bench.machine.device.type == "cpu" else (8192, 16384)
    return [(square, square, square), (tokens, 768, 3072), (tokens, 3072, 768)]


def ceilings(bench: Bench) -> None:
    """Matrix products by torch.mm and F.linear, which take different kernels, and a copy too large for caches."""
    where, cases = bench.machine.device, []
    for dtype in dict.fromkeys((torch.float32, bench.machine.dtype)):
        for n, k, m in shapes(bench):
            a, b, weight = (torch.randn(*shape, device=where).to(dtype) for shape in ((n, k), (k, m), (m, k)))
            name, work = f"{str(dtype).removeprefix('torch.')}, {n} x {k} x {m}", 2 * n * k * m / 1e9
            cases.append(Case(f"{name}, mm", lambda a=a, b=b: torch.mm(a, b), work=work, unit="GFLOP"))
            cases.append(Case(f"{name}, linear", lambda a=a, w=weight: F.linear(a, w), work=work, unit="GFLOP"))
    source = torch.randn(1 << (12 if bench.size == "tiny" else 26), device=where)
    target = torch.empty_like(source)
    gigabytes = 2 * source.numel() * 4 / 1e9  # read and written
    cases.append(Case("copy", lambda: target.copy_(source), work=gigabytes, unit="GB"))
    bench.measure("ceilings", cases)


def product(bench: Bench, shape: Shape, dtype: str) -> float:
    """The best rate of the products of the MLP of a model of this shape, in GFLOP/s."""
    rows, width, made = shape.tokens, shape.n_embd, getattr(torch, dtype)
    cases = []
    for n, k, m in ((rows, width, 4 * width), (rows, 4 * width, width)):
        a, b = (torch.randn(*size, device=bench.machine.device).to(made) for size in ((n, k), (k, m)))
        name, work = f"{dtype}, {n} x {k} x {m}, mm", 2 * n * k * m / 1e9
        cases.append(Case(name, lambda a=a, b=b: torch.mm(a, b), work=work, unit="GFLOP"))
    bench.measure(f"products of {shape.tokens} x {width}, {dtype}", cases)
    return max(case.result()["rate"] for case in cases)


def matrix_rate(bench: Bench, dtype: str) -> float:
    """The best rate of matrix products, in GFLOP/s; measures it if it is not known yet.

    `dtype` is float32 or the machine's.
    """
    if "cases" not in bench.sections.get("ceilings", {}):
        ceilings(bench)
    cases = bench.sections["ceilings"]["cases"]
    return max(case["rate"] for case in cases if case["name"].startswith(f"{dtype}, "))
