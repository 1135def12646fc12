"""make finetune: which options it takes from where; with TRL, runs are killed, go on, and keep their zeros."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys

import pytest
import torch

from lib.base.errors import UserError
from lib.record import checkpoint, journal
from lib.record.run import Identity
from scripts import finetune
from tests import forked, runs, tracking
from tests.training import ROOT, arguments, records, schema, train

SFT = ["FINETUNE_RECIPE=sft", "FINETUNE_DATA=a.jsonl"]


# ---- the configuration -----------------------------------------------------------------------------------------------


@pytest.fixture
def dense(folder):
    """runs/dense, a run that was pruned while it trained, with a checkpoint of step 40."""
    found = runs.write(folder / "runs/dense", runs.ended(40))
    made = schema(
        folder, dataset_source="corpus.txt", pruning_method="magnitude", optimizer="muon", tracker_tags="mine"
    )
    made.write(found / ".config")
    (found / "checkpoints").mkdir()
    (found / "checkpoints/step-000000040.pt").touch()
    return found


def test_the_model_is_that_of_the_run_and_its_training_is_not(dense):
    found, resumed = finetune.configuration(["--run", "runs/dense", *SFT, "LOG_INTERVAL=3"])
    ours = {"INIT_FROM": "runs/dense@40", "N_EMBD": 32, "BATCH_SIZE": 4, "TRACKER_TAGS": "mine", "LOG_INTERVAL": 3}
    theirs = {"PRUNING_METHOD": "none", "OPTIMIZER": "adamw", "LEARNING_RATE": 6e-4, "FINETUNE_LEARNING_RATE": 2e-5}
    assert resumed is None
    assert {name: found[name] for name in ours | theirs} == ours | theirs
    assert finetune.configuration(["--run", "dense", *SFT, "FINETUNE_RECIPE=dpo"])[0]["FINETUNE_LEARNING_RATE"] == 1e-6


def test_pruning_of_config_is_for_training(dense):
    (dense.parents[1] / ".config").write_text("CONFIG_PRUNING_METHOD_MAGNITUDE=y\nCONFIG_FINETUNE_RECIPE_DPO=y\n")
    found, _ = finetune.configuration(["INIT_FROM=elsewhere"])
    assert (found["PRUNING_METHOD"], found["FINETUNE_RECIPE"]) == ("none", "dpo")
    assert found.warnings == [
        "PRUNING_METHOD=magnitude (.config:1) is for training; make finetune holds the zeros that the model has"
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--run runs/dense", "make finetune needs a recipe: name one, as in FINETUNE_RECIPE=sft (or dpo, grpo); "),
        ("--run runs/dense INIT_FROM=a", "RUN=runs/dense and INIT_FROM=a both name a model; give one of them"),
        ("--checkpoint best INIT_FROM=a", "CHECKPOINT=best is of a RUN; write INIT_FROM=RUN@best"),
        ("--resume runs/dense", "runs/dense: is no run of make finetune; continue it with make resume"),
        ("FINETUNE_RECIPE=sft FINETUNE_BETA=1", "FINETUNE_BETA=1 has no effect: it needs FINETUNE_RECIPE=dpo or grpo"),
    ],
)
def test_what_is_no_fine_tuning_is_one_sentence(dense, words, sentence):
    with pytest.raises(UserError) as error:
        finetune.configuration(words.split())
    assert str(error.value).startswith(sentence)


# ---- runs ------------------------------------------------------------------------------------------------------------

NUMBERS = range(10, 110)
ROWS = {
    "sft": [{"prompt": f"{n}+1=", "completion": f"{n + 1}."} for n in NUMBERS],
    "dpo": [{"prompt": f"{n}+1=", "chosen": f"{n + 1}.", "rejected": f"{n + 3}?"} for n in NUMBERS],
    "grpo": [{"prompt": f"{n} sq"} for n in NUMBERS],
}
REWARD = "def vowels(completions, **columns):\n    return [sum(c in 'eaiou' for c in t) / 8 for t in completions]\n"
WORDS = {
    "sft": [
        "FINETUNE_BATCH_SIZE=4",
        "FINETUNE_ACCUMULATION=2",
        "TRACKER=trackio,wandb",
        "WANDB_OFFLINE=y",
        "TRACKER_WAIT=all",
    ],
    "dpo": ["DTYPE=bfloat16"],
    "grpo": ["FINETUNE_REWARD=reward.py", "FINETUNE_BETA=0.02", "FINETUNE_GENERATIONS=4", "FINETUNE_COMPLETION=8"],
}
COMMON = ["FINETUNE_LEARNING_RATE=1e-3", "LOG_INTERVAL=1", "EVAL_INTERVAL=15", "CHECKPOINT_INTERVAL=10"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with runs/pruned, a tiny model of which half of the weights are zero, and examples."""
    folder = tmp_path_factory.mktemp("finetune")
    words = arguments(tracker="none", tracker_run_name="dense", block_size=64, checkpoint_interval=0, dropout=0.0)
    train(folder, *words)
    pruned = forked.run(
        folder, "scripts/oneshot.py", "--run", "runs/dense", "PRUNING_METHOD=magnitude", "TRACKER_RUN_NAME=pruned"
    )
    assert pruned.returncode == 0, pruned.stderr
    for recipe, rows in ROWS.items():
        (folder / f"{recipe}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(REWARD)
    return folder


def start(home, *words, program="scripts/finetune.py", before=()):
    """Start a program that fine-tunes. Two of them share the cores, so each has one thread."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TRACKIO_DIR": str(home / "trackio")}
    return subprocess.Popen(
        [*(before or [sys.executable]), str(ROOT / program), *words],
        cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def done(process):
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    return output


def delivered(home, run):
    """The trackers that have all rows after `make sync`, which also says that wandb may not upload them."""
    output = start(home, run, program="scripts/sync.py").communicate(timeout=120)[0]
    return re.findall(r"^(\w+) +finished", output, re.MULTILINE)


def tuned(home, recipe, name, *words, model="runs/pruned", **how):
    given = ["--run", model, f"FINETUNE_RECIPE={recipe}", f"FINETUNE_DATA={recipe}.jsonl", *COMMON]
    return start(home, *given, "TRACKER_PROJECT=demo", f"TRACKER_RUN_NAME={name}", *words, **how)


def rows(run):
    """(event, step) -> metrics without times; fails if one is there twice."""
    found = {}
    for event in ("train", "eval"):
        for record in records(run, event):
            assert (event, record["step"]) not in found
            found[event, record["step"]] = {k: v for k, v in record["metrics"].items() if k != "tokens_per_second"}
    return found


def broken(run):
    """How many pruned weights are not zero, in each checkpoint of a run and in those of TRL that hold a whole model."""
    from safetensors.torch import load_file

    from lib.prune import masks_file

    masks, _ = masks_file.read_file(run / "start/masks.safetensors")
    assert sum(int((mask == 0).sum()) for mask in masks.values()) == 12288
    found = [checkpoint.load(path)["model"] for path in sorted((run / "checkpoints").glob("*.pt"))]
    for path in sorted((run / "trl").glob("checkpoint-*/model.safetensors")):
        theirs = load_file(path)
        found.append({name: theirs[f"transformer.{name}"].t() for name in masks})
    assert len(found) >= 2
    return [sum(int(state[name][mask == 0].count_nonzero()) for name, mask in masks.items()) for state in found]


@pytest.mark.extra("trl")
@pytest.mark.parametrize("recipe", ROWS)
def test_a_run_that_is_stopped_goes_on_and_zeros_stay(home, recipe):
    words = [*WORDS[recipe], "FINETUNE_STEPS=30"]
    how = signal.SIGTERM if recipe == "dpo" else signal.SIGKILL
    plain = [word for word in words if not word.startswith(("TRACKER", "WANDB"))]
    whole = tuned(home, recipe, f"whole-{recipe}", *plain, "TRACKER=none")
    cut, run = tuned(home, recipe, recipe, *words), home / f"runs/{recipe}"
    book = run / "journal.jsonl"
    tracking.wait_for(lambda: book.exists() and '"train","step":12,' in book.read_text(), 100)
    cut.send_signal(how)
    cut.communicate(timeout=60)
    assert cut.returncode in (-signal.SIGKILL, 128 + signal.SIGTERM)
    done(start(home, "--resume", f"runs/{recipe}", program="gpt2/train.py"))

    kept = rows(run)
    assert [step for event, step in kept if event == "train"] == list(range(1, 31))
    assert [step for event, step in kept if event == "eval"] == [0, 15, 30]
    assert {metrics["sparsity"] for (event, _), metrics in kept.items() if event == "train"} == {0.5}
    before, after = kept["eval", 0]["val_loss"], kept["eval", 30]["val_loss"]
    assert after < before
    assert (after < 0) == (recipe == "grpo")  # minus the mean reward
    assert {"sft": "mean_token_accuracy", "dpo": "rewards/margins", "grpo": "kl"}[recipe] in kept["train", 30]
    assert set(broken(run)) == {0}
    tokens = json.loads((run / "summary.json").read_text())["tokens"]
    assert tokens == kept["train", 30]["tokens"] > kept["train", 29]["tokens"]
    done(whole)
    assert rows(home / f"runs/whole-{recipe}") == kept
    weights = [home / f"runs/{name}/trl/checkpoint-30/model.safetensors" for name in (f"whole-{recipe}", recipe)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    if recipe == "sft":
        # A tracker's process of the killed session may still hold the run.
        tracking.wait_for(lambda: delivered(home, f"runs/{recipe}") == ["trackio", "wandb"], 100)
        read_by_other_programs(home, run)


def read_by_other_programs(home, run):
    """Trackers have every row once; the run is shown, compared, measured and exported like any other."""
    identity, wanted = Identity.load(run), tracking.expected(run)
    with sqlite3.connect(home / "trackio/demo.db") as database:
        found = database.execute("select log_id from metrics where run_id = ?", (identity.run_id,)).fetchall()
    ids = [log_id for (log_id,) in found if "-image-" not in log_id]
    assert sorted(ids) == sorted(f"{identity.run_id}-{event}-{step}" for event, step in wanted)
    history = [
        one["history"]["item"] for one in tracking.wandb_records(run, identity.run_id) if one["type"] == "history"
    ]
    steps = [int(item["step"]) for item in history if "train_loss" in item or "val_loss" in item]
    assert sorted(steps) == sorted(step for event, step in wanted if event != "finish")

    shown = forked.run(home, "scripts/runs.py", "show", "runs/sft").stdout
    assert "finished at step 30 of 30" in shown
    assert "runs/pruned at step 2" in shown
    assert "ranked" not in forked.run(home, "scripts/runs.py", "compare", "runs/whole-sft", "runs/sft").stdout
    exported = forked.run(home, "scripts/export_model.py", "runs/sft")
    assert "logits of transformers 5.24.0 differ by at most" in exported.stdout, exported.stderr
    card = (run / "export/README.md").read_text()
    assert "make finetune" in card
    assert "`sft of TRL on sft.jsonl`" in card
    measured = forked.run(home, "scripts/evaluate.py", "--run", "runs/sft")
    assert "validation/loss" in measured.stdout, measured.stderr
    refused = forked.run(home, "scripts/reproduce.py", "runs/sft")
    assert "was fine-tuned, which no training repeats; repeat it with: KCONFIG_CONFIG=" in refused.stderr


LORA = ["FINETUNE_LORA_RANK=4", "FINETUNE_LEARNING_RATE=1e-2", "FINETUNE_STEPS=6", "EVAL_INTERVAL=3", "TRACKER=none"]


@pytest.mark.extra("trl")
def test_adapters_are_measured_as_they_are_saved(home):
    done(tuned(home, "sft", "measured", *LORA, "CHECKPOINT_INTERVAL=3"))
    found = rows(home / "runs/measured")
    losses = {step: metrics["val_loss"] for (event, step), metrics in found.items() if event == "eval"}
    assert list(losses) == [0, 3, 6]
    assert {metrics["sparsity"] for (event, _), metrics in found.items() if event == "eval"} == {0.5}
    assert not any("sparsity" in metrics for (event, _), metrics in found.items() if event == "train")
    assert [found["train", step]["adapted_sparsity"] < 0.01 for step in (1, 6)] == [True, True]
    again = ["FINETUNE_LEARNING_RATE=1e-3", "FINETUNE_STEPS=1", "TRACKER=none"]
    for step in (3, 6):
        done(tuned(home, "sft", f"of-{step}", *again, model=f"runs/measured@{step}"))
        assert rows(home / f"runs/of-{step}")["eval", 0]["val_loss"] == pytest.approx(losses[step], abs=1e-5)
    shown = forked.run(home, "scripts/runs.py", "list").stdout
    assert re.search(rf"^runs/measured\tfinished\t6\t{min(losses.values())!r}\t0.5\t", shown, re.MULTILINE), shown


@pytest.mark.extra("trl")
def test_adapters_go_on_bit_by_bit(home):
    done(tuned(home, "dpo", "lora", *LORA, "CHECKPOINT_INTERVAL=2", "CHECKPOINT_KEEP=3"))
    run = home / "runs/lora"
    assert [step for event, step in rows(run) if event == "eval"] == [0, 3, 6]
    assert rows(run)["eval", 0]["val_loss"] > rows(run)["eval", 6]["val_loss"]
    assert set(broken(run)) == {0}

    # A kill in step 4, and step 3 is evaluated again; then one after the last step, before the end is recorded.
    book, saved = run / "journal.jsonl", run / "checkpoints/step-000000006.pt"
    before, weights = rows(run), checkpoint.load(saved)["model"]
    for last, gone in (('"train","step":3,', (4, 6)), ('"eval","step":6,', ())):
        lines = book.read_text().splitlines(keepends=True)
        kept = next(n for n, line in enumerate(lines) if last in line)
        book.write_text("".join(lines[: kept + 1]))
        for step in gone:
            shutil.rmtree(run / f"trl/checkpoint-{step}")
            (run / f"checkpoints/step-00000000{step}.pt").unlink()
        (run / "summary.json").unlink()
        saved.unlink(missing_ok=True)
        done(start(home, "--resume", "runs/lora"))
        assert rows(run) == before
        again = checkpoint.load(saved)["model"]
        assert all(torch.equal(again[name], weights[name]) for name in weights)


@pytest.mark.extra("trl")
def test_two_processes_write_one_run(home):
    words = ["FINETUNE_STEPS=6", "TRACKER=none", "FINETUNE_BATCH_SIZE=4", "FINETUNE_ACCUMULATION=2"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    done(tuned(home, "sft", "two", *words, "CHECKPOINT_INTERVAL=3", before=launcher))
    run = home / "runs/two"
    assert [step for event, step in rows(run) if event == "train"] == [1, 2, 3, 4, 5, 6]
    assert next(journal.read(run))["machine"]["ranks"] == 2
    assert set(broken(run)) == {0}
