"""What pruning costs: the threshold, applying and updating masks, hidden weights, and the memory of each method."""

import functools
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bench import VOCABULARY, Bench, unit
from bench.timing import Case
from gpt2 import first_batches
from gpt2 import model as models
from gpt2.data import windows
from lib import prune
from lib.prune import select
from lib.prune.pruner import Pruner
from lib.prune.weight import Weight

CHOICE_STEP = 2  # half of the weights are pruned at this step, the first at which the optimizer has moments
_PRUNED = {"PRUNING_SCHEDULE": "one-shot", "PRUNING_WARMUP": "2", "TARGET_SPARSITY": "0.5"}
_STEPS_PER_UPDATE, _STEPS_PER_REWIRING = 50, 100  # PRUNING_INTERVAL's defaults
_HOLD_BYTES = 9  # per weight: read and write its gradient, read its mask
_AHEAD = ("grasp", "synflow")  # choose before the first step, so they have no schedule
_WINDOWS, _TOKENS = 4, 64  # of the batch that a pass reads
# Methods that prune from the first step on, or by no schedule. Half of the weights start below the threshold of str.
_ALWAYS = {
    "topkast": {
        "PRUNING_METHOD": "magnitude", "PRUNING_DYNAMICS": "topkast", "PRUNING_INTERVAL": "1", "TARGET_SPARSITY": "0.8",
    },
    "str": {"PRUNING_METHOD": "str", "STR_INIT": "-4.4"},
}  # fmt: skip
# In the middle of a gradual schedule, every update prunes 0.45 % more.
_GRADUAL = {"PRUNING_SCHEDULE": "linear", "PRUNING_END": "202", "PRUNING_INTERVAL": "1", "TARGET_SPARSITY": "0.9"}
_SPARSE = {"PRUNING_METHOD": "magnitude", "TARGET_SPARSITY": "0.7", "PRUNING_INTERVAL": "1", "PRUNING_END": "1"}
_REWIRED = {
    "granet": {"PRUNING_SCHEDULE": "linear", "PRUNING_WARMUP": "2", "PRUNING_END": "202", "TARGET_SPARSITY": "0.9"},
    "mest": {"PRUNING_END": "1", "TARGET_SPARSITY": "0.9"},
}
# Cases of magnitude with other options than its own.
_MORE = {
    "neurons and heads": {"PRUNING_STRUCTURE": "both", "TARGET_SPARSITY": "0.5"},
    "owl": {"PRUNING_DISTRIBUTION": "owl"},
}


