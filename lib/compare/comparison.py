"""The table of a sweep: each configuration's mean and spread over the seeds, from the folders of the finished runs."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from lib.base.errors import UserError
from lib.compare.sweep import Configuration, Run, Sweep
from lib.record import history, lineage
from lib.terminal.console import duration

# Key of a run's result -> its key in summary.json.
_SUMMARY = {
    "val_loss": "final_val_loss",
    "best_val_loss": "best_val_loss",
    "sparsity": "sparsity",
    "average_nonzeros": "average_nonzeros",
    "tokens": "tokens",
    "seconds": "total_time_seconds",
}

Results = dict[str, Any]


def results(sweep: Sweep) -> Results:
    """The content of results.json: what the table shows, and the results of the runs behind it."""
    runs = {run: _result(run) for run in sweep.runs()}
    rows = [_row(one, [runs[run] for run in runs if run.configuration == one]) for one in sweep.configurations]
    for row in rows[1:]:
        if len(_budgets([rows[0], row])) < 2:
            row["difference"] = _spread(_differences(row["runs"], rows[0]["runs"]))
    return {
        "sweep": sweep.name,
        "seeds": list(sweep.seeds),
        "tuned": sweep.tuned(),
        "made_by": sorted({version for run in runs if run.finished for version in _versions(run.folder)}),
        "configurations": rows,
    }


def _result(run: Run) -> Results:
    """The figures of a run; only its seed and folder if it is not finished."""
    found = {"seed": run.seed, "folder": str(run.folder), "finished": run.finished}
    if run.finished:
        summary = history.summary(run.folder)
        if missing := [key for key in _SUMMARY.values() if key not in summary]:
            raise UserError(f"{run.folder}/summary.json: is damaged: it lacks {', '.join(missing)}")
        found |= {name: summary[key] for name, key in _SUMMARY.items()}
        if before := lineage.ancestors(run.folder):
            found["with_runs_before"] = lineage.words({**before, str(run.folder): int(summary["tokens"])})
        if summary.get("parameters"):  # summaries of earlier versions do not have them
            found |= {name: summary[name] for name in ("weights_in_scope", "parameters")}
            found["scope"] = found["weights_in_scope"] / found["parameters"]
    return found


def _row(configuration: Configuration, runs: list[Results]) -> Results:
    """A row of the table: a configuration, its runs, and the `_spread` of each figure."""
    figures = {name: _spread([run[name] for run in runs if run.get(name) is not None]) for name in _FIGURES}
    return {
        "configuration": configuration.name,
        "options": {name: text for name, text, _ in configuration.own},
        "runs": runs,
        **figures,
    }


def _spread(values: Sequence[float]) -> Results:
    """n, mean and sample standard deviation (n - 1) of values; None if there are too few values."""
    return {
        "n": len(values),
        "mean": mean(values) if values else None,
        # statistics.stdev raises AttributeError for NaN and infinite values.
        "sd": (stdev(values) if all(map(math.isfinite, values)) else math.nan) if len(values) > 1 else None,
    }


def _differences(runs: list[Results], to: list[Results]) -> list[float]:
    """Losses minus the losses of the runs with the same seed, which have the same data in the same order."""
    pairs = zip(runs, to, strict=True)
    return [one["val_loss"] - other["val_loss"] for one, other in pairs if one["finished"] and other["finished"]]


def _budgets(rows: Sequence[Results]) -> dict[str, list[str]]:
    """The tokens of the finished runs and all runs before them, in words -> the configurations that have them.

    Empty if all runs began with random weights.
    """
    finished = [(row["configuration"], run) for row in rows for run in row["runs"] if run["finished"]]
    if not any("with_runs_before" in run for _, run in finished):
        return {}
    found: dict[str, dict[str, None]] = {}
    for name, run in finished:
        found.setdefault(run.get("with_runs_before", f"{run['tokens']:,.0f}"), {})[name] = None
    return {words: list(names) for words, names in found.items()}


def _versions(folder: Path) -> Iterable[str]:
    """The code and PyTorch of each session of a run: commit, a hash of uncommitted changes, version of torch."""
    for made in history.provenances(folder):
        yield f"commit {history.code(made)}, torch {made.get('packages', {}).get('torch', 'unknown')}"


# ---- the table -------------------------------------------------------------------------------------------------------


def _loss(spread: Results, sign: str = "") -> str:
    if not spread["n"]:
        return "-"
    return f"{spread['mean']:{sign}.4f}" + (f" ± {spread['sd']:.4f}" if spread["sd"] is not None else "")


def _plain(form: str) -> Callable[[Results], str]:
    return lambda spread: f"{spread['mean']:{form}}" if spread["n"] else "-"


# Figure -> title of its column, and the function that formats a spread.
_FIGURES = {
    "val_loss": ("validation loss", _loss),
    "sparsity": ("sparsity", _plain(".4f")),
    "scope": ("in scope", _plain(".1%")),
    "average_nonzeros": ("average non-zeros", _plain(",.0f")),
    "tokens": ("tokens", _plain(",.0f")),
    "seconds": ("seconds", _plain(",.0f")),
}


def table(found: Results) -> str:
    """The results as a Markdown table with explanatory notes, also readable as plain text."""
    titles = ["configuration", "n", *(title for title, _ in _FIGURES.values())]
    cells = [titles, *(_cells(found, row, _FIGURES) for row in found["configurations"])]
    _put_tuned(found, cells)
    _put_difference(found, cells, "against {}")
    return f"{_markdown(cells)}\n\n" + "\n".join(f"- {note}" for note in notes(found)) + "\n"


def screen(found: Results, columns: int = 80) -> list[list[str]]:
    """The table for a terminal, titles first, without the columns of average non-zeros and tokens.

    A table wider than `columns` characters loses the column of times, and then that of weights in scope.
    """
    figures = {name: _FIGURES[name] for name in ("val_loss", "sparsity", "scope", "seconds")}
    cells = [["configuration", "n", "val loss", "sparsity", "in scope", "time"]]
    cells += [_cells(found, row, figures) for row in found["configurations"]]
    for row, line in zip(found["configurations"], cells[1:], strict=True):
        line[-1] = duration(row["seconds"]["mean"]) if row["seconds"]["n"] else "-"
    _put_tuned(found, cells)
    _put_difference(found, cells, "vs {}")
    cells = [[cell.replace(" ± ", "±") for cell in line] for line in cells]
    for title in ("time", "in scope"):
        if sum(max(map(len, column)) + 2 for column in zip(*cells, strict=True)) - 2 > columns:
            place = cells[0].index(title)
            cells = [line[:place] + line[place + 1 :] for line in cells]
    return cells


def _cells(found: Results, row: Results, figures: Mapping[str, tuple[str, Callable[[Results], str]]]) -> list[str]:
    n, seeds = row["val_loss"]["n"], len(found["seeds"])
    shown = [show(row[name]) for name, (_, show) in figures.items()]
    return [row["configuration"], str(n) if n == seeds else f"{n} of {seeds}", *shown]


def _put_difference(found: Results, cells: list[list[str]], title: str) -> None:
    """Insert the differences from the first configuration, after the column of losses."""
    rows = found["configurations"]
    if len(rows) > 1:
        cells[0].insert(3, title.format(rows[0]["configuration"]))
        for row, line in zip(rows, cells[1:], strict=True):
            line.insert(3, _loss(row["difference"], "+") if "difference" in row else "")


def _put_tuned(found: Results, cells: list[list[str]]) -> None:
    """Append a column for each tuned option that differs."""
    cells[0] += [name.lower().replace("_", " ") for name in found["tuned"]]
    for number, line in enumerate(cells[1:]):
        line += [values[number] for values in found["tuned"].values()]


def _markdown(cells: list[list[str]]) -> str:
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def notes(found: Results) -> Iterable[str]:
    """Notes that explain the table."""
    rows, first = found["configurations"], found["configurations"][0]["configuration"]
    yield (
        "Validation loss after the last step, in nats per token: mean ± sample standard deviation (n - 1) of n runs, "
        f"seed{'s' * (len(found['seeds']) > 1)} {', '.join(map(str, found['seeds']))}."
    )
    if len(rows) > 1:
        yield f"Against {first}: the same for the differences between runs with the same seed and data."
    yield "Sparsity is that of the final weights in scope; non-zeros in scope are averaged over training."
    yield from _scopes(rows)
    if len(budgets := _budgets(rows)) > 1:
        each = "; ".join(f"{words} for {', '.join(names)}" for words, names in budgets.items())
        yield f"Not trained on equally many tokens with the runs before them, so not ranked against each other: {each}."
    if found["tuned"]:
        names = " and ".join(found["tuned"])
        yield f"Not the same in all configurations: {names}. A fair comparison tunes all equally well."
    if missing := [Path(run["folder"]).name for row in rows for run in row["runs"] if not run["finished"]]:
        yield f"Not finished, so not in these figures: {', '.join(missing)}."
    if len(found["made_by"]) > 1:
        yield f"Made by different code, which by itself can change losses: {'; '.join(found['made_by'])}."
    elif found["made_by"]:
        yield f"Made by {found['made_by'][0]}."


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
