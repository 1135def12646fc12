"""The table of runs and their results of tasks, for `make runs ARGS=--tasks`."""

import sys
from pathlib import Path

from lib.base.errors import UserError, shown
from lib.record import history, scores
from lib.terminal import view


def show(parent: Path) -> int:
    """Print the runs of an output folder that have results of tasks and texts, each of its highest step.

    What is measured of every model, such as its size and speed, is left to `make show`.
    """
    found, notes = {}, []
    for folder in history.find(parent):
        try:
            records = history.skim(folder).tasks()
        except UserError as error:
            notes.append(str(error))
            continue
        if known := scores.newest(record for record in records if record["task"] not in scores.OF_THE_MODEL):
            found[folder] = known
    if not found:
        print(f"{parent}: no run has results of tasks yet; measure one with: make evaluate RUN=... TASKS=hellaswag")
    elif view.terminal():
        _screen(parent, found)
    else:
        _text(found)
    for note in notes:
        print(shown(note), file=sys.stderr)
    return 0


def _names(found: dict[Path, dict[str, scores.Score]]) -> list[str]:
    """The metrics, by the names of their tasks."""
    names = dict.fromkeys(name for known in found.values() for name in known)
    return sorted(names, key=lambda name: name.partition("/")[0])


def _screen(parent: Path, found: dict[Path, dict[str, scores.Score]]) -> None:
    """A column for each result, in as many tables as the width of the terminal needs."""
    names = _names(found)
    columns = [view.Column(f"{parent}/", left=True), *(view.Column(name, with_error) for name in names)]
    view.tables(columns, [[str(folder.relative_to(parent)), *map(known.get, names)] for folder, known in found.items()])
    if any(score.of is not None for known in found.values() for score in known.values()):
        print("\n* EVAL_LIMIT left items out, so this value is not comparable with others")


def _text(found: dict[Path, dict[str, scores.Score]]) -> None:
    """A column for each result, and one for its standard error where a run has it."""
    columns = []
    for name in _names(found):
        ours = {folder: known[name] for folder, known in found.items() if name in known}
        columns.append((name, {folder: score.value for folder, score in ours.items()}))
        if any(score.stderr is not None for score in ours.values()):
            columns.append((f"{name}_stderr", {folder: score.stderr for folder, score in ours.items()}))
    titles = [view.Column("run"), *(view.Column(title) for title, _ in columns)]
    view.table(titles, [[str(folder), *(values.get(folder) for _, values in columns)] for folder in found])


def with_error(score: scores.Score) -> str:
    """`0.2845 ± 0.0045`, and a star where EVAL_LIMIT left items out."""
    error = "" if score.stderr is None else f" ± {view.number(score.stderr)}"
    return f"{view.number(score.value)}{error}{'' if score.of is None else '*'}"
