"""The table of a sweep and the notes below it, as Markdown and for a terminal."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from lib.compare import comparison, tuning
from lib.compare.comparison import Results
from lib.terminal.console import duration, listed

_SHOWN = 5  # names in a note


def loss(spread: Results, sign: str = "") -> str:
    """`3.1578 ± 0.0243`: mean and sample standard deviation, as far as there are any."""
    if not spread["n"]:
        return "-"
    return f"{spread['mean']:{sign}.4f}" + (f" ± {spread['sd']:.4f}" if spread["sd"] is not None else "")


def _plain(form: str) -> Callable[[Results], str]:
    return lambda spread: f"{spread['mean']:{form}}" if spread["n"] else "-"


def _operations(spread: Results) -> str:
    return f"{spread['mean']:.3e}" if spread["n"] else "-"


# Figure -> title of its column, and the function that formats a spread.
_COLUMNS = {
    "val_loss": ("validation loss", loss),
    "sparsity": ("sparsity", _plain(".4f")),
    "scope": ("in scope", _plain(".1%")),
    "average_nonzeros": ("average non-zeros", _plain(",.0f")),
    "tokens": ("tokens", _plain(",.0f")),
    "seconds": ("seconds", _plain(",.0f")),
}
# The same of what is shown only where configurations differ.
_MORE = {
    "nonzeros": ("final non-zeros", _plain(",.0f")),
    "parameters": ("parameters", _plain(",.0f")),
    "total_tokens": ("tokens with the runs before", _plain(",.0f")),
    "flops": ("training FLOPs", _operations),
    "dense_flops": ("training FLOPs, dense", _operations),
    "inference_flops": ("inference FLOPs per token", _operations),
    "dense_inference_flops": ("inference FLOPs per token, dense", _operations),
}


def markdown(found: Results) -> str:
    """The results as a Markdown table with explanatory notes, also readable as plain text."""
    rows = found["configurations"]
    differing = {name for name in _MORE if len({row[name]["mean"] for row in rows if row[name]["n"]}) > 1}
    if not _chained(found):
        differing -= {"total_tokens"}
    figures = _COLUMNS | {name: column for name, column in _MORE.items() if name in differing}
    titles = ["configuration", "n", *(title for title, _ in figures.values())]
    cells = [titles, *(_cells(found, row, figures) for row in rows)]
    _put_tuned(found, cells)
    _put_difference(found, cells, "against {}")
    _put_block(found, cells)
    return f"{lines(cells)}\n\n" + "\n".join(f"- {note}" for note in notes(found)) + "\n"


def screen(found: Results, columns: int = 80) -> list[list[str]]:
    """The table for a terminal, titles first, without the columns of average non-zeros and tokens.

    A table wider than `columns` characters loses the columns of times, of weights in scope and of tuned options.
    """
    figures = {name: _COLUMNS[name] for name in ("val_loss", "sparsity", "scope", "seconds")}
    cells = [["configuration", "n", "val loss", "sparsity", "in scope", "time"]]
    cells += [_cells(found, row, figures) for row in found["configurations"]]
    for row, line in zip(found["configurations"], cells[1:], strict=True):
        line[-1] = duration(row["seconds"]["mean"]) if row["seconds"]["n"] else "-"
    _put_tuned(found, cells)
    _put_difference(found, cells, "vs {}")
    _put_block(found, cells)
    cells = [[cell.replace(" ± ", "±") for cell in line] for line in cells]
    for title in ("time", "in scope", *map(_title, reversed(found["tuned"]))):
        if sum(max(map(len, column)) + 2 for column in zip(*cells, strict=True)) - 2 > columns:
            place = cells[0].index(title)
            cells = [line[:place] + line[place + 1 :] for line in cells]
    return cells


def _cells(found: Results, row: Results, figures: Mapping[str, tuple[str, Callable[[Results], str]]]) -> list[str]:
    n, seeds = row["val_loss"]["n"], len(found["seeds"])
    shown = [show(row[name]) for name, (_, show) in figures.items()]
    return [row["configuration"], str(n) if n == seeds else f"{n} of {seeds}", *shown]


def _put_difference(found: Results, cells: list[list[str]], title: str) -> None:
    """Insert the differences from the reference, after the column of losses."""
    rows = found["configurations"]
    if len(rows) > 1:
        cells[0].insert(3, title.format(found["reference"]))
        for row, line in zip(rows, cells[1:], strict=True):
            line.insert(3, loss(row["difference"], "+") if "difference" in row else "")


def _put_block(found: Results, cells: list[list[str]]) -> None:
    """Insert the number of each configuration's block, if there are several."""
    if len(found["blocks"]) < 2:
        return
    numbers = {name: str(n) for n, block in enumerate(found["blocks"], 1) for name in block["configurations"]}
    cells[0].insert(1, "block")
    for row, line in zip(found["configurations"], cells[1:], strict=True):
        line.insert(1, numbers.get(row["configuration"], "-"))


def _title(option: str) -> str:
    """The title of an option's column."""
    return option.lower().replace("_", " ")


def _put_tuned(found: Results, cells: list[list[str]]) -> None:
    """Append a column for each tuned option that differs."""
    cells[0] += map(_title, found["tuned"])
    for number, line in enumerate(cells[1:]):
        line += [values[number] for values in found["tuned"].values()]


