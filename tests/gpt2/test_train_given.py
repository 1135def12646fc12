"""Whole runs under given masks: zeros of the start that stay, kills, two ranks, retries, rewinding, bad masks."""

import json
import os

import pytest
import torch

from gpt2 import train as program
from gpt2.weights import masks
from lib.base.errors import UserError
from lib.record import checkpoint, journal, lineage
from tests import training
from tests.forked import Trainer
from tests.gpt2.test_divergence import alerts, poison
from tests.gpt2.test_train import assert_same, wait_for_step
from tests.training import TEXT, arguments, records, start, train

TOTAL = 2 * 12 * 32 * 32  # weights in the blocks' matrices


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A run of 20 steps that was pruned to 50 %, and a dense one."""
    folder = tmp_path_factory.mktemp("pruned")
    short = {"max_iters": 20, "tracker": "none"}
    pruning = {"pruning_method": "magnitude", "pruning_interval": 2, "checkpoint_at": 5}
    train(folder, *arguments(**short, **pruning, tracker_run_name="pruned"))
    train(folder, *arguments(**short | {"max_iters": 1}, tracker_run_name="dense"))
    return folder / "runs/pruned"


def given(pruned, **changes):
    """The words of a run that trains what `pruned` is."""
    values = {"pruning_method": "given", "init_from": pruned, "tracker": "none"} | changes
    return arguments(**values)


def weights(run, step=None):
    """The blocks' matrices in a checkpoint of `run`, the newest or that of `step`."""
    found = checkpoint.find(run / "checkpoints")
    path = found[-1] if step is None else run / "checkpoints" / f"step-{step:09d}.pt"
    model = checkpoint.load(path)["model"]
    return {name: w for name, w in model.items() if name.startswith("h.") and w.dim() == 2}


def assert_zeros(run, of):
    """`run` has zeros exactly where the newest checkpoint of `of` has them: half of all."""
    mine, theirs = weights(run), weights(of)
    assert sum(int((w == 0).sum()) for w in theirs.values()) == TOTAL / 2
    for name, w in mine.items():
        assert torch.equal(w == 0, theirs[name] == 0), name
        assert not torch.equal(w, theirs[name])


