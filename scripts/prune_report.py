"""Report, before training, what pruning will do: which tensors, when and how much, and what it costs.

The report is computed from the configuration that training would read. It needs neither data nor memory for the model,
but masks that are given are read.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from gpt2 import beginning, preflight
from gpt2 import model as models
from gpt2.data import tokenizer
from gpt2.footprint import kind, like, nbytes, state_bytes
from gpt2.weights.adopt import adopt
from gpt2.weights.source import Source
from lib import prune
from lib.base.errors import run_program
from lib.config import command_line
from lib.config.kconf import Schema
from lib.machine.dist import Ranks
from lib.prune import mask
from lib.prune.given import fitted
from lib.prune.hidden import StraightThrough
from lib.prune.mask import ones
from lib.prune.pruner import Pruner
from lib.prune.rewire import Rewiring
from lib.prune.weight import Weight
from lib.terminal.console import columns, table

_COLUMNS, _ROWS = 60, 8  # of the plot, in characters
_MOST_SAMPLES = 100_000  # an average over a plan with more updates uses about this many of them
_ADAMW = 28  # bytes that torch's fused AdamW reads and writes per weight: p, g, m, v and p, m, v
_CHOICES = {  # option whose chosen value the report explains -> its label
    "PRUNING_METHOD": "criterion",
    "PRUNING_STATE": "formula",
    "PRUNING_MOVEMENT": "form",
    "PRUNING_DYNAMICS": "masks",
    "PRUNING_DISTRIBUTION": "compared",
    "PRUNING_SCHEDULE": "path",
}


def main() -> int:
    """Print the report; returns 0."""
    schema, _ = command_line.resolve(__doc__, sys.argv[1:])
    source = adopt(schema)
    for warning in [*schema.warnings, *preflight.quick(schema.bind)]:
        print(f"warning: {warning}", file=sys.stderr)
    if schema["PRUNING_METHOD"] == "none":
        print(
            "PRUNING_METHOD=none: nothing is pruned; choose a method in `make menuconfig` or on the command line:\n"
            "make prune-report PRUNING_METHOD=magnitude"
        )
        return 0
    run = Planned(schema, source)
    sections = {
        "Scores, and which weights are pruned": table(choices(schema)),
        "Tensors in scope": scope(run),
        "Schedule: sparsity over the steps": when(run),
        "Memory": memory(run),
        "Cost: estimated memory traffic (make bench measures the time)": work(run),
    }
    print("\n\n".join(f"{title}\n{indented(text)}" for title, text in sections.items()))
    return 0


class Planned:
    """The run that the configuration describes: model and pruner on the device "meta", with shapes but no memory."""

    def __init__(self, schema: Schema, source: Source | None):
        """`source` are the weights of INIT_FROM. Raises UserError if training would refuse the configuration."""
        self.schema, self.steps = schema, schema["MAX_ITERS"]
        shape = schema.bind(models.ModelOptions)
        vocab_size = tokenizer.vocab_size(schema["TOKENIZER"])
        with torch.device("meta"):
            self.model = models.GPT2(shape, vocab_size)
        self.state_bytes = state_bytes(shape, schema.bind)  # kind of a parameter -> bytes
        self.parameters = dict(self.model.named_parameters())  # before masked layers replace some
        self.masks = None
        if schema["PRUNING_METHOD"] == "given":
            origin = beginning.Origin(source, schema["INIT_MASKS"], schema["OUTPUT_DIR"])
            self.masks = beginning.read(origin, Ranks(), shape.block_size, vocab_size).masks
        # SGD, because fused optimizers refuse parameters on "meta".
        optimizer = torch.optim.SGD(self.model.parameters())
        self.pruner: Pruner = prune.build(self.model, optimizer, schema.bind, self.masks)
        self.total = self.pruner.total

    def kept_at(self, share: float) -> int:
        """The number of weights in scope that are kept when this share of the target is pruned."""
        return self.total - mask.count(self.pruner.target * share, self.total)

    @property
    def is_soft(self) -> bool:
        """Whether the final sparsity is a result of training (soft movement) instead of a setting."""
        return self.schema["PRUNING_MOVEMENT"] == "soft"


def indented(text: str) -> str:
    """`text`, two columns to the right."""
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())


def percent(share: float) -> str:
    """`12.50 %`."""
    return f"{share * 100:.2f} %"


# ---- what is pruned --------------------------------------------------------------------------------------------------


def choices(schema: Schema) -> dict[str, str]:
    """Label -> Kconfig's description of the chosen value; and where first weights and masks come from."""
    options = {label: schema.options[name] for name, label in _CHOICES.items() if schema.options[name].active}
    words = {label: option.members[option.value].nodes[0].prompt[0] for label, option in options.items()}
    sources = {"masks of": schema["INIT_MASKS"], "weights of": schema["INIT_FROM"]}
    return words | {label: source for label, source in sources.items() if source}