def threshold(bench: Bench) -> None:
    """The exact threshold below which half of all weights lie: ours, with the masks, and torch.kthvalue without."""
    model = bench.model()
    weights = {name: p for name, p in model.named_parameters() if any(p is one for one in model.prunable())}
    total = sum(weight.numel() for weight in weights.values())
    sources = [
        select.Source(w.shape, w.device, lambda rows, name=name, w=w: select.keys(w.detach()[rows].abs(), name))
        for name, w in weights.items()
    ]
    joint = torch.cat([weight.detach().flatten() for weight in weights.values()]).abs_()
    step = unit(bench, list(weights.values()))
    ours, gigabytes = "exact threshold", total * 4 / 1e9
    base = "" if bench.machine.device.type == "cuda" else step.name  # there the goal is in seconds
    cases = [
        step,
        Case(ours, lambda: select.prune(sources, total // 2), base, work=gigabytes, unit="GB"),
        Case("torch.kthvalue", lambda: joint.kthvalue(total // 2), ours, work=gigabytes, unit="GB"),
    ]
    bench.measure("threshold", cases, weights=total)


def masks(bench: Bench) -> None:
    """Apply a mask of half of the weights, and update it, as training does; each method on its own model."""
    cases = []
    methods = {"magnitude": _STEPS_PER_UPDATE, "state": _STEPS_PER_UPDATE, "movement": 1}
    methods |= dict.fromkeys(_MORE, _STEPS_PER_UPDATE)
    methods |= {"topkast": 100, "str": 1}  # their intervals
    for name, every in methods.items():
        more = _MORE.get(name, {})
        model = bench.model()
        # Biases belong to neurons and heads.
        step = unit(bench, list(model.h.parameters()) if "PRUNING_STRUCTURE" in more else model.prunable())
        step.run()  # so that the optimizer has moments
        if name in _ALWAYS:
            one = prune.build(model, step.run.__self__, bench.schema(**_ALWAYS[name]).bind)
        else:
            one = pruner(bench, model, step.run.__self__, "magnitude" if more else name, **_GRADUAL | more)
        update = updates(one)
        if not cases:
            update()  # so that there is a mask to apply
            total = one.total
            gigabytes = one.total * _HOLD_BYTES / 1e9
            cases = [step, Case("keeping a mask", one.hold, step.name, work=gigabytes, unit="GB")]
        cases.append(Case(f"mask update, {name}", update, step.name, every=every))
    model = bench.model()
    again = unit(bench, model.prunable())
    again.run()
    for name, own in _REWIRED.items():
        schema = bench.schema(PRUNING_METHOD="magnitude", PRUNING_DYNAMICS=name, PRUNING_INTERVAL="1", **own)
        one = prune.build(model, again.run.__self__, schema.bind)
        # As in training, gradients are dense and what has grown is not zero. Holding a mask is a case of its own.
        one.hold, one.zeroes_weights = (lambda: None), False
        cases.append(Case(f"mask update, {name}", updates(one), cases[0].name, every=_STEPS_PER_REWIRING))
    for parameter in model.prunable():
        nn.init.normal_(parameter)
    bench.measure("masks", cases, weights=total)


class _Batch:
    """Takes the place of the data: one batch of random tokens."""

    def __init__(self, bench: Bench, length: int):
        self.options = bench.schema().bind(windows.DataOptions)
        self.tokens = torch.randint(VOCABULARY, (_WINDOWS, length + 1), generator=torch.Generator().manual_seed(0))

    def batch(self, step: int, micro: int) -> tuple[Tensor, Tensor]:
        return self.tokens[:, :-1], self.tokens[:, 1:]


def passes(bench: Bench) -> None:
    """The scores of a pass before the first step: gradient and grasp read 4 windows of 64 tokens, synflow none."""
    model = bench.model()
    step = unit(bench, model.prunable())
    losses = first_batches.losses(model, _Batch(bench, min(_TOKENS, model.block_size)), bench.machine)
    cases = [step]
    for method in ("gradient", *_AHEAD):
        schema = bench.schema(PRUNING_METHOD=method, PRUNING_DYNAMICS="static")
        one = prune.build(model, torch.optim.SGD(model.parameters()), schema.bind)
        measure = functools.partial(one.criterion.measure, one.weights, model, losses)
        cases.append(Case(f"scores by {method}", measure, step.name))
    bench.measure("passes before the first step", cases, weights=one.total)


def hidden(bench: Bench) -> None:
    """What ste and s-ste compute: the weights of a forward or backward pass, and the masks of a step."""
    cases = []
    for dynamics in ("ste", "s-ste"):
        model = bench.model()
        step = unit(bench, model.prunable())
        starts = {"PRUNING_WARMUP": "0", "PRUNING_DISTRIBUTION": "n-m"} if dynamics == "ste" else {}
        made = bench.schema(PRUNING_METHOD="magnitude", PRUNING_DYNAMICS=dynamics, **starts)
        one = prune.build(model, step.run.__self__, made.bind)
        cases = cases or [step]
        used = functools.partial(_each, one.used, one.weights)
        cases.append(Case(f"weights of a pass, {dynamics}", used, cases[0].name))
        cases.append(Case(f"mask update, {dynamics}", functools.partial(one.masks, 1), cases[0].name))
    bench.measure("hidden weights", cases, weights=one.total)


def _each(run: Callable[[Weight], Tensor], weights: Sequence[Weight]) -> None:
    """Run for one weight after the other, and keep no result."""
    for weight in weights:
        run(weight)


def rewiring(bench: Bench) -> None:
    """Drop and grow weights at random, and by the links of the layers; each method on its own model."""
    cases = []
    for name in ("set", "chts"):
        model = bench.model()
        step = unit(bench, model.prunable())
        step.run()  # so that the optimizer has moments
        one = prune.build(model, step.run.__self__, bench.schema(PRUNING_DYNAMICS=name, **_SPARSE).bind)
        cases = cases or [step]
        cases.append(Case(f"mask update, {name}", updates(one), step.name, every=_STEPS_PER_REWIRING))
    bench.measure("rewiring", cases, weights=one.total)


def memory(bench: Bench) -> None:
    """Bytes for each weight: those of a method's tensors, and those of its mask in a checkpoint."""
    names = bench.schema().options["PRUNING_METHOD"].members
    without = ("given", "shrink", "sparsegpt")  # they score nothing while training
    methods = {name: {"PRUNING_METHOD": name} for name in names if name not in without}
    methods["soft movement"] = methods["movement"] | {"PRUNING_MOVEMENT": "soft"}
    methods |= _ALWAYS
    del methods["none"]
    found = {}
    for name, options in methods.items():
        with torch.device("meta"):
            model = models.GPT2(bench.schema().bind(models.ModelOptions), VOCABULARY)
        model.to_empty(device=bench.machine.device)
        for p in model.parameters():
            nn.init.zeros_(p)  # some choose masks at once, and memory that is new may hold NaN
        start = {} if name in (*_AHEAD, *_ALWAYS) else {"PRUNING_WARMUP": "2"}
        schema = bench.schema(**options | start)
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

    def update() -> None:
        step = next(steps)
        one.step(step, lambda: yes)
        one.moved(step)

    return update
