"""Report, before training, what pruning will do: which tensors, when and how much, and what it costs.

The report is computed from the configuration that training would read. It needs neither data nor memory for the model,
but masks that are given are read.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt2 import preflight
from gpt2.footprint import kind, state_bytes
from gpt2.planned import Planned, average_kept, chosen_at
from gpt2.weights.adopt import adopt
from lib.base.errors import run_program
from lib.config import command_line
from lib.config.kconf import Schema
from lib.prune.outlook import Whole, percent
from lib.prune.weight import Weight
from lib.terminal.console import columns, table

_COLUMNS, _ROWS = 60, 8  # of the plot, in characters
_ADAMW = 28  # bytes that torch's fused AdamW reads and writes per weight: p, g, m, v and p, m, v
_CHOICES = {  # option whose chosen value the report explains -> its label
    "PRUNING_METHOD": "criterion",
    "PRUNING_STATE": "formula",
    "PRUNING_MOVEMENT": "form",
    "PRUNING_STRUCTURE": "pruned as a whole",
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
        **({"Neurons and heads": whole(found)} if (found := run.pruner.wholes()) else {}),
        "Tensors in scope": scope(run),
        "Schedule: sparsity over the steps": when(run),
        "Memory": memory(run),
        "Cost: estimated memory traffic (make bench measures the time)": work(run),
    }
    print("\n\n".join(f"{title}\n{indented(text)}" for title, text in sections.items()))
    return 0


def indented(text: str) -> str:
    """`text`, two columns to the right."""
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())


# ---- what is pruned --------------------------------------------------------------------------------------------------


def choices(schema: Schema) -> dict[str, str]:
    """Label -> Kconfig's description of the chosen value; and where first weights, masks and teacher come from."""
    options = {label: schema.options[name] for name, label in _CHOICES.items() if schema.options[name].active}
    if schema["PRUNING_STRUCTURE"] == "none":
        del options[_CHOICES["PRUNING_STRUCTURE"]]
    words = {label: option.members[option.value].nodes[0].prompt[0] for label, option in options.items()}
    sources = {"masks of": schema["INIT_MASKS"], "weights of": schema["INIT_FROM"], "teacher": schema["DISTILL_FROM"]}
    return words | {label: source for label, source in sources.items() if source}


def scope(run: Planned) -> str:
    """The tensors in scope by kind, with the final sparsity of each."""
    groups: dict[str, list] = {}
    for weight, share in zip(run.pruner.weights, run.pruner.shares(), strict=True):
        groups.setdefault(kind(weight.name), []).append((weight, share))
    parameters = run.model.count_parameters()
    rows = [("", "tensors", "weights", "of model", "pruned in the end")]
    for name, members in groups.items():
        count = sum(weight.mask.numel() for weight, _ in members)
        rows.append((name, f"{len(members)}", f"{count:,}", percent(count / parameters), spread(run, members)))
    end = "a result" if run.pruner.decided_by else percent(1 - run.kept_in_the_end / run.total)
    rows.append(("total", f"{len(run.pruner.weights)}", f"{run.total:,}", percent(run.total / parameters), end))
    return columns(rows)


def whole(found: list[Whole]) -> str:
    """How many neurons and heads are pruned in the end, and what that is good for."""
    rows = [("", "layers", "of model", "pruned in the end", "weights each")]
    for one in found:
        rows.append((one.kind, f"{one.layers}", f"{one.units:,}", f"{one.pruned:,}", f"{one.weights:,}"))
    return (
        f"{columns(rows)}\n\nThe scores of the weights of each are summed. What is pruned stays zero, and make shrink "
        "then\nremoves it from the model, with the same logits."
    )


def spread(run: Planned, members: list[tuple[Weight, float]]) -> str:
    """The lowest and the highest of the final sparsities of some tensors."""
    if run.pruner.decided_by:
        return f"by {run.pruner.decided_by}"
    bound = "at most " if run.pruner.scores_decide() else ""
    ends = [percent(end(share for _, share in members)) for end in (min, max)]
    return bound + " to ".join(dict.fromkeys(ends))


