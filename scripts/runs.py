"""Look at runs in the terminal: list them, show one, compare two, follow one that is being trained, export metrics.

Everything is read from the folders of the runs. So this works for old runs, and while a run is being trained.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from lib import track
from lib.base import files
from lib.base.errors import UsageError, UserError, run_program, shown
from lib.base.metric import EARLIER, rows
from lib.compare import difference
from lib.config.command_line import resolve
from lib.record import best, export, history, journal, lineage, scores
from lib.record.history import History
from lib.record.in_force import Record
from lib.record.run import Identity, whole
from lib.terminal import follow, task_table, view
from lib.terminal.console import duration
from lib.track.cursor import FOLDER, Backlog, Cursor, path_of

_UNITS = {"dpo": "dpo's own loss", "grpo": "minus the mean reward"}  # recipe of fine-tuning -> what its loss is


def main() -> int:
    """Run the command in the arguments; returns the exit code."""
    args = _parser().parse_args()
    try:
        return args.run(args)
    finally:
        sys.stdout.flush()  # here, so that run_program handles a reader that has gone, such as `head`


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Callable, name: str) -> argparse.ArgumentParser:
        form = argparse.RawDescriptionHelpFormatter
        first = run.__doc__.split("\n")[0]
        text = "\n".join(line.removeprefix("    ") for line in run.__doc__.splitlines())
        sub = commands.add_parser(name, help=first, description=text, formatter_class=form)
        sub.set_defaults(run=run)
        return sub

    def one(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub.add_argument("folder", nargs="?", help="folder of the run [the latest in the output folder]")
        return sub

    sub = command(list_runs, "list")
    sub.add_argument("words", nargs="*", metavar="FOLDER | NAME=value", help="where the runs are [OUTPUT_DIR]")
    sub.add_argument("--tasks", action="store_true", help="results of make evaluate, in place of loss and speed")
    sub = one(command(show, "show"))
    sub.add_argument("--all", action="store_true", help="every metric, not only the common ones")
    sub = command(compare, "compare")
    sub.add_argument("a", metavar="A", help="folder of a run")
    sub.add_argument("b", metavar="B", help="folder of another run")
    sub = one(command(tail, "tail"))
    sub.add_argument("--wait", action="store_true", help="if the run ended before its last step, wait for a resume")
    sub = one(command(export_run, "export"))
    sub.add_argument("--format", choices=list(export.FORMATS), default="csv", help="[csv]")
    sub.add_argument("--out", help="file to write; - is standard output [<run>/steps.<format>]")
    return parser


# ---- list ------------------------------------------------------------------------------------------------------------


def list_runs(args: argparse.Namespace) -> int:
    """List the runs of an output folder and of its sweeps, the newest last.

    A run is running, finished, interrupted (it was asked to stop), diverged, failed or crashed (it ended without
    recording why). The speed of a finished run is its mean; that of any other run is the last recorded value. If the
    output is not a terminal, tabs separate the columns and numbers are not rounded.

    With --tasks, each result of a task or text is a column: the one of the highest step at which the run has it. What
    make evaluate measures of every model, such as its size and speed, is in make show.
    """
    parent = files.named(args.words[0]) if len(args.words) == 1 and "=" not in args.words[0] else None
    parent = parent or Path(resolve("", args.words)[0]["OUTPUT_DIR"])
    if args.tasks:
        return task_table.show(parent)
    rows, notes = [], []
    for folder in history.find(parent):
        moment, row, note = _row(folder, parent)
        rows.append((moment, row))
        notes += [note] if note else []
    narrow = view.width() < 100
    loss, sparsity, speed = ("loss", "sparse", "tok/s") if narrow else ("best val loss", "sparsity", "tokens/s")
    columns = [
        view.Column(f"{parent}/" if view.terminal() else "run", left=True),
        view.Column("state", left=True, style=view.colour),
        view.Column("step"),
        view.Column(loss, view.loss),
        view.Column(sparsity, view.percent),
        view.Column(speed, view.whole),
        view.Column("age" if view.terminal() else "last record", view.age),
    ]
    view.table(columns, [row for _, row in sorted(rows, key=lambda item: item[0])])
    for note in notes:
        print(shown(note), file=sys.stderr)
    return 0


def _row(folder: Path, parent: Path) -> tuple[float, list[Any], str]:
    """The time of the run's last record, its row in the table, and a sentence about damage, if any."""
    name = str(folder.relative_to(parent) if view.terminal() else folder)
    moment, trouble = folder.stat().st_mtime, f"{folder / journal.FILE}: has no complete record of a start"
    try:
        seen = history.skim(folder)
        state, moment = history.state(seen, folder), seen.time or moment
        if state != "damaged":
            mean = history.summary(folder).get("tokens_per_second") if state == "finished" else None
            speed = mean or seen.last("tokens_per_second")
            step = f"{seen.step}" + (f"/{seen.steps}" if seen.steps and state != "finished" else "")
            return moment, [name, state, step, seen.best(), seen.last("sparsity"), speed, moment], ""
    except UserError as error:
        trouble = str(error)
    return moment, [name, "damaged", None, None, None, None, moment], trouble


