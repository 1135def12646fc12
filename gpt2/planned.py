"""What pruning will do in a run, computed from its configuration before there are data, weights or memory for them."""

import torch

from gpt2 import beginning
from gpt2 import model as models
from gpt2.data import tokenizer
from gpt2.shape import ShapeOptions
from gpt2.weights.source import Source
from lib import prune
from lib.config.kconf import Schema
from lib.machine.dist import Ranks
from lib.prune.pruner import Pruner

_MOST_SAMPLES = 100_000  # an average over a plan with more updates uses about this many of them


class Planned:
    """The run that the configuration describes: model and pruner on the device "meta", with shapes but no memory."""

    def __init__(self, schema: Schema, source: Source | None):
        """`source` are the weights of INIT_FROM. Raises UserError if training would refuse the configuration."""
        self.schema, self.steps = schema, schema["MAX_ITERS"]
        shape = schema.bind(ShapeOptions)
        vocab_size = tokenizer.vocab_size(schema["TOKENIZER"])
        with torch.device("meta"):
            self.model = models.GPT2(shape, vocab_size)
        self.parameters = dict(self.model.named_parameters())  # before masked layers replace some
        masks = None
        if schema["PRUNING_METHOD"] == "given":
            origin = beginning.Origin(source, schema["INIT_MASKS"], schema["OUTPUT_DIR"])
            masks = beginning.read(origin, Ranks(), shape.block_size, vocab_size).masks
        # SGD, because fused optimizers refuse parameters on "meta".
        optimizer = torch.optim.SGD(self.model.parameters())
        self.pruner: Pruner = prune.build(self.model, optimizer, schema.bind, masks)
        self.total = self.pruner.total

    @property
    def kept_in_the_end(self) -> int:
        """The number of weights in scope that are kept when the target is reached."""
        return self.pruner.planned(1.0)


def chosen_at(plan: prune.schedule.Plan, step: int) -> int:
    """The step for which `Pruner.kept_at` says how many weights the masks used in `step` keep."""
    if step < plan.start or step >= plan.end:
        return step
    return step - (step - plan.start) % plan.interval


def average_kept(run: Planned) -> float:
    """The number of kept weights in scope, averaged over the steps of the run."""
    plan = run.pruner.plan
    late = run.pruner.late
    stride = plan.interval * max(1, (plan.end - plan.start) // plan.interval // _MOST_SAMPLES)
    chosen = (*range(plan.start, plan.end, stride), plan.end)
    times = [1, *(max(time + late, 1) for time in chosen), run.steps + 1]
    kept = [run.pruner.kept_at(chosen_at(plan, time - late)) for time in times[:-1]]
    return sum(n * (end - begin) for n, begin, end in zip(kept, times, times[1:], strict=False)) / run.steps
