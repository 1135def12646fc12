"""What a step of each optimizer costs."""

import torch

from bench import Bench, unit
from bench.timing import Case
from gpt2 import kernels
from lib import optim

_EVERYTHING = {"adamwspam": {"SPAM_CLIP_FREE_STEPS": "0"}}  # so that each step does all that a step may do


def optimizers(bench: Bench) -> None:
    """A step of each optimizer over the matrices of the blocks; parameters without a gradient are skipped."""
    model = bench.model()
    cases = [unit(bench, model.prunable())]
    how = {"DEVICE": bench.machine.device.type, "DTYPE": bench.dtype}
    for name in bench.schema().options["OPTIMIZER"].members:
        schema = bench.schema(OPTIMIZER=name, **how, **_EVERYTHING.get(name, {}))
        optimizer = optim.build(model, schema.bind)
        if name == "muon":  # as a run of this length would compute it
            optim.use_kernels(optimizer, kernels.planned(schema, 0).get("KERNELS", "torch").split("-"))
        optim.skip_if(optimizer, torch.zeros((), device=bench.machine.device))
        cases.append(Case(name, optimizer.step, cases[0].name))
    bench.measure("optimizers", cases, weights=sum(p.numel() for p in model.prunable()))