# ---- show ------------------------------------------------------------------------------------------------------------


def show(args: argparse.Namespace) -> int:
    """Show a run: what it is, options that differ, metrics, tasks, alerts, its files, and what the trackers have.

    A sparkline shows the run's steps from left to right, and the metric's own range from bottom to top.
    """
    folder = _run(args.folder)
    seen = history.load(folder)
    parts = [view.styled(Identity.load(folder).name, "bold"), view.grid(_facts(folder, seen))]
    if options := history.differing(folder):
        rows = [(name, *entry) for name, entry in options.items()]
        parts += [view.heading("options that differ from the defaults"), view.grid(rows)]
    if metrics := _metrics(seen, args.all):
        titles = ("", "", "first", "last", "min", "max")
        parts += [view.heading("metrics"), view.grid(metrics, titles, right=4)]
    if results := list(scores.scores(seen.tasks())):
        rows = [scores.cells(score, view.number) for score in results]
        parts += [view.heading("tasks"), view.grid(rows, scores.TITLES, right=len(scores.TITLES) - 1)]
    if seen.alerts:
        rows = [(f"step {r['step']}", ": ".join(filter(None, (r.get("kind"), r.get("message"))))) for r in seen.alerts]
        parts += [view.heading("alerts"), view.grid(rows)]
    if rows := list(_media(seen)):
        parts += [view.heading("media"), view.grid(rows)]
    if deliveries := list(_deliveries(folder, seen)):
        parts += [view.heading("trackers"), track.table(deliveries)]
    view.out(*parts)
    return 0


def _media(seen: History) -> Iterator[tuple[str, str, str]]:
    """For each name of media: its kind and newest file."""
    found: dict[str, list[Record]] = {}
    for (event, _), record in seen.in_force.others.items():
        if event.startswith("media "):
            found.setdefault(record["name"], []).append(record)
    for name, records in found.items():
        newest = max(records, key=lambda record: record["step"])
        number = f"{len(records)} files, the newest " if len(records) > 1 else ""
        yield name, newest["kind"], f"{number}{newest['file']}"


def _run(given: str | None) -> Path:
    """The folder of the run that the user names; raises UsageError if there is no such run."""
    folder = whole(given)
    Identity.load(folder)
    return folder


