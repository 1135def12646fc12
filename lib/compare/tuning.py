"""Equal tuning: every method of a sweep gets the same trials, and the values of its best one are then compared.

A method leaves out the options that it does not use, and shares all other coordinates of a trial with the others. If
two trials are then the same, the later one is left out, and the method has the next one of the sequence in its place.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lib import schedule
from lib.base import files
from lib.base.errors import UsageError, UserError
from lib.compare.methods import Method, methods, untuned, untuned_part
from lib.compare.plan import Assignment, Configuration, Run, Sweep
from lib.compare.space import SPARSITY, Point, points
from lib.config.config_file import ConfigError
from lib.config.kconf import Schema
from lib.record import history, short

FOLDER = "tuning"  # of the trials, in the sweep's folder
_DRAWN = 16  # points for each trial that is wanted; a space that has no more different ones then is used up
# How a run of a trial that has no result ended -> the same in words. `diverged` is a result, but not one to choose.
_LOST = {"failed": "failed", "short": "stopped short", "unfinished": "did not finish"}
_WORDS = {"diverged": "diverged", **_LOST}


@dataclasses.dataclass(frozen=True)
class Trial:
    """Values that a method is tried with."""

    method: Method
    number: int  # from 1
    values: Point
    configuration: Configuration
    runs: tuple[Run, ...]  # one for each seed


# ---- trials ----------------------------------------------------------------------------------------------------------


def stage(plan: Sweep) -> Sweep:
    """The trials as a sweep of their own, which is trained before `plan`. Raises ConfigError with every problem."""
    configurations = tuple(trial.configuration for trial in planned(plan))
    folder, seeds = plan.folder / FOLDER, plan.tuning.seeds
    return Sweep(f"{plan.name}-{FOLDER}", folder, seeds, configurations, plan.quantity, elsewhere=plan.trials)


def planned(plan: Sweep) -> list[Trial]:
    """All trials, checked; raises ConfigError with every problem."""
    if not plan.tuning:
        return []
    check(plan)
    schema, problems = Schema(), []
    found = [trial for method in methods(plan) for trial in _different(plan, method, schema, problems)]
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    return sorted(found, key=lambda trial: trial.number)  # so a stage that stops early has tried all methods alike


def _different(plan: Sweep, method: Method, schema: Schema, problems: list[str]) -> Iterator[Trial]:
    """The first trials of a method whose values differ, as many as `tune` asks for, or as its space has."""
    tuning, tried, used = plan.tuning, set(), set()
    for number, values in enumerate(itertools.islice(points(tuning), _DRAWN * tuning.count), 1):
        try:
            trial = _trial(plan, method, number, values, schema)
        except UsageError as error:
            problems += [f"{tuning.place}: trial {number} of {method.name}: {one}" for one in error.args]
        else:
            values = trial.values
            if values not in tried:
                yield trial
        tried.add(values)
        used |= {name for name, _ in values}
        if len(tried) >= min(tuning.count, math.prod(one.size for one in tuning.space if one.name in used)):
            return


def check(plan: Sweep) -> None:
    """Raise ConfigError if the sweep cannot be tuned: nothing is left to tune, or lines give what tuning chooses."""
    tuning, problems = plan.tuning, []
    names = {dimension.name for dimension in tuning.space}
    tuned = {name for method in methods(plan) for name in method.names}
    if not tuned:
        problems.append(f"{tuning.place}: no configuration of the sweep uses {', '.join(sorted(names))}")
    for one in plan.configurations:
        if one.name in tuned:
            given = [a for a in one.assignments if a[0] in names and a[2] != tuning.place]
            problems += [
                f"{place}: {name}={text}: {tuning.place} tunes it; leave it out" for name, text, place in given
            ]
    if problems:
        raise ConfigError(dict.fromkeys(problems))


def _trial(plan: Sweep, method: Method, number: int, values: Point, schema: Schema) -> Trial:
    """A trial, with the options that have an effect. Choices come first, because others may depend on them."""
    tuning, base = plan.tuning, untuned_part(method.first, plan.tuning)
    base.resolve(schema)
    more: list[Assignment] = []
    if tuning.sparsity and schema.options[SPARSITY].settable:
        more.append((SPARSITY, tuning.sparsity, tuning.place))
    if not schema["TRACKER_GROUP"]:
        more.append(("TRACKER_GROUP", f"{plan.name}-{FOLDER}", tuning.place))
    choices = {dimension.name for dimension in tuning.space if dimension.kind == "choice"}
    used = {}
    for name, text in sorted(values, key=lambda pair: pair[0] not in choices):
        if schema.options[name].settable:
            schema.override([(name, text, tuning.place)])
            used[name] = text
    kept = tuple((name, text) for name, text in values if name in used)
    assignments = (*base.assignments, *more, *((name, text, tuning.place) for name, text in kept))
    one = dataclasses.replace(base, name=f"{method.name}-trial{number}", assignments=assignments, matched=None)
    schedule.check(one.resolve(schema).bind)
    runs = (Run(one, seed, plan.folder / FOLDER, plan.trials.get((one.name, seed))) for seed in tuning.seeds)
    return Trial(method, number, kept, one, tuple(runs))


# ---- choosing --------------------------------------------------------------------------------------------------------


def losses(trial: Trial) -> list[float]:
    """The validation loss with each seed; infinite for a run that is not finished or diverged."""
    found = []
    for run in trial.runs:
        loss = history.summary(run.folder).get("final_val_loss") if run.finished else None
        found.append(loss if loss is not None and math.isfinite(loss) else math.inf)
    return found


def state(trial: Trial) -> str:
    """How a trial has ended: `finished` with a loss for each seed, `diverged`, `failed`, `short` or `unfinished`."""
    return next((found for found in map(_state, trial.runs) if found != "finished"), "finished")


def _state(run: Run) -> str:
    if run.finished:
        return "finished" if math.isfinite(history.summary(run.folder).get("final_val_loss", math.nan)) else "diverged"
    if not (run.folder / "run.json").exists():  # a trainer that fails at once leaves only its log
        has_ended = run.log.exists() and not files.is_held(run.parent, run.log.name)
        return "failed" if has_ended else "unfinished"
    if short.why(run.folder):
        return "short"
    found = history.state(history.skim(run.folder), run.folder)
    return {"diverged": "diverged", "failed": "failed", "crashed": "failed", "damaged": "failed"}.get(
        found, "unfinished"
    )


def best(plan: Sweep) -> dict[str, Trial]:
    """Method -> its best trial, by the mean loss; the first of equal ones. Call it when all trials have ended.

    Raises UserError if a method has no finished trial with a finite loss.
    """
    tried = planned(plan)
    found = _winners(tried)
    if lost := [method.name for method in methods(plan) if method.name not in found]:
        is_short = any(state(trial) == "short" for trial in tried if trial.method.name in lost)
        advice = "RUN_TIME stopped some: raise it" if is_short else "train the trials"
        raise UserError(
            f"{plan.folder / FOLDER}: no trial of {', '.join(lost)} is finished with a finite loss, so nothing can be "
            f"chosen; {advice}, or change the space in {plan.tuning.place}"
        )
    return found


def _winners(tried: Iterable[Trial]) -> dict[str, Trial]:
    """The best trial so far of each method that has a finished one."""
    found: dict[str, tuple[float, Trial]] = {}
    for trial in tried:
        loss = _mean(losses(trial))
        if loss < found.get(trial.method.name, (math.inf,))[0]:
            found[trial.method.name] = loss, trial
    return {name: trial for name, (_, trial) in found.items()}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def chosen(plan: Sweep) -> Sweep:
    """The sweep whose configurations have the values of their method's best trial."""
    if not plan.tuning:
        return plan
    values = {name: trial.values for trial in best(plan).values() for name in trial.method.names}
    made = tuple(given(plan, one, values.get(one.name, ())) for one in plan.configurations)
    return dataclasses.replace(plan, configurations=made)


