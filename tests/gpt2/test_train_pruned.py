"""Whole pruned runs through the command line: kills, longer runs, what a resume may not change, what is recorded."""

import json
import operator
import re
import shutil

import numpy as np
import pytest
import torch

from gpt2 import beginning, flops, loop
from gpt2.model import GPT2
from gpt2.session import Session
from gpt2.shape import ShapeOptions
from lib.machine import device
from lib.record import checkpoint, journal, mask_sample
from tests.gpt2.test_train import assert_same, wait_for_step
from tests.prune.test_prune import two_of_four
from tests.training import Records, arguments, records, rewrite, schema, start, train

TOTAL = 2 * 12 * 32 * 32  # weights in the blocks' matrices
CASES = {
    "state of adamwprune on SPAM": {
        "optimizer": "adamwprune", "adamwprune_base_optimizer_name": "adamwspam", "spam_interval": 12,
        "spam_warmup_steps": 4, "spam_clip_free_steps": 3, "pruning_interval": 3,
    },
    "movement": {"pruning_method": "movement", "pruning_interval": 3, "target_sparsity": 0.7},
    "rigl with muon": {
        "optimizer": "muon", "pruning_method": "magnitude", "pruning_dynamics": "rigl", "pruning_interval": 3
    },
    "granet": {
        "pruning_method": "magnitude", "pruning_dynamics": "granet", "granet_start_sparsity": 0.2, "regrow_warmup": 4,
        "pruning_interval": 3,
    },
    "soft mest": {
        "pruning_method": "magnitude", "pruning_dynamics": "mest", "mest_soft_bound": True, "mest_lambda": 100,
        "pruning_interval": 3,
    },
    "sr-ste": {"pruning_method": "magnitude", "pruning_dynamics": "sr-ste", "optimizer": "stablespam"},
    "s-ste": {"pruning_method": "magnitude", "pruning_dynamics": "s-ste"},
    "topkast": {"pruning_method": "magnitude", "pruning_dynamics": "topkast", "pruning_interval": 3},
    "wanda": {"pruning_method": "wanda", "pruning_interval": 3},
    "owl": {
        "pruning_method": "magnitude", "pruning_distribution": "owl", "owl_threshold": 2, "pruning_interval": 3,
        "pruning_first_sparsity": 0.2, "lr_schedule": "restarts", "lr_cycle": 6,
    },
    "synflow": {"pruning_method": "synflow", "target_sparsity": 0.9},
    "snip in passes": {
        "pruning_method": "gradient", "pruning_dynamics": "static", "pruning_passes": 4, "pruning_batches": 2,
    },
}  # fmt: skip


def zeros(run):
    """Counted in the weights of the newest checkpoint."""
    model = checkpoint.load(checkpoint.find(run / "checkpoints")[-1])["model"]
    return sum(int((w == 0).sum()) for name, w in model.items() if name.startswith("h.") and w.dim() == 2)


