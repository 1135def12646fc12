"""Compares a killed and resumed run with an uninterrupted one: what is lost, twice, left over or different."""

import json
from collections import Counter
from pathlib import Path

from lib.base.errors import UserError
from lib.config.kconf import Schema
from lib.record import checkpoint_file, journal
from tests import training

CLOCK = frozenset({"total_time_seconds", "total_seconds", "train_seconds", "tokens_per_second", "run"})


def is_intact(path: Path) -> bool:
    """Whether the file at `path` is a checkpoint without damage."""
    try:
        with path.open("rb") as file:
            return bool(checkpoint_file.verify(file, path))
    except (OSError, checkpoint_file.CheckpointError):
        return False


def begun(place: Path) -> Path | None:
    """The folder of the run in `place`, or None if there is no run yet."""
    return next((path.parent for path in place.glob("runs/*/run.json")), None)


def journal_lines(run: Path | None) -> list[bytes]:
    """The complete lines of a run's journal, if it has one."""
    path = run and run / journal.FILE
    return path.read_bytes().split(b"\n")[:-1] if path and path.exists() else []


def damages(place: Path) -> list[str]:
    """Which files under their final names are not intact."""
    wrong = []
    for path in place.glob("runs/*/checkpoints/step-*.pt"):
        wrong += [f"{path.name} is not intact"] * (not is_intact(path))
    for path in (*place.glob("runs/*/*.json"), *place.glob("data/*/meta.json")):
        try:
            json.loads(path.read_text())
        except ValueError:
            wrong.append(f"{path.relative_to(place)} is not intact")
    for path in place.glob("runs/*/.config"):
        try:
            Schema().load(path)
        except UserError as error:
            wrong.append(f".config is not intact: {error}")
    for path in place.glob("data/*[!l]/"):  # not .partial
        meta = json.loads((path / "meta.json").read_text())
        shards = [shard for split in meta["splits"].values() for shard in split["shards"]]
        sizes = {shard["file"]: 2 * shard["tokens"] for shard in shards}
        found = {shard.name: shard.stat().st_size for shard in path.glob("*.bin")}
        wrong += [f"{path.name} holds {found}, not {sizes}"] * (found != sizes)
    if (run := begun(place)) and (run / journal.FILE).exists():
        wrong += [f"line {number} of the journal is damaged" for number in journal.damaged(run)]
    return wrong


def leftovers(place: Path, reference: Path) -> list[str]:
    """Files that only one of the runs has, apart from the provenance and the patch that each session writes."""
    run, own = begun(place), ("provenance-", "changes")
    mine, theirs = (
        {str(p.relative_to(f)) for p in f.rglob("*") if not p.name.startswith(own)} for f in (run, reference)
    )
    also = [path for path in (*place.glob("runs/*"), *place.glob("data/*.partial")) if path != run]
    more = [*sorted(mine - theirs), *(str(path.relative_to(place)) for path in also)]
    return [f"left over: {name}" for name in more] + [f"missing: {name}" for name in sorted(theirs - mine)]


def differences(run: Path, reference: Path) -> list[str]:
    """Where the run differs from an uninterrupted one."""
    mine, theirs = (list(journal.read(folder)) for folder in (run, reference))
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
        summaries = [json.loads(file.read_text()) for file in (path, reference / "summary.json")]
        wrong += [f"summaries differ: {summaries}"] * (lasting(summaries[0]) != lasting(summaries[1]))
    return wrong + weights(run, reference)


def key(record: journal.Record) -> str:
    """The name of a record that a run has once; empty for records that each session writes."""
    kind = record["event"] if record["event"] != "alert" else f"alert {record['kind']}"
    return "" if kind in ("start", "resume") else f"{kind} of step {record['step']}"


def lasting(values: dict[str, object]) -> dict[str, object]:
    """The values that do not depend on the clock."""
    return {name: value for name, value in values.items() if name not in CLOCK}


def weights(run: Path, reference: Path) -> list[str]:
    """How the states in the checkpoints differ: weights, optimizer, masks and scores, random generators, counters."""
    from lib.record import checkpoint

    wrong = []
    for path in checkpoint.find(reference / "checkpoints"):
        if (mine := run / "checkpoints" / path.name).exists() and is_intact(mine):
            a, b = (lasting(checkpoint.load(file)) for file in (mine, path))
            wrong += [f"{path.name}: {n} differs" for n in a.keys() | b.keys() if not training.same(a.get(n), b.get(n))]
    return wrong
