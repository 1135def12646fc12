"""nanoGPT and our trainer, compared: processes with the same data, model, batch and steps take turns in every round.

--ref names a checkout of https://github.com/karpathy/nanoGPT. Its three files are copied to a scratch folder and run
there. On a CPU, nanoGPT computes in float32 for every --dtype. For bfloat16 we put torch.autocast around the program.
Autocast's cache is off, because nothing would ever clear it.
"""

import functools
import re
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from bench import Bench, process, whole
from bench.timing import Case
from bench.whole import Outcome, Program, Shape
from lib.base.errors import UsageError, UserError

_FILES = ("train.py", "model.py", "configurator.py")
_AUTOCAST = (
    "import runpy, torch; torch.autocast('cpu', torch.bfloat16, cache_enabled=False).__enter__(); "
    "runpy.run_path('train.py', run_name='__main__')"
)
_META = b"(dVvocab_size\nI256\ns."  # {"vocab_size": 256} as a pickle; without it nanoGPT takes a vocabulary of 50,304
_NEVER = 1_000_000_000
_SETTINGS = {  # the same as in our runs, but nanoGPT always evaluates at the start
    "dataset": "bench", "bias": True, "dropout": 0.0, "gradient_accumulation_steps": 1,
    "learning_rate": whole.LEARNING_RATE, "warmup_iters": 0, "decay_lr": False,
    "eval_iters": 1, "eval_interval": _NEVER, "log_interval": 1, "always_save_checkpoint": False,
}  # fmt: skip
_STEP = re.compile(r"iter (\d+): loss (\S+), time ([\d.]+)ms")


class Comparison(NamedTuple):
    """A model, and its goals: nanoGPT's time over ours on a CPU in bfloat16."""

    shape: Shape
    on_cuda: dict[str, int]  # larger sizes for a GPU
    shipped: str
    compiled: str


COMPARISONS = {
    "4x128": Comparison(Shape(4, 4, 128, 64, 12, "bytes", 20, 100), {"steps": 500}, ">= 2", ">= 1.15"),
    "6x384": Comparison(Shape(6, 6, 384, 256, 16, "bytes", 2, 5), {"steps": 200}, ">= 2.2", ">= 1.15"),
    "gpt2": Comparison(
        Shape(12, 12, 768, 1024, 1, "gpt2", 2, 4), {"batch_size": 16, "warmup": 10, "steps": 50}, ">= 2.4", ">= 1.1"
    ),
}
_SHIPPED_FLOAT32, _COMPILED_FLOAT32, _CUDA = ">= 1.3", ">= 1.05", ">= 1.1"
_MEMORY = Shape(12, 12, 768, 1024, 8, "gpt2", 1, 1)
_MEMORY_GOAL = "<= 0.6"


class Variant(NamedTuple):
    """A way to run nanoGPT."""

    dtype: str
    compiled: bool

    def train(self, ref: Path, shape: Shape, folder: Path, device: torch.device) -> Outcome:
        """Train `shape` with the checkout `ref` in `folder`, which `whole.scratch` made; raises UserError."""
        settings = _SETTINGS | shape.sizes | {
            "max_iters": shape.warmup + shape.steps - 1, "device": device.type, "dtype": self.dtype,
            "compile": self.compiled,
        }  # fmt: skip
        with tempfile.TemporaryDirectory(dir=folder) as made:
            here = Path(made)
            for name in _FILES:
                shutil.copyfile(ref / name, here / name)
            data = here / "data" / "bench"
            shutil.copytree(folder / shape.tokenizer, data)
            if shape.tokenizer == "bytes":
                (data / "meta.pkl").write_bytes(_META)
            start = ["-c", _AUTOCAST] if device.type == "cpu" and self.dtype == "bfloat16" else ["train.py"]
            done = process.run([*start, *(f"--{name}={value}" for name, value in settings.items())], here, device)
        found = [(when, step) for when, line in done.lines if (step := _STEP.match(line))]
        if len(found) != shape.warmup + shape.steps:
            raise UserError(
                f"{ref}: printed only {len(found)} of {shape.warmup + shape.steps} steps; is it a checkout of nanoGPT?"
            )
        counted = [step for _, step in found[shape.warmup :]]
        seconds = statistics.median(float(step[3]) for step in counted) / 1e3
        loss = statistics.mean(float(step[2]) for step in counted)
        return Outcome(seconds, found[0][0], done.seconds, done.peak_bytes, loss)


