"""Measure what pruning costs: variants side by side in one process, one after the other in every round.

A ratio is the median of the ratios round by round, so that what disturbs a whole round disturbs no ratio. The machine's
own ceilings are measured in the same run, for figures to be compared across machines.
"""

import argparse
import dataclasses
import functools
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from lib import threads

threads.spin_little()  # as in training

import torch
from torch import Tensor, nn

from gpt2 import loop
from gpt2 import model as models
from lib import device, files, optim, prune
from lib.console import columns
from lib.errors import UsageError, run_program
from lib.kconf import Schema
from lib.prune import select
from lib.prune.pruner import Pruner
from lib.timing import Case, Timer

SIZES = {
    "gpt2": {"MODEL_NAME": "gpt2", "BLOCK_SIZE": "1024"},
    "tiny": {"MODEL_NAME": "custom", "N_LAYER": "2", "N_HEAD": "2", "N_EMBD": "32", "BLOCK_SIZE": "32"},
}
_VOCABULARY = 50257
_ADAMW_BYTES, _HOLD_BYTES = 28, 9  # per weight: read w, g, m, v and write w, m, v; read and write g, read its mask
_STEPS_PER_UPDATE = 50  # PRUNING_INTERVAL's default
# Half of the weights go at once, at step 2: the first at which there are moments to read.
_PRUNED = {"PRUNING_SCHEDULE": "one-shot", "PRUNING_WARMUP": "2", "TARGET_SPARSITY": "0.5"}
_CHOICE_STEP, _LATER_STEP = 2, 3
# In the middle of a gradual schedule, every update prunes 0.45 % more.
_GRADUAL = {"PRUNING_SCHEDULE": "linear", "PRUNING_END": "202", "PRUNING_INTERVAL": "1", "TARGET_SPARSITY": "0.9"}


class Bench:
    """What the sections have in common: the machine, the size of the model, and what has been measured so far."""

    def __init__(self, machine: device.Machine, size: str, rounds: int):
        self.machine, self.size = machine, size
        self.timer = Timer(machine.device, rounds)
        self.sections: dict[str, dict[str, Any]] = {}

    def measure(self, title: str, cases: list[Case], **facts: int) -> None:
        """Add a section with the timings of `cases`, complete or as far as they came."""
        if self.size != "gpt2":  # goals are for its shapes
            cases = [dataclasses.replace(case, goal="") for case in cases]
        try:
            self.timer.measure(title, cases)
        finally:  # Ctrl-C
            self.sections[title] = {**facts, "cases": [case.result() for case in cases if case.seconds]}

    def schema(self, **options: str) -> Schema:
        """The configuration of a run at this size, with changes."""
        schema = Schema()
        values = SIZES[self.size] | {"BATCH_SIZE": "4", "MAX_ITERS": "1000"} | options
        schema.override([(name, text, "bench") for name, text in values.items()])
        return schema

    def model(self) -> models.GPT2:
        """A new GPT-2 of this size."""
        torch.manual_seed(0)
        return models.GPT2(self.schema().bind(models.ModelOptions), _VOCABULARY).to(self.machine.device)


# ---- what is measured ------------------------------------------------------------------------------------------------


def ceilings(bench: Bench) -> None:
    """What the machine can do at best: matrix products and copies too large for caches."""
    where, tiny = bench.machine.device, bench.size == "tiny"
    n = 64 if tiny else 2048 if where.type == "cpu" else 8192
    cases = []
    for dtype in dict.fromkeys((torch.float32, bench.machine.dtype)):
        a, b = torch.randn(2, n, n, device=where).to(dtype)
        name = f"matrix product, {n} x {n}, {str(dtype).removeprefix('torch.')}"
        cases.append(Case(name, lambda a=a, b=b: a @ b, work=2 * n**3 / 1e9, unit="GFLOP"))
    source = torch.randn(1 << (12 if tiny else 26), device=where)
    target = torch.empty_like(source)
    gigabytes = 2 * source.numel() * 4 / 1e9  # read and written
    cases.append(Case("copy", lambda: target.copy_(source), work=gigabytes, unit="GB"))
    bench.measure("ceilings", cases)


def unit(bench: Bench, weights: list[nn.Parameter]) -> Case:
    """One fused AdamW step over `weights`, which get gradients: what all else is compared with."""
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer = torch.optim.AdamW(weights, lr=1e-6, fused=True)
    gigabytes = sum(weight.numel() for weight in weights) * _ADAMW_BYTES / 1e9
    return Case("fused AdamW step", optimizer.step, work=gigabytes, unit="GB")