def _facts(folder: Path, seen: History) -> Iterator[tuple[str, Any]]:
    state, identity = history.state(seen, folder), Identity.load(folder)
    text = f"{state} at step {seen.step}{f' of {seen.steps}' if seen.steps else ''}"
    text += f", {view.age(seen.time)} ago" if seen.time else ""
    yield "state", view.styled(text, view.colour(state))
    if seen.end and seen.end.get("message"):
        yield "reason", seen.end["message"]
    yield "folder", str(folder)
    yield "id", f"{identity.run_id} in project {identity.project}"
    if seen.sessions:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seen.sessions[0]["time"]))
        resumed = len(seen.sessions) - 1
        yield "time", f"{duration(seen.seconds())} since {began}" + f", resumed {resumed} x" * bool(resumed)
        machine = history.machine(seen.sessions[-1])
        yield "machine", machine.words() if machine else "unknown"
    if begun := lineage.origin(folder):
        yield from lineage.described(begun).items()
        yield "tokens", f"{lineage.words(lineage.chain(folder, seen.step))}, with those of the runs before"
    if made := history.provenances(folder):
        torch = made[-1].get("packages", {}).get("torch")
        yield "host", f"{made[-1].get('host')}, Python {made[-1].get('python')}, torch {torch}"
        why = made[-1].get("commit_unknown")
        yield "commit", history.code(made[-1]) + (f": {why}" if why else "")
    if found := best.best(seen.evaluations()):
        dense = best.dense_best(seen.evaluations())
        sparse = f", at sparsity {found.sparsity:.4f}" if found.sparsity > best.SAME else ""
        before = f"; before pruning {dense.val_loss:.4f}" if dense else ""
        unit = _UNITS.get(seen.config.get("finetune_recipe"), "nats per token")
        yield "best loss", f"{found.val_loss:.4f} in validation, {unit}{sparse}{before}"
    if (folder / journal.FILE).exists() and (lines := journal.damaged(folder)):
        more = f" and {len(lines) - 10} more" if len(lines) > 10 else ""
        yield "damaged", f"lines of {journal.FILE} that are skipped: {', '.join(map(str, lines[:10]))}{more}"


def _metrics(seen: History, every: bool) -> list[tuple[str, ...]]:
    """Name, sparkline, first, last, lowest and highest value of the metrics to show."""
    known = [
        name for name in seen.names() if not seen.columns[name][0].startswith("task ")
    ]  # they have their own table
    metrics = EARLIER | seen.shown
    names = [name for name in rows(metrics.values()) if name in known] + [
        name for name in known if name.startswith("system/")
    ]
    every = every or not any(not name.startswith("system/") for name in names)  # a script's metrics have no places
    names += [name for name in known if every and name not in names]
    series = {name: seen.values(name) for name in names}
    optional = {name for name, metric in metrics.items() if metric.optional}
    series = {name: values for name, values in series.items() if name not in optional or any(values.values())}
    cells = max(8, min(60, view.width() - max(map(len, series), default=0) - 4 * 13)) if view.terminal() else 40
    found = []
    for name, points in series.items():
        values = list(points.values())
        finite = [value for value in values if abs(value) < float("inf")]  # not NaN either
        ends = (values[0], values[-1], min(finite, default=None), max(finite, default=None))
        found.append((name, view.sparkline(points, seen.step, cells), *map(view.number, ends)))
    return found


def _deliveries(folder: Path, seen: History) -> Iterator[track.Delivery]:
    """What each tracker of the run has received; trackers that `make sync` added are included."""
    names = {path_of(folder, name).stem: name for name in seen.config.get("tracker", []) if name != "all"}
    names |= {path.stem: path.stem for path in sorted((folder / FOLDER).glob("*.json")) if path.stem not in names}
    backlog = Backlog(folder)
    for name in names.values():
        owner = "trackio" if name == "trackio-space" else name  # the lane beside that of the local database
        command = f"make sync RUN={shlex.quote(str(folder))} TRACKER={owner}"
        try:
            cursor = Cursor.load(folder, name)
        except UserError as error:
            yield track.Delivery(name, "failed", 0, 0, str(error), command)
            continue
        alive = files.is_held(folder / FOLDER, path_of(folder, name, "lock").name)
        state = cursor.state if alive or cursor.state in ("finished", "failed") else "stopped"
        pending = cursor.pending(backlog.update())
        yield track.Delivery(
            name, state, cursor.rows, pending, cursor.message or cursor.aside() or cursor.note, command
        )


# ---- compare ---------------------------------------------------------------------------------------------------------


