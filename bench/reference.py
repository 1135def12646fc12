"""Another trainer and ours, compared: processes with the same data, batch and steps take turns in every round.

--ref names what to compare with: a checkout of nanoGPT or nanochat, or `transformers` for the Trainer of the installed
package.
"""

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from bench import Bench, ceilings, goals, huggingface, nanochat, nanogpt, whole
from bench.nanochat import Nanochat
from bench.peer import Peer, Way
from bench.timing import Case, quartiles
from bench.whole import Outcome, Shape
from gpt2 import kernels
from gpt2.shape import ModelOptions
from lib.base import files
from lib.base.errors import UsageError
from lib.machine import device as devices

_OURS = {False: "Espalier not compiled", True: "Espalier compiled"}


class Comparison(NamedTuple):
    """A model to train."""

    shape: Shape
    iterations: int  # that nanoGPT's README trains, and by which COMPILE=auto decides
    on_cuda: dict[str, int]  # larger sizes for a GPU


COMPARISONS = {
    "4x128": Comparison(Shape(4, 4, 128, 64, 12, "bytes", 20, 100), 2_000, {"steps": 500}),
    "6x384": Comparison(Shape(6, 6, 384, 256, 16, "bytes", 2, 5), 5_000, {"steps": 200}),
    "gpt2": Comparison(
        Shape(12, 12, 768, 1024, 1, "gpt2", 2, 4), 600_000, {"batch_size": 16, "warmup": 10, "steps": 50}
    ),
}  # fmt: skip
_MEMORY = Shape(12, 12, 768, 1024, 8, "gpt2", 1, 1)


def check(ref: str) -> Peer:
    """The trainer that --ref names; raises UsageError if there is none."""
    folder = files.named(ref).resolve()
    if ref == "transformers" or (folder / nanochat.FILES[0]).is_file():
        needed, peer = (huggingface, huggingface.Trainer()) if ref == "transformers" else (nanochat, Nanochat(folder))
        if missing := needed.missing():
            raise UsageError(f"--ref {ref}: it needs {' and '.join(missing)}; pip install {' '.join(missing)}")
        return peer
    if missing := [name for name in nanogpt.FILES if not (folder / name).is_file()]:
        raise UsageError(
            f"--ref {ref}: has no {' and no '.join(missing)}; name a checkout of karpathy/nanoGPT or "
            "karpathy/nanochat, or transformers"
        )
    return nanogpt.NanoGPT(folder)


def auto(bench: Bench, compared: Comparison, shape: Shape) -> bool:
    """Whether ours compiles as its README starts it, with COMPILE=auto, for as many steps as nanoGPT's README."""
    operations = whole.flops_per_token(shape) * shape.tokens * compared.iterations
    return devices.compiles("auto", bench.machine, operations)[0]


def rivals(peer: Peer, device: torch.device, dtype: str, auto: bool, compilable: bool) -> dict[str, tuple[Way, str]]:
    """Ways to run `peer` beside ours in `dtype`: name -> (how, which of _OURS it is compared with).

    First as its README starts it, beside ours as `auto` decides; then with equal bias, vocabulary, arithmetic and
    compilation.
    """
    shipped, suffix = peer.shipped(device, dtype), "" if dtype == "float32" else f", {dtype}"
    other = "" if shipped.dtype == dtype else f", {shipped.dtype}"
    found = {f"{peer.name} as shipped{other}": (shipped, _OURS[auto])}
    if peer.eager:
        found[f"{peer.name} not compiled{suffix}"] = Way(dtype, compiled=False), _OURS[False]
    if compilable:
        found[f"{peer.name} compiled{suffix}"] = Way(dtype, compiled=True), _OURS[True]
    return found


def speed(bench: Bench, name: str) -> None:
    """Steps of one of COMPARISONS: the other's time over ours, in the dtype of this machine and in float32."""
    peer, compared, device = bench.peer, COMPARISONS[name], bench.machine.device
    shape = _shape(bench, compared)
    compilable, decided = whole.compilable(shape, device), auto(bench, compared, shape)
    with whole.scratch({shape.tokenizer}) as folder:
        for dtype in [bench.dtype] if device.type == "cuda" else dict.fromkeys([bench.dtype, "float32"]):
            title, variables = f"{name} beside {peer.name}, {dtype}", whole.caches(folder / "caches")
            found = rivals(peer, device, dtype, decided, compilable)
            if bench.brief:  # without those that have no goal
                found = {o: f for o, f in found.items() if goals.bound(device.type, title, o)} or found
            programs = {
                ours: (functools.partial(_ours, bench, shape, folder, dtype, compiled), "")
                for compiled, ours in _OURS.items()
                if ours in {base for _, base in found.values()}
            }
            for other, (way, ours) in found.items():
                programs[other] = functools.partial(peer.train, way, shape, folder, device), ours
            cases = [
                Case(case, functools.partial(_step, run, variables), base, shape.tokens, "tokens", reports=True)
                for case, (run, base) in programs.items()
            ]
            bench.measure(title, cases, tokens=shape.tokens)
            bench.note(f"{title}: processes", {case.name: whole.medians(case.details) for case in cases})
            _share(bench, name, shape, dtype, cases)


