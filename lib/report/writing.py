"""Writes a report's folder: whole or not at all, and the same bytes for the same journals."""

import csv
import dataclasses
import glob
import io
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lib.base import files
from lib.base.errors import UsageError, UserError
from lib.report import content, figures, markdown, page
from lib.report.statistics import Verdict
from lib.report.study import Study

PAGE = "index.html"
_EARLIER = "earlier"  # where the last report is while the new one takes its place


def write(folder: Path, study: Study) -> None:
    """Write index.html, report.md, results.csv, verdicts.csv and figures/; an earlier report there is replaced.

    Raises UsageError if the folder has other files, and UserError if it cannot be written. Then all is as before.
    """
    _check(folder)
    scratch = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        with files.held(scratch, "writing this report"):
            _clear(folder, scratch)
            _replace(folder, scratch, study)
    except OSError as error:
        raise UserError(f"{folder}: the report cannot be written: {files.reason(error, folder.parent)}") from None
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


def _replace(folder: Path, scratch: Path, study: Study) -> None:
    """Write the report in `scratch` and move it into its place."""
    draft, earlier = scratch / "new", scratch / _EARLIER
    _fill(draft, study)
    if folder.exists():
        folder.rename(earlier)
    try:
        draft.rename(folder)
    except OSError:
        if earlier.exists():
            earlier.rename(folder)
        raise


def _clear(folder: Path, scratch: Path) -> None:
    """Remove what killed writers of this report left behind; a report that one of them had moved away comes back first.

    A writer that is at work holds its lock. A folder without a lock is not a writer's. On a file system without locks,
    where even `scratch` is not held, nobody knows who is at work, so all stays.
    """
    if not files.is_held(scratch):
        return
    for left in sorted(folder.parent.glob(f".{glob.escape(folder.name)}-*")):
        if left == scratch or not (left / "lock").is_file() or files.is_held(left):
            continue
        if (left / _EARLIER).is_dir() and not folder.exists():
            (left / _EARLIER).rename(folder)
        shutil.rmtree(left, ignore_errors=True)


def _fill(folder: Path, study: Study) -> None:
    """Write all files of a report into a new folder."""
    (folder / "figures").mkdir(parents=True)
    sections = content.sections(study, figures.draw(study, folder / "figures"))
    title, about = f"Report: {study.title}", _about(study)
    texts = {
        PAGE: page.document(title, about, sections),
        "report.md": markdown.document(title, sections),
        "results.csv": _csv(_results(study)),
        "verdicts.csv": _csv(_verdicts(study)),
    }
    for name, text in texts.items():
        # A lone surrogate comes from a file name that is not UTF-8, or from a file of others.
        (folder / name).write_bytes(text.encode(errors="backslashreplace"))


def _check(folder: Path) -> None:
    """Raise UsageError unless the folder is new, empty or an earlier report."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder}: is there and is no folder; name another OUT")
    place = folder / PAGE
    if any(folder.iterdir()) and not (place.is_file() and page.GENERATOR in place.read_text(errors="replace")):
        raise UsageError(f"{folder}: has files that are no report; name another OUT or remove them")


def _about(study: Study) -> str:
    """What the report is about, in a line below its title."""
    groups = study.groups
    finished = sum(one.finished for group in groups for one in group.outcomes)
    seeds = sorted({one.seed for group in groups for one in group.outcomes})
    return (
        f"{len(groups)} configuration{'s' * (len(groups) != 1)}, {finished} finished runs, "
        f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}; compared with {study.reference}."
    )


# Columns of results.csv -> the field of an Outcome.
_RESULTS = (
    "seed", "state", "steps", "val_loss", "best_val_loss", "tokens", "total_tokens", "flops", "dense_flops",
    "average_nonzeros", "ever_active", "nonzeros", "parameters", "sparsity", "seconds", "memory", "retries", "tuned",
    "folder",
)  # fmt: skip


def _results(study: Study) -> Iterator[Sequence[Any]]:
    """The rows of results.csv: numbers as they are, without units."""
    yield ("configuration", *_RESULTS)
    for group in study.groups:
        for one in group.outcomes:
            yield (group.name, *(getattr(one, field) for field in _RESULTS))


def _verdicts(study: Study) -> Iterator[Sequence[Any]]:
    """The rows of verdicts.csv. Differences and intervals are in nats; those called family hold for all together."""
    fields = [field.name for field in dataclasses.fields(Verdict) if field.name != "more"]
    yield ("budget", "reference", "configuration", *fields, "more_seeds", "more_low", "more_high")
    for block in study.blocks:
        for one in (one for one in (block.comparison, block.beside) if one):
            for name, verdict in one.verdicts.items():
                more = (verdict.more.seeds, verdict.more.low, verdict.more.high) if verdict.more else (None,) * 3
                yield (block.budget, one.reference, name, *(getattr(verdict, field) for field in fields), *more)


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(map(_harmless, row) for row in rows)
    return text.getvalue()


def _harmless(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: names come from files of others."""
    return f"'{cell}" if isinstance(cell, str | Path) and str(cell).startswith(("=", "+", "-", "@")) else cell