def scope(run: Planned) -> str:
    """The tensors in scope by kind, with the final sparsity of each."""
    groups: dict[str, list] = {}
    for weight, share in zip(run.pruner.weights, shares(run), strict=True):
        groups.setdefault(kind(weight.name), []).append((weight, share))
    parameters = run.model.count_parameters()
    rows = [("", "tensors", "weights", "of model", "pruned in the end")]
    for name, members in groups.items():
        count = sum(weight.mask.numel() for weight, _ in members)
        rows.append((name, f"{len(members)}", f"{count:,}", percent(count / parameters), spread(run, members)))
    end = "a result" if run.is_soft else percent(1 - run.kept_at(1.0) / run.total)
    rows.append(("total", f"{len(run.pruner.weights)}", f"{run.total:,}", percent(run.total / parameters), end))
    return columns(rows)


def spread(run: Planned, members: list[tuple[Weight, float]]) -> str:
    """The lowest and the highest of the final sparsities of some tensors."""
    if run.is_soft:
        return "by its scores"
    bound = "at most " if run.schema["PRUNING_DISTRIBUTION"] in ("global", "global-rms") else ""
    ends = [percent(end(share for _, share in members)) for end in (min, max)]
    return bound + " to ".join(dict.fromkeys(ends))


def shares(run: Planned) -> list[float]:
    """The final sparsity of each tensor, or its upper bound, as far as it is decided before training."""
    weights = run.pruner.weights
    if run.masks is not None:
        return [1 - ones(given) / given.numel() for given in fitted(run.masks, weights, run.parameters)]
    options = run.schema.bind(mask.MaskOptions)
    if run.is_soft or options.pruning_distribution in ("global", "global-rms"):
        return [options.pruning_layer_cap or 1.0] * len(weights)
    shapes = {weight.name: weight.mask.shape for weight in weights}
    budgets = mask.budgets(options, shapes, run.pruner.target)
    return [budgets[weight.name] / weight.mask.numel() for weight in weights]


# ---- when ------------------------------------------------------------------------------------------------------------


def share_used(plan: prune.schedule.Plan, step: int) -> float:
    """The share of the target that is pruned by the masks used in `step`."""
    if step < plan.start or step >= plan.end:
        return plan.share(step)
    return plan.share(step - (step - plan.start) % plan.interval)


def updates(plan: prune.schedule.Plan, steps: int) -> int:
    """How often masks are chosen in a run of `steps`."""
    until_end, odd = divmod(plan.end - plan.start, plan.interval)
    after = (steps - plan.start) // plan.interval - until_end if plan.continues else 0
    return 1 + until_end + bool(odd) + after


