"""Whole runs with a teacher: what is recorded and counted, kills, ranks, weights of 0, compiling, bad teachers."""

import hashlib
import json
import os
import shutil

import pytest

from gpt2 import calibrate, loop, pace
from gpt2.beginning import exact, new
from gpt2.session import Session
from lib.compare import difference
from lib.machine import device
from lib.record import checkpoint, journal, lineage, run
from tests import forked
from tests.forked import Trainer
from tests.gpt2.test_train import assert_same, wait_for_step
from tests.gpt2.test_train_from import FLOPS, NO_SHAPE, TOKENS
from tests.training import Records, arguments, environment, losses, records, rewrite, same, schema, start, train

KNOWN = 2 * 33_664 + 4 * 2 * 32 * 32  # operations of a forward pass of the teacher for a token: FLOPS / 3
LOSSES = ("train_loss", "distill_loss")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dense run of 40 steps, and one that began at its end and lost half of its weights at once."""
    folder = tmp_path_factory.mktemp("made")
    train(folder, *arguments(tracker_run_name="dense", tracker="none", checkpoint_at="20"))
    pruned = {"pruning_method": "magnitude", "target_sparsity": 0.5, "pruning_dynamics": "static", "max_iters": 1}
    train(folder, *retrain(**pruned, init_from="runs/dense", tracker_run_name="pruned", distill_from=None))
    return folder


@pytest.fixture
def home(made, tmp_path):
    """A copy of the runs and their data."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def retrain(**changes):
    """Flags of a run that retrains the pruned model with its dense teacher."""
    few = {"max_iters": 12, "checkpoint_interval": 4, "eval_interval": 6, "sample_tokens": 0, "tracker": "none"}
    given = {"init_from": "runs/pruned", "pruning_method": "given", "distill_from": "runs/dense"}
    return arguments(**{**NO_SHAPE, **few, **given, "tracker_run_name": "taught", **changes})


def metrics(folder, *names):
    """The values of these metrics in the `train` events of a run, step by step."""
    return [tuple(one["metrics"][name] for name in names) for one in records(folder, "train")]


def newest(folder):
    return checkpoint.load(checkpoint.find(folder / "checkpoints")[-1])


def test_the_run_says_who_taught_it_and_what_that_cost(home):
    output = train(home, *retrain())
    there, path = home / "runs/taught", home / "runs/dense/checkpoints/step-000000040.pt"
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    [started], dense = records(there, "start"), run.Identity.load(home / "runs/dense").run_id
    assert started["teacher"] == {
        "from": "runs/dense", "kind": "run", "path": str(path), "sha256": sha256, "revision": "", "step": 40,
        "ancestors": {dense: 40 * TOKENS}, "flops": {dense: [40 * TOKENS * FLOPS] * 2},
    }  # fmt: skip
    assert f"\nteacher     runs/dense at step 40 (sha256 {sha256[:12]})\n" in output
    assert json.loads((there / "provenance.json").read_text())["teacher"] == started["teacher"]
    assert started["learns"]["distillation"] == 1
    assert FLOPS == 3 * KNOWN
    assert (started["flops"]["training_per_token"], started["flops"]["teacher_per_token"]) == (FLOPS + KNOWN, KNOWN)
    summary = json.loads((there / "summary.json").read_text())
    assert summary["training_flops"] == 12 * TOKENS * (FLOPS + KNOWN)
    assert summary["training_flops_nonzeros"] == 12 * TOKENS * (FLOPS + KNOWN - 6 * 12_288)
    assert summary["teacher_flops"] == 12 * TOKENS * KNOWN
    # The dense run is an ancestor twice, and counts once: 40 steps of its own, one of `pruned`, and 12.
    assert summary["total_tokens"] == 53 * TOKENS
    assert summary["total_training_flops"] == (53 * FLOPS + 12 * KNOWN) * TOKENS
    assert summary["sparsity"] == 0.5


def test_the_first_loss_is_that_without_a_teacher_and_the_last_predictions_are_closer_to_his(home):
    train(home, *retrain(distill_weight=1))
    train(home, *retrain(tracker_run_name="plain", distill_from=None))
    taught, plain = (home / "runs" / name for name in ("taught", "plain"))
    assert losses(taught)[1] == losses(plain)[1]  # before the first update; dropout is the same
    found = metrics(taught, *LOSSES)
    assert all(kl > 0 for _, kl in found)
    assert found[-1][1] < 0.7 * found[0][1]
    assert "distill_loss" not in records(plain, "train")[0]["metrics"]
    shown = records(taught, "train")[0]["shown"]["distill_loss"]
    assert shown == {"label": "distill", "row": 2, "chart": 2}
    assert list(difference.unequal(*map(difference.Side.load, (taught, plain)))) == []


