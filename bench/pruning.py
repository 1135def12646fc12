"""What pruning costs: the threshold, applying and updating masks, and the memory of each method."""

import itertools
from collections.abc import Callable

import torch
from torch import nn

from bench import VOCABULARY, Bench, unit
from bench.timing import Case
from gpt2 import model as models
from lib import prune
from lib.prune import select
from lib.prune.pruner import Pruner

CHOICE_STEP = 2  # half of the weights are pruned at this step, the first at which the optimizer has moments
_PRUNED = {"PRUNING_SCHEDULE": "one-shot", "PRUNING_WARMUP": "2", "TARGET_SPARSITY": "0.5"}
_STEPS_PER_UPDATE = 50  # PRUNING_INTERVAL's default
_HOLD_BYTES = 9  # per weight: read and write its gradient, read its mask
# In the middle of a gradual schedule, every update prunes 0.45 % more.
_GRADUAL = {"PRUNING_SCHEDULE": "linear", "PRUNING_END": "202", "PRUNING_INTERVAL": "1", "TARGET_SPARSITY": "0.9"}


def threshold(bench: Bench) -> None:
    """The exact threshold below which half of all weights lie: ours and torch.kthvalue."""
    model = bench.model()
    weights = {name: p for name, p in model.named_parameters() if any(p is one for one in model.prunable())}
    total = sum(weight.numel() for weight in weights.values())
    sources = [lambda name=name, w=w: select.keys(w.detach().abs(), name) for name, w in weights.items()]
    joint = torch.cat([weight.detach().flatten() for weight in weights.values()]).abs_()
    step = unit(bench, list(weights.values()))
    ours, gigabytes = "exact threshold", total * 4 / 1e9
    base, goal = ("", "<= 0.005") if bench.machine.device.type == "cuda" else (step.name, "<= 3")
    cases = [
        step,
        Case(ours, lambda: select.smallest(sources, total // 2), base, goal, work=gigabytes, unit="GB"),
        Case("torch.kthvalue", lambda: joint.kthvalue(total // 2), ours, ">= 5", work=gigabytes, unit="GB"),
    ]
    bench.measure("threshold", cases, weights=total)


def masks(bench: Bench) -> None:
    """Apply a mask of half of the weights, and update it, as training does; each method on its own model."""
    cases = []
    for name, every in {"magnitude": _STEPS_PER_UPDATE, "state": _STEPS_PER_UPDATE, "movement": 1}.items():
        model = bench.model()
        step = unit(bench, model.prunable())
        step.run()  # so that the optimizer has moments
        one = pruner(bench, model, step.run.__self__, name, **_GRADUAL)
        update = updates(one)
        if not cases:
            update()  # so that there is a mask to apply
            gigabytes = one.total * _HOLD_BYTES / 1e9
            cases = [step, Case("keeping a mask", one.hold, step.name, "<= 0.35", work=gigabytes, unit="GB")]
        cases.append(Case(f"mask update, {name}", update, step.name, every=every))
    bench.measure("masks", cases, weights=one.total)


def memory(bench: Bench) -> None:
    """Bytes for each weight: those of a method's tensors, and those of its mask in a checkpoint."""
    names = bench.schema().options["PRUNING_METHOD"].members
    methods = {name: {"PRUNING_METHOD": name} for name in names if name not in ("given", "sparsegpt")}  # no scores
    methods["soft movement"] = methods["movement"] | {"PRUNING_MOVEMENT": "soft"}
    del methods["none"]
    found = {}
    for name, options in methods.items():
        with torch.device("meta"):
            model = models.GPT2(bench.schema().bind(models.ModelOptions), VOCABULARY)
        model.to_empty(device=bench.machine.device)
        schema = bench.schema(PRUNING_WARMUP="2", **options)
        one = prune.build(model, torch.optim.SGD(model.parameters()), schema.bind)
        kept = [tensor for weight in one.weights for tensor in (weight.mask, *weight.memory.values())]
        packed = one.state_dict()["masks"].values()
        found[name] = {
            "bytes per weight": sum(tensor.nbytes for tensor in kept) / one.total,
            "mask in a checkpoint": sum(tensor.nbytes for tensor in packed) / one.total,
        }
    bench.note("memory", found)


def pruner(bench: Bench, model: nn.Module, optimizer: torch.optim.Optimizer, method: str, **options: str) -> Pruner:
    """A pruner that prunes half of the weights at CHOICE_STEP."""
    return prune.build(model, optimizer, bench.schema(PRUNING_METHOD=method, **_PRUNED | options).bind)


def updates(one: Pruner) -> Callable[[], None]:
    """A function that makes the next step in the middle of the schedule of `one`; each step prunes more."""
    steps, yes = itertools.count(100), torch.ones((), dtype=torch.bool, device=one.weights[0].mask.device)
    return lambda: one.step(next(steps), lambda: yes)