def test_a_killed_run_keeps_the_zeros_of_its_start_bit_for_bit(pruned, tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    train(tmp_path / "whole", *given(pruned, optimizer="muon"))
    process = start(tmp_path / "killed", *given(pruned, optimizer="muon"))
    whole, killed = (tmp_path / name / "runs/run" for name in ("whole", "killed"))
    wait_for_step(killed, 23)
    process.kill()
    process.communicate()
    train(tmp_path / "killed", "--resume", "runs/run")
    mine, theirs = journal.history(killed), journal.history(whole)
    assert mine.keys() == theirs.keys()
    for key in mine:
        speed = {"tokens_per_second": None}
        assert mine[key]["metrics"] | speed == theirs[key]["metrics"] | speed, key
    a, b = (checkpoint.load(run / "checkpoints/step-000000040.pt") for run in (killed, whole))
    for name in ("model", "optimizer", "pruner", "random"):
        assert_same(a[name], b[name])
    assert_zeros(whole, pruned)
    for (event, step), record in theirs.items():
        if event == "train":
            metrics = record["metrics"]
            assert (metrics["sparsity"], metrics["average_nonzeros"], metrics["mask_flips"]) == (0.5, TOTAL / 2, 0), (
                step
            )
            assert "mask_overlap_magnitude" not in metrics
    assert journal.history(whole)["eval", 0]["metrics"]["sparsity/h.0.attn.c_attn"] == pytest.approx(
        float((weights(pruned)["h.0.attn.c_attn.weight"] == 0).float().mean()), abs=1e-6
    )
    assert json.loads((whole / "summary.json").read_text())["sparsity"] == 0.5


def test_two_ranks_keep_the_zeros_of_their_start(pruned, tmp_path):
    (tmp_path / "corpus.txt").write_text(TEXT)
    words = given(pruned, dropout=0, max_iters=10)
    common = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "7", "SLURM_STEP_NUM_TASKS": "2"}
    common |= {**training.environment(), "SLURM_STEP_NODELIST": "localhost"}
    tasks = [Trainer(tmp_path, words, {**common, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}) for rank in "01"]
    outputs = [task.communicate(60)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs
    assert_zeros(tmp_path / "runs/run", pruned)
    (tmp_path / "one").mkdir()
    train(tmp_path / "one", *words)
    mine, theirs = (training.losses(tmp_path / name) for name in ("runs/run", "one/runs/run"))
    assert mine == pytest.approx(theirs, abs=1e-5)


def test_a_retry_from_the_beginning_has_the_masks_again(pruned, folder):
    (folder / "corpus.txt").write_text(TEXT)
    with poison(folder, (3,), times=1):
        assert program.train(given(pruned, retries=1, checkpoint_interval=0, max_iters=12)) == 0
    assert alerts(folder / "runs/run", "nan", "finished") == [("nan", 2), ("finished", 12)]
    assert [record["step"] for record in records(folder / "runs/run", "resume")] == [0]
    assert_zeros(folder / "runs/run", pruned)


def test_steps_that_are_skipped_leave_the_zeros(pruned, folder):
    (folder / "corpus.txt").write_text(TEXT)
    with poison(folder, (1, 6, 7)):
        assert program.train(given(pruned, nan_policy="skip", nan_skip_limit=4, max_iters=12)) == 0
    assert alerts(folder / "runs/run", "skipped") == [("skipped", 1), ("skipped", 6), ("skipped", 7)]
    assert_zeros(folder / "runs/run", pruned)


def test_a_lottery_ticket_is_an_early_checkpoint_under_the_masks_of_a_later_one(pruned, tmp_path):
    words = given(f"{pruned}@5", init_masks=pruned, max_iters=1, warmup_steps=0, learning_rate=1e-12, min_lr=0)
    train(tmp_path, *words)
    early, late, mine = weights(pruned, 5), weights(pruned), weights(tmp_path / "runs/run")
    for name, w in mine.items():
        kept = late[name] != 0
        assert torch.equal(w != 0, kept), name
        torch.testing.assert_close(w[kept], early[name][kept], rtol=0, atol=1e-9)
        assert not torch.equal(w[kept], late[name][kept])


def test_masks_of_a_file_hold_for_random_weights(pruned, tmp_path):
    masks.write(tmp_path / "own.safetensors", masks.zeros(weights(pruned)))
    words = given(None, init_masks=tmp_path / "own.safetensors", max_iters=3)
    assert "target sparsity is reached" not in train(tmp_path, *words)  # it was given
    assert_zeros(tmp_path / "runs/run", pruned)


def test_the_masks_of_a_run_are_read_with_what_the_journal_says_of_them(pruned):
    found, record = masks.read(str(pruned))
    assert {name: int(mask.sum()) for name, mask in found.items()} == {
        name: int((w != 0).sum()) for name, w in weights(pruned).items()
    }
    run_id = json.loads((pruned / "run.json").read_text())["run_id"]
    path = pruned / "checkpoints/step-000000020.pt"
    assert record | {"sha256": None} == {
        "from": str(pruned),
        "path": str(path),
        "sha256": None,
        "ancestors": {run_id: 20 * 4 * 2 * 32},
        "flops": lineage.flops(pruned, 20, records(pruned, "train")[-1]["metrics"]["average_nonzeros"]),
    }
    assert record["flops"][run_id][0] == 20 * 4 * 2 * 32 * 226_560  # see test_train_from


def test_a_run_that_was_never_pruned_has_no_masks(pruned):
    with pytest.raises(UserError) as raised:
        masks.read(str(pruned.parent / "dense"))
    (sentence,) = raised.value.args
    assert "has no masks, because nothing was pruned there; name a pruned run" in sentence


@pytest.mark.parametrize("case", ["dense", "never pruned", "other shape", "absent", "no start"])
def test_masks_that_cannot_be_used_leave_no_run(pruned, tmp_path, case):
    other = tmp_path / "other.safetensors"
    masks.write(other, {"h.0.mlp.c_fc.weight": torch.zeros(64, 16, dtype=torch.uint8)})
    dense = pruned.parent / "dense"
    words, sentence = {
        "dense": (given(dense), "INIT_MASKS=zeros: the weights of INIT_FROM have no zeros in PRUNING_SCOPE"),
        "never pruned": (given(dense, init_masks=dense), "has no masks, because nothing was pruned there"),
        "other shape": (
            given(pruned, init_masks=other),
            "h.0.mlp.c_fc.weight is [64, 16], but the weight is [128, 32]",
        ),
        "absent": (given(pruned, init_masks="x.safetensors"), "x.safetensors: the masks cannot be read: No such file"),
        "no start": (given(None), "INIT_MASKS=zeros takes the zeros of trained weights, but INIT_FROM is empty"),
    }[case]
    (tmp_path / "corpus.txt").write_text(TEXT)
    process = start(tmp_path, *words)
    output = process.communicate(60)[0]
    assert process.returncode in (1, 2), output
    assert output.count("error:") == 1
    assert sentence in output
    assert not (tmp_path / "runs").exists()