@pytest.mark.parametrize("pruning", [{}, {"pruning_method": "movement", "pruning_movement": "soft"}])
def test_a_weight_of_0_only_measures(made, tmp_path, pruning):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    few = {"max_iters": 8, "tracker": "none", **pruning}
    train(tmp_path, *arguments(**few, tracker_run_name="plain"))
    train(tmp_path, *arguments(**few, tracker_run_name="taught", distill_from="runs/dense@20", distill_weight=0))
    plain, taught = (tmp_path / "runs" / name for name in ("plain", "taught"))
    for name in ("model", "optimizer", "pruner", "random", "evaluations"):
        assert_same(newest(taught)[name], newest(plain)[name])
    assert losses(taught) == losses(plain)
    assert all(kl > 0 for (kl,) in metrics(taught, "distill_loss"))


def test_a_killed_run_goes_on_bit_for_bit_with_the_same_teacher(home):
    few = {"max_iters": 60, "eval_interval": 30}
    process = start(home, *retrain(**few))
    wait_for_step(home / "runs/taught", 9)
    process.kill()
    process.communicate()
    teacher = checkpoint.find(home / "runs/dense/checkpoints")[-1]
    before = teacher.read_bytes()
    state = checkpoint.load(teacher)
    rewrite(teacher, {**state, "train_seconds": state["train_seconds"] + 1})  # the same weights in other bytes
    refused = train(home, "--resume", "runs/taught", code=1)
    assert refused.startswith(f"error: {teacher}: has changed since the run began with it: its sha256 was ")
    teacher.unlink()
    assert train(home, "--resume", "runs/taught", code=1) == (
        f"error: {teacher}: is gone, and the run began with it; restore it, or start a new run\n"
    )
    teacher.write_bytes(before)
    refused = train(home, "--resume", "runs/taught", "DISTILL_FROM=runs/pruned", code=2)
    assert "DISTILL_FROM" in refused
    train(home, "--resume", "runs/taught")
    train(home, *retrain(**few, tracker_run_name="whole"))
    mine, theirs = (journal.history(home / "runs" / name) for name in ("taught", "whole"))
    assert mine.keys() == theirs.keys()
    for key in mine:
        assert journal.lasting(mine[key]["metrics"]) == journal.lasting(theirs[key]["metrics"]), key
    for name in ("model", "optimizer", "pruner", "random"):
        assert_same(newest(home / "runs/taught")[name], newest(home / "runs/whole")[name])


def test_a_resume_may_change_weight_and_temperature(home):
    train(home, *retrain())
    train(home, "--resume", "runs/taught", "MAX_ITERS=14", "DISTILL_WEIGHT=0.2", "DISTILL_TEMPERATURE=2")
    [resumed] = records(home / "runs/taught", "resume")
    assert resumed["changed"] == {
        "MAX_ITERS": ["12", "14"], "DISTILL_WEIGHT": ["0.67", "0.2"], "DISTILL_TEMPERATURE": ["1", "2"],
    }  # fmt: skip


