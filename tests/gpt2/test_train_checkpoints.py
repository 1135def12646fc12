"""Checkpoints of whole runs: which are kept, what is sampled from, and what a damaged one leads to."""

import json
import shutil

import pytest
import torch

from gpt2 import loop
from gpt2.session import Session
from lib.machine import device
from lib.record import checkpoint, history, journal
from tests.gpt2.test_train import wait_for_step
from tests.training import Records, arguments, losses, rewrite, schema, start, train


def names(run):
    return [path.name for path in checkpoint.find(run / "checkpoints")]


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory):
    """A run whose validation loss rises in the end: the rate is wild after step 24."""
    folder = tmp_path_factory.mktemp("overfitted")
    train(
        folder,
        *arguments(max_iters=24, eval_interval=8, checkpoint_keep=1, checkpoint_best=True, lr_schedule="constant"),
    )
    words = ["MAX_ITERS=30", "LEARNING_RATE=3", "GRAD_CLIP=0", "CHECKPOINT_INTERVAL=3"]
    train(folder, "--resume", "runs/run", *words)
    return folder


def test_the_best_checkpoint_is_kept_and_sampled_from(overfitted, program, folder):
    run = overfitted / "runs/run"
    evaluations = {s: r["metrics"]["val_loss"] for (e, s), r in journal.history(run).items() if e == "eval"}
    assert min(evaluations, key=evaluations.get) == 24
    assert evaluations[30] > evaluations[24]
    assert names(run) == [checkpoint.name(24), checkpoint.name(30)]
    state = checkpoint.load(run / "checkpoints" / checkpoint.name(30))
    assert state["best"] == {"step": 24, "val_loss": evaluations[24], "sparsity": 0.0}
    for which, step in (("best", 24), ("newest", 30), ("24", 24)):
        done = program("gpt2/sample.py", "--run", str(run), "--checkpoint", which, "SAMPLE_TOKENS=3")
        assert (done.returncode, done.stderr) == (0, f"{run}, {checkpoint.name(step)[:-3]}\n")


def test_the_best_of_a_pruned_run_is_of_its_final_sparsity(tmp_path):
    """In its checkpoints, summary, final metrics, and what lists runs. The dense best has a name of its own."""
    options = {"pruning_method": "magnitude", "target_sparsity": 0.95, "pruning_interval": 1, "pruning_end": 0.9}
    options |= {"pruning_warmup": 0.5, "learning_rate": 0.01}
    output = train(tmp_path, *arguments(checkpoint_best=True, eval_interval=2, checkpoint_interval=0, **options))
    run = tmp_path / "runs/run"
    best = checkpoint.load(run / "checkpoints" / checkpoint.name(40))["best"]
    assert best["sparsity"] == pytest.approx(0.95, abs=1e-4)
    rows = [row for (event, _), row in journal.history(run).items() if event == "eval"]
    losses = {row["step"]: row["metrics"]["val_loss"] for row in rows}
    after = [loss for step, loss in losses.items() if step >= 36]
    before = [losses[row["step"]] for row in rows if row["sparsity"] == 0.0]
    assert (best["val_loss"], losses[best["step"]]) == (min(after), min(after))
    assert checkpoint.name(best["step"]) in names(run)
    assert min(before) < min(after)  # so that it matters
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["best_val_loss"], summary["dense_best_val_loss"]) == (min(after), min(before))
    assert f" {min(after):.4f} best, in nats" in output
    [finish] = [r for r in journal.read(run) if r["event"] == "finish"]
    assert finish["metrics"]["best_val_loss"] == min(after)
    # Earlier versions recorded no sparsity with an evaluation.
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    for read in (history.load, history.skim):
        assert read(run).best() == min(after)
    text = "".join(json.dumps({k: v for k, v in line.items() if k != "sparsity"}) + "\n" for line in lines)
    (run / "journal.jsonl").write_text(text.replace('": ', '":').replace(', "', ',"'))
    for read in (history.load, history.skim):
        assert read(run).best() == min(after)


def test_the_best_has_a_checkpoint_where_the_sparsity_comes_back(tmp_path, monkeypatch):
    made = schema(tmp_path, max_iters=3, eval_interval=1, checkpoint_best=True, checkpoint_interval=0)
    session = Session(made, device.choose(made.bind(device.SystemOptions)))
    training, sparsities = session.training, {1: 0.50000, 2: 0.50020, 3: 0.50009}
    monkeypatch.setattr(training.pruner, "sparsity", lambda: sparsities[training.step])
    monkeypatch.setattr(loop, "validation_loss", lambda *_: float(training.step))  # it rises
    one, folder, found = (
        checkpoint.Keeping(checkpoint_keep=1, checkpoint_best=True, checkpoint_at=""),
        tmp_path / "checkpoints",
        [],
    )
    folder.mkdir()

    class Recorder(Records):
        def save(self, step):
            checkpoint.save(folder, step, training.state_dict(), one, {})
            found.append((training.best.step, [path.name for path in checkpoint.find(folder)]))

    options = made.bind(loop.LoopOptions)
    loop.train(training, session.data, session.machine, options, session.schedule, Recorder(), lambda: False)
    assert found == [(step, [checkpoint.name(step)]) for step in (1, 2, 3)]


