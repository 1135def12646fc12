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
    teacher = part(ancestors={"dense": 900, "large": 20})
    run = folder(tmp_path, "ticket", *trained(1, 2), init=init, masks=masks, teacher=teacher)
    assert lineage.ancestors(run) == {"dense": 1000, "gpt2-data": 7, "pruned": 300, "large": 20}
    assert lineage.total_tokens(run, 2) == 1000 + 7 + 300 + 20 + 512
    assert lineage.words(lineage.chain(run, 2)) == "1,839"


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
    taught = folder(tmp_path, "taught", teacher=part(step="7"))
    with pytest.raises(UserError, match="taught: the journal's first line is damaged"):
        lineage.ancestors(taught)
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
    assert lineage.described({"teacher": part(), "init": part(), "masks": masks}) == {
        "start": "runs/dense at step 200 (sha256 3f2a5c07d1e8)",
        "masks": "m.safetensors (sha256 999999999999)",
        "teacher": "runs/dense at step 200 (sha256 3f2a5c07d1e8)",
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


# ---- operations ------------------------------------------------------------------------------------------------------

COSTS = {"training_per_token": 1000, "training_per_zero": 6, "weights_in_scope": 100}  # 256 tokens a step


def test_operations_count_the_nonzeros_up_to_the_step(tmp_path):
    run = folder(tmp_path, "a", *trained(20), flops=COSTS)
    assert lineage.own_flops(run, 20, 75) == [5_120_000, (1000 - 6 * 25) * 5120]
    assert lineage.own_flops(run, 3, 62.5) == [768_000, (1000 - 6 * 37.5) * 768]
    assert lineage.own_flops(run, 3, None) == lineage.own_flops(run, 3, 100) == [768_000, 768_000]
    assert lineage.flops(run, 20, 75) == {"a": [5_120_000, 4_352_000]}
    assert lineage.own_flops(run, 20, 101) is lineage.own_flops(run, 20, -1) is None
    assert lineage.own_flops(run, 20, float("nan")) is None


def test_operations_of_a_chain_are_summed_and_unknown_ones_stay_unknown(tmp_path):
    known = part(ancestors={"dense": 1000, "pruned": 0}, flops={"dense": [50, 40]})
    run = folder(
        tmp_path, "a", *trained(1), init=known, masks=part(ancestors={"dense": 900}, flops={"dense": [45, 41]})
    )
    assert lineage.total_flops(run, [7, 6]) == [57, 47]  # `dense` once, with its larger numbers
    earlier = folder(tmp_path, "b", *trained(1), init=part(ancestors={"dense": 1000}))
    assert lineage.total_flops(earlier, [7, 6]) is None
    assert lineage.own_flops(earlier, 1, None) is None  # a version without them
    assert lineage.flops(earlier, 1, None) == {"dense": None, "b": None}


@pytest.mark.parametrize(
    "flops", [[], {"dense": 1}, {"dense": [1]}, {"dense": [1, -1]}, {"dense": [1, "2"]}, {"dense": [1, 1e99]}]
)
def test_damaged_operations_of_ancestors_are_said(tmp_path, flops):
    run = folder(tmp_path, "a", *trained(1), init=part(ancestors={"dense": 1}, flops=flops))
    with pytest.raises(UserError, match="journal's first line is damaged"):
        lineage.origin(run)


@pytest.mark.parametrize(
    "changes", [{"training_per_token": "x"}, {"weights_in_scope": -1}, {"training_per_zero": None}]
)
def test_damaged_operations_of_a_run_are_unknown(tmp_path, changes):
    run = folder(tmp_path, "a", *trained(1), flops=COSTS | changes)
    assert lineage.own_flops(run, 1, None) is None
