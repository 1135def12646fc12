"""What came of a sweep, from the folders of its runs: figures over the seeds, and what may be ranked together."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from lib.base.errors import UserError
from lib.compare import tuning
from lib.compare.sweep import Configuration, Run, Sweep
from lib.config.kconf import Schema
from lib.record import history, lineage, short

VERSION = 2  # of results.json; the first one had no version and no blocks
CLOSE = 0.02  # how far apart matched FLOPs and non-zeros may be; tokens must be equal
# Key of a run's result -> its key in summary.json.
_SUMMARY = {
    "val_loss": "final_val_loss",
    "best_val_loss": "best_val_loss",
    "sparsity": "sparsity",
    "average_nonzeros": "average_nonzeros",
    "tokens": "tokens",
    "seconds": "total_time_seconds",
}
# The same of what summaries of earlier versions lack. Operations of training count with those of the runs before.
_TRAINING = {"flops": "training_flops_nonzeros", "dense_flops": "training_flops"}
_INFERENCE = {
    "inference_flops": "inference_flops_per_token_nonzeros",
    "dense_inference_flops": "inference_flops_per_token",
}
FIGURES = (
    "val_loss", "sparsity", "scope", "average_nonzeros", "nonzeros", "tokens", "total_tokens", "flops", "dense_flops",
    "inference_flops", "dense_inference_flops", "parameters", "seconds",
)  # fmt: skip
# What can be matched beside tokens -> the key of a run's result, and the words for it.
QUANTITIES = {
    "flops": ("flops", "FLOPs of training"),
    "average-nonzeros": ("average_nonzeros", "non-zeros on average"),
    "final-nonzeros": ("nonzeros", "non-zeros at the end"),
}
_COUNTS = ("average-nonzeros", "final-nonzeros")  # the quantities that are known of the weights in scope only

Results = dict[str, Any]
Known = dict[str, tuple[Results, list[str]]]  # name of a finished run -> its result, and what made it
Budget = Mapping[int, float | str | None]  # seed -> amount of the matched quantity, tokens in words; None: unknown
Scopes = Set[str | None]  # what `counted` says of each run


def results(sweep: Sweep, tuned: Results | None = None, known: Known | None = None) -> Results:
    """The content of results.json: what the table shows, and the results of the runs behind it.

    `tuned` is the record of the tuning if the caller has it already. `known` keeps what was read of finished runs, so
    that a later call with it reads only what has finished since, and the runs in training.
    """
    known = {} if known is None else known
    own: dict[str, list[Results]] = {one.name: [] for one in sweep.configurations}
    for run in sweep.runs():
        if run.name not in known and run.finished:
            known[run.name] = _result(run), list(_versions(run.folder))
        own[run.configuration.name].append(known[run.name][0] if run.name in known else _unfinished(run))
    rows = [_row(one, own[one.name]) for one in sweep.configurations]
    dense = sweep.dense()
    reference = next((row for row in rows if row["configuration"] in dense), rows[0])
    first = reference["configuration"]
    finished = {row["configuration"]: [run for run in row["runs"] if run["finished"]] for row in rows}
    budgets = {name: _budget(own, sweep.quantity) for name, own in finished.items() if own}
    scopes = {name: {_scope(run, sweep.quantity) for run in own} for name, own in finished.items()}
    found = blocks(budgets, scopes, sweep.quantity, dense)
    together = next((block["configurations"] for block in found if first in block["configurations"]), [])
    for row in rows:
        if row is not reference and row["configuration"] in together:
            row["difference"] = spread(_differences(row["runs"], reference["runs"]))
    outliers = [outlier(name, own, first, budgets[first], sweep.quantity) for name, own in budgets.items() if together]
    return {
        "version": VERSION,
        "sweep": sweep.name,
        "quantity": sweep.quantity,
        "reference": first,
        "seeds": list(sweep.seeds),
        "tuned": sweep.tuned(),
        "made_by": sorted({version for _, versions in known.values() for version in versions}),
        "blocks": found,
        "outliers": [words for words in outliers if words],
        "dropped": sweep.dropped_by_reason(),
        "configurations": rows,
        "elsewhere": {f"{name}-seed{seed}": str(folder) for (name, seed), folder in sweep.elsewhere.items()},
        **({"tuning": tuned or tuning.record(sweep)} if sweep.tuning else {}),
    }


def _unfinished(run: Run) -> Results:
    """The state of a run that is not finished, and how far it is."""
    found = {"seed": run.seed, "folder": str(run.folder), "finished": False, "reused": run.elsewhere is not None}
    if (run.folder / "run.json").exists():
        seen = history.skim(run.folder)
        found |= {"state": history.state(seen, run.folder), "step": seen.step, "steps": seen.steps}
        found |= {"short": why} if (why := short.why(run.folder)) else {}
    return found


def _result(run: Run) -> Results:
    """The figures of a finished run."""
    found = {"seed": run.seed, "folder": str(run.folder), "finished": True, "reused": run.elsewhere is not None}
    summary = history.summary(run.folder)
    if missing := [key for key in _SUMMARY.values() if key not in summary]:
        raise UserError(f"{run.folder}/summary.json: is damaged: it lacks {', '.join(missing)}")
    found |= {name: summary[key] for name, key in _SUMMARY.items()}
    found["pruning_scope"] = history.skim(run.folder).config.get("pruning_scope")
    found["total_tokens"], total = summary["tokens"], ""
    if before := lineage.ancestors(run.folder):
        chain = {**before, str(run.folder): int(summary["tokens"])}
        known, unknown = lineage.cost(chain)
        found |= {"with_runs_before": lineage.words(chain), "total_tokens": None if unknown else known}
        total = "total_"
    found |= {name: summary.get(total + key) for name, key in _TRAINING.items()}
    found |= {name: summary.get(key) for name, key in _INFERENCE.items()}
    if summary.get("parameters"):
        found |= {name: summary[name] for name in ("weights_in_scope", "parameters")}
        found["scope"] = found["weights_in_scope"] / found["parameters"]
        found["nonzeros"] = round(found["weights_in_scope"] * (1 - found["sparsity"]))
    return found


def _row(configuration: Configuration, runs: list[Results]) -> Results:
    """A row of the table: a configuration, its runs, and the `spread` of each figure."""
    figures = {name: spread([run[name] for run in runs if run.get(name) is not None]) for name in FIGURES}
    return {
        "configuration": configuration.name,
        "options": {name: text for name, text, _ in configuration.own},
        **(
            {"matched": ":".join(configuration.matched), "chosen": configuration.chosen}
            if configuration.matched
            else {}
        ),
        "runs": runs,
        **figures,
    }


def spread(values: Sequence[float]) -> Results:
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


def _versions(folder: Path) -> Iterable[str]:
    """The code and PyTorch of each session of a run: commit, a hash of uncommitted changes, version of torch."""
    for made in history.provenances(folder):
        yield f"commit {history.code(made)}, torch {made.get('packages', {}).get('torch', 'unknown')}"


# ---- which configurations may be ranked together ---------------------------------------------------------------------


def blocks(
    budgets: Mapping[str, Budget], scopes: Mapping[str, Scopes], quantity: str, references: Sequence[str]
) -> list[Results]:
    """The configurations in blocks of equal budgets, counted in equal scopes; see `partition` and `counted`."""

    def fits(one: str, other: str) -> bool:
        return is_same(scopes[one], scopes[other]) and is_equal(budgets[one], budgets[other])

    found = partition(list(budgets), references, fits)
    words = {first: amount(budgets[first], quantity, scopes[first]) for first in found}
    return [
        {"budget": words[first][1], "value": words[first][0], "configurations": names} for first, names in found.items()
    ]


def counted(quantity: str, scope: str | None, within: float | None, parameters: float | None) -> str | None:
    """The weights that the matched non-zeros are counted in, in words; None: unknown, so it equals nothing.

    It is empty for the matrices of the blocks, which dense models of every size have. With another PRUNING_SCOPE,
    weights outside it count nowhere, so such runs compare only if the scope and the size of the model are the same.
    """
    if (
        quantity not in _COUNTS
        or not scope
        or _patterns(scope) == _patterns(_schema().options["PRUNING_SCOPE"].default)
    ):
        return ""
    if within is None or parameters is None:
        return None
    return f"in the {within:,.0f} of {parameters:,.0f} weights of PRUNING_SCOPE={scope}"


def _patterns(scope: str) -> set[str]:
    return {part.strip() for part in scope.split(",")} - {""}


@functools.cache
def _schema() -> Schema:
    return Schema()


def is_same(one: Scopes, other: Scopes) -> bool:
    """Whether the non-zeros of all these runs are counted in the same weights."""
    return len(one | other) == 1 and None not in one


def _scope(run: Results, quantity: str) -> str | None:
    return counted(quantity, run["pruning_scope"], run.get("weights_in_scope"), run.get("parameters"))


def partition(
    names: Sequence[str], references: Sequence[str], fits: Callable[[str, str], bool]
) -> dict[str, list[str]]:
    """Reference -> the configurations of its block, itself too: those that fit it, in the order of `names`.

    So whatever is compared with a reference is close to it, not only to a third one. The first reference takes all
    that fit it, the next ones take of the rest. Where none of `references` fits, the first of the rest stands for it.
    """
    found: dict[str, list[str]] = {}
    there = set(names)
    for name in dict.fromkeys([*(name for name in references if name in there), *names]):
        found.setdefault(next((first for first in found if fits(name, first)), name), []).append(name)
    place = {name: n for n, name in enumerate(names)}
    ordered = {first: sorted(members, key=place.get) for first, members in found.items()}
    return dict(sorted(ordered.items(), key=lambda block: place[block[1][0]]))


def is_equal(one: Budget, other: Budget) -> bool:
    """Whether runs with the same seed have equal amounts: words exactly, numbers within CLOSE of the `other`'s.

    A run without a partner must equal all of the other's. What is unknown equals nothing.
    """
    pairs = [(value, theirs) for seed, value in one.items() for theirs in _partners(seed, other)]
    return bool(pairs) and all(_is_close(value, theirs) for value, theirs in pairs)


def _partners(seed: int, other: Budget) -> Iterable[float | str | None]:
    return [other[seed]] if seed in other else other.values()


def _is_close(one: float | str | None, other: float | str | None) -> bool:
    if one is None or other is None:
        return False
    return one == other if isinstance(one, str) else abs(one - other) <= CLOSE * other


def outlier(name: str, one: Budget, reference: str, other: Budget, quantity: str) -> str:
    """Why a configuration is not in the block of the reference, although its mean is; empty if its mean is not."""
    (own, _), (theirs, _) = amount(one, quantity), amount(other, quantity)
    if quantity == "tokens" or is_equal(one, other) or not _is_close(own, theirs):
        return ""
    seed = next(seed for seed in one if not all(_is_close(one[seed], each) for each in _partners(seed, other)))
    apart = f"with seed {seed} it has {amount({seed: one[seed]}, quantity)[1]}"
    if seed in other:
        apart += f", and {reference} has {amount({seed: other[seed]}, quantity)[1]}"
    return f"{name} is not ranked with {reference}, because each pair must come within {CLOSE:.0%}: {apart}."


def _budget(runs: Iterable[Results], quantity: str) -> Budget:
    """The matched quantity of finished runs. Tokens are those of the runs before too, of which some may be unknown."""
    if quantity == "tokens":
        return {run["seed"]: run.get("with_runs_before", f"{run['tokens']:,.0f}") for run in runs}
    return {run["seed"]: run.get(QUANTITIES[quantity][0]) for run in runs}


def amount(budget: Budget, quantity: str, scopes: Scopes = frozenset()) -> tuple[float | str | None, str]:
    """The mean over runs, and in words; None if one is unknown or if there is no run. Tokens are equal or None."""
    values = list(budget.values())
    if quantity == "tokens":
        different = list(dict.fromkeys(values))
        words = " and ".join(str(one or "an unknown number of") for one in different)
        return (different[0] if len(different) == 1 else None), f"{words} tokens"
    _, unit = QUANTITIES[quantity]
    if not values or None in values or not all(map(math.isfinite, values)):
        return None, f"an unknown number of {unit}"
    value = mean(values)
    within = " and ".join(sorted(one or "in an unknown scope" for one in scopes - {""}))
    words = f"{value:.4g} {unit}" if quantity == "flops" else f"{value:,.0f} {unit}"
    return value, f"{words} {within}".rstrip()
