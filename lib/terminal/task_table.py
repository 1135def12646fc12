"""The table of runs and their results of tasks, for `make runs ARGS=--tasks`."""

import sys
from pathlib import Path

from lib.base.errors import UserError, shown
from lib.record import history, scores
from lib.terminal import view


def show(parent: Path) -> int:
    """Print the runs of an output folder that have results of tasks: a column for each result, of its highest step."""
    found, notes = {}, []
    for folder in history.find(parent):
        try:
            found[folder] = scores.newest(history.skim(folder).tasks())
        except UserError as error:
            notes.append(str(error))
    found = {folder: known for folder, known in found.items() if known}
    names = list(dict.fromkeys(name for known in found.values() for name in known))
    rows, columns = [], [view.Column(f"{parent}/" if view.terminal() else "run", left=True)]
    for name in names:
        columns.append(view.Column(name, with_error))
        columns += [] if view.terminal() else [view.Column(f"{name}_stderr")]
    for folder, known in found.items():
        row = [str(folder.relative_to(parent) if view.terminal() else folder)]
        for name in names:
            one = known.get(name)
            if view.terminal():
                row.append(one)
            else:
                row += [one.value, one.stderr] if one else [None, None]
        rows.append(row)
    if rows:
        view.table(columns, rows)
    else:
        print(f"{parent}: no run has results of tasks yet; measure one with: make evaluate RUN=... TASKS=hellaswag")
    for note in notes:
        print(shown(note), file=sys.stderr)
    return 0


def with_error(score: scores.Score) -> str:
    """`0.2845 ± 0.0045`, and a star where EVAL_LIMIT left items out."""
    error = "" if score.stderr is None else f" ± {view.number(score.stderr)}"
    return f"{view.number(score.value)}{error}{'' if score.of is None else '*'}"