def test_a_checkpoint_of_an_earlier_version_knows_its_best(tmp_path):
    train(tmp_path, *arguments(max_iters=20))
    path = tmp_path / "runs/run/checkpoints" / checkpoint.name(20)
    state = checkpoint.load(path)
    best = {"step": 10, "val_loss": 0.5, "sparsity": 0.0}
    state = {name: value for name, value in state.items() if name != "evaluations"}
    rewrite(path, state | {"best": best, "best_val_loss": 0.25})
    train(tmp_path, "--resume", "runs/run", "MAX_ITERS=30")
    state = checkpoint.load(path.with_name(checkpoint.name(30)))
    assert state["best"] == best
    assert [step for step, _, _ in state["evaluations"]] == [10, 20, 30]


def test_a_damaged_checkpoint_is_not_passed_over_silently(tmp_path):
    """The one before it is offered by name; taken, the run ends as if nothing had happened."""
    train(tmp_path, *arguments())
    run, whole = tmp_path / "runs/run", losses(tmp_path / "runs/run")
    path = run / "checkpoints" / checkpoint.name(40)
    final = checkpoint.load(path)["model"]
    (run / "summary.json").unlink()
    damaged = bytearray(path.read_bytes())
    damaged[123_456] ^= 4
    path.write_bytes(damaged)
    before = (run / "journal.jsonl").read_bytes()
    output = train(tmp_path, "--resume", "runs/run", code=1)
    assert (
        "error: runs/run/checkpoints/step-000000040.pt: the checkpoint is damaged: its content does not match its "
        "checksum; to continue from step-000000030.pt, which is intact: "
        "mkdir -p runs/run/damaged && mv runs/run/checkpoints/step-000000040.pt runs/run/damaged && "
        "make resume RUN=runs/run\n"
    ) in output
    assert (run / "journal.jsonl").read_bytes() == before
    assert names(run) == [checkpoint.name(30), checkpoint.name(40)]
    path.unlink()
    train(tmp_path, "--resume", "runs/run")
    assert losses(run) == whole
    again = checkpoint.load(path)["model"]
    assert all((again[name] == final[name]).all() for name in final)


def test_an_evaluation_before_a_kill_counts_for_the_best_after_it(tmp_path):
    """The checkpoint that would have known of it was not written."""
    options = {"eval_interval": 0, "checkpoint_interval": 200, "checkpoint_keep": 9, "max_iters": 400}
    process = start(tmp_path, *arguments(checkpoint_best=True, **options))
    run = tmp_path / "runs/run"
    wait_for_step(run, 3)
    process.kill()
    process.communicate()
    assert names(run) == []
    train(tmp_path, "--resume", "runs/run")
    first = journal.history(run)["eval", 0]["metrics"]["val_loss"]
    state = checkpoint.load(run / "checkpoints" / checkpoint.name(200))
    assert state["best"] == {"step": 0, "val_loss": first, "sparsity": 0.0}
    assert state["evaluations"] == [[0, first, 0.0]]


def test_a_random_state_that_cannot_be_restored_is_said(tmp_path):
    """The checkpoint is as of a run on a GPU. Without dropout nobody draws, and nothing is said."""
    train(tmp_path, *arguments(max_iters=10))
    path = tmp_path / "runs/run/checkpoints" / checkpoint.name(10)
    state = checkpoint.load(path)
    rewrite(path, state | {"random": state["random"] | {"cuda": torch.zeros(16, dtype=torch.uint8)}})
    note = "note: the random state of cpu cannot be restored, since the checkpoint was made on cuda; from here on "
    assert note in train(tmp_path, "--resume", "runs/run", "MAX_ITERS=12")
    path.with_name(checkpoint.name(12)).unlink()
    assert note not in train(tmp_path, "--resume", "runs/run", "MAX_ITERS=14", "DROPOUT=0")


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    train(tmp_path, *arguments(max_iters=10))
    shutil.copytree(tmp_path / "runs/run", tmp_path / "other")
    text = (tmp_path / "other/run.json").read_text()
    own = text.replace('"run_id": "', '"run_id": "0')
    (tmp_path / "other/run.json").write_text(own)
    output = train(tmp_path, "--resume", "other", "MAX_ITERS=20", code=1)
    assert "step-000000010.pt: the checkpoint is of another run: 'run', 'custom, 0.03 M parameters'; " in output
