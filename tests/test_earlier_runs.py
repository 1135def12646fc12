"""Runs of earlier versions go on: a killed one, kept in fixtures/ as version 0.1.0 left it, ends as it would have.

`fixtures/whole-run.json` has what the same version got without the kill.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from lib.record import checkpoint, provenance
from tests.training import losses, records, train

FIXTURES = Path(__file__).parent / "fixtures"


def weights_sha256(path):
    """Of all weights in a checkpoint, by name."""
    found = hashlib.sha256()
    for name, weight in sorted(checkpoint.load(path)["model"].items()):
        found.update(name.encode() + weight.contiguous().numpy().tobytes())
    return found.hexdigest()


def test_a_killed_run_of_an_earlier_version_ends_as_it_would_have(tmp_path):
    run = tmp_path / "runs" / "killed"
    shutil.copytree(FIXTURES / "killed-run", run)
    before = (run / "journal.jsonl").read_text()
    output = train(tmp_path, "--resume", "runs/killed")
    assert "resuming runs/killed after step 40, repeating 8 recorded events\n" in output
    assert (run / "journal.jsonl").read_text().startswith(before)

    whole = json.loads((FIXTURES / "whole-run.json").read_text())
    found = {step: loss for step, loss in losses(run).items() if step > 40}
    evaluated = {r["step"]: r["metrics"]["val_loss"] for r in records(run, "eval") if r["step"] > 40}
    of_old = {name: {int(step): loss for step, loss in whole[name].items()} for name in ("train_loss", "val_loss")}
    if provenance.environment()["cpu"] == whole["cpu"]:  # on another one, rounding differs
        assert (found, evaluated) == (of_old["train_loss"], of_old["val_loss"])
        assert weights_sha256(run / "checkpoints" / checkpoint.name(60)) == whole["weights_sha256"]
    else:
        assert found == pytest.approx(of_old["train_loss"], rel=5e-4)
        assert evaluated == pytest.approx(of_old["val_loss"], rel=5e-4)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["sparsity"]) == ("finished", 60, 0.5)
    table = (run / "metrics.csv").read_text()
    assert table.startswith((FIXTURES / "killed-run" / "metrics.csv").read_text())
    # Every value of 68 rows once. Those of this version have more: val_bits_per_byte, and counts of the masks.
    assert table.count("\n") == 608
