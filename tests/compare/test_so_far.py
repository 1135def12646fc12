"""What came of a sweep is in its folder from the start, and after the sweep is killed."""

import json
import re
import time

import psutil
import pytest

from lib.base import files
from lib.compare import comparison, sweep, table, tuning
from lib.compare.so_far import SoFar
from tests.compare.test_sweep import COMMON, start, write
from tests.forked import run as program
from tests.runs import ended, trained
from tests.runs import write as write_run


def report(folder):
    done = program(folder, "scripts/report.py", "runs/few")
    return done.returncode, done.stdout + done.stderr


def finished(home):
    """The runs that are finished in results.json; None before it is there."""
    if not (home / "results.json").exists():
        return None
    rows = json.loads((home / "results.json").read_text())["configurations"]
    return [f"{row['configuration']}-seed{run['seed']}" for row in rows for run in row["runs"] if run["finished"]]


def wait(process, condition):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_a_report_of_a_killed_sweep_has_the_finished_runs_and_names_the_others(tmp_path):
    write(tmp_path, f"common {COMMON} MAX_ITERS=10", "dense", "still WEIGHT_DECAY=0")
    home = tmp_path / "runs/few"
    process = start(tmp_path)
    wait(process, lambda: finished(home) == [])
    code, said = report(tmp_path)
    assert code == 1
    assert re.fullmatch(r"error: few: no run (can be reported; |is finished, so there is nothing).*\n", said)
    wait(process, lambda: finished(home) == ["dense-seed1"])
    trainers = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    for trainer in trainers:  # of the next run; it would go on
        trainer.kill()
    code, said = report(tmp_path)
    assert code == 0, said
    notes = re.findall(r"^note: (?:Not begun|Not finished), so not .*", said, re.MULTILINE)
    named = sorted(re.findall(r"\S+-seed\d", " ".join(notes)))
    assert named == ["dense-seed2", "still-seed1", "still-seed2"] or named == ["dense-seed2", "still-seed2"]
    assert "| dense         | 1 of 2 |" in (home / "table.md").read_text()


def test_a_run_that_is_trained_is_not_called_short(tmp_path):
    write(tmp_path, "dense", head="defconfig gpt2_tiny\nseeds 1 2\ncommon OUTPUT_DIR=" + str(tmp_path) + "/runs\n")
    plan = sweep.read(tmp_path / "few")
    folder = write_run(plan.folder / "dense-seed1", *trained(1, 2))
    (folder / "lock").touch()
    with files.held(folder, "training"):
        found = SoFar(plan).write()
    assert found == json.loads((plan.folder / "results.json").read_text())
    notes = (plan.folder / "table.md").read_text().splitlines()
    assert "- Still in training, so not in these figures: dense-seed1 (2 of 40 steps)." in notes
    assert "- Not finished, so not in these figures: dense-seed2." in notes
    SoFar(plan).write()
    notes = (plan.folder / "table.md").read_text()
    assert "- Shorter than planned, so never ranked and not in these figures: dense-seed1 (2 of 40 steps)." in notes


def test_a_finished_run_is_read_once(tmp_path, monkeypatch):
    write(tmp_path, "dense", head="defconfig gpt2_tiny\nseeds 1 2\ncommon OUTPUT_DIR=" + str(tmp_path) + "/runs\n")
    plan = sweep.read(tmp_path / "few")
    keeper, read = SoFar(plan), []
    summary = comparison.history.summary
    monkeypatch.setattr(comparison.history, "summary", lambda folder: read.append(folder.name) or summary(folder))
    for name in ("dense-seed1", "dense-seed2"):
        folder = write_run(plan.folder / name, *trained(1), ended(1))
        (folder / "summary.json").write_text(json.dumps(dict.fromkeys(comparison._SUMMARY.values(), 2.5)))
        found = keeper.write()
    assert read == ["dense-seed1", "dense-seed2"]
    assert found == SoFar(plan).write()
    assert [run["finished"] for run in found["configurations"][0]["runs"]] == [True, True]


def test_what_a_matrix_drops_is_told_with_its_reason_in_the_table_and_in_the_report(tmp_path):
    lines = f"common OUTPUT_DIR={tmp_path}/runs", "matrix OPTIMIZER=adamw,sgd PRUNING_METHOD=none,state"
    write(tmp_path, *lines, head="defconfig gpt2_tiny\nseeds 1\n")
    plan = sweep.read(tmp_path / "few")
    found = SoFar(plan).write()  # its folder is made, because all runs may be those of other folders
    why = "PRUNING_METHOD=state needs OPTIMIZER other than sgd or muon"
    assert found["dropped"] == {why: ["sgd-state"]}
    note = f"Dropped from the matrix: sgd-state: {why}."
    assert f"- {note}" in (plan.folder / "table.md").read_text().splitlines()
    assert list(table.dropped(found)) == [note]


@pytest.mark.extra("optuna")
def test_no_trial_is_chosen_while_others_are_trained(tmp_path):
    lines = (f"common OUTPUT_DIR={tmp_path}/runs", "dense", "tune 2 LEARNING_RATE=log:1e-3:1e-2 seeds 101")
    write(tmp_path, *lines, head="defconfig gpt2_tiny\nseeds 1\n")
    plan = sweep.read(tmp_path / "few")
    keeper = SoFar(plan, trials=True)
    assert [row["val_loss"] for row in keeper.write()["tuning"]["trials"]] == [None, None]
    first = write_run(tuning.stage(plan).runs()[0].folder, *trained(1), ended(1))
    (first / "summary.json").write_text('{"final_val_loss": 2.5}')
    kept = keeper.write()
    assert [row["state"] for row in kept["tuning"]["trials"]] == ["finished", "unfinished"]
    assert not [note for note in tuning.notes(kept["tuning"]) if "not equally tuned" in note]
    assert kept == json.loads((plan.folder / "results.json").read_text())
    assert [(row["losses"], row["val_loss"], row["chosen"]) for row in kept["tuning"]["trials"]] == [
        ([2.5], 2.5, False), ([None], None, False)
    ]  # fmt: skip
    assert [row["chosen"] for row in SoFar(plan).write()["tuning"]["trials"]] == [True, False]
