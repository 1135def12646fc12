"""What a step of each optimizer costs."""

import torch

from bench import Bench, unit
from bench.timing import Case
from lib import optim

_EVERYTHING = {"adamwspam": {"SPAM_CLIP_FREE_STEPS": "0"}}  # so that each step does all that a step may do


def optimizers(bench: Bench) -> None:
    """A step of each optimizer over the matrices of the blocks; parameters without a gradient are skipped."""
    model = bench.model()
    cases = [unit(bench, model.prunable())]
    for name in bench.schema().options["OPTIMIZER"].members:
        optimizer = optim.build(model, bench.schema(OPTIMIZER=name, **_EVERYTHING.get(name, {})).bind)
        optim.skip_if(optimizer, torch.zeros((), device=bench.machine.device))
        cases.append(Case(name, optimizer.step, cases[0].name))
    bench.measure("optimizers", cases, weights=sum(p.numel() for p in model.prunable()))
