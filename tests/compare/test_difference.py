"""What differs between two runs, and when neither is ranked."""

import json
import math

import pytest

from lib.compare import difference
from lib.config.kconf import ROOT
from tests.runs import ended, evaluated, trained, write


@pytest.fixture
def side(tmp_path):
    """Make a run named `name` with these options and validation losses at steps 2 and 4, and load it."""

    def make(name, losses=(2.0, 1.0), steps=(1, 2, 3, 4), made=None, **options):
        events = [*trained(*steps), *(evaluated(step, loss) for step, loss in zip((2, 4), losses, strict=False))]
        final = {"final_val_loss": losses[-1]} if losses else {}
        folder = write(tmp_path / name, *events, ended(steps[-1], **final, total_time_seconds=3.0))
        entries = {key: {"value": value, "source": "default"} for key, value in options.items()}
        provenance = {"commit": "abc", "python": "3.11", "packages": {"torch": "2.13"}, "host": "here", **(made or {})}
        (folder / "provenance.json").write_text(json.dumps({"options": entries, **provenance}))
        return difference.Side.load(folder)

    return make


def test_runs_at_equal_budget_are_ranked(side):
    a, b = side("a", OPTIMIZER="adam"), side("b", (2.0, 0.75), OPTIMIZER="sgd", SGD_MOMENTUM="0.9")
    assert difference.options(a, b) == {"OPTIMIZER": ("adam", "sgd"), "SGD_MOMENTUM": ("-", "0.9")}
    assert list(difference.unequal(a, b)) == []
    assert list(difference.notes(a, b)) == []
    assert difference.verdict(a, b, []) == (
        "Equal budgets: at step 4 B has the lower validation loss, by 0.2500 nats per token."
    )
    assert a.results() == {
        "final val loss": 1.0, "best val loss": 1.0, "sparsity": 0.0, "steps": 4, "tokens": 256, "seconds": 3.0,
        "tokens/s": 100.0, "total tokens": 256,
    }  # fmt: skip


def test_unequal_budgets_are_named(side):
    a = side("a", MAX_ITERS="4", EVAL_SAMPLES="8", DATASET="stdlib", THREADS="1", WEIGHT_DECAY="0")
    b = side("b", (2.5,), (1, 2), MAX_ITERS="2", EVAL_SAMPLES="9", DATASET="files", THREADS="2", WEIGHT_DECAY="1")
    assert list(difference.unequal(a, b)) == [
        "MAX_ITERS is 4 and 2", "EVAL_SAMPLES is 8 and 9", "DATASET is stdlib and files",
        "256 and 128 tokens were trained",
    ]  # fmt: skip
    assert difference.common_loss(a, b) == ("at step 2", 2.0, 2.5)


def test_other_data_of_the_same_name_is_named(side):
    one, same, other, unknown = (side(name, DATASET="stdlib") for name in ("one", "same", "other", "unknown"))
    for made, data in ((one, "a" * 64), (same, "a" * 64), (other, "b" * 64)):
        made.history.sessions[0]["data"] = data
    assert list(difference.unequal(one, same)) == []
    reason = "the data differs: A has sha256 aaaaaaaaaaaa, and B has bbbbbbbbbbbb"
    assert list(difference.unequal(one, other)) == [reason]
    assert difference.verdict(one, other, [reason]) == f"The budgets differ, so neither is ranked: {reason}."
    assert list(difference.unequal(one, unknown)) == []
    part = side("part", DATASET="stdlib", EVALUATE="n")
    part.history.sessions[0]["data"] = "c" * 64
    assert list(difference.unequal(one, part)) == []


