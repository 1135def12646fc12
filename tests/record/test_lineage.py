"""Lineage: which runs were trained on the way to a run, and how many tokens the whole chain took."""

import json
from pathlib import Path

import pytest

from lib.base.errors import UserError
from lib.record import lineage
from tests.runs import ended, trained, write

BATCH = {"max_iters": 40, "tracker": [], "batch_size": 4, "gradient_accumulation": 2, "block_size": 32}  # 256 tokens


def folder(path: Path, run_id: str, *events, config=BATCH, **origin) -> Path:
    """A run whose start event has `origin`."""
    made = write(path / run_id, *events, config=config)
    (made / "run.json").write_text(json.dumps({"run_id": run_id, "project": "p", "name": run_id}))
    lines = (made / "journal.jsonl").read_text().splitlines(keepends=True)
    lines[0] = json.dumps(json.loads(lines[0]) | origin, separators=(",", ":")) + "\n"
    (made / "journal.jsonl").write_text("".join(lines))
    return made


def part(**changes):
    """`init` of a start event."""
    known = {"from": "runs/dense@200", "kind": "run", "path": "/x/dense/checkpoints/step-000000200.pt"}
    return known | {"sha256": "3f2a5c07d1e8" + "0" * 52, "revision": "", "step": 200, "ancestors": {}} | changes


def test_a_run_from_random_weights_has_only_its_own_tokens(tmp_path):
    run = folder(tmp_path, "a", *trained(1, 2, 3), ended(3))
    assert lineage.ancestors(run) == {}
    assert lineage.own_tokens(run, 3) == lineage.total_tokens(run, 3) == 768
    assert lineage.chain(run, 2) == {"a": 512}


def test_each_ancestor_counts_once_with_its_largest_number(tmp_path):
    init = part(ancestors={"dense": 200, "gpt2-data": 7})
    masks = part(ancestors={"dense": 1000, "pruned": 300})
    run = folder(tmp_path, "ticket", *trained(1, 2), init=init, masks=masks)
    assert lineage.ancestors(run) == {"dense": 1000, "gpt2-data": 7, "pruned": 300}
    assert lineage.total_tokens(run, 2) == 1000 + 7 + 300 + 512
    assert lineage.words(lineage.chain(run, 2)) == "1,819"


def test_the_tokens_of_a_foreign_model_are_unknown(tmp_path):
    run = folder(tmp_path, "a", *trained(1), init=part(ancestors={"openai-community/gpt2": None}))
    assert lineage.total_tokens(run, 1) is None
    assert lineage.cost(lineage.chain(run, 1)) == (256, frozenset({"openai-community/gpt2"}))
    assert lineage.words(lineage.chain(run, 1)) == "256 (and unknown: openai-community/gpt2)"


def test_merged():
    assert lineage.merged() == {}
    assert lineage.merged({"a": 3, "b": 1}, {"a": 2, "b": 5, "c": 0}) == {"a": 3, "b": 5, "c": 0}
    assert lineage.merged({"a": None}, {"a": 9}) == lineage.merged({"a": 9}, {"a": None}) == {"a": None}


def test_one_shot_pruning_trains_no_tokens(tmp_path):
    config = BATCH | {"max_iters": 2, "pruning_dynamics": "oneshot"}
    run = folder(tmp_path, "pruned", config=config, init=part(ancestors={"dense": 1000}))
    assert lineage.chain(run, 2) == {"dense": 1000, "pruned": 0}
    assert lineage.total_tokens(run, 2) == 1000


def test_journals_that_do_not_tell_it(tmp_path):
    with pytest.raises(UserError, match="a: the journal does not say how many tokens a step had"):
        lineage.own_tokens(folder(tmp_path, "a", config={"max_iters": 40, "tracker": []}), 1)
    huge = folder(tmp_path, "huge", config=BATCH | {"block_size": 10**4000})
    with pytest.raises(UserError, match="huge: the journal does not say how many tokens a step had"):
        lineage.total_tokens(huge, 1)
    damaged = [part(**{name: None}) for name in part()]
    damaged += [part(ancestors={"x": tokens}) for tokens in ("many", 10**4000, -1)]
    damaged += [part(step="7"), part(step=True), "x", {name: value for name, value in part().items() if name != "step"}]
    for number, changes in enumerate(damaged):
        run = folder(tmp_path, f"b{number}", init=changes)
        with pytest.raises(UserError, match=r"b\d+: the journal's first line is damaged: it does not say what the run"):
            lineage.ancestors(run)
    run = folder(tmp_path, "c", *trained(1))
    (run / "journal.jsonl").write_text("")
    for _ in range(2):  # an empty journal, and none
        assert lineage.ancestors(run) == lineage.origin(run) == {}
        assert lineage.chain(run, 1) == {"c": None}
        (run / "journal.jsonl").unlink(missing_ok=True)


def test_the_origin_in_words_and_as_a_value():
    masks = {"from": "m.safetensors", "path": "/x/m.safetensors", "sha256": "9" * 64, "ancestors": {}}
    assert lineage.described({"init": part(), "masks": masks}) == {
        "start": "runs/dense at step 200 (sha256 3f2a5c07d1e8)",
        "masks": "m.safetensors (sha256 999999999999)",
    }
    hub = part(**{"from": "openai-community/gpt2@main", "kind": "huggingface", "revision": "607a30d783" + "f" * 30})
    assert lineage.described({"init": hub}) == {
        "start": "openai-community/gpt2@main at commit 607a30d783 (sha256 3f2a5c07d1e8)"
    }
    for path, place in {
        "/tmp/me@host/a2": "/tmp/me@host/a2",
        "/tmp/me@host/a2@best": "/tmp/me@host/a2",
        "a@step-000000020.pt": "a",
    }.items():
        assert lineage.described({"init": part(**{"from": path})})["start"].startswith(f"{place} at step 200 (")
    assert lineage.exactly(hub) == "openai-community/gpt2@607a30d783" + "f" * 30
    assert lineage.exactly(part()) == "/x/dense/checkpoints/step-000000200.pt"
    assert lineage.exactly(masks) == "/x/m.safetensors"
    lineage.check(masks, "9" * 64)
    with pytest.raises(UserError, match=r"^/x/m.safetensors: has changed since the run began with it: its sha256 was"):
        lineage.check(masks, "8" * 64)