@pytest.mark.parametrize("case", CASES)
def test_a_killed_pruned_run_resumes_bit_for_bit(tmp_path, case):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    train(tmp_path / "whole", *arguments(**CASES[case]))
    process = start(tmp_path / "killed", *arguments(**CASES[case]))
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
    target = CASES[case].get("target_sparsity", 0.5)
    assert zeros(killed) == round(target * TOTAL)
    sample, other = (records(run, "finish")[-1]["mask_sample"] for run in (killed, whole))
    assert sample == other
    assert 1 - mask_sample.kept(mask_sample.decode(sample)).mean() == pytest.approx(target, abs=0.01)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was pruned to 50 % in 20 steps."""
    folder = tmp_path_factory.mktemp("finished")
    output = train(folder, *arguments(pruning_method="magnitude", pruning_interval=2, max_iters=20))
    return folder, output


def test_the_end_of_a_pruned_run_says_how_sparse_it_is(finished):
    folder, output = finished
    summary = json.loads((folder / "runs/run/summary.json").read_text())
    assert summary["sparsity"] == 0.5 == zeros(folder / "runs/run") / TOTAL
    assert TOTAL / 2 < summary["average_nonzeros"] < TOTAL
    token = 226_560 - 6 * (TOTAL - summary["average_nonzeros"])
    assert summary["training_flops_nonzeros"] == pytest.approx(token * 20 * 256) and summary["nonzeros"] == TOTAL / 2
    assert f"50.00% of the weights in scope; {summary['average_nonzeros']:,.0f} kept on average" in output
    history = journal.history(folder / "runs/run")
    known = {"sparsity", "mask_flips", "average_nonzeros", "empty_neurons", "empty_heads"}
    assert history["train", 20]["metrics"].keys() >= known
    assert {step for (_, step), row in history.items() if "mask_change" in row["metrics"]} == {5, 7, 9, 11, 13, 15}
    assert "ever_active" not in summary
    layers = {k: v for k, v in history["eval", 20]["metrics"].items() if k.startswith("sparsity/")}
    assert len(layers) == 8
    sizes = {"c_attn": 3, "c_proj": 1, "c_fc": 4}  # in units of 32 x 32; mlp.c_proj is 4
    weighed = sum(v * (4 if "mlp" in k else sizes[k.rpartition(".")[2]]) * 32 * 32 for k, v in layers.items())
    assert weighed == TOTAL / 2


@pytest.mark.parametrize("form", ["hard", "soft"])
def test_only_a_method_with_a_target_says_that_it_is_reached(tmp_path, form):
    output = train(tmp_path, *arguments(pruning_method="movement", pruning_movement=form, max_iters=20))
    assert ("the target sparsity is reached" in output) == (form == "hard")
    assert ("pruning has ended at a sparsity of" in output) == (form == "soft")
    alerts = records(tmp_path / "runs/run", "alert")
    assert [(r["kind"], r["step"]) for r in alerts] == [("sparsity", 15), ("finished", 20)]


def test_a_run_that_is_made_longer_stays_as_sparse(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "copy")
    train(tmp_path / "copy", "--resume", "runs/run", "MAX_ITERS=50")
    history = journal.history(tmp_path / "copy/runs/run")
    assert {history["train", step]["metrics"]["sparsity"] for step in range(20, 51)} == {0.5}
    assert zeros(tmp_path / "copy/runs/run") == TOTAL / 2


@pytest.mark.parametrize("change", ["TARGET_SPARSITY=0.8", "PRUNING_DISTRIBUTION=n-m", "PRUNING_END=0.9"])
def test_a_run_keeps_its_pruning(finished, tmp_path, change):
    shutil.copytree(finished[0], tmp_path / "copy")
    output = train(tmp_path / "copy", "--resume", "runs/run", "MAX_ITERS=50", change, code=2)
    assert re.search(rf"a resumed run keeps the options it began with \(.*\b{change.partition('=')[0]} ", output)


def test_what_is_evaluated_and_saved_has_masks_of_its_own_weights(tmp_path):
    """The forward passes of a whole run with SR-STE, two micro-batches a step: 2 of 4, the largest of those in use."""
    options = {"pruning_method": "magnitude", "pruning_dynamics": "sr-ste", "max_iters": 8, "eval_interval": 3}
    made = schema(tmp_path, **options)
    session, records, seen = Session(made, device.choose(made.bind(device.SystemOptions))), Records(), []

    def look(module, inputs):
        for weight in session.training.pruner.weights:
            seen.append(torch.equal(weight.mask, two_of_four(weight.value).byte()))

    session.model.register_forward_pre_hook(look)
    loop.evaluate(session.training, session.data, session.machine, records, lambda: False)
    options = made.bind(loop.LoopOptions)
    loop.train(session.training, session.data, session.machine, options, session.schedule, records, lambda: False)
    assert all(seen) and len(seen) > 8 * 2 * 8
    layers = [value for event, step, m in records if event == "eval" for k, value in m.items() if k[:8] == "sparsity"]
    assert layers == [0.5] * 8 * 4  # at steps 0, 3, 6 and 8
    state = session.training.state_dict()
    for weight in session.training.pruner.weights:
        kept = two_of_four(weight.value)
        assert torch.equal(state["model"][weight.name], weight.value * kept)
        bits = np.unpackbits(state["pruner"]["masks"][weight.name].numpy(), count=kept.numel())
        assert torch.equal(torch.from_numpy(bits).view(kept.shape), kept.byte())


def test_the_model_that_a_run_of_s_ste_saves_has_the_loss_that_it_measured(tmp_path):
    """A plain GPT-2 with the weights of the checkpoint, which are at most 2 of 4 and not W * M."""
    options = {"pruning_method": "magnitude", "pruning_dynamics": "s-ste", "max_iters": 8, "eval_interval": 4}
    made = schema(tmp_path, **options)
    session, records = Session(made, device.choose(made.bind(device.SystemOptions))), Records()
    training, options = session.training, made.bind(loop.LoopOptions)
    loop.train(training, session.data, session.machine, options, session.schedule, records, lambda: False)
    measured = [metrics["val_loss"] for event, step, metrics in records if event == "eval"][-1]
    saved = training.state_dict()["model"]
    plain = GPT2(made.bind(ShapeOptions), session.data.vocab_size)
    plain.load_state_dict(saved)
    assert loop.validation_loss(plain, session.data, session.machine) == pytest.approx(measured, rel=1e-6)
    for weight in training.pruner.weights:
        kept = two_of_four(weight.value).bool()
        assert torch.equal(saved[weight.name] != 0, kept)
        assert not torch.allclose(saved[weight.name], weight.value * kept)
    assert flops.facts(training.model, training.pruner)["training_per_zero"] == 4  # gradients are dense


@pytest.mark.parametrize("dynamics", ["static", "rigl", "set", "chts", "mest", "sr-ste", "s-ste"])
def test_the_evaluation_before_the_first_step_is_sparse(tmp_path, dynamics):
    train(tmp_path, *arguments(pruning_method="magnitude", pruning_dynamics=dynamics, max_iters=1, eval_samples=1))
    history = journal.history(tmp_path / "runs/run")
    layers = [v for k, v in history["eval", 0]["metrics"].items() if k.startswith("sparsity/")]
    sizes = [3, 1, 4, 4] * 2
    assert sum(map(operator.mul, layers, sizes)) / sum(sizes) == 0.5
    assert history["train", 1]["metrics"]["average_nonzeros"] == TOTAL / 2
    summary = json.loads((tmp_path / "runs/run/summary.json").read_text())
    active = history["train", 1]["metrics"].get("ever_active")
    assert summary.get("ever_active") == active
    assert active is None if dynamics == "static" else active == 0.5 or ("ste" in dynamics and 0.5 < active < 0.6)


@pytest.mark.parametrize("method", ["gradient", "grasp", "synflow"])
def test_passes_are_made_before_the_first_evaluation(tmp_path, method):
    passes = {"pruning_dynamics": "static", "pruning_passes": 3}
    train(tmp_path, *arguments(pruning_method=method, **passes, max_iters=1, eval_samples=1))
    history = journal.history(tmp_path / "runs/run")
    layers = [v for k, v in history["eval", 0]["metrics"].items() if k.startswith("sparsity/")]
    sizes = [3, 1, 4, 4] * 2
    assert sum(map(operator.mul, layers, sizes)) / sum(sizes) == pytest.approx(0.5)
    assert history["train", 1]["metrics"]["average_nonzeros"] == TOTAL / 2
    assert zeros(tmp_path / "runs/run") == TOTAL / 2


def test_passes_are_not_made_again_by_a_run_with_a_checkpoint(tmp_path):
    made = schema(tmp_path, pruning_method="synflow", pruning_passes=3)
    machine = device.choose(made.bind(device.SystemOptions))
    kept = [Session(made, machine, beginning.Origin(saved=saved)).training.pruner.kept for saved in (False, True)]
    assert kept == [TOTAL / 2, TOTAL]


def test_a_checkpoint_with_damaged_masks_is_refused(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "copy")
    path = checkpoint.find(tmp_path / "copy/runs/run/checkpoints")[-1]
    state = checkpoint.load(path)
    state["pruner"]["shapes"]["h.0.attn.c_attn.weight"] = [96, 31]
    rewrite(path, state)
    output = train(tmp_path / "copy", "--resume", "runs/run", "MAX_ITERS=50", code=1)
    assert output.count("error:") == 1
    assert "h.0.attn.c_attn.weight is [96, 31] in the checkpoint and [96, 32] in the model" in output