def chained(side, name, ancestors, losses=(2.0, 1.0), sha256="0", **given):
    """A side whose run began from other runs: 16 tokens a step."""
    made = side(name, losses, **given)
    path = made.folder / "journal.jsonl"
    first, *rest = path.read_text().splitlines(keepends=True)
    init = {"from": "x", "kind": "run", "path": "/x", "sha256": sha256, "revision": "", "step": 1}
    init["ancestors"] = ancestors
    config = {"max_iters": 4, "tracker": [], "batch_size": 2, "gradient_accumulation": 1, "block_size": 8}
    start = json.dumps(json.loads(first) | {"config": config, "init": init}, separators=(",", ":"))
    path.write_text("".join([start, "\n", *rest]))
    return difference.Side.load(made.folder)


def test_runs_that_began_from_others_are_ranked_at_equal_tokens_of_the_chain(side):
    a = chained(side, "a", {"dense": 1000}, MAX_ITERS="4")
    b = chained(side, "b", {"dense": 968, "x": 64}, (2.5,), steps=(1, 2), MAX_ITERS="2")
    assert (a.results()["total tokens"], b.results()["total tokens"]) == (1064, 1064)
    assert list(difference.unequal(a, b)) == []
    assert difference.verdict(a, b, []) == (
        "Equal budgets: at the end A has the lower validation loss, by 1.5000 nats per token."
    )
    stopped = chained(side, "stopped", {"dense": 968, "x": 64}, (2.5,), steps=(1, 2), MAX_ITERS="9")
    assert list(difference.unequal(a, stopped)) == [
        "MAX_ITERS is 4 and 9", "one is at step 4 and one at step 2, not both at their last",
    ]  # fmt: skip
    c = chained(side, "c", {"hub/gpt2": None})
    d = chained(side, "d", {"hub/gpt2": None}, (2.0, 0.5))
    assert difference.verdict(c, d, list(difference.unequal(c, d))).startswith("Equal budgets: at step 4 B has")
    e = chained(side, "e", {"hub/other": None})
    assert list(difference.unequal(c, e)) == [
        "with the runs before, 64 (and unknown: hub/gpt2) and 64 (and unknown: hub/other) tokens were trained"
    ]


def test_a_source_that_had_changed_between_the_runs_is_said(side):
    a, b = (chained(side, sha, {"dense": 1}, sha256=sha * 64, INIT_FROM="runs/dense") for sha in "12")
    c = chained(side, "c", {"dense": 1}, sha256="3" * 64, INIT_FROM="runs/other")
    assert list(difference.notes(a, b)) == [
        "Both have INIT_FROM=runs/dense, but what it names had changed between them "
        "(sha256 111111111111 and 222222222222)."
    ]
    assert list(difference.notes(a, c)) == []


def test_an_option_that_is_no_longer_known_counts(side):
    assert list(difference.unequal(side("a", GONE="1"), side("b", GONE="2"))) == ["GONE is 1 and 2"]


def test_a_renamed_option_of_an_earlier_version_has_its_present_name():
    earlier = difference.Side.load(ROOT / "tests/fixtures/killed-run")
    assert earlier.options["LR_SCHEDULE"] == "cosine"  # it recorded DECAY_LR=y
    assert "DECAY_LR" not in earlier.options


def test_how_often_was_evaluated_is_no_budget(side):
    a, b = side("a", EVAL_INTERVAL="2"), side("b", (2.5,), EVAL_INTERVAL="4")
    assert list(difference.unequal(a, b)) == []
    assert list(difference.notes(a, b)) == [
        "EVAL_INTERVAL differs, so the best losses come from different steps and cannot be compared."
    ]
    assert difference.common_loss(a, b) == ("at step 2", 2.0, 2.5)