def lines(cells: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table, titles first, that is also readable as plain text; the first `left` columns are texts."""
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * width if n < left else "-" * (width - 1) + ":" for n, width in enumerate(widths)]
    sides = [str.ljust] * left + [str.rjust] * (len(widths) - left)
    rows = [[side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)] for row in cells]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def notes(found: Results) -> Iterable[str]:
    """Notes that explain the table."""
    rows = found["configurations"]
    yield (
        "Validation loss after the last step, in nats per token: mean ± sample standard deviation (n - 1) of n runs, "
        f"seed{'s' * (len(found['seeds']) > 1)} {', '.join(map(str, found['seeds']))}."
    )
    if len(rows) > 1:
        yield f"Against {found['reference']}: the same for the differences between runs with the same seed and data."
    yield "Sparsity is that of the final weights in scope; non-zeros in scope are averaged over training."
    yield from _scopes(rows)
    yield from _blocks(found)
    for row in rows:
        if "chosen" in row:
            yield f"For {row['configuration']}, match={row['matched']} chose {row['chosen']}."
    if len(found["seeds"]) == 1 and len(rows) > 1:
        yield "There is one seed only, so nothing says how much of a difference is chance."
    tried = found.get("tuning", {}).get("space", {})
    given = [name for name in found["tuned"] if name not in tried]
    if chosen := [name for name in found["tuned"] if name in tried]:
        but = ", but for those that are not tuned" if found["tuning"]["untuned"] else ""
        yield f"Not the same in all configurations: {' and '.join(chosen)}. The trials choose them{but}."
    if given:
        fair = "A fair comparison tunes all equally well"
        yield f"Not the same in all configurations: {' and '.join(given)}. {fair}."
    yield from tuning.notes(found.get("tuning", {}))
    if reused := [run["folder"] for row in rows for run in row["runs"] if run.get("reused")]:
        yield f"Not trained for this sweep, because finished runs count: {', '.join(reused)}."
    yield from dropped(found)
    yield from _unfinished(rows)
    if len(found["made_by"]) > 1:
        yield f"Made by different code, which by itself can change losses: {'; '.join(found['made_by'])}."
    elif found["made_by"]:
        yield f"Made by {found['made_by'][0]}."


def _blocks(found: Results) -> Iterable[str]:
    """What is equal in the configurations that are ranked, and which are apart."""
    blocks, quantity = found["blocks"], found["quantity"]
    how = "equal tokens" if quantity == "tokens" else f"equal {quantity}, within {comparison.CLOSE:.0%}"
    if len(blocks) > 1:
        before = ", those of the runs before included" if quantity in ("tokens", "flops") else ""
        each = "; ".join(f"{n}: {b['budget']} for {', '.join(b['configurations'])}" for n, b in enumerate(blocks, 1))
        yield f"Only configurations of one block have {how}{before}, so only those are ranked together: {each}."
    elif quantity != "tokens":
        yield f"All configurations have {how}; their tokens and their sizes may differ."
    yield from found["outliers"]
    if quantity.endswith("nonzeros") and _chained(found):
        yield "Non-zeros are those of each run itself, without the runs before it."


def dropped(found: Results) -> Iterable[str]:
    """Which combinations of a matrix were dropped, and why. Results of earlier versions do not say."""
    for reason, names in found.get("dropped", {}).items():
        yield f"Dropped from the matrix: {', '.join(names)}: {reason}."


def _chained(found: Results) -> bool:
    """Whether a run began from another one."""
    return any("with_runs_before" in run for row in found["configurations"] for run in row["runs"])


def _unfinished(rows: Sequence[Results]) -> Iterable[str]:
    """Which runs are missing in the figures, and why."""
    missing = [run for row in rows for run in row["runs"] if not run["finished"]]
    if diverged := [run for run in missing if run.get("state") == "diverged"]:
        names = ", ".join(f"{Path(run['folder']).name} (at step {run['step']:,})" for run in diverged)
        yield f"Diverged, so the figures of their configurations show only the seeds that went well: {names}."
    training = [run for run in missing if run.get("state") in ("starting", "running")]
    if training:
        names = ", ".join(f"{Path(run['folder']).name} ({_extent(run)})" for run in training)
        yield f"Still in training, so not in these figures: {names}."
    short = [run for run in missing if run.get("step") and run["state"] not in ("diverged", "running")]
    if short:
        names = ", ".join(f"{Path(run['folder']).name} ({_extent(run)})" for run in short)
        yield f"Shorter than planned, so never ranked and not in these figures: {names}."
    told = {run["folder"] for run in [*diverged, *training, *short]}
    if rest := [Path(run["folder"]).name for run in missing if run["folder"] not in told]:
        yield f"Not finished, so not in these figures: {listed(rest, _SHOWN)}."


def _extent(run: Results) -> str:
    """`12 of 30 steps, RUN_TIME=20m is over`."""
    steps = "?" if run["steps"] is None else f"{run['steps']:,}"
    return f"{run['step']:,} of {steps} steps" + (f", {run['short']}" if "short" in run else "")


def _scopes(rows: Sequence[Results]) -> Iterable[str]:
    """The number of weights in scope and their share of the model. Configurations that agree share a sentence."""
    told: dict[str, dict[str, None]] = {}  # sentence -> its configurations
    for row in rows:
        for run in (run for run in row["runs"] if "scope" in run):
            share = f"{run['scope']:.1%} of the model's {run['parameters']:,}"
            words = f"{run['weights_in_scope']:,} weights are in scope, {share}"
            told.setdefault(words, {})[row["configuration"]] = None
    for words, names in told.items():
        yield words + (f": {', '.join(names)}" if len(told) > 1 else "") + "."