def _share(bench: Bench, name: str, shape: Shape, dtype: str, cases: list[Case]) -> None:
    """Add what share of the best product of this size ours reaches, because the rest is all that could be saved."""
    best = ceilings.product(bench, shape, dtype)
    flops, rows = whole.flops_per_token(shape) * shape.tokens / 1e9, {}
    for case in cases:
        if not case.base:
            rate = flops / quartiles(case.seconds)[1]
            rows[case.name] = {"GFLOP/s": rate, "ratio": rate / best, "to": f"best product, {best:,.0f} GFLOP/s"}
    suffix = "" if dtype == "float32" else f", {dtype}"
    bench.note(f"{name}: share of the best product{suffix}", rows)


def start(bench: Bench, name: str) -> None:
    """Seconds to the first step of one of COMPARISONS: ours over the other's, without and with compiled code in caches.

    A warm start finds what the start before it compiled. Both have their own folder for it.
    """
    peer, device, dtype = bench.peer, bench.machine.device, bench.dtype
    shape = _shape(bench, COMPARISONS[name])._replace(warmup=1, steps=1)
    cases: list[Case] = []
    with whole.scratch({shape.tokenizer}) as folder:
        for compiled in [False] * peer.eager + [True] * whole.compilable(_shape(bench, COMPARISONS[name]), device):
            theirs = functools.partial(peer.train, Way(dtype, compiled), shape, folder, device)
            ours = functools.partial(_ours, bench, shape, folder, dtype, compiled)
            for state in ("cold", "warm") if compiled else ("",):
                how = f"compiled, {state}" if state else "not compiled"
                runs = {f"{peer.name} {how}": theirs, f"Espalier {how}": ours}
                for case, run in runs.items():
                    timed = functools.partial(_first_step, run, folder, case, state == "warm")
                    cases.append(Case(case, timed, "" if run is theirs else f"{peer.name} {how}", reports=True))
        if cases:  # none for a trainer that needs the compiler, where the benchmark does not compile
            bench.measure(f"{name} to the first step beside {peer.name}", cases)


def memory(bench: Bench) -> None:
    """Peak memory of 2 steps of GPT-2 124M at 8 x 1024 tokens: ours over the other's as shipped, one process each."""
    peer, device, dtype = bench.peer, bench.machine.device, bench.dtype
    shape = whole.TINY if bench.size == "tiny" else _MEMORY
    with whole.scratch({shape.tokenizer}) as folder:
        compiled, variables = whole.compilable(shape, device), whole.caches(folder / "caches")
        ours = _ours(bench, shape, folder, dtype, compiled, variables).peak_bytes / 2**20
        theirs = peer.train(peer.shipped(device, dtype), shape, folder, device, variables).peak_bytes / 2**20
    name = f"{peer.name} as shipped"
    rows = {"Espalier": {"peak MiB": ours, "ratio": ours / theirs, "to": name}, name: {"peak MiB": theirs}}
    bench.note(f"peak memory beside {peer.name}", rows)


def _shape(bench: Bench, compared: Comparison) -> Shape:
    if bench.size == "tiny":
        return whole.TINY
    cuda = bench.machine.device.type == "cuda"
    return compared.shape._replace(**compared.on_cuda) if cuda else compared.shape


def _ours(bench: Bench, shape: Shape, folder: Path, dtype: str, compiled: bool, variables: dict[str, str]) -> Outcome:
    options = {"DTYPE": dtype, "COMPILE": "y" if compiled else "n", "KERNELS": _kernels(bench, shape, dtype)}
    return whole.train(shape, folder, bench.machine.device, variables, **options)


def _kernels(bench: Bench, shape: Shape, dtype: str) -> str:
    """The kernels that a long run takes. The runs here are too short to measure them."""
    if bench.machine.device.type != "cpu" or shape == whole.TINY:
        return "auto"
    machine = dataclasses.replace(bench.machine, dtype=getattr(torch, dtype))
    options = bench.schema(**shape.options).bind(ModelOptions)
    return kernels.measured(machine, options, shape.batch_size).kernels


def _step(run: Callable[[dict[str, str]], Outcome], variables: dict[str, str]) -> tuple[float, Outcome]:
    done = run(variables)
    return done.step_seconds, done


def _first_step(run: Callable[[dict[str, str]], Outcome], folder: Path, name: str, warm: bool) -> float:
    """Seconds to the first step, with an empty cache, or with one that an earlier run has filled."""
    if not warm:
        with tempfile.TemporaryDirectory(dir=folder) as cold:
            return run(whole.caches(Path(cold))).first_step_seconds
    kept = folder / "warm" / name.replace(" ", "-")  # torch gives paths to g++ without quotes
    if not kept.exists():
        kept.mkdir(parents=True)
        run(whole.caches(kept))
    return run(whole.caches(kept)).first_step_seconds