def check(ref: Path) -> None:
    """Raise UsageError if `ref` is not a checkout of nanoGPT."""
    if missing := [name for name in _FILES if not (ref / name).is_file()]:
        raise UsageError(f"--ref {ref}: has no {' and no '.join(missing)}; name a checkout of karpathy/nanoGPT")


def variants(compared: Comparison, device: torch.device, dtype: str) -> dict[Variant, tuple[str, str]]:
    """Ways to run nanoGPT to compare with ours in `dtype`: (its name, the goal for its time over ours)."""
    if device.type == "cuda":
        return {Variant(dtype, compiled=True): ("nanoGPT as shipped", _CUDA)}
    eager, compiled = Variant("float32", compiled=False), Variant(dtype, compiled=True)
    if dtype == "float32":
        return {eager: ("nanoGPT as shipped", _SHIPPED_FLOAT32), compiled: ("nanoGPT compiled", _COMPILED_FLOAT32)}
    name = f"nanoGPT compiled, {dtype}"
    return {eager: ("nanoGPT as shipped, float32", compared.shipped), compiled: (name, compared.compiled)}


def speed(bench: Bench, name: str) -> None:
    """Steps of one of COMPARISONS: nanoGPT's time over ours, in the dtype of this machine and in float32."""
    compared, device = COMPARISONS[name], bench.machine.device
    shape = compared.shape._replace(**compared.on_cuda) if device.type == "cuda" else compared.shape
    shape = whole.TINY if bench.size == "tiny" else shape
    with whole.scratch({shape.tokenizer}) as folder:
        for dtype in [bench.dtype] if device.type == "cuda" else dict.fromkeys([bench.dtype, "float32"]):
            title, ours = f"{name} beside nanoGPT, {dtype}", "Espalier"
            programs = {ours: Program(functools.partial(whole.train, shape, folder, device, DTYPE=dtype))}
            cases = [Case(ours, programs[ours], work=shape.tokens, unit="tokens", reports=True)]
            for variant, (other, goal) in variants(compared, device, dtype).items():
                programs[other] = Program(functools.partial(variant.train, bench.ref, shape, folder, device))
                cases.append(Case(other, programs[other], ours, goal, shape.tokens, "tokens", reports=True))
            bench.measure(title, cases, tokens=shape.tokens)
            bench.note(f"{title}: processes", {case: program.figures() for case, program in programs.items()})


def memory(bench: Bench) -> None:
    """Peak memory of 2 steps of GPT-2 124M at 8 x 1024 tokens: ours over nanoGPT's as shipped, one process each."""
    device, dtype = bench.machine.device, bench.dtype
    shape = whole.TINY if bench.size == "tiny" else _MEMORY
    shipped = Variant(dtype, compiled=True) if device.type == "cuda" else Variant("float32", compiled=False)
    with whole.scratch({shape.tokenizer}) as folder:
        ours = whole.train(shape, folder, device, DTYPE=dtype).peak_bytes / 2**20
        theirs = shipped.train(bench.ref, shape, folder, device).peak_bytes / 2**20
    rows = {
        "Espalier": {"peak MiB": ours, "ratio": ours / theirs, "to": "nanoGPT as shipped", "goal": _MEMORY_GOAL},
        "nanoGPT as shipped": {"peak MiB": theirs},
    }
    bench.note("peak memory beside nanoGPT", rows)