def compare(args: argparse.Namespace) -> int:
    """Compare two runs: configuration, code, versions, machine and results.

    The validation losses are ranked only at equal budget: same data, model, schedule, tokens and evaluation. One seed
    cannot show whether a method is better or a difference is random. Use make sweep for several seeds.
    """
    if not (args.a and args.b):  # make's A or B was not given
        raise UsageError("name two runs, such as: make compare A=runs/one B=runs/two")
    a, b = (difference.Side.load(whole(name)) for name in (args.a, args.b))
    reasons = list(difference.unequal(a, b))
    refusal = difference.refusal(a, b, reasons)
    parts = [refusal, ""] if refusal else []  # first, because everything below reads like a comparison
    parts += [view.grid([("A", str(a.folder), _state(a)), ("B", str(b.folder), _state(b))])]
    sections = {
        "configuration": difference.options(a, b),
        "code": difference.code(a, b),
        "versions": difference.versions(a, b),
        "machine": difference.machine(a, b),
    }
    for title, pairs in sections.items():
        if pairs:
            rows = [(name, *map(_text, pair)) for name, pair in pairs.items()]
            parts += [view.heading(title), view.grid(rows, ("", "A", "B"))]
    if same := [title for title, pairs in sections.items() if not pairs]:
        parts += [view.styled(f"\nthe same: {', '.join(same)}", "dim")]
    parts += [view.heading("result"), view.grid(_results(a, b, not refusal), ("", "A", "B", "B - A"), right=3)]
    verdict = [] if refusal else [difference.verdict(a, b, reasons)]
    view.out(*parts, "", "\n".join([*verdict, *difference.notes(a, b)]))
    return 0


def _state(side: difference.Side) -> str:
    return f"{history.state(side.history, side.folder)} at step {side.history.step}"


def _text(value: Any) -> str:
    return "-" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value) or '""'


def _results(a: difference.Side, b: difference.Side, comparable: bool) -> Iterator[tuple[str, ...]]:
    """Name and both values; for losses at equal budget, also the difference."""
    one, other = a.results(), b.results()
    pairs = {name: (one[name], other[name]) for name in one}
    if not (a.ancestors or b.ancestors):
        del pairs["total tokens"]  # equal to the tokens
    if found := difference.common_loss(a, b):
        where, *losses = found
        pairs[f"val loss {where}"] = tuple(losses)
    for name, (one, other) in pairs.items():
        if one is None and other is None:
            continue
        show = {"seconds": duration, "tokens/s": view.whole}.get(name, view.number)
        far = f"{float(other) - float(one):+.4f}" if "loss" in name and comparable and None not in (one, other) else ""
        yield name.replace("seconds", "time"), *("-" if v is None else show(v) for v in (one, other)), far
    known, found = (scores.newest(side.history.tasks()) for side in (a, b))
    for name in dict.fromkeys([*known, *found]):
        yield name, *(task_table.with_error(side[name]) if name in side else "-" for side in (known, found)), ""


# ---- tail ------------------------------------------------------------------------------------------------------------


def tail(args: argparse.Namespace) -> int:
    """Follow a run until it ends, shown as its trainer shows it; Ctrl-C stops only this program, not the run.

    On a terminal, evaluations and alerts are lines above a progress bar; elsewhere every record is a line. The first
    output is the last ten lines. The exit code is 0 if the run is finished and after Ctrl-C, else 1.
    """
    return follow.follow(_run(args.folder), args.wait)


# ---- export ----------------------------------------------------------------------------------------------------------


def export_run(args: argparse.Namespace) -> int:
    """Write a run's metrics as a table: a row per step, with its metrics of training, evaluation, system and tasks.

    The file is steps.<format> in the run's folder, or the one that --out names. (metrics.csv in that folder belongs to
    the tracker csv.) Each step has one row, with the values that are valid after resumes. `time` is the time of its
    first record, in unix seconds.

    NaN, Infinity and -Infinity are written as such in CSV, as numbers in Parquet, and as strings in JSON, which has no
    such numbers. A missing value is empty in CSV, null in Parquet and left out in JSON. Your own script may record one
    metric in several series. Then the first series has the metric's name, and others have names such as train.2/loss.
    """
    folder = _run(args.folder)
    table = export.table(history.load(folder))
    if not table.rows:
        raise UserError(f"{folder}: has no metrics yet; export it when it has made some steps")
    if args.out == "-":
        if args.format == "parquet":
            raise UsageError("parquet is not text; name a file to write, as in OUT=steps.parquet")
        export.FORMATS[args.format](table, sys.stdout.buffer)
        return 0
    path = files.named(args.out) if args.out else folder / f"steps.{args.format}"
    if path.exists() and path.name != f"steps.{args.format}" and path.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"--out {path}: is a file of the run; choose another name")
    export.write(table, args.format, path)
    print(f"{path}: {len(table.rows):,} steps, {len(table.columns)} columns")
    return 0


if __name__ == "__main__":
    run_program(main, only_prints=True)