def test_two_ranks_learn_from_the_same_teacher(home):
    words = retrain(dropout=0, max_iters=6)
    common = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "3", "SLURM_STEP_NUM_TASKS": "2"}
    common |= {**environment(), "SLURM_STEP_NODELIST": "localhost"}
    tasks = [Trainer(home, words, {**common, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}) for rank in "01"]
    outputs = [task.communicate(60)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs
    train(home, *retrain(dropout=0, max_iters=6, tracker_run_name="one"))
    one, two = (metrics(home / "runs" / name, *LOSSES) for name in ("one", "taught"))
    for mine, theirs in zip(two, one, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


def test_the_cut_of_a_step_changes_only_rounding(home):
    for name, cut in (("one", (8, 1)), ("four", (2, 4))):
        train(home, *retrain(tracker_run_name=name, batch_size=cut[0], gradient_accumulation=cut[1], dropout=0))
    one, four = (metrics(home / "runs" / name, *LOSSES) for name in ("one", "four"))
    for mine, theirs in zip(four, one, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


def test_a_larger_teacher_and_a_longer_context_will_do(home):
    changes = {"n_embd": 48, "n_head": 3, "block_size": 64, "max_iters": 2, "tracker": "none"}
    train(home, *arguments(**changes, tracker_run_name="large"))
    train(home, *arguments(max_iters=3, tracker="none", tracker_run_name="taught", distill_from="large"))
    # Width 48: a block has 12 x 2,304 + 13 x 48, two of them; 96 in the last norm; 256 x 48; attention 4 x 2 x 48 x 32.
    known = 2 * (2 * (27_648 + 624) + 96 + 12_288) + 12_288
    assert records(home / "runs/taught", "start")[0]["flops"]["teacher_per_token"] == known


def test_an_exported_teacher_teaches_the_same(home):
    done = forked.run(home, "scripts/export_model.py", "runs/dense", "--out", "there", environment=environment())
    assert done.returncode == 0, done.stderr
    train(home, *retrain(distill_from="there"))
    train(home, *retrain(tracker_run_name="same"))
    assert metrics(home / "runs/taught", *LOSSES) == metrics(home / "runs/same", *LOSSES)


WRONG = {
    "missing": ("runs/nothing", {}, "DISTILL_FROM: runs/nothing: there is no such run, folder or file; check the name"),
    "misspelt": ("runs/dens", {}, "DISTILL_FROM: runs/dens: there is no such run, folder or file; did you mean dense?"),
    "other tokens": (
        "runs/dense", {"tokenizer": "gpt2"},
        "DISTILL_FROM: runs/dense: has the tokenizer bytes, and this run has the tokenizer gpt2; name a teacher with "
        "the same one",
    ),
    "shorter context": (
        "runs/dense", {"block_size": 64},
        "DISTILL_FROM: runs/dense/checkpoints/step-000000040.pt: the weights are for 32 positions, not for 64; lower "
        "BLOCK_SIZE",
    ),
    "no checkpoint": ("runs/young", {}, "DISTILL_FROM: runs/young: this run has no checkpoint yet"),
    "no such step": ("runs/dense@7", {}, "DISTILL_FROM: runs/dense: there is no checkpoint '7'; choose newest, best "),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_teacher_that_cannot_be_used_is_one_sentence_and_leaves_no_run(home, case):
    shutil.copytree(home / "runs/dense", home / "runs/young", ignore=shutil.ignore_patterns("checkpoints"))
    given, changes, sentence = WRONG[case]
    process = start(home, *arguments(distill_from=given, tracker_run_name="taught", tracker="none", **changes))
    output = process.communicate(60)[0]
    assert process.returncode in (1, 2), output
    [error] = [line for line in output.splitlines() if line.startswith("error:")]
    assert error.startswith(f"error: {sentence}"), output
    assert not (home / "runs/taught").exists()


def test_options_that_do_nothing_are_told(home):
    output = train(home, *arguments(max_iters=1, tracker_run_name="plain", tracker="none", distill_weight=0.5))
    assert "warning: DISTILL_WEIGHT=0.5 does nothing, because DISTILL_FROM is empty\n" in output


def session(home, monkeypatch, **changes):
    """A session in this process that distills; its schema too."""
    monkeypatch.chdir(home)
    made = schema(home, distill_from=str(home / "runs/dense"), max_iters=6, **changes)
    machine = device.choose(made.bind(device.SystemOptions))
    return made, Session(made, machine, new(made, machine.ranks))


def trained(made, one):
    events, options = Records(), made.bind(loop.LoopOptions)
    loop.train(one.training, one.data, one.machine, options, one.schedule, events, lambda: False)
    return [[found[name] for name in LOSSES] for event, _, found in events if event == "train"]


def test_what_is_compiled_learns_the_same(home, monkeypatch):
    plain = trained(*session(home, monkeypatch, dropout=0))
    made, one = session(home, monkeypatch, dropout=0)
    one.training.compile(True)
    for mine, theirs in zip(trained(made, one), plain, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


def test_measuring_how_long_it_takes_changes_nothing_and_counts_the_teacher(home, monkeypatch):
    plain = trained(*session(home, monkeypatch))
    made, one = session(home, monkeypatch)
    before = one.training.state_dict()
    assert pace.seconds_left(one.training, one.data, one.machine, one.schedule, 10) > 0
    assert same(one.training.state_dict(), before)
    assert trained(made, one) == plain
    assert one.training.flops_per_token() == FLOPS + KNOWN
    assert calibrate.cost(made).step > 0


def test_what_taught_a_run_is_named_exactly(home, monkeypatch):
    train(home, *retrain(max_iters=1))
    monkeypatch.chdir(home)
    recorded = lineage.origin(home / "runs/taught")
    assert exact(recorded) == {
        "init_from": str(home / "runs/pruned/checkpoints/step-000000001.pt"),
        "distill_from": str(home / "runs/dense/checkpoints/step-000000040.pt"),
    }