# ---- when ------------------------------------------------------------------------------------------------------------


def when(run: Planned) -> str:
    """The schedule as a plot, and its figures."""
    facts = run.pruner.timetable(run.steps)
    if not run.pruner.decided_by:
        end, average = run.kept_in_the_end, average_kept(run)
        facts["non-zeros"] = f"{end:,} of {run.total:,} in the end, {average:,.1f} on average over the run"
    return f"{plot(run)}\n\n{table(facts)}" if run.pruner.peak() else table(facts)


def plot(run: Planned) -> str:
    """Sparsity over steps, drawn with characters."""
    pruner = run.pruner
    steps = [1 + round(column * (run.steps - 1) / (_COLUMNS - 1)) for column in range(_COLUMNS)]
    heights = [pruner.height(chosen_at(pruner.plan, step)) * _ROWS for step in steps]
    lines = [
        f"{pruner.peak() if row == _ROWS else '':>9} |{''.join('#' if h >= row - 0.5 else ' ' for h in heights)}"
        for row in range(_ROWS, 0, -1)
    ]
    last = f"{run.steps:,}"
    return "\n".join([*lines, f"{'0':>9} +{'-' * _COLUMNS}", f"{'step':>9}  1{last:>{_COLUMNS - 1}}"])


# ---- what it costs ---------------------------------------------------------------------------------------------------


def memory(run: Planned) -> str:
    """Bytes of weights, gradients, optimizer state, masks, criterion and a checkpoint."""
    pruner, numbers = run.pruner, sum(p.numel() for p in run.parameters.values())
    each = state_bytes(run.model.options, run.schema.bind)  # kind of a parameter -> bytes
    state = sum(p.numel() * each[kind(name)] for name, p in run.parameters.items())
    held = pruner.held()
    rows = [("", "bytes each", "", "MB")]

    def row(name: str, size: float, count: int, what: str) -> None:
        rows.append((name, f"{size / count:.3f}".rstrip("0").rstrip("."), what, f"{size / 1e6:,.3f}"))

    row("weights", 4 * numbers, numbers, "parameter")
    row("gradients", 4 * numbers, numbers, "parameter")
    row(f"state of {run.schema['OPTIMIZER']}", state, numbers, "parameter")
    for one in held:
        row(one.what, one.memory, run.total, "weight in scope")
    saved = 4 * numbers + state + sum(one.saved for one in held) + 4 * hidden_values(run)
    row("checkpoint", saved, numbers, "parameter")
    note = "A checkpoint holds weights, state, masks (1 bit per weight), and the criterion's memory"
    if pruner.shifts:
        note += ",\nand the dense weights in scope"
    elif not pruner.zeroes_weights:
        note += ",\nand the values under the masks" + (" (training decides how many)" if pruner.decided_by else "")
    return f"{columns(rows)}\n{note}."


def hidden_values(run: Planned) -> int:
    """How many values a checkpoint holds that the forward pass does not use, as far as the configuration tells."""
    if run.pruner.shifts:
        return run.total
    return 0 if run.pruner.zeroes_weights or run.pruner.decided_by else run.total - run.kept_in_the_end


def work(run: Planned) -> str:
    """Memory traffic of pruning, compared with that of the optimizer."""
    moved = _ADAMW * sum(p.numel() for p in run.parameters.values())
    rows = [("every step", "bytes per weight in scope", "of a fused AdamW step")]
    for what, size in run.pruner.traffic(2 * run.schema["GRADIENT_ACCUMULATION"]):  # forward and backward
        rows.append((what, f"{size:g}", percent(size * run.total / moved)))
    lines = [columns(rows)] if len(rows) > 1 else ["Pruning does nothing at every step."]
    lines.append(f"torch's fused AdamW moves {_ADAMW} bytes for each weight of the model; other optimizers differ.")
    return "\n".join([*lines, run.pruner.updating()])


if __name__ == "__main__":
    run_program(main, only_prints=True)