def test_what_else_differs_is_said(side):
    a = side("a", SEED="1", LEARNING_RATE="0.1")
    b = side(
        "b", SEED="2", LEARNING_RATE="0.2", made={"host": "there", "python": "3.12", "packages": {"torch": "2.14"}}
    )
    assert difference.versions(a, b) == {"python": ("3.11", "3.12"), "torch": ("2.13", "2.14")}
    assert difference.machine(a, b) == {"host": ("here", "there")}
    assert difference.code(a, b) == {}
    assert list(difference.unequal(a, b)) == []
    assert list(difference.notes(a, b)) == [
        "Not the same: LEARNING_RATE. A fair comparison tunes both equally well.",
        "The seeds differ, and so do data order and initial weights: part of the difference is random.",
        "Code or versions differ, which by itself can change losses.",
        "The machine or its use differs, so the times cannot be compared.",
    ]


def test_code_that_nobody_knows_is_not_the_same(side):
    lost = {"uncommitted_changes": {"sha256": "e3b0c44298", "file": None, "note": ""}}
    for made, name in (({"commit": None}, "unknown"), (lost, "abc with uncommitted changes that were not kept")):
        a, b = side("a", made=made), side("b", made=made)
        assert difference.code(a, b) == {"commit": (name, name)}
        assert list(difference.notes(a, b)) == [
            "It is not known whether both used the same code. Different code by itself can change losses."
        ]


def test_what_cannot_be_ranked(side):
    good, bad = side("a"), side("b", (2.0, math.nan))
    assert difference.verdict(good, bad, []) == "At step 4 a validation loss is NaN or infinite, so neither is ranked."
    assert difference.verdict(good, good, []) == "Equal budgets, and the same validation loss at step 4."
    assert difference.verdict(good, good, ["MAX_ITERS is 4 and 2", "SEED is 1 and 2"]) == (
        "The budgets differ, so neither is ranked: MAX_ITERS is 4 and 2; SEED is 1 and 2."
    )


def test_a_run_without_validation_is_not_ranked(side):
    a, b = side("a", (), EVALUATE="n"), side("b", EVALUATE="y", EVAL_INTERVAL="2", EVAL_SAMPLES="8")
    reasons = list(difference.unequal(a, b))
    assert difference.verdict(a, b, reasons) == (
        "A did not measure the validation loss (EVALUATE=n), so neither is ranked."
    )
    assert difference.verdict(a, a, []) == (
        "A and B did not measure the validation loss (EVALUATE=n), so neither is ranked."
    )
    assert list(difference.notes(a, b)) == []  # nothing about the steps of the evaluations
    assert (a.results()["final val loss"], a.results()["best val loss"]) == (None, None)
    assert difference.verdict(b, side("earlier"), []) == "Equal budgets, and the same validation loss at step 4."


def resumed(side, name, *sessions):
    """A side of 4 steps whose MAX_ITERS was changed: (step of a resume, its MAX_ITERS)."""
    made = side(name, MAX_ITERS=str(sessions[-1][1]))
    path = made.folder / "journal.jsonl"
    first, *rest = path.read_text().splitlines(keepends=True)
    for step, steps in sessions:
        record = {"seq": 90 + step, "time": 1.0, "event": "resume", "step": step, "metrics": {}}
        record |= {"config": {"max_iters": steps, "tracker": []}, "changed": {"max_iters": ["40", str(steps)]}}
        rest.insert(step, json.dumps(record, separators=(",", ":")) + "\n")
    path.write_text("".join([first, *rest]))
    return difference.Side.load(made.folder)


def test_a_run_that_was_resumed_with_another_length_had_another_schedule(side):
    straight, longer = side("a", MAX_ITERS="4"), resumed(side, "b", (2, 4))
    assert longer.lengths() == [(0, 40), (2, 4)]
    told = "B was resumed with another MAX_ITERS (40, then 4 from step 2), so its schedules had another length"
    assert list(difference.unequal(straight, longer)) == [told]
    assert difference.refusal(straight, longer, [told]) == f"The budgets differ, so neither is ranked: {told}."
    assert list(difference.unequal(longer, resumed(side, "c", (2, 4)))) == []  # the same schedule
    assert resumed(side, "d", (0, 4)).lengths() == [(0, 4)]  # before the first step nothing had acted