def threshold(bench: Bench) -> None:
    """The exact threshold of the smallest half of all weights, ours and torch's."""
    model = bench.model()
    weights = {name: p for name, p in model.named_parameters() if any(p is one for one in model.prunable())}
    total = sum(weight.numel() for weight in weights.values())
    sources = [lambda name=name, w=w: select.keys(w.detach().abs(), name) for name, w in weights.items()]
    joint = torch.cat([weight.detach().flatten() for weight in weights.values()]).abs_()
    step = unit(bench, list(weights.values()))
    ours, gigabytes = "exact threshold", total * 4 / 1e9
    cases = [
        step,
        Case(ours, lambda: select.smallest(sources, total // 2), step.name, "<= 3", work=gigabytes, unit="GB"),
        Case("torch.kthvalue", lambda: joint.kthvalue(total // 2), ours, ">= 5", work=gigabytes, unit="GB"),
    ]
    bench.measure("threshold", cases, weights=total)


def masks(bench: Bench) -> None:
    """Keeping half of the weights at zero, and choosing which, as training does it; each method on its own model."""
    cases = []
    for name, every in {"magnitude": _STEPS_PER_UPDATE, "state": _STEPS_PER_UPDATE, "movement": 1}.items():
        model = bench.model()
        step = unit(bench, model.prunable())
        step.run()  # so that there are moments to read
        one = pruner(bench, model, step.run.__self__, name, **_GRADUAL)
        update = updates(one)
        if not cases:
            update()  # so that there is something to keep
            gigabytes = one.total * _HOLD_BYTES / 1e9
            cases = [step, Case("keeping a mask", one.hold, step.name, "<= 0.35", work=gigabytes, unit="GB")]
        cases.append(Case(f"mask update, {name}", update, step.name, every=every))
    bench.measure("masks", cases, weights=one.total)


def pruner(bench: Bench, model: nn.Module, optimizer: torch.optim.Optimizer, method: str, **options: str) -> Pruner:
    """A pruner that takes half of the weights at _CHOICE_STEP."""
    return prune.build(model, optimizer, bench.schema(PRUNING_METHOD=method, **_PRUNED | options))


def updates(one: Pruner) -> Callable[[], None]:
    """Makes step after step in the middle of `one`'s schedule, each of which prunes more."""
    steps, yes = itertools.count(100), torch.ones((), dtype=torch.bool, device=one.weights[0].mask.device)
    return lambda: one.step(next(steps), lambda: yes)


def optimizers(bench: Bench) -> None:
    """A step of each optimizer over the matrices of the blocks; it leaves alone what has no gradient."""
    model = bench.model()
    cases = [unit(bench, model.prunable())]
    for name in bench.schema().options["OPTIMIZER"].members:
        optimizer = optim.build(model, bench.schema(OPTIMIZER=name))
        optim.skip_if(optimizer, torch.zeros((), device=bench.machine.device))
        cases.append(Case(name, optimizer.step, cases[0].name))
    bench.measure("optimizers", cases, weights=sum(p.numel() for p in model.prunable()))


class RandomTokens:
    """Stands for the data: the same random tokens at every step."""

    def __init__(self, schema: Schema):
        shape = schema["BATCH_SIZE"], schema["BLOCK_SIZE"] + 1
        self.tokens = torch.randint(_VOCABULARY, shape, generator=torch.Generator().manual_seed(0))

    def batch(self, step: int, micro: int) -> tuple[Tensor, Tensor]:
        """See gpt2.data.Data."""
        return self.tokens[:, :-1], self.tokens[:, 1:]


def step(bench: Bench) -> None:
    """A whole training step, dense and with half of the weights kept at zero: one model, one optimizer.

    What the mask adds is less than what steps differ by on a busy machine, so it is timed alone as well.
    """
    schema, model, machine = bench.schema(), bench.model(), bench.machine
    optimizer, data, options = optim.build(model, schema), RandomTokens(schema), schema.bind(loop.LoopOptions)
    flops = model.flops_per_token() * schema["BATCH_SIZE"] * schema["BLOCK_SIZE"] / 1e9
    held = pruner(bench, model, optimizer, "magnitude")
    grads = [torch.randn_like(weight.value) for weight in held.weights]

    def case(name: str, held: prune.AnyPruner, base: str = "", goal: str = "") -> Case:
        training = loop.Training(model, optimizer, held, machine, compiled=False)
        loop.update(training, data, machine, options, _CHOICE_STEP)
        run = functools.partial(loop.update, training, data, machine, options, _LATER_STEP)
        return Case(name, run, base, goal, work=flops, unit="GFLOP")

    def hold() -> None:
        for weight, grad in zip(held.weights, grads, strict=True):
            weight.parameter.grad = grad
        held.hold()
        optimizer.zero_grad(set_to_none=True)

    share = 0.02 if machine.device.type == "cpu" else 0.01
    dense = case("dense step", prune.NoPruning(model.prunable()))
    masked = case("step with a 50 % mask", held, dense.name, f"<= {1 + share}")
    alone = Case("keeping the mask alone", hold, dense.name, f"<= {share}")
    bench.measure("step", [dense, masked, alone], tokens=schema["BATCH_SIZE"] * schema["BLOCK_SIZE"])


def memory(bench: Bench) -> None:
    """Bytes that each method keeps for a weight, counted from its tensors, and those of its masks in a checkpoint."""
    methods = {name: {"PRUNING_METHOD": name} for name in bench.schema().options["PRUNING_METHOD"].members}
    methods["soft movement"] = methods["movement"] | {"PRUNING_MOVEMENT": "soft"}
    del methods["none"]
    found = {}
    for name, options in methods.items():
        with torch.device("meta"):
            model = models.GPT2(bench.schema().bind(models.ModelOptions), _VOCABULARY)
        model.to_empty(device=bench.machine.device)
        schema = bench.schema(PRUNING_WARMUP="2", **options)
        one = prune.build(model, torch.optim.SGD(model.parameters()), schema)
        kept = [tensor for weight in one.weights for tensor in (weight.mask, *weight.memory.values())]
        packed = one.state_dict()["masks"].values()
        found[name] = {
            "bytes_per_weight": sum(tensor.nbytes for tensor in kept) / one.total,
            "mask_bytes_in_checkpoint": sum(tensor.nbytes for tensor in packed) / one.total,
        }
    bench.sections["memory"] = {"methods": found}


# ---- what is shown ---------------------------------------------------------------------------------------------------

SECTIONS = {
    "ceilings": [ceilings],
    "prune": [memory, threshold, masks],
    "optim": [optimizers],
    "step": [step],
}


def text(title: str, section: dict[str, Any]) -> str:
    """A section of the report, for people."""
    if "methods" in section:
        rows = [("", "bytes per weight", "mask in a checkpoint")]
        rows += [(name, *(f"{size:.3f}" for size in sizes.values())) for name, sizes in section["methods"].items()]
        return f"{title}\n{columns(rows)}"
    facts = "".join(f", {value:,} {name}" for name, value in section.items() if isinstance(value, int) and value > 1)
    rounds = max((len(case["rounds"]) for case in section["cases"]), default=0)
    rows = [(f"{title}{facts}, {rounds} round{'s' * (rounds != 1)}", "median", "+-", "ratio", "to", "goal", "rate")]
    return columns(rows + [_row(case) for case in section["cases"]])


def _row(case: dict[str, Any]) -> tuple[str, ...]:
    ratio = f"{case['ratio']:.3f}" if "ratio" in case else ""
    if case.get("every", 1) > 1:
        ratio += f" ({case['ratio_per_step']:.3f} a step)"
    goal = f"{case['goal']} {'met' if case['met'] else 'MISSED'}" if "goal" in case else ""
    rate = f"{case['rate']:,.1f} {case['rate_unit']}" if "rate" in case else ""
    spread = f"{case['iqr_seconds'] / 2 / case['median_seconds']:.0%}"
    return case["name"], _seconds(case["median_seconds"]), spread, ratio, case.get("base", ""), goal, rate


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 10 else f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3f} s"


def main() -> int:
    """Measure the chosen sections and print a table; Ctrl-C ends it with what there is. Returns the exit code."""
    args = _parser().parse_args()
    if args.rounds < 1:
        raise UsageError(f"--rounds must be 1 or more; got {args.rounds}")
    if args.json and not (args.json.parent.is_dir() and os.access(args.json.parent, os.W_OK)):
        raise UsageError(f"--json {args.json}: cannot be written; name a file in a folder that is there and writable")
    schema = Schema()
    schema.override([("DEVICE", args.device, "--device"), ("DTYPE", args.dtype, "--dtype")])
    bench = Bench(device.choose(schema.bind(device.SystemOptions)), args.size, args.rounds)
    print(f"{bench.machine.name}, PyTorch {torch.__version__}, size {args.size}", flush=True)
    code = 0
    try:
        for name in args.only or SECTIONS:
            for measure in SECTIONS[name]:
                measure(bench)
    except KeyboardInterrupt:
        code = 130
    for title, section in bench.sections.items():
        print(f"\n{text(title, section)}")
    if code:
        print("\ninterrupted")
    if args.json:
        report = {"machine": bench.machine.name, "torch": torch.__version__, "size": args.size}
        files.write_json(args.json, report | {"sections": bench.sections})
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=f"{', '.join(SECTIONS)} [all]")
    parser.add_argument("--size", choices=SIZES, default="gpt2", help="tiny is for a quick look [gpt2]")
    parser.add_argument("--rounds", type=int, default=5, help="after one to warm up [5]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps [auto]")
    parser.add_argument("--dtype", default="auto", help="of matrix products: auto, float32, bfloat16 or float16 [auto]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured to this file")
    return parser


if __name__ == "__main__":
    run_program(main)