def given(plan: Sweep, one: Configuration, values: Iterable[tuple[str, str]]) -> Configuration:
    """The configuration with these values in place of those that an earlier tuning gave it."""
    base, more = untuned_part(one, plan.tuning), tuple((name, text, plan.tuning.place) for name, text in values)
    return dataclasses.replace(base, assignments=(*base.assignments, *more))


def record(plan: Sweep) -> dict[str, Any]:
    """What results.json keeps of the tuning: all trials, which were chosen, and what was not tuned; {} without one."""
    if not plan.tuning:
        return {}
    tried, rows = planned(plan), []
    winners = {name: trial.number for name, trial in _winners(tried).items()}
    for trial in tried:
        each = losses(trial)
        wins = winners.get(trial.method.name) == trial.number
        edge = [
            one.name for one in plan.tuning.space if (text := dict(trial.values).get(one.name)) and one.at_edge(text)
        ]
        rows.append(
            {
                "method": trial.method.name,
                "configurations": list(trial.method.names),
                "trial": trial.number,
                "values": dict(trial.values),
                "folders": [str(run.folder) for run in trial.runs],
                "state": state(trial),
                "losses": [None if math.isinf(loss) else loss for loss in each],
                "val_loss": None if math.isinf(_mean(each)) else _mean(each),
                "chosen": wins,
                "edge": edge if wins else [],
            }
        )
    space = {one.name: f"{one.kind} {','.join(one.texts)}" for one in plan.tuning.space}
    asked = plan.tuning.count
    return {"trials": rows, "asked": asked, "space": space, "seeds": list(plan.tuning.seeds), "untuned": untuned(plan)}


