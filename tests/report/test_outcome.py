"""What a report reads of a run: numbers, curves that are thinned, what must be equal, and damage."""

import json

import numpy as np
import pytest

from lib.base.errors import UserError
from lib.report import curves, outcome
from tests.report.made import run, trained_on
from tests.runs import ended, evaluated, trained, write


def test_a_finished_run_has_its_numbers(tmp_path):
    one = outcome.read(run(tmp_path / "a", 3, 2.5))
    assert (one.name, one.state, one.seed, one.steps, one.finished) == ("a", "finished", 3, 40, True)
    assert (one.val_loss, one.best_val_loss, one.tokens, one.total_tokens) == (2.5, 2.5, 2560, 2560)
    assert (one.average_nonzeros, one.nonzeros, one.parameters, one.sparsity) == (24576, 24576, 34688, 0.0)
    assert (one.seconds, one.retries, one.before, one.layers, one.tasks) == (12.5, 0, (), {}, {})
    assert one.evaluation == "8 windows of 32 tokens of stdlib, bytes, 0.05 for validation"


def test_the_checksum_of_the_data_is_that_of_the_journal(tmp_path):
    folder = run(tmp_path / "a", 1, 2.5)
    assert (outcome.read(folder).checksum, outcome.read(folder).data) == ("", "stdlib, bytes, 0.05 for validation")
    trained_on(folder, "41ed1a3083f8" + 52 * "0")
    one = outcome.read(folder)
    assert (one.checksum, one.data, one.evaluation) == (
        "sha256 41ed1a3083f8",
        "stdlib, bytes, 0.05 for validation, sha256 41ed1a3083f8",
        "8 windows of 32 tokens of stdlib, bytes, 0.05 for validation, sha256 41ed1a3083f8",
    )
    write(folder, ("resume", 40, {}, {"config": {"seed": 1}, "data": "3" * 64}))
    assert outcome.read(folder).checksum == "sha256 333333333333 and 41ed1a3083f8"
    trained_on(run(tmp_path / "b", 1, 2.5, evaluate=False), "a" * 64)
    assert outcome.read(tmp_path / "b").checksum == "sha256 aaaaaaaaaaaa of the training split alone"


def test_a_run_that_is_not_finished_has_no_result(tmp_path):
    one = outcome.read(run(tmp_path / "a", 1, 2.5, status="interrupted"))
    assert (one.state, one.finished, one.val_loss, one.steps) == ("interrupted", False, None, 20)


def test_curves_have_every_point_of_a_short_run(tmp_path):
    one = outcome.read(write(tmp_path / "a", *trained(1, 2, 3), evaluated(3, 1.5), config={"seed": 1, "max_iters": 3}))
    assert {name: (steps.tolist(), values.tolist()) for name, (steps, values) in one.curves.items()} == {
        "train_loss": ([1, 2, 3], [8.0, 4.0, 8 / 3]),
        "learning_rate": ([1, 2, 3], [0.5] * 3),
        "sparsity": ([1, 2, 3], [0.0] * 3),
        "tokens": ([1, 2, 3], [64.0, 128.0, 192.0]),
        "val_loss": ([3], [1.5]),
        "seconds": ([1, 2, 3], [1.0, 2.0, 4.0]),  # one between two records; the evaluation is at step 3
    }


def test_curves_of_long_runs_are_thinned_to_the_same_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "MOST", 5)
    folder = write(tmp_path / "a", *trained(*range(1, 18)), config={"seed": 1, "max_iters": 17})
    steps, values = outcome.read(folder).curves["train_loss"]
    assert steps.tolist() == [1, 5, 9, 13, 17]
    assert values.tolist() == [8.0, 8 / 5, 8 / 9, 8 / 13, 8 / 17]


def test_steps_that_a_resume_withdrew_do_not_count(tmp_path):
    first = ("train", 3, {"train_loss": 9.0}, {})
    again = ("train", 3, {"train_loss": 2.0}, {})
    folder = write(tmp_path / "a", *trained(1, 2), first, ("resume", 2, {}, {"config": {"seed": 1}}), again)
    steps, values = outcome.read(folder).curves["train_loss"]
    assert (steps.tolist(), values.tolist()) == ([1, 2, 3], [8.0, 4.0, 2.0])


@pytest.mark.parametrize("loss", ["NaN", "Infinity"])
def test_a_loss_that_is_nan_or_infinite_is_kept(tmp_path, loss):
    folder = write(tmp_path / "a", *trained(1), ended(1, final_val_loss=float(loss)), config={"seed": 1})
    assert np.array_equal(outcome.read(folder).val_loss, float(loss), equal_nan=True)


def test_damage_is_one_sentence(tmp_path):
    folder = run(tmp_path / "a", 1, 2.0)
    lines = (folder / "journal.jsonl").read_text().splitlines()
    start = json.loads(lines[0]) | {"schema": 99}
    (folder / "journal.jsonl").write_text("\n".join([json.dumps(start, separators=(",", ":")), *lines[1:]]) + "\n")
    with pytest.raises(
        outcome.VersionError, match=r"journal.jsonl: is a journal of version 99, and this program reads"
    ):
        outcome.read(folder)
    (folder / "journal.jsonl").write_text("\n".join(lines[1:]) + "\n")
    with pytest.raises(UserError, match=r"journal.jsonl: is damaged: it has no complete record of a start"):
        outcome.read(folder)
