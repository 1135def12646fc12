"""What a killed run may have lost, have twice, have left over or have otherwise than one that nothing interrupted."""

import json
from collections import Counter
from pathlib import Path

from lib.base.errors import UserError
from lib.config.kconf import Schema
from lib.record import checkpoint_file, journal
from tests import training

CLOCK = frozenset({"total_time_seconds", "total_seconds", "train_seconds", "tokens_per_second", "run"})


def begun(place: Path) -> Path | None:
    """The folder of the run in `place`, if it was begun."""
    return next((path.parent for path in place.glob("runs/*/run.json")), None)


def journal_lines(run: Path | None) -> list[bytes]:
    """The whole lines of a run's journal, if it has one."""
    path = run and run / journal.FILE
    return path.read_bytes().split(b"\n")[:-1] if path and path.exists() else []


def damages(place: Path) -> list[str]:
    """What is not whole among the files that have their final names."""
    wrong = []
    for path in place.glob("runs/*/checkpoints/step-*.pt"):
        wrong += [f"{path.name} is not whole"] * (not checkpoint_file.is_whole(path))
    for path in (*place.glob("runs/*/*.json"), *place.glob("data/*/meta.json")):
        try:
            json.loads(path.read_text())
        except ValueError:
            wrong.append(f"{path.relative_to(place)} is not whole")
    for path in place.glob("runs/*/.config"):
        try:
            Schema().load(path)
        except UserError as error:
            wrong.append(f".config is not whole: {error}")
    for path in place.glob("data/*[!l]/"):  # not .partial
        meta = json.loads((path / "meta.json").read_text())
        shards = [shard for split in meta["splits"].values() for shard in split["shards"]]
        sizes = {shard["file"]: 2 * shard["tokens"] for shard in shards}
        found = {shard.name: shard.stat().st_size for shard in path.glob("*.bin")}
        wrong += [f"{path.name} holds {found}, not {sizes}"] * (found != sizes)
    if (run := begun(place)) and (run / journal.FILE).exists():
        wrong += [f"line {number} of the journal is none" for number in journal.damaged(run)]
    return wrong


def leftovers(place: Path, whole: Path) -> list[str]:
    """Files that a run which nothing interrupted does not leave; each session has its provenance and patch."""
    run, own = begun(place), ("provenance-", "changes")
    mine, theirs = ({str(p.relative_to(f)) for p in f.rglob("*") if not p.name.startswith(own)} for f in (run, whole))
    also = [path for path in (*place.glob("runs/*"), *place.glob("data/*.partial")) if path != run]
    more = [*sorted(mine - theirs), *(str(path.relative_to(place)) for path in also)]
    return [f"left over: {name}" for name in more] + [f"missing: {name}" for name in sorted(theirs - mine)]


def differences(run: Path, whole: Path) -> list[str]:
    """What the run does not have in common with one that nothing interrupted."""
    mine, theirs = (list(journal.read(folder)) for folder in (run, whole))
    seqs = [record["seq"] for record in mine]
    wrong = ["the journal's records are not in order"] * (seqs != sorted(set(seqs)))
    counts, wanted = (Counter(key(r) for r in records if key(r)) for records in (mine, theirs))
    for name in sorted(counts.keys() | wanted.keys()):
        wrong += [f"{name}: {counts[name]} times, not {wanted[name]}"] * (counts[name] != wanted[name])
    own = {key(record): record for record in mine}
    for record in theirs:
        if key(record) in own and lasting(record["metrics"]) != lasting(own[key(record)]["metrics"]):
            wrong.append(f"{key(record)}: {own[key(record)]['metrics']}, not {record['metrics']}")
    if (path := run / "summary.json").exists():
        summaries = [json.loads(file.read_text()) for file in (path, whole / "summary.json")]
        wrong += [f"summaries differ: {summaries}"] * (lasting(summaries[0]) != lasting(summaries[1]))
    return wrong + weights(run, whole)


def key(record: journal.Record) -> str:
    """What a run has one of; empty for what each session has."""
    kind = record["event"] if record["event"] != "alert" else f"alert {record['kind']}"
    return "" if kind in ("start", "resume") else f"{kind} of step {record['step']}"


def lasting(values: dict[str, object]) -> dict[str, object]:
    """Those that do not depend on the clock."""
    return {name: value for name, value in values.items() if name not in CLOCK}


def weights(run: Path, whole: Path) -> list[str]:
    """How the states in the checkpoints differ: weights, optimizer, masks and scores, random generators, counters."""
    from lib.record import checkpoint

    wrong = []
    for path in checkpoint.find(whole / "checkpoints"):
        if (mine := run / "checkpoints" / path.name).exists() and checkpoint_file.is_whole(mine):
            a, b = (lasting(checkpoint.load(file)) for file in (mine, path))
            wrong += [f"{path.name}: {n} differs" for n in a.keys() | b.keys() if not training.same(a.get(n), b.get(n))]
    return wrong