def notes(found: dict[str, Any]) -> Iterable[str]:
    """Sentences about a `record`: what was chosen, what is at the edge of the space, and what is not tuned."""
    states: dict[str, list[str]] = {}  # method -> how its trials ended
    for row in found.get("trials", ()):
        states.setdefault(row["method"], []).append(_ended(row))
    for row in (row for row in found.get("trials", ()) if row["chosen"]):
        values = ", ".join(f"{name}={text}" for name, text in row["values"].items())
        seeds = len(row["losses"])
        yield (
            f"{row['method']} was tuned in {_trials(states[row['method']])} with {seeds} "
            f"{'seed' if seeds == 1 else 'seeds'}; trial {row['trial']} is used: {values}, "
            f"val loss {row['val_loss']:.4f}."
        )
        if row["edge"]:
            yield f"{row['method']}: {', '.join(row['edge'])} is near the edge of the space; widen it."
    if few := [f"{method} {len(each)}" for method, each in states.items() if len(each) < found.get("asked", 0)]:
        yield (
            f"The methods are not equally tuned. The space has fewer than {found['asked']} different trials for some: "
            f"{', '.join(few)}."
        )
    lost = {method: sum(one in _LOST for one in each) for method, each in states.items()}
    if len(set(lost.values())) > 1 and any(row["chosen"] for row in found["trials"]):  # while they run, some are left
        told = ", ".join(f"{method} {lost[method]} of {len(each)}" for method, each in states.items())
        yield f"The methods are not equally tuned. Trials without a result: {told}."
    for name, why in found.get("untuned", {}).items():
        yield f"Not tuned, beside tuned methods: {name}: {why}."


def is_lost(row: dict[str, Any]) -> bool:
    """Whether a trial of a `record` has failed, stopped short or not been finished: it says nothing of its values."""
    return _ended(row) in _LOST


def _ended(row: dict[str, Any]) -> str:
    return row.get("state", "unfinished" if row["val_loss"] is None else "finished")  # earlier versions: no state


def _trials(states: Sequence[str]) -> str:
    """`4 trials, of which 1 diverged and 2 failed,`."""
    parts = [f"{count} {words}" for one, words in _WORDS.items() if (count := states.count(one))]
    among = f", of which {' and '.join(parts)}," if parts else ""
    return f"{len(states)} trial{'s' * (len(states) != 1)}{among}"
