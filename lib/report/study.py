"""Runs that are reported together: which belong to one configuration, and what was equal between them."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.base.errors import UsageError, UserError
from lib.compare import table, tuning
from lib.compare.comparison import CLOSE
from lib.config.option import nearest
from lib.record import history, journal
from lib.record.run import is_unbegun
from lib.report import fairness, naming, outcome, statistics
from lib.report.outcome import Group, Outcome
from lib.report.statistics import Comparison
from lib.terminal.console import listed

RESULTS = "results.json"  # what make sweep writes into its folder
_SHOWN = 5  # names in a note
_UNRANKED = "None of them is the reference, so they are not ranked; REFERENCE names one of them."


@dataclasses.dataclass(frozen=True)
class Block:
    """Groups with the same budget, which may be ranked against each other."""

    budget: str  # in words, such as `614,400 tokens`
    groups: tuple[Group, ...]
    comparison: Comparison | None  # None: it has fewer than two groups, or `why` says what is missing
    beside: Comparison | None = None  # with the dense group, where the user names another reference
    why: tuple[str, ...] = ()  # sentences: why there is no comparison, or none with the dense group


@dataclasses.dataclass(frozen=True)
class Study:
    """Everything that a report shows."""

    title: str
    quantity: str  # what is matched: tokens, flops, average-nonzeros or final-nonzeros
    reference: str  # the group that the others are compared with
    blocks: tuple[Block, ...]
    equal: Mapping[str, str]  # what is the same in all runs -> its value, in words
    unequal: Mapping[str, Mapping[str, Sequence[str]]]  # what is not -> value -> the groups that have it
    notes: tuple[str, ...]  # sentences: runs that are missing, reused or short, and so on

    @property
    def groups(self) -> list[Group]:
        """All groups, block by block."""
        return [group for block in self.blocks for group in block.groups]


def of_sweep(folder: Path, reference: str = "", margin: float | None = None) -> Study:
    """The study of a sweep's folder, from its results.json and the journals of its runs.

    Raises UserError if no run is finished. A run that is damaged is left out, and a note names it.
    """
    path = folder / RESULTS
    if not path.exists():
        raise UsageError(f"{folder}: has no {RESULTS}, which make sweep writes; start the sweep")
    found = history.read(path)
    try:
        title, quantity = _encodable(found["sweep"]), str(found.get("quantity", "tokens"))
        rows = [(_encodable(row["configuration"]), list(map(_entry, row["runs"]))) for row in found["configurations"]]
        dropped = list(table.dropped(found))
        tuned = list(tuning.notes(found.get("tuning", {})))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: is damaged: it lacks what make sweep writes there ({error})") from None
    if quantity not in fairness.QUANTITIES:
        raise UserError(f"{path}: is damaged: there is no quantity {quantity!r} to match")
    if repeated := [name for name, count in Counter(name for name, _ in rows).items() if count > 1]:
        raise UserError(f"{path}: is damaged: it has the configuration {repeated[0]} more than once")
    trials = _trials(path, found)
    groups, notes, unbegun = [], [], []
    for name, entries in rows:
        outcomes = []
        for seed, recorded, is_elsewhere, is_finished in entries:
            place = recorded if is_elsewhere else folder / recorded.name  # the folder may be a copy of the sweep's
            if not place.exists() and is_finished:
                notes.append(f"Finished, but its folder is gone, so not in this report: {place}.")
            elif _is_unbegun(place):
                unbegun.append(recorded.name)
            elif one := _read(place, notes):
                outcomes.append(dataclasses.replace(one, tuned=trials.get(name, 0), seed=seed))
                if place.resolve().parent != folder.resolve():
                    notes.append(f"Taken over and not trained again: {name} with seed {seed} is {place}.")
        if outcomes:
            groups.append(Group(name, tuple(sorted(outcomes, key=lambda one: one.seed))))
    notes += [f"Not begun, so not in this report: {listed(unbegun, _SHOWN)}."] if unbegun else []
    _check_finished(title, groups, notes)
    there = [group.name for group in groups]
    if reference in {name for name, _ in rows} - {*there}:
        raise UsageError(f"REFERENCE: {reference} has no run yet; name another, or wait for one")
    if (usual := found.get("reference", there[0])) not in there and not reference:
        notes.append(f"{_encodable(usual)}, the sweep's reference, has no run yet, so another stands for it.")
    return _study(title, quantity, groups, [*tuned, *dropped, *notes], reference, margin)


def _encodable(name: Any) -> str:
    """A name that can be written as UTF-8: JSON of others may have lone surrogates, and so may file names."""
    return str(name).encode(errors="backslashreplace").decode()


def _entry(run: Mapping[str, Any]) -> tuple[int, Path, bool, bool]:
    """Seed and folder of a run, whether another sweep trained it, and whether it was finished."""
    return int(run["seed"]), Path(str(run["folder"])), bool(run.get("reused")), bool(run.get("finished"))


def _is_unbegun(place: Path) -> bool:
    """Whether a trainer has recorded nothing yet."""
    recorded = (place / journal.FILE, place / "summary.json")
    return not place.exists() or is_unbegun(place) or not any(path.exists() for path in recorded)


def _trials(path: Path, found: Mapping[str, Any]) -> Counter[str]:
    """Configuration -> the trials in which its method was tuned, without those that failed or stopped short."""
    try:
        rows = [row for row in found.get("tuning", {}).get("trials", ()) if not tuning.is_lost(row)]
        return Counter(str(name) for row in rows for name in row["configurations"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is damaged: it lacks what make sweep writes about tuning ({error})") from None


def of_runs(folders: Sequence[Path], by: Sequence[str], reference: str = "", margin: float | None = None) -> Study:
    """The study of these runs; those with the same values of the options `by` are one group, which is named by them.

    Without `by` every option counts that decides what is learned, and names have as few as suffice. Raises UsageError
    if two runs of one group have the same seed, or differ in such an option.
    """
    notes: list[str] = []
    outcomes = [one for folder in dict.fromkeys(folders) if (one := _read(folder, notes))]
    given = [name.strip().upper() for name in by if name.strip()]
    known = sorted({name for one in outcomes for name in one.options})
    if outcomes and (wrong := [name for name in given if name not in known]):
        raise UsageError(f"BY: no run has the option {wrong[0]}{nearest(wrong[0], known)}")
    options = list(dict.fromkeys(given)) or fairness.differing(outcomes)
    members: dict[tuple[str | None, ...], list[Outcome]] = {}
    for one in outcomes:
        members.setdefault(tuple(fairness.value(one, name) for name in options), []).append(one)
    values = [dict(zip(options, key, strict=True)) for key in members]
    shown = options if given else naming.telling(values, options)
    groups = []
    for own, several in zip(values, members.values(), strict=True):
        name = naming.name({option: own[option] for option in shown})
        _check(name, several)
        groups.append(Group(name, tuple(sorted(several, key=lambda one: one.seed))))
    _check_finished("runs", groups, notes)
    return _study("runs", "tokens", groups, notes, reference, margin)


def _check(name: str, several: Sequence[Outcome]) -> None:
    """Raise UsageError unless the runs of a group differ only in their seed."""
    if differ := fairness.differing(several):
        first, wanted = several[0], fairness.value(several[0], differ[0])
        other = next(one for one in several if fairness.value(one, differ[0]) != wanted)
        raise UsageError(
            f"{first.folder} and {other.folder} would be one configuration, {name}, but have different "
            f"{differ[0]}; add it to BY"
        )
    seeds: dict[int, Outcome] = {}
    for one in several:
        if one.seed in seeds:
            raise UsageError(
                f"{seeds[one.seed].folder} and {one.folder} are the same configuration, {name}, with seed {one.seed}; "
                "leave one out of RUNS"
            )
        seeds[one.seed] = one


def _read(folder: Path, notes: list[str]) -> Outcome | None:
    """The outcome of a run; None with a note if it is damaged."""
    try:
        return outcome.read(folder)
    except outcome.VersionError:
        raise
    except UserError as error:
        notes.append(f"Damaged, so not in this report: {folder.name} ({error}).")
        return None


def _study(
    title: str, quantity: str, groups: Sequence[Group], notes: list[str], reference: str, margin: float | None
) -> Study:
    dense = [group.name for group in groups if group.dense]
    names = [group.name for group in groups]
    if reference and reference not in names:
        known = f"; there are: {', '.join(names)}" if len(names) <= 20 else ""
        raise UsageError(f"REFERENCE: there is no configuration {reference!r}{nearest(reference, names) or known}")
    chosen = [*([reference] if reference else []), *dense] or names[:1]
    found = []
    for budget, members in fairness.blocks(groups, quantity, chosen):
        there = [name for name in dict.fromkeys(chosen) if name in {group.name for group in members}]
        both = reference in there and reference not in dense[:1]
        found.append(_block(budget, members, there[: 2 if both else 1], quantity, margin))
        if chosen[0] in there:
            notes += fairness.outliers(
                [group for group in groups if group not in members], members, chosen[0], quantity
            )
    equal, unequal = fairness.differences(groups)
    return Study(title, quantity, chosen[0], tuple(found), equal, unequal, (*notes, *_notes(groups)))


def _check_finished(title: str, groups: Sequence[Group], notes: Sequence[str]) -> None:
    """Raise UserError if there is no result to report."""
    outcomes = [one for group in groups for one in group.outcomes]
    if not outcomes:
        raise UserError(f"{title}: no run can be reported; {notes[0] if notes else 'there is none'}")
    if not any(one.finished for one in outcomes):
        states = [one.state for one in outcomes]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        raise UserError(f"{title}: no run is finished, so there is nothing to report: {counts}")
    losses = [loss for group in groups for loss in group.losses.values()]
    if not losses:
        raise UserError(f"{title}: no finished run has a validation loss (EVALUATE=n), so nothing can be compared")
    if not any(map(math.isfinite, losses)):
        raise UserError(f"{title}: every validation loss is NaN or infinite, so nothing can be compared")


def _block(
    budget: str, members: Sequence[Group], references: Sequence[str], quantity: str, margin: float | None
) -> Block:
    """The block of these groups, each compared with its references, of which there is one, two or none."""
    if len(members) < 2:
        return Block(budget, tuple(members), None)
    if not references:
        return Block(budget, tuple(members), None, why=(_UNRANKED,))
    dense = {group.name: list(_with_diverged(group).values()) for group in members if group.dense}
    compared, why = [], []
    for name in references:
        [reference] = [group for group in members if group.name == name]
        near = [group for group in members if group is reference or fairness.is_equal(group, reference, quantity)]
        if far := [group.name for group in members if group not in near]:
            why.append(f"Not within {CLOSE:.0%} of {name}, so not compared with it: {', '.join(far)}.")
        compared.append(_compared(near, name, margin, dense))
    comparison, beside = (one if isinstance(one, Comparison) else None for one in (*compared, None)[:2])
    return Block(budget, tuple(members), comparison, beside, (*why, *(one for one in compared if isinstance(one, str))))


def _compared(
    groups: Sequence[Group], reference: str, margin: float | None, dense: Mapping[str, Sequence[float]]
) -> Comparison | str:
    """The comparison with a reference, or a sentence that says why there is none. A diverged run counts as infinite.

    `dense` has the losses of the block's dense configurations, also of those that are not near the reference.
    """
    losses = {group.name: _with_diverged(group) for group in groups}
    losses = {name: by_seed for name, by_seed in losses.items() if by_seed}
    if reference not in losses:
        return f"{reference} has no loss, so nothing is compared with it; REFERENCE names another."
    if diverged := [seed for seed, loss in sorted(losses[reference].items()) if not math.isfinite(loss)]:
        several = len(diverged) > 1
        return (
            f"{reference} diverged with seed{'s' * several} {', '.join(map(str, diverged))}, so nothing is compared "
            f"with it: to leave {'these seeds' if several else 'that seed'} out would favour it. REFERENCE names "
            "another."
        )
    if len(losses) < 2:
        return f"Only {reference} has a loss, so nothing is compared with it."
    return statistics.compare(losses, reference, margin, dense)


def _with_diverged(group: Group) -> dict[int, float]:
    """Seed -> loss. To leave diverged runs out would show only the seeds that went well."""
    return {one.seed: math.inf for one in group.outcomes if one.state == "diverged"} | group.losses


def _notes(groups: Iterable[Group]) -> Iterable[str]:
    """What else must be said, in sentences."""
    for group in groups:
        for one in (one for one in group.outcomes if not one.finished):
            planned = one.options.get("MAX_ITERS", "?")
            yield f"Not finished, so not ranked: {one.name} ({one.state} after step {one.steps:,} of {planned})."
        if group.losses and any(one.state == "diverged" for one in group.outcomes):
            yield f"The figures of {group.name} show only the seeds that went well, because others diverged."
        for one in (one for one in group.outcomes if one.val_loss is not None and not math.isfinite(one.val_loss)):
            yield f"Diverged, although trained to the end: {one.name} (its validation loss is {one.val_loss})."
    if all(len(group.losses) <= 1 for group in groups):
        yield "There is one seed only, so differences have no interval, and chance may explain them."
