"""Targets of fuzzing for run folders: journals, identities, summaries, provenances and the states of trackers."""

import contextlib
import json
import math
from pathlib import Path

from lib.base.errors import UserError
from lib.compare import comparison, sweep, table
from lib.config.kconf import ROOT
from lib.record import export, history, journal, lineage
from lib.record.run import Identity
from lib.terminal import follow
from lib.terminal.console import say
from lib.track import lane
from lib.track.cursor import Backlog, Cursor
from scripts import reproduce, runs
from tests.fuzzing.promise import outcome, target, terminal
from tests.runs import ended, evaluated, trained, write

_MADE = {
    "options": {"SEED": {"value": "1", "source": "default"}},
    "commit": "a" * 40,
    "folder": "/",
    "packages": {"torch": "2.13.0"},
    "python": "3.11.7",
    "host": "here",
    "gpus": [],
    "uncommitted_changes": {"file": "changes.patch", "sha256": "0" * 64, "left_out": [], "note": ""},
}
_SUMMARY = {
    "run": "run",
    "status": "finished",
    "steps": 2,
    "final_val_loss": 2.0,
    "best_val_loss": 1.5,
    "sparsity": 0.0,
}
_SUMMARY |= {"total_time_seconds": 3.5, "tokens": 128, "tokens_per_second": 64.5, "average_nonzeros": 10.0}


