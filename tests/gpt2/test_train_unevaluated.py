"""EVALUATE=n: a run that never measures the validation loss, and how programs show it."""

import json
import os
import struct
from pathlib import Path

import pytest

from gpt2.alerts import worse_since
from lib.record import checkpoint
from tests import forked
from tests.runs import trained, write
from tests.test_kconfig import SCHEMA
from tests.training import UNEVALUATED, arguments, losses, records, same, start, train

WITH, WITHOUT = "runs/with", "runs/without"


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A folder with two runs that differ only in EVALUATE, and what the one without evaluation printed."""
    home = tmp_path_factory.mktemp("both")
    train(home, *arguments(tracker_run_name="with"))
    output = train(home, *arguments(**UNEVALUATED, tracker_run_name="without", json_output="result.json"))
    return home, output


def weights(run: Path) -> dict:
    state = checkpoint.load(run / "checkpoints" / "step-000000040.pt")
    return {name: state[name] for name in ("model", "optimizer", "random")}


def shown(folder: Path, *words: str, program: str = "scripts/runs.py", code: int = 0) -> str:
    done = forked.run(folder, program, *words, environment=dict(os.environ))
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def test_it_learns_the_same_and_has_no_validation_loss(both):
    home, output = both
    assert losses(home / WITHOUT) == losses(home / WITH)
    assert same(weights(home / WITHOUT), weights(home / WITH))
    assert records(home / WITHOUT, "eval") == []
    [finish] = records(home / WITHOUT, "finish")
    assert (finish["status"], list(finish["metrics"])) == ("finished", ["total_time_seconds"])
    [alert] = records(home / WITHOUT, "alert")
    assert alert["message"] == "the run is finished after 40 steps"
    assert "training tokens, no validation" in output
    assert not any(words in output for words in ("val loss", "validation loss"))


def test_its_summary_has_no_losses(both):
    home, _ = both
    summary = json.loads((home / WITHOUT / "summary.json").read_text())
    assert summary == json.loads((home / "result.json").read_text())
    assert list(summary) == [
        "run", "status", "steps", "total_time_seconds", "tokens", "tokens_per_second", "sparsity", "average_nonzeros",
        "weights_in_scope", "parameters", "training_flops", "training_flops_nonzeros", "inference_flops_per_token",
        "inference_flops_per_token_nonzeros", "nonzeros",
    ]  # fmt: skip


def test_its_checkpoints_know_no_best(both):
    state = checkpoint.load(both[0] / WITHOUT / "checkpoints" / "step-000000040.pt")
    assert (state["best"], state["evaluations"], state["data"]["val"]) == ({}, [], {})
    told = shown(both[0], "--run", WITHOUT, "--checkpoint", "best", program="gpt2/sample.py", code=2)
    assert told.startswith(f"error: {WITHOUT}: there is no checkpoint 'best'; choose newest, best")
    assert "best" not in shown(both[0], WITHOUT, program="scripts/checkpoint_info.py")


def test_programs_show_it(both):
    home, _ = both
    lines = [line.split("\t") for line in shown(home, "list").splitlines()]
    cells = {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines}
    assert (cells[WITHOUT]["state"], cells[WITHOUT]["best val loss"]) == ("finished", "")
    page = shown(home, "show", WITHOUT)
    assert "train_loss" in page and "val_loss" not in page and "best loss" not in page
    told = shown(home, "compare", WITHOUT, WITH)
    assert told.startswith("A did not measure the validation loss (EVALUATE=n), so neither is ranked.\n")
    assert "finished after step 40 in" in shown(home, "tail", WITHOUT)
    assert "val_loss" not in shown(home, "export", WITHOUT, "--out", "-").splitlines()[0]


def test_it_resumes_bit_for_bit_and_stays_without(tmp_path, both):
    run = tmp_path / "runs/run"
    process = start(tmp_path, *arguments(**UNEVALUATED))
    for line in process.stdout:
        if line.startswith("step 14/40"):
            break
    process.kill()
    process.communicate()
    told = train(tmp_path, "--resume", "runs/run", "EVALUATE=y", code=2)
    assert "a resumed run keeps the options it began with (EVALUATE n -> y, EVAL_SAMPLES unset -> 200)" in told
    train(tmp_path, "--resume", "runs/run")
    assert losses(run) == losses(both[0] / WITH)
    assert same(weights(run), weights(both[0] / WITH))
    assert records(run, "eval") == []


def test_a_run_with_evaluation_stays_with_it(both):
    told = train(both[0], "--resume", WITH, "EVALUATE=n", code=2)
    assert "a resumed run keeps the options it began with (EVALUATE y -> n, EVAL_SAMPLES 8 -> unset)" in told


def test_it_trains_on_bins_without_a_validation_part(tmp_path):
    (tmp_path / "train.bin").write_bytes(struct.pack("<500H", *(n % 97 for n in range(500))))
    words = arguments(**UNEVALUATED, dataset="bins", dataset_source=None, data_dir=".", max_iters=3)
    assert "  bins-bytes: 500 training tokens, no validation\n" in train(tmp_path, *words)


def test_a_retry_knows_when_training_went_wrong_from_the_training_losses(tmp_path):
    wrong = [("train", step, {"train_loss": loss}, {}) for step, loss in ((3, 9.0), (4, 9.0))]
    assert worse_since(write(tmp_path / "a", *trained(2), *wrong), vocab_size=256) == 3


def test_options_of_evaluations_have_no_effect_then(tmp_path):
    (tmp_path / "a").write_text("CONFIG_EVALUATE=n\nCONFIG_EVAL_INTERVAL=5\n")
    told = train(tmp_path, "--config", "a", code=2)
    assert "error: a:2: EVAL_INTERVAL=5 has no effect: it needs EVALUATE\n" in told
    needs = {name: SCHEMA.options[name].needs for name in ("EVAL_SAMPLES", "CHECKPOINT_BEST", "SAMPLE_AT_EVAL")}
    assert needs == {
        "EVAL_SAMPLES": "EVALUATE", "CHECKPOINT_BEST": "EVALUATE", "SAMPLE_AT_EVAL": "EVALUATE",
    }  # fmt: skip
    (tmp_path / "a").write_text("CONFIG_EVAL_INTERVAL=5\n")
    told = train(tmp_path, "--config", "a", "EVALUATE=n", "N_HEAD=5", code=2)  # another mistake, to stop here
    assert "EVAL" not in told
