"""Runs of make shrink: from a run whose neurons and heads were pruned to a smaller one, and what it is good for."""

import json
import re
import shlex

import pytest
import torch
import transformers

from gpt2 import trained
from gpt2.weights import source
from lib.config import matters
from lib.config.config_file import presets
from lib.config.kconf import Schema
from lib.record import checkpoint, checkpoint_file
from tests import forked
from tests.training import arguments, environment, losses, records, same, train

ONESHOT = {
    "neurons": "PRUNING_METHOD=magnitude PRUNING_STRUCTURE=neurons TARGET_SPARSITY=0.3",
    "both": "PRUNING_METHOD=random PRUNING_STRUCTURE=both PRUNING_DISTRIBUTION=global-rms TARGET_SPARSITY=0.3",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """runs/neurons has lost 38 of the 128 neurons of each layer; runs/both also heads, compared with all others.

    runs/small and runs/odd are what make shrink leaves of them.
    """
    folder = tmp_path_factory.mktemp("home")
    train(folder, *arguments(n_head=4, max_iters=6, eval_interval=0, sample_tokens=0, tracker_run_name="dense"))
    for run, name in (("neurons", "small"), ("both", "odd")):
        pruned(folder, "dense", *ONESHOT[run].split(), f"TRACKER_RUN_NAME={run}", "EVAL_INTERVAL=0")
        told = pruned(folder, run, "PRUNING_METHOD=shrink", f"TRACKER_RUN_NAME={name}")
        (folder / f"{name}.txt").write_text(told)
    return folder


def pruned(folder, run, *words):
    """What make oneshot or make shrink prints."""
    done = forked.run(folder, "scripts/oneshot.py", "--run", run, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def load(run):
    schema = Schema()
    schema.load(run / ".config")
    return trained.load(source.find(str(run)), schema).model.eval()


@pytest.mark.parametrize(("run", "small"), [("neurons", "small"), ("both", "odd")])
def test_the_logits_are_those_of_the_pruned_run(home, run, small):
    before, after = load(home / "runs" / run), load(home / "runs" / small)
    tokens = torch.randint(256, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(after(tokens), before(tokens), rtol=0, atol=1e-5)
    left = sum(int((block.mlp.c_proj.weight != 0).any(0).sum()) for block in before.h)
    assert sum(after.options.widths) == left == 256 - (76 if run == "neurons" else 77)
    assert sum(after.options.heads) == (8 if run == "neurons" else 6)


def test_the_run_has_the_shape_the_journal_and_the_figures(home):
    run, told = home / "runs/small", (home / "small.txt").read_text()
    assert 'CONFIG_MLP_WIDTHS="90"\n' in (run / ".config").read_text()
    assert "removed     76 of 256 neurons and 0 of 8 heads\n" in told
    (begin,) = records(run, "start")
    assert begin["init"]["from"] == "runs/neurons@2"
    assert begin["config"]["mlp_widths"] == "90"
    assert [row["step"] for row in records(run, "eval")] == [0, 2]
    first, last = (row["metrics"]["val_loss"] for row in records(run, "eval"))
    assert first == pytest.approx(last, abs=1e-6)
    assert records(run, "finish")[0]["status"] == "finished"
    summary = json.loads((run / "summary.json").read_text())
    figures = json.loads((run / "shrink.json").read_text())
    assert summary["parameters"] == figures["parameters"][1] == figures["parameters"][0] - 76 * 65
    assert (summary["sparsity"], summary["tokens"], summary["total_tokens"]) == (0.0, 0, 6 * 4 * 2 * 32)
    assert list(figures["seconds"]) == [
        "token of make sample", "evaluation of 4 x 32 tokens", "training step of 4 x 32 tokens", "the MLPs of that step"
    ]  # fmt: skip
    assert "parameters" in told
    assert "change\n" in told


def test_it_is_sampled_evaluated_and_pruned_like_every_run(home):
    sampled = forked.run(home, "gpt2/sample.py", "--run", "runs/odd", "PROMPT=12 squared", "SAMPLE_TOKENS=3")
    assert sampled.stdout.startswith("12 squared"), sampled.stderr
    assert "intact" in forked.run(home, "scripts/checkpoint_info.py", "runs/odd").stdout
    table = forked.run(home, "scripts/runs.py", "list").stdout
    (row,) = [line.split("\t") for line in table.splitlines() if line.startswith("runs/odd\t")]
    assert (row[1], row[2]) == ("finished", "2")
    words = ["PRUNING_METHOD=wanda", "PRUNING_STRUCTURE=both", "CALIBRATION_SAMPLES=4", "TARGET_SPARSITY=0.3"]
    pruned(home, "odd", *words, "TRACKER_RUN_NAME=odder", "EVAL_INTERVAL=0")
    resumed = forked.run(home, "gpt2/train.py", "--resume", "runs/odd", "MAX_ITERS=9")
    assert (resumed.returncode, "is a one-shot run" in resumed.stderr) == (2, True)
    nothing = forked.run(home, "scripts/oneshot.py", "--run", "odd", "PRUNING_METHOD=shrink")
    assert (nothing.returncode, nothing.stderr.startswith("error: no neuron and no head of this model is zero")) == (
        2,
        True,
    )


def test_it_is_trained_on_and_resumed(home):
    words = {"init_from": "runs/odd", "n_head": None, "n_layer": None, "n_embd": None, "model_name": None}
    train(home, *arguments(**words, max_iters=6, checkpoint_interval=3, eval_interval=3, tracker_run_name="on"))
    run = home / "runs/on"
    whole = losses(run)
    shapes = {
        name: value.shape for name, value in checkpoint.load(checkpoint_file.chosen(run, "newest"))["model"].items()
    }
    assert shapes["h.0.mlp.c_fc.weight"][0] == load(home / "runs/odd").options.widths[0]
    (run / "checkpoints/step-000000006.pt").unlink()
    (run / "summary.json").unlink()
    train(home, "--resume", "runs/on")
    assert losses(run) == whole
    assert checkpoint.load(checkpoint_file.chosen(run, "newest"))["step"] == 6


def test_the_card_of_an_export_repeats_the_run_over_any_config(home):
    done = forked.run(home, "scripts/export_model.py", "runs/small", "--out", "shown")
    assert done.returncode == 0, done.stderr
    command = re.search(r"```sh\n(.+?)\n```", (home / "shown/README.md").read_text(), re.DOTALL)[1]
    config, make, target, *words = shlex.split(command.replace("\\\n", " "))
    assert (make, target, "INIT_FROM=runs/neurons@2" in words) == ("make", "shrink", True)
    (home / ".config").write_bytes(presets()["gpt2_tiny"].read_bytes())
    words = ["PRUNING_METHOD=shrink", *words, "TRACKER_RUN_NAME=again"]
    again = forked.run(home, "scripts/oneshot.py", *words, environment=environment() | dict([config.split("=")]))
    (home / ".config").unlink()
    assert again.returncode == 0, again.stdout + again.stderr
    one, other = (records(home / "runs" / name, "start")[0] for name in ("small", "again"))
    decisive = {name.lower() for name in matters.decisive(Schema())} - {"tracker_project", "tracker_run_name"}
    assert {name: one["config"].get(name) for name in decisive} == {
        name: other["config"].get(name) for name in decisive
    }
    one, other = (
        checkpoint.load(checkpoint_file.chosen(home / "runs" / name, "newest")) for name in ("small", "again")
    )
    assert same(one["model"], other["model"])


def test_equal_layers_export_to_hugging_face_and_others_say_why_not(home):
    done = forked.run(home, "scripts/export_model.py", "runs/small")
    assert done.returncode == 0, done.stderr
    assert "logits of transformers" in done.stdout
    out = home / "runs/small/export"
    config = transformers.AutoConfig.from_pretrained(out)
    assert (config.n_inner, config.n_head) == (90, 4)
    assert "90 neurons in each MLP" in (out / "README.md").read_text()
    found = source.find(str(out))
    assert found.shape == source.find(str(home / "runs/small")).shape
    weights = source.read(found, 32, 256)
    assert weights.state["h.1.mlp.c_fc.weight"].shape == (90, 32)
    refused = forked.run(home, "scripts/export_model.py", "runs/odd")
    assert refused.returncode == 2
    assert refused.stderr.endswith(
        "so it cannot describe this model; to export one, prune only neurons, with PRUNING_DISTRIBUTION=layer\n"
    )
