"""A sweep: words that it does not take, and its verdicts while other runs are trained."""

import argparse
import sys

import pytest

from lib.base.errors import UsageError
from lib.compare import sweep
from lib.compare.so_far import SoFar
from lib.engines import engine
from scripts import sweep as program
from scripts.sweep import so_far
from tests.compare.test_sweep import write
from tests.report.made import run


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("--nproc=2", f"NPROC=2: {engine.ALONE}"),
        ("--engine=bogus", "ENGINE=bogus: there is no such engine; use local, ray or slurm"),
        ("--detach", "DETACH: ENGINE=local has no such thing; give ENGINE=slurm, or leave DETACH out"),
        (
            "--gpus-per-run=some",
            "GPUS_PER_RUN=some: must be 0 (GPUs are not handed out), a share such as 0.5 or 0.25, or a whole number",
        ),
    ],
)
def test_words_that_a_sweep_does_not_take_are_refused_also_in_a_dry_run(monkeypatch, word, told):
    monkeypatch.setattr(sys, "argv", ["sweep.py", "few", word, "--dry-run"])
    with pytest.raises(UsageError) as caught:
        program.main()
    assert str(caught.value) == told


def test_a_dry_run_says_what_an_engine_needs(monkeypatch):
    monkeypatch.setattr(engine.extras, "missing", lambda name: [name])
    with pytest.raises(UsageError, match=r"^ENGINE=ray needs ray; run: .* -m pip install 'ray\[train\]=="):
        program.dry_run(None, argparse.Namespace(engine="ray"))


def test_there_are_verdicts_once_two_configurations_have_two_seeds(tmp_path):
    write(tmp_path, f"common OUTPUT_DIR={tmp_path}/runs", "dense", "still WEIGHT_DECAY=0", "late WEIGHT_DECAY=0.5")
    plan = sweep.read(tmp_path / "few")
    for name, seed, loss in [("dense", 1, 3.0), ("still", 1, 3.5), ("late", 1, 3.6), ("dense", 2, 3.02)]:
        run(plan.folder / f"{name}-seed{seed}", seed, loss)
    SoFar(plan).write()
    assert so_far(plan) == []
    run(plan.folder / "still-seed2", 2, 3.53)
    (sentence,) = so_far(plan)  # `late` has one seed
    assert sentence.startswith("still: worse than dense by 0.5050 nats (16.78 %), 95 % interval ")
    assert sentence.endswith(", n = 2.")
