"""The benchmark of a sweep copies a run so that the sweep takes it as its own; no test measures a speed."""

import json
from pathlib import Path

from bench import sweeps
from lib.compare import sweep
from tests.runs import ended, evaluated, trained, write

PARTS = (
    "in training", "read", "first table", "hand out", "picture", "next picture", "check", "data", "table", "next table",
    "verdicts",
)  # fmt: skip


def test_copies_of_a_run_are_the_finished_runs_of_a_sweep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = " ".join(f"{name}={value}" for name, value in sweeps._options("tiny").items())
    Path("one").write_text(f"defconfig gpt2_tiny\nseeds 1\ncommon {words}\ndense LEARNING_RATE=2e-3\n")
    (run,) = sweep.read(Path("one")).runs()
    schema, model = run.schema(), Path("runs/model")
    config = {name.lower(): value for name, value in schema.values().items()}
    write(model, *trained(1, 2, 3, 4, 5), evaluated(5, 2.5), ended(5), config=config)
    schema.write(model / ".config")
    options = {name: {"value": option.text, "source": ""} for name, option in schema.options.items()}
    (model / "provenance.json").write_text(json.dumps({"options": options, "packages": {}}))
    (model / "defconfig").touch()
    (model / "lock").touch()
    summary = dict.fromkeys(("sparsity", "average_nonzeros", "tokens", "total_time_seconds", "best_val_loss"), 1.0)
    (model / "summary.json").write_text(json.dumps({**summary, "steps": 5, "final_val_loss": 2.5}))
    found = sweeps._parts("tiny", 10, model)
    assert tuple(found) == PARTS
    assert found["in training"] == 10
    rows = [line.split("|")[1:3] for line in Path("runs/of10/table.md").read_text().splitlines()[2:4]]
    assert [[cell.strip() for cell in row] for row in rows] == [["1e-6", "5"], ["2e-6", "5"]]