def average_kept(run: Planned) -> float:
    """The number of kept weights in scope, averaged over the steps of the run."""
    plan = run.pruner.plan
    stride = plan.interval * max(1, (plan.end - plan.start) // plan.interval // _MOST_SAMPLES)
    times = [max(time, 1) for time in (1, *range(plan.start, plan.end, stride), plan.end, run.steps + 1)]
    kept = [run.kept_at(share_used(plan, time)) for time in times[:-1]]
    return sum(n * (end - begin) for n, begin, end in zip(kept, times, times[1:], strict=False)) / run.steps


def when(run: Planned) -> str:
    """The schedule as a plot, and its figures."""
    plan, steps = run.pruner.plan, run.steps
    count = updates(plan, steps)
    rhythm = "at every step" if plan.interval == 1 else f"every {plan.interval:,} steps"
    if (plan.end - plan.start) % plan.interval:
        rhythm += " and at the end"
    if not plan.start:
        rhythm += " and before the first"
    facts = {
        "start": f"{_at(plan.start)} of {steps:,}",
        "end": _at(plan.end),
        "updates": f"masks are chosen {'once' if count == 1 else f'{count:,} times, {rhythm}'}",
    }
    if run.masks is not None:
        facts = {"start": facts["start"], "updates": "none: the masks are given"}
    if run.is_soft:
        facts["non-zeros"] = "all weights with scores above the threshold; the plot shows how the threshold rises"
    else:
        end, average = run.kept_at(1.0), average_kept(run)
        facts["non-zeros"] = f"{end:,} of {run.total:,} in the end, {average:,.1f} on average over the run"
    return f"{plot(run)}\n\n{table(facts)}"


def _at(step: int) -> str:
    return f"step {step:,}" if step else "before the first step"


def plot(run: Planned) -> str:
    """Sparsity over steps, drawn with characters."""
    steps = [1 + round(column * (run.steps - 1) / (_COLUMNS - 1)) for column in range(_COLUMNS)]
    heights = [share_used(run.pruner.plan, step) * _ROWS for step in steps]
    top = "threshold" if run.is_soft else percent(run.pruner.target)
    lines = [
        f"{top if row == _ROWS else '':>9} |{''.join('#' if h >= row - 0.5 else ' ' for h in heights)}"
        for row in range(_ROWS, 0, -1)
    ]
    last = f"{run.steps:,}"
    return "\n".join([*lines, f"{'0':>9} +{'-' * _COLUMNS}", f"{'step':>9}  1{last:>{_COLUMNS - 1}}"])


# ---- what it costs ---------------------------------------------------------------------------------------------------


def memory(run: Planned) -> str:
    """Bytes of weights, gradients, optimizer state, masks, criterion and a checkpoint."""
    numbers = sum(p.numel() for p in run.parameters.values())
    state = sum(p.numel() * run.state_bytes[kind(name)] for name, p in run.parameters.items())
    criterion = sum(nbytes(tensor) for weight in run.pruner.weights for tensor in weight.memory.values())
    rows = [("", "bytes each", "", "MB")]

    def row(name: str, size: float, count: int, what: str) -> None:
        rows.append((name, f"{size / count:.3f}".rstrip("0").rstrip("."), what, f"{size / 1e6:,.3f}"))

    row("weights", 4 * numbers, numbers, "parameter")
    row("gradients", 4 * numbers, numbers, "parameter")
    row(f"state of {run.schema['OPTIMIZER']}", state, numbers, "parameter")
    row("masks", run.total, run.total, "weight in scope")
    row("criterion", criterion, run.total, "weight in scope")
    hidden = 0 if run.pruner.zeroes_weights or run.is_soft else 4 * (run.total - run.kept_at(1.0))
    packed = sum((weight.mask.numel() + 7) // 8 for weight in run.pruner.weights)
    row("checkpoint", 4 * numbers + state + packed + criterion + hidden, numbers, "parameter")
    note = "A checkpoint holds weights, state, masks (1 bit per weight), and the criterion's memory"
    if not run.pruner.zeroes_weights:
        note += ",\nand the values under the masks" + (" (training decides how many)" if run.is_soft else "")
    return f"{columns(rows)}\n{note}."


def work(run: Planned) -> str:
    """Memory traffic of pruning, compared with that of the optimizer."""
    moved = _ADAMW * sum(p.numel() for p in run.parameters.values())
    rows = [("every step", "bytes per weight in scope", "of a fused AdamW step")]
    for what, size in every_step(run):
        rows.append((what, f"{size:g}", percent(size * run.total / moved)))
    lines = [columns(rows)] if len(rows) > 1 else ["Pruning does nothing at every step."]
    lines.append(f"torch's fused AdamW moves {_ADAMW} bytes for each weight of the model; other optimizers differ.")
    return "\n".join([*lines, each_update(run)])


def every_step(run: Planned) -> list[tuple[str, float]]:
    """What pruning does at every step: (what, bytes read and written per weight in scope)."""
    pruner, found = run.pruner, []
    if not isinstance(pruner, StraightThrough):
        found.append(("zeroing pruned gradients", 9))  # read and write a gradient, read a mask
    elif pruner.decay:
        found.append(("decay of masked weights", 13))  # also reads a weight
    if remembered := sum(map(nbytes, like(pruner.weights[0].mask, pruner.weights[0].memory.values()))):
        found.append(("scores", 8 + 2 * remembered / pruner.weights[0].mask.numel()))  # read weight and gradient
    if not pruner.zeroes_weights:  # read a weight and a mask, write their product, in both directions
        found.append(("masked weights, forward and backward", 18 * run.schema["GRADIENT_ACCUMULATION"]))
    return found


def each_update(run: Planned) -> str:
    """What choosing masks costs, in a sentence or two."""
    if run.masks is not None:
        return "Masks are given, so nothing is ranked."
    if run.is_soft:
        what = "compares every score with the threshold"
    elif isinstance(run.pruner, Rewiring):
        what = "ranks every weight twice, tensor by tensor: to drop and to grow"
    elif run.schema["PRUNING_DISTRIBUTION"] in ("global", "global-rms"):
        what = "computes every score 3 times: for a sample, the threshold and the masks"
    else:
        what = "computes every score once and ranks them tensor by tensor"
    when = " at log lines" if run.pruner.regrows else ""
    compared = "" if run.pruner.criterion.is_magnitude else f".\nMagnitudes are ranked too{when}, for comparison"
    return f"An update of the masks {what}{compared}."


if __name__ == "__main__":
    run_program(main, only_prints=True)
