"""The dry run of a sweep: what it counts, what it measures, and that it leaves nothing behind."""

import argparse
import contextlib
import dataclasses
import io
from pathlib import Path

import pytest

from lib.compare import estimate, sweep
from lib.config.kconf import Schema

HEAD = "defconfig gpt2_tiny\nseeds 1 2\ncommon TRACKER=none MAX_ITERS=100 BATCH_SIZE=4 GRADIENT_ACCUMULATION=2"
LENGTHS = " BLOCK_SIZE=32 EVAL_INTERVAL=30 EVAL_SAMPLES=10 CHECKPOINT_INTERVAL=50 CHECKPOINT_KEEP=3 WARMUP_STEPS=1\n"


@dataclasses.dataclass
class Cost:
    step: float = 0.5
    window: float = 0.1
    checkpoint: int = 1_000_000


@pytest.fixture
def read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def read(*lines, head=HEAD):
        Path("few").write_text(head + LENGTHS + "".join(f"{line}\n" for line in lines))
        return sweep.read(Path("few"))

    return read


def test_runs_are_grouped_by_what_they_cost(read):
    measured = []

    def measure(schema):
        measured.append(schema["OPTIMIZER"])
        return Cost()

    plan = read("dense", "half PRUNING_METHOD=magnitude TARGET_SPARSITY=0.5", "sgd OPTIMIZER=sgd", "long MAX_ITERS=200")
    (plan.folder / "dense-seed1").mkdir(parents=True)
    (plan.folder / "dense-seed1/summary.json").write_text("{}")
    parts = estimate.parts(plan.runs(), [], measure, 2.0)
    assert measured == ["adamw", "sgd"]
    # Evaluations: before step 1 and after steps 30, 60, 90 and 100, of 10 windows each.
    assert [(part.label, part.steps, len(part.runs), part.left, part.tokens) for part in parts] == [
        ("adamw 4x160", 100, 4, 3, 100 * 4 * 2 * 32),
        ("sgd 4x160", 100, 2, 2, 25_600),
        ("adamw 4x160", 200, 2, 2, 51_200),
    ]
    assert parts[0].seconds == pytest.approx(2 + 100 * 0.5 + 5 * 10 * 0.1)
    assert [part.disk for part in parts] == [3_000_000, 3_000_000, 4_000_000]  # 2 or 3 newest, and the best
    shown = estimate.text(plan, parts, 2, lambda folder: 10**12)
    assert "few: 8 runs: 4 configurations x 2 seeds. Finished: 1." in shown
    assert "disk: at most 23.0 MB" in shown and "with JOBS=2" in shown and "estimate" in shown
    assert "time: about 4:12" in shown  # (3 x 57 + 2 x 57 + 2 x 110) / 2 seconds
    assert "warning" not in shown


def test_rows_of_equal_label_and_length_are_told_apart(read):
    plan = read(
        "dense",
        "wanda from=@dense oneshot PRUNING_METHOD=wanda TARGET_SPARSITY=0.5",
        "a-long-name-of-a-retrained-one from=@wanda PRUNING_METHOD=given CHECKPOINT_KEEP=1",
        "sgd OPTIMIZER=sgd",
        "also CHECKPOINT_KEEP=1",
        "long MAX_ITERS=200",
    )
    parts = estimate.parts(plan.runs(), [], lambda schema: Cost(), 1.0)
    shown = estimate.text(plan, parts, 1, lambda folder: 10**12)
    rows = [line[:28].rstrip() for line in shown.splitlines() if " 4x160" in line or line.startswith("~")]
    assert rows == [
        "adamw 4x160: dense",
        "oneshot 4x160",
        "~-name-of-a-retrained-one +1",
        "sgd 4x160",
        "adamw 4x160",
    ]
    assert "?: not in the time; one-shot pruning has no steps that repeat" in " ".join(shown.split())


def test_checkpoints_that_are_kept(read):
    plan = read("a CHECKPOINT_AT=20,100", "b CHECKPOINT_INTERVAL=0 CHECKPOINT_BEST=n")
    assert [estimate.kept(one.schema()) for one in plan.configurations] == [2 + 1 + 1, 1]


def test_two_hundred_runs_are_readable_and_dropped_points_have_reasons(read):
    plan = read(
        "matrix PRUNING_METHOD=none,magnitude,state OPTIMIZER=adamw,sgd TARGET_SPARSITY=0.5..0.9:0.1 SEED=1..15",
        head=HEAD.replace("seeds 1 2\n", ""),
    )
    shown = estimate.text(plan, estimate.parts(plan.runs(), [], lambda schema: Cost(), 1.0), 1, lambda folder: 10)
    lines = shown.splitlines()
    assert len(plan.runs()) > 200 and len(lines) < 40 and max(map(len, lines)) <= 80
    assert "dropped: state-sgd: PRUNING_METHOD=state needs OPTIMIZER other than sgd or muon" in shown
    assert "warning: 0.0 MB are free at" in shown


def test_a_dry_run_measures_real_steps_and_leaves_nothing(read, tmp_path, monkeypatch):
    from gpt2 import calibrate
    from scripts import sweep as program

    plan = read("dense N_LAYER=1 N_HEAD=1 N_EMBD=16")
    monkeypatch.setattr(calibrate, "start", lambda: 1.0)  # a new process takes seconds
    monkeypatch.setattr(calibrate, "_SECONDS", 0.02)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        program.dry_run(plan, argparse.Namespace(jobs=1, engine="local", fresh=True, baseline=""))
    assert "few: 2 runs: 1 configuration x 2 seeds" in output.getvalue()
    assert [path.name for path in tmp_path.iterdir()] == ["few"]
    cost = calibrate.cost(plan.configurations[0].resolve(Schema()))
    assert 0 < cost.window < cost.step < 10
    parameters = 256 * 16 + 32 * 16 + 12 * 16 * 16 + 13 * 16 + 2 * 16  # tokens, positions, matrices, vectors, last norm
    assert 12 * parameters < cost.checkpoint < 12 * parameters + 200_000  # weights, two moments, what else it holds