def _run(folder: Path = Path("runs/run")) -> Path:
    """A valid finished run of two steps."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    details = {"kind": "nan", "level": "error", "message": "the loss is NaN"}
    changed = {
        "config": {"max_iters": 2, "tracker": ["csv"]},
        "changed": {"MAX_ITERS": ["1", "2"]},
        "machine": "2 x cpu",
    }
    write(
        folder, *trained(1), evaluated(1, 1.5), ("system", 1, {"system/cpu %": 7}, {}), ("alert", 1, {}, details),
        ("resume", 1, {}, changed), *trained(2), evaluated(2, math.nan),
        ended(2, final_val_loss=2.0, best_val_loss=1.5),
        config={"max_iters": 2, "tracker": ["csv"]},
    )  # fmt: skip
    (folder / "trackers").mkdir()
    (folder / "provenance.json").write_text(json.dumps(_MADE))
    (folder / "summary.json").write_text(json.dumps(_SUMMARY))
    (folder / "changes.patch").write_bytes(b"")
    (folder / "defconfig").write_text("CONFIG_SEED=1\n")
    return folder


def _looked_at(folder: Path) -> bool:
    """Run every program that shows a run, with and without a terminal; returns whether `show` could."""
    follow._POLL = follow._PATIENCE = 0
    for words in (["list", "runs"], ["compare", str(folder), str(folder)], ["tail", str(folder)]):
        outcome(_runs, *words)
    for form in export.FORMATS:
        if outcome(_runs, "export", str(folder), "--format", form) == 0 and form == "json":
            rows = json.loads((folder / "steps.json").read_text(encoding="utf-8"), parse_constant=_no_json)
            assert rows == json.loads(json.dumps(export.table(history.load(folder)).rows))
    with contextlib.suppress(UserError), terminal(people=True):
        _runs("show", str(folder), "--all")
        _runs("list", "runs")
    return outcome(_runs, "show", str(folder), "--all") == 0


def _runs(*words: str) -> int:
    args = runs._parser().parse_args(words)
    return args.run(args)


def _no_json(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def _journals() -> list[bytes]:
    whole = (_run() / journal.FILE).read_bytes()
    return [whole, *(whole.split(b"\n")[0] + b"\n" + line + b"\n" for line in whole.split(b"\n"))]


@target(_journals)
def journals(data: bytes) -> bool:
    """A journal: all readers handle it, and a trainer that continues it loses no record."""
    folder = _run()
    (folder / journal.FILE).write_bytes(data)
    whole = data[: data.rfind(b"\n") + 1]
    records, lost = list(journal.read(folder)), journal.damaged(folder)
    assert len(records) + len(lost) == whole.count(b"\n")
    assert [r for r, _ in journal.tail(folder)] == records
    _looked_at(folder)
    cursor, backlog = Cursor(), Backlog(folder).update()
    items, edge = cursor.batch(backlog, 10**9)
    cursor.advance(edge, len(items))
    assert (cursor.pending(backlog), cursor.offset <= len(whole)) == (0, True)
    lane.configuration(folder), lane._status(folder), journal.final(folder, 2)
    outcome(reproduce.configuration, folder)
    book = journal.Journal(folder)
    book.expect(1)
    told = [book.write("eval", 2**40, {"val_loss": n / 3}) for n in range(2)]
    book.close()
    assert list(journal.read(folder)) == records + told and journal.damaged(folder) == lost
    return bool(records)


def _starts() -> list[bytes]:
    """First lines of journals: of a run that began with other weights and masks."""
    first = json.loads(_journals()[0].split(b"\n")[0])
    first["config"] |= {"batch_size": 4, "gradient_accumulation": 2, "block_size": 8}
    masks = {"from": "runs/sparse@best", "path": "/nowhere/masks.safetensors", "sha256": "b" * 64}
    masks["ancestors"] = {"ba9876543210": 4096}
    init = {"kind": "run", "step": 200, "from": "runs/dense@200", "path": "/nowhere/step-000000200.pt"}
    init |= {"sha256": "a" * 64, "revision": "", "ancestors": {"ba9876543210": 2048, "model": None}}
    hub = init | {"kind": "huggingface", "from": "gpt2", "path": "/nowhere", "revision": "c" * 40, "step": 0}
    found = [first | {"init": init, "masks": masks}, first | {"init": hub}, first | {"masks": masks}]
    large = "9" * 4300  # of digits, the most that Python reads
    texts = [json.dumps(line, separators=(",", ":")) for line in found]
    return [
        text.encode() + b"\n"
        for text in (*texts, texts[0].replace("2048", large), texts[0].replace(":8}", f":{large}}}"))
    ]


@target(_starts)
def starts(data: bytes) -> bool:
    """The start event, which says what weights and masks a run began with, for all who follow a chain of runs."""
    folder = _run()
    rest = (folder / journal.FILE).read_bytes().split(b"\n", 1)[1]
    (folder / journal.FILE).write_bytes(data + rest)
    _looked_at(folder)
    total = outcome(lineage.total_tokens, folder, 2)
    assert total is None or f"{total:,}"
    outcome(lambda: [lineage.exactly(part) for part in lineage.origin(folder).values()])
    found = outcome(lineage.ancestors, folder)
    if found is None:
        return False
    assert lineage.words(found)
    one = sweep.Configuration("run", "sweep:1", ROOT / "defconfigs/gpt2_tiny_defconfig", (), ())
    folder.rename(folder.with_name("run-seed1"))
    outcome(lambda: table.markdown(comparison.results(sweep.Sweep("sweep", folder.parent, (1,), (one,)))))
    folder.with_name("run-seed1").rename(folder)
    return bool(found)


@target(lambda: [line + b"\n" for line in _journals()[0].splitlines()])
def journal_line(data: bytes) -> bool:
    """One line of a journal: damaged, or a record that survives writing and reading."""
    found = journal.record(data)
    if found is None:
        return False
    journal.numbers(found)
    again = journal.record(json.dumps(found, allow_nan=False).encode())
    assert again == found
    return True


def _files(data: bytes, name: str) -> Path:
    folder = _run()
    (folder / name).write_bytes(data)
    return folder


@target(lambda: [(_run() / "run.json").read_bytes()])
def identity(data: bytes) -> bool:
    """The file run.json."""
    folder = _files(data, "run.json")
    found = outcome(Identity.load, folder)
    _looked_at(folder)
    return found is not None


@target(lambda: [json.dumps(_SUMMARY).encode()])
def summary(data: bytes) -> bool:
    """summary.json, for the programs that show a run and for the table of a sweep."""
    folder = _files(data, "summary.json")
    _looked_at(folder)
    one = sweep.Configuration("run", "sweep:1", ROOT / "defconfigs/gpt2_tiny_defconfig", (), ())
    plan = sweep.Sweep("sweep", folder.parent, (1,), (one,))
    folder.rename(folder.with_name("run-seed1"))
    try:
        return outcome(lambda: table.markdown(comparison.results(plan))) is not None
    finally:
        folder.with_name("run-seed1").rename(folder)


@target(lambda: [json.dumps(_MADE).encode(), json.dumps(_MADE | {"uncommitted_changes": None}).encode()])
def provenance(data: bytes) -> bool:
    """provenance.json, for the programs that show a run and for scripts/reproduce.py."""
    folder = _files(data, "provenance.json")
    _looked_at(folder)
    made = outcome(reproduce.kept, folder)
    if made is None:
        return False
    now = _MADE | dict.fromkeys(reproduce._MACHINE)

    def repeated() -> None:
        patch = reproduce.changes(folder, made)
        assert patch is None or patch.parent == folder
        for sentence in (
            *reproduce.differences(made, now),
            *reproduce.remarks(folder, made),
            str(reproduce.start_of_paths(folder, made)),
        ):
            say(sentence)

    outcome(repeated)
    return True


@target(
    lambda: [
        b'{"offset": 100, "seq": 1, "delivered": {"train": 1}, "rows": 1, "state": "live", "message": "", "note": ""}'
    ]
)
def tracker_state(data: bytes) -> bool:
    """The state of a tracker."""
    folder = _files(data, "trackers/csv.json")
    found = outcome(Cursor.load, folder, "csv")
    _looked_at(folder)
    if found:
        backlog = Backlog(folder).update()
        items, edge = found.batch(backlog, 10)
        found.advance(edge, len(items)), found.is_stale(backlog), found.trust()
        found.save(folder, "csv")
        assert Cursor.load(folder, "csv") == found
    return found is not None
