"""Runs of make oneshot: real programs on a tiny model, and what they leave on the disk."""

import json
import shutil
import signal
import sys

import numpy as np
import pytest
import torch

from lib.record import checkpoint, checkpoint_file, history, lineage, mask_sample
from lib.record.run import Identity
from tests import forked
from tests.disk import disk, fill
from tests.test_process_faults import allow
from tests.training import TEXT, arguments, environment, records, train

__all__ = ["disk"]  # fixtures

MATRICES = [f"h.{n}.{name}.weight" for n in (0, 1) for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the corpus and runs/dense, a tiny dense run of 40 steps."""
    folder = tmp_path_factory.mktemp("home")
    train(folder, *arguments(tracker_run_name="dense"))
    return folder


def start(folder, *words, **how):
    return forked.Program(folder, "scripts/oneshot.py", list(words), environment(), **how)


def oneshot(folder, *words, code=0):
    """Prune in `folder`; returns what was printed."""
    program = start(folder, *words)
    output, _ = program.communicate(timeout=120)
    assert program.returncode == code, output
    return output


def state(run, which="newest"):
    return checkpoint.load(checkpoint_file.chosen(run, which))


def test_a_finished_run_is_pruned_in_a_run_folder_like_every_other(home):
    words = ["PRUNING_METHOD=magnitude", "PRUNING_DISTRIBUTION=layer", "TRACKER_RUN_NAME=half", "TRACKER=csv"]
    output = oneshot(home, "--run", "dense", *words)
    run, dense = home / "runs/half", home / "runs/dense"
    before, after = state(dense), state(run)

    for name, value in before["model"].items():
        if name not in MATRICES:
            assert torch.equal(after["model"][name], value), name
            continue
        size = value.abs().flatten().sort().values  # an independent choice of the half that stays
        kept = value.abs() > size[value.numel() // 2 - 1]
        assert int(kept.sum()) == value.numel() / 2
        assert torch.equal(after["model"][name], value * kept), name
    assert sorted(after["pruner"]["masks"]) == sorted(MATRICES)
    assert checkpoint_file.find(run / "checkpoints") == [run / "checkpoints/step-000000002.pt"]

    (begin,) = records(run, "start")
    assert (begin["step"], begin["schema"], begin["config"]["max_iters"]) == (0, 1, 2)
    assert begin["init"]["from"] == "runs/dense@40"
    assert begin["init"]["step"] == 40
    tokens = 40 * 4 * 2 * 32
    assert begin["init"]["ancestors"] == {Identity.load(dense).run_id: tokens}
    assert lineage.total_tokens(run, 2) == tokens
    assert json.loads((run / "provenance.json").read_text())["init"] == begin["init"]
    losses = [records(run, "eval")[step] for step in range(3)]
    assert [row["step"] for row in losses] == [0, 1, 2]
    assert [row["sparsity"] for row in losses] == [0, 0.25, 0.5]
    assert [row["metrics"]["sparsity/h.0.mlp.c_fc"] for row in losses] == [0, 0.5, 0.5]
    assert [row["metrics"]["sparsity/h.1.attn.c_attn"] for row in losses] == [0, 0, 0.5]
    assert losses[0]["metrics"]["val_loss"] == records(dense, "eval")[-1]["metrics"]["val_loss"]
    assert losses[2]["metrics"]["val_loss"] != losses[0]["metrics"]["val_loss"]
    assert records(run, "train") == []
    (end,) = records(run, "finish")
    assert (end["step"], end["status"]) == (2, "finished")
    assert mask_sample.kept(mask_sample.decode(end["mask_sample"])).mean() == pytest.approx(0.5, abs=0.01)

    summary = json.loads((run / "summary.json").read_text())
    assert summary["initial_val_loss"] == losses[0]["metrics"]["val_loss"]
    assert summary["final_val_loss"] == summary["best_val_loss"] == losses[2]["metrics"]["val_loss"]
    assert (summary["sparsity"], summary["weights_in_scope"], summary["average_nonzeros"]) == (0.5, 24576, 12288)
    assert (summary["steps"], summary["tokens"], summary["calibration_tokens"]) == (2, 0, 0)
    assert summary["total_tokens"] == tokens
    assert (summary["training_flops"], summary["total_training_flops"]) == (0, tokens * 226_560)
    assert (summary["inference_flops_per_token"], summary["nonzeros"]) == (75_520, 12_288)
    assert summary["inference_flops_per_token_nonzeros"] == 75_520 - 2 * 12_288
    sent = [line.split(",")[1:] for line in (run / "metrics.csv").read_text().splitlines()]
    assert [row[3] for row in sent if row[2] == "val_loss"] == [repr(row["metrics"]["val_loss"]) for row in losses]
    assert not any(line.endswith("best") for line in output.splitlines())
    assert "train it on      make train INIT_FROM=runs/half PRUNING_METHOD=given\n" in output
    assert "zero             50.00% of the 24,576 weights in scope\n" in output
    assert 'CONFIG_INIT_FROM="runs/dense@40"\n' in (run / ".config").read_text()
    assert "CONFIG_PRUNING_DYNAMICS_ONESHOT=y\n" in (run / "defconfig").read_text()
    assert json.loads((run / "provenance.json").read_text())["options"]["MAX_ITERS"]["value"] == "2"


def test_other_programs_read_the_run(home):
    oneshot(home, "--run", "dense", "PRUNING_METHOD=wanda", "CALIBRATION_SAMPLES=8", "TRACKER_RUN_NAME=wanda")
    table = forked.run(home, "scripts/runs.py", "list").stdout
    (row,) = [line.split("\t") for line in table.splitlines() if line.startswith("runs/wanda\t")]
    assert (row[1], row[2], row[4]) == ("finished", "2", "0.5")
    assert "finished at step 2 of 2" in forked.run(home, "scripts/runs.py", "show", "runs/wanda").stdout
    compared = forked.run(home, "scripts/runs.py", "compare", "runs/dense", "runs/wanda")
    assert (compared.returncode, "PRUNING_METHOD" in compared.stdout) == (0, True)
    assert "intact" in forked.run(home, "scripts/checkpoint_info.py", "runs/wanda").stdout
    sampled = forked.run(home, "gpt2/sample.py", "--run", "runs/wanda", "PROMPT=12 squared", "SAMPLE_TOKENS=3")
    assert sampled.stdout.startswith("12 squared")
    exported = forked.run(home, "scripts/runs.py", "export", "runs/wanda", "--out", "table.csv")
    assert exported.returncode == 0, exported.stderr
    assert len((home / "table.csv").read_text().splitlines()) == 4  # a header and steps 0 to 2
    resumed = forked.run(home, "gpt2/train.py", "--resume", "runs/wanda", "MAX_ITERS=9")
    assert (resumed.returncode, "Traceback" in resumed.stderr) == (2, False)


def test_the_command_that_it_prints_trains_the_pruned_model_on(home):
    oneshot(home, "--run", "dense", "PRUNING_METHOD=sparsegpt", "CALIBRATION_SAMPLES=8", "TRACKER_RUN_NAME=sparse")
    words = ["--config", "runs/dense/.config", "TRACKER_RUN_NAME=on", "MAX_ITERS=3", "SAMPLE_TOKENS=0"]
    trained = forked.run(home, "gpt2/train.py", *words, "INIT_FROM=runs/sparse", "PRUNING_METHOD=given")
    assert trained.returncode == 0, trained.stdout + trained.stderr
    first, *_, last = records(home / "runs/on", "eval")
    assert first["metrics"]["val_loss"] == records(home / "runs/sparse", "eval")[-1]["metrics"]["val_loss"]
    assert first["sparsity"] == last["sparsity"] == 0.5
    assert lineage.total_tokens(home / "runs/on", 3) == 43 * 4 * 2 * 32


def test_init_from_prunes_the_same_model_with_the_options_of_the_configuration(home):
    words = ["PRUNING_METHOD=wanda", "CALIBRATION_SAMPLES=8"]
    oneshot(home, "--run", "dense", *words, "TRACKER_RUN_NAME=by-run")
    own = ["DATASET=files", "DATASET_SOURCE=corpus.txt", "BATCH_SIZE=4", "EVAL_SAMPLES=8", "SEED=7", "DTYPE=float32"]
    oneshot(home, "INIT_FROM=runs/dense@40", *words, *own, "TRACKER_RUN_NAME=by-name", "THREADS=1", "DEVICE=cpu")
    one, other = (records(home / "runs" / name, "eval") for name in ("by-run", "by-name"))
    assert [row["metrics"] for row in one] == [row["metrics"] for row in other]
    other_shape = oneshot(home, "INIT_FROM=runs/dense", "MODEL_NAME=gpt2", *words, code=2)
    assert "MODEL_NAME=gpt2 does not fit INIT_FROM=runs/dense, which has custom" in other_shape


def test_n_of_m_without_losses(home):
    words = ["PRUNING_METHOD=sparsegpt", "PRUNING_DISTRIBUTION=n-m", "PRUNING_N=1", "CALIBRATION_SAMPLES=16"]
    output = oneshot(home, "--run", "dense", "TRACKER_RUN_NAME=groups", "EVALUATE=n", *words)
    assert "75.00% of the 24,576 weights in scope\n" in output
    assert "validation loss" not in output
    weights = state(home / "runs/groups")["model"]
    assert all(bool(((weights[name].reshape(-1, 4) != 0).sum(1) == 1).all()) for name in MATRICES)


def test_nothing_to_prune_changes_nothing(home):
    oneshot(home, "--run", "dense", "PRUNING_METHOD=sparsegpt", "TARGET_SPARSITY=0", "TRACKER_RUN_NAME=whole")
    first, *_, last = records(home / "runs/whole", "eval")
    assert first["metrics"]["val_loss"] == last["metrics"]["val_loss"]
    before, after = state(home / "runs/dense")["model"], state(home / "runs/whole")
    assert all(torch.equal(after["model"][name], before[name]) for name in before)
    assert all(bool((bits == 255).all()) for bits in after["pruner"]["masks"].values())


@pytest.fixture(scope="module")
def half(home):
    """runs/base: half of the weights of runs/dense, by magnitude."""
    oneshot(home, "--run", "dense", "PRUNING_METHOD=magnitude", "TRACKER_RUN_NAME=base", "EVALUATE=n")
    return home / "runs/base"


@pytest.mark.parametrize(
    ("words", "least"),
    [
        (["PRUNING_METHOD=wanda", "PRUNING_DISTRIBUTION=row", "TARGET_SPARSITY=0.75", "CALIBRATION_SAMPLES=8"], 0.75),
        (["PRUNING_METHOD=sparsegpt", "PRUNING_DISTRIBUTION=n-m", "CALIBRATION_SAMPLES=16"], 0.5),
    ],
)
def test_a_pruned_model_is_pruned_further_and_its_zeros_stay(home, half, words, least):
    output = oneshot(home, "--run", "base", "TRACKER_RUN_NAME=second", "EVALUATE=n", *words)
    run = home / "runs/second"
    first, second = state(half)["model"], state(run)
    ancestors = lineage.ancestors(run)
    shutil.rmtree(run)
    assert all(bool((second["model"][name][first[name] == 0] == 0).all()) for name in MATRICES)
    zeros = sum(int((second["model"][name] == 0).sum()) for name in MATRICES)
    assert zeros == 24576 * 3 // 4 if least == 0.75 else 24576 // 2 < zeros < 24576 * 3 // 4
    note = f"note: {zeros - 24576 // 2:,} more weights are zero than 50.00%: zeros of the model before stay zero\n"
    assert (note in output) == (least == 0.5)
    for name, bits in second["pruner"]["masks"].items():  # the masks are the zeros
        mask = np.unpackbits(bits.numpy(), count=first[name].numel()).reshape(first[name].shape)
        assert np.array_equal(mask, (second["model"][name] != 0).numpy())
    assert list(ancestors.values()) == [10240, 0]


def test_a_target_below_the_sparsity_of_the_model_is_one_sentence(home, half):
    words = ["PRUNING_METHOD=magnitude", "TARGET_SPARSITY=0.4"]
    assert oneshot(home, "--run", "base", *words, code=2).endswith(
        "error: TARGET_SPARSITY=0.4: 50.00% of the weights in scope are zero already, and zeros stay; raise it\n"
    )


def test_losses_are_measured_as_often_as_asked(home):
    words = ["--run", "dense", "PRUNING_METHOD=random", "TRACKER_RUN_NAME=rare"]
    oneshot(home, *words, "EVAL_INTERVAL=0")
    assert [row["step"] for row in records(home / "runs/rare", "eval")] == [0, 2]


# ---- what cannot be pruned -------------------------------------------------------------------------------------------

REFUSED = {
    "CALIBRATION_SAMPLES=100000": "error: CALIBRATION_SAMPLES=100000: the training split has 3014 windows of "
    "BLOCK_SIZE=32 tokens; lower CALIBRATION_SAMPLES or BLOCK_SIZE, or choose a larger dataset\n",
    "MAX_ITERS=50": "error: MAX_ITERS=50: the steps of make oneshot are the 2 blocks of the model; leave it out\n",
    "PRUNING_SCOPE=wte.weight": "error: PRUNING_METHOD=wanda measures the inputs of linear layers, and wte.weight is "
    "not the weight of one; leave it out of PRUNING_SCOPE\n",
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_does_not_fit_is_one_sentence_and_leaves_no_folder(home, word):
    there = sorted((home / "runs").iterdir())
    assert oneshot(home, "--run", "dense", "PRUNING_METHOD=wanda", word, code=2).endswith(REFUSED[word])
    assert sorted((home / "runs").iterdir()) == there


def test_a_split_that_is_shorter_than_a_window_is_one_sentence(home, tmp_path):
    shutil.copytree(home / "runs", tmp_path / "runs")
    (tmp_path / "short.txt").write_text(TEXT[:30])
    words = ["DATASET_SOURCE=short.txt", "EVALUATE=n", "VAL_FRACTION=0"]
    sentence = (
        "error: the training split has 31 tokens, and a window takes BLOCK_SIZE + 1 = 33; choose a smaller BLOCK_SIZE "
        "or a larger dataset\n"
    )
    assert sentence in oneshot(tmp_path, "--run", "dense", "PRUNING_METHOD=wanda", *words, code=2)


def test_a_folder_without_weights_is_one_sentence(home, tmp_path):
    output = oneshot(home, f"INIT_FROM={tmp_path}", "PRUNING_METHOD=magnitude", code=1)
    assert output.splitlines()[-1].startswith(f"error: {tmp_path}: has no config.json")


# ---- runs that do not end well ---------------------------------------------------------------------------------------

LARGER = {"n_layer": 6, "n_embd": 128, "n_head": 4, "max_iters": 1, "tracker_run_name": "larger"}
SLOW = ["--run", "larger", "PRUNING_METHOD=sparsegpt", "CALIBRATION_SAMPLES=500", "TRACKER_RUN_NAME=slow"]


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """A folder with runs/larger, whose pruning takes a few seconds."""
    folder = tmp_path_factory.mktemp("larger")
    train(folder, *arguments(**LARGER))
    return folder


def until_first_block(program):
    for line in program.stdout:
        if line.startswith("step 1/6 "):
            return
    pytest.fail("ended before the first block was pruned")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_it_without_a_checkpoint(larger, number, code):
    program = start(larger, *SLOW)
    until_first_block(program)
    program.send_signal(number)
    output, _ = program.communicate(timeout=60)
    assert program.returncode == code, output
    run = larger / "runs/slow"
    (end,) = records(run, "finish")
    assert (end["status"], end["step"] < 6) == ("interrupted", True)
    assert f"stopped after block {end['step']} of 6; nothing is saved, so prune again\n" in output
    assert list((run / "checkpoints").iterdir()) == []
    assert not (run / "summary.json").exists()
    if number == signal.SIGINT:
        assert forked.run(larger, "scripts/export_model.py", "runs/slow").stderr == (
            "error: runs/slow: a one-shot run saves its model only when all blocks are pruned; wait for it, or prune "
            "again with make oneshot\n"
        )
    shutil.rmtree(run)


def test_a_killed_one_is_a_crashed_run(larger):
    program = start(larger, *SLOW)
    until_first_block(program)
    program.kill()
    program.communicate(timeout=60)
    run = larger / "runs/slow"
    assert history.state(history.load(run), run) == "crashed"
    assert list((run / "checkpoints").iterdir()) == []
    shutil.rmtree(run)


def test_a_full_disk_is_one_sentence(home, disk):
    folder = disk("size=2m")
    shutil.copytree(home / "runs/dense", folder / "dense")
    fill(folder)
    (folder / "filler").open("r+b").truncate((folder / "filler").stat().st_size - 60_000)
    words = [f"OUTPUT_DIR={folder}", "PRUNING_METHOD=magnitude", "TRACKER_RUN_NAME=full"]
    output = oneshot(home, "--run", str(folder / "dense"), *words, code=1)
    assert "Traceback" not in output
    assert "make room" in output.splitlines()[-1]
    assert list((folder / "full").glob("checkpoints/*")) == []


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory that hold are Linux's")
def test_too_little_memory_is_one_sentence(larger):
    program = start(larger, *SLOW)
    until_first_block(program)
    allow(program, 0)
    output, _ = program.communicate(timeout=60)
    assert program.returncode == 1, output
    assert output.splitlines()[-1] == (
        "error: memory does not suffice to prune this model: lower CALIBRATION_SAMPLES=500 or lower BATCH_SIZE=4, "
        "which only evaluations use; set DEVICE=cpu if a GPU is full"
    )
    run = larger / "runs/slow"
    assert records(run, "finish")[-1]["status"] == "failed"
    shutil.rmtree(run)
