"""The run of `make shrink`: a model without its pruned neurons and heads, in a run folder like every other."""

import shlex
from collections.abc import Callable
from pathlib import Path

import torch

from gpt2.model import GPT2
from gpt2.oneshot import shrink, side_by_side
from gpt2.oneshot.pruned import Pruned
from gpt2.oneshot.run import Pruning
from gpt2.recorder import Recorder
from gpt2.training import Training
from gpt2.weights import adopt
from lib import optim
from lib.base import files
from lib.base.signals import StopSignals
from lib.prune.dense import NoPruning
from lib.prune.limits import MaskOptions
from lib.prune.weight import Weight
from lib.terminal.console import columns, say

FIGURES = "shrink.json"  # in the run's folder: parameters, and seconds of each kind of work, each before and after


class Shrinking(Pruning):
    """Removes what is zero, and times the model before and after. It keeps the zeros that are left under a mask."""

    def _prepare(self, model: GPT2) -> tuple[GPT2, torch.optim.Optimizer, Pruned]:
        """The smaller model. Gives the configuration its shape, which every program reads from the run's .config."""
        left = shrink.staying(model)
        self.before, after = model, shrink.smaller(model, left)
        self.gap = shrink.gap(model, after)
        adopt.reshape(self.schema, after.options.mlp_widths, after.options.head_counts)
        optimizer = optim.build(after, self.schema.bind)
        parameters = {name: p for name, p in after.named_parameters() if any(p is one for one in after.prunable())}
        ones = [Weight(name, p, torch.ones_like(p, dtype=torch.uint8), optimizer) for name, p in parameters.items()]
        pruner = Pruned(ones, 0.0, self.schema.bind(MaskOptions))
        pruner.target = pruner.sparsity()
        return after, optimizer, pruner

    def _facts(self, folder: Path, machine: str) -> dict[str, object]:
        kept = {kind: [0, 0] for kind in ("neurons", "heads")}
        for place, model in enumerate((self.before, self.training.model)):
            for group in model.groups():
                kept[group.kind][place] += group.size
        words = [f"{before - after:,} of {before:,} {kind}" for kind, (before, after) in kept.items()]
        own = super()._facts(folder, machine)
        del own["pruning"]
        return own | {"removed": " and ".join(words), "logits": f"differ by at most {self.gap:.1e}, in float64"}

    def _work(self, recorder: Recorder, asked: Callable[[], bool]) -> None:
        """Evaluate the model before, as step 0, and after."""
        training = self.training
        idle = torch.optim.SGD(self.before.parameters())  # has no state, and never steps
        pruner = NoPruning(self.before.prunable())
        earlier = Training(self.before, idle, pruner, self.machine, self.divergence, self.data.sums)
        self._evaluate(recorder, asked, earlier)
        training.evaluations = earlier.evaluations
        training.step = self.options.max_iters
        recorder.tick()
        training.pruner.take({weight.name: weight.mask for weight in training.pruner.weights})
        self._evaluate(recorder, asked, training)

    def _finish(self, recorder: Recorder, asked: StopSignals) -> None:
        super()._finish(recorder, asked)
        if asked():
            return
        models = [self.before, self.training.model]
        seconds = side_by_side.measure(models, self.machine, self.schema["BATCH_SIZE"], self.schema.bind)
        parameters = [model.count_parameters() for model in models]
        files.write_json(recorder.folder / FIGURES, {"parameters": parameters, "seconds": seconds})
        say(table(parameters, seconds))
        folder = shlex.quote(str(recorder.folder))
        say(f"these figures are in {folder}/{FIGURES}; nothing was compiled")


def table(parameters: list[int], seconds: dict[str, list[float]]) -> str:
    """Before and after, side by side, and by how much each fell."""
    rows = [("", "before", "after", "change")]
    rows.append(("parameters", *(f"{number:,}" for number in parameters), _change(*parameters)))
    for name, (before, after) in seconds.items():
        rows.append((name, f"{before * 1e3:,.2f} ms", f"{after * 1e3:,.2f} ms", _change(before, after)))
    return columns(rows)


def _change(before: float, after: float) -> str:
    return f"{100 * (after / before - 1):+.1f} %"
