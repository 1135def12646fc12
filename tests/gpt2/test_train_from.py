"""Runs that start from weights: INIT_FROM, INIT_MASKS, the steps that CHECKPOINT_AT keeps, and what is recorded."""

import hashlib
import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest
import torch

from gpt2 import train as program
from gpt2.weights import source
from lib.base.errors import UserError
from lib.compare import comparison, difference, sweep, table
from lib.config.kconf import Schema
from lib.record import checkpoint, checkpoint_file, history, journal, lineage, run
from scripts.sweep import adopt, check_sources
from tests import forked
from tests.forked import Trainer
from tests.gpt2.test_divergence import poison, sessions
from tests.gpt2.test_train import assert_same, wait_for_step
from tests.training import arguments, environment, losses, options, records, rewrite, start, text, train

TOKENS = 4 * 2 * 32  # of a step
FLOPS = 6 * 33_664 + 12 * 2 * 32 * 32  # of a token in training: 2 x 12,704 + 64 + 256 x 32 weights are in products
PRUNED = {"pruning_method": "magnitude", "target_sparsity": 0.5, "pruning_dynamics": "static"}
# A new run takes its shape from the weights.
NO_SHAPE = dict.fromkeys(("model_name", "n_layer", "n_head", "n_embd", "block_size", "tokenizer"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of 40 steps, `dense`, that keeps steps 7 and 20; and `later`, which began at its end and is pruned."""
    folder = tmp_path_factory.mktemp("made")
    train(folder, *arguments(tracker_run_name="dense", checkpoint_at="7, 20", max_iters=40))
    train(folder, *begin("runs/dense", tracker_run_name="later", max_iters=6, **PRUNED))
    return folder


@pytest.fixture
def home(made, tmp_path):
    """A copy of the runs and their data."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def begin(init, **changes):
    """Flags of a short run that starts from weights."""
    few = {"max_iters": 10, "checkpoint_interval": 4, "eval_interval": 5, "sample_tokens": 0, "log_interval": 1}
    return arguments(**{**NO_SHAPE, **few, "init_from": init, **changes})


def newest(folder):
    return checkpoint.load(checkpoint.find(folder / "checkpoints")[-1])


def run_id(folder):
    return run.Identity.load(folder).run_id


def val_loss(folder, step):
    return journal.history(folder)["eval", step]["metrics"]["val_loss"]


def zeros(folder):
    return {
        name: weight == 0 for name, weight in newest(folder)["model"].items() if ".mlp." in name or ".attn." in name
    }


# ---- checkpoints for good --------------------------------------------------------------------------------------------


def test_steps_are_kept_for_good_and_training_is_the_same(made, tmp_path):
    found = [path.name for path in checkpoint.find(made / "runs/dense/checkpoints")]
    assert found == [checkpoint.name(step) for step in (7, 20, 30, 40)]
    assert checkpoint.load(made / "runs/dense/checkpoints" / found[0])["step"] == 7
    train(tmp_path, *arguments(tracker_run_name="dense"))
    one, other = newest(tmp_path / "runs/dense"), newest(made / "runs/dense")
    for name in ("model", "optimizer", "random", "evaluations"):
        assert_same(one[name], other[name])


def test_a_resumed_run_keeps_them_too(home):
    train(home, "--resume", "runs/dense", "MAX_ITERS=60", "CHECKPOINT_AT=44")  # 7 and 20 were promised
    found = [path.name for path in checkpoint.find(home / "runs/dense/checkpoints")]
    assert found == [checkpoint.name(step) for step in (7, 20, 44, 50, 60)]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("7,41", "CHECKPOINT_AT=7,41: step 41 is after the last one, MAX_ITERS=40"),
        ("7,0", "CHECKPOINT_AT=7,0: must be steps from 1 on, as in 200,1000; got '0'"),
        ("7;8", "CHECKPOINT_AT=7;8: must be steps from 1 on, as in 200,1000; got '7;8'"),
        ("7,", "CHECKPOINT_AT=7,: must be steps from 1 on, as in 200,1000; got ''"),
    ],
)
def test_what_is_no_step_is_told_before_anything_is_made(tmp_path, value, problem):
    output = train(tmp_path, *arguments(checkpoint_at=value), code=2)
    assert output == f"error: {problem}\n"
    assert not (tmp_path / "runs").exists()


# ---- from weights ----------------------------------------------------------------------------------------------------


def test_a_run_starts_where_another_one_was_and_says_so(home):
    output = train(home, *begin("runs/dense@20", tracker_run_name="more"))
    assert val_loss(home / "runs/more", 0) == val_loss(home / "runs/dense", 20)
    there, path = home / "runs/more", home / "runs/dense/checkpoints" / checkpoint.name(20)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    [started] = records(there, "start")
    assert started["init"] == {
        "from": "runs/dense@20", "kind": "run", "path": str(path), "sha256": sha256, "revision": "", "step": 20,
        "ancestors": {run_id(home / "runs/dense"): 20 * TOKENS},
        "flops": {run_id(home / "runs/dense"): [20 * TOKENS * FLOPS, 20 * TOKENS * FLOPS]},
    }  # fmt: skip
    assert "masks" not in started
    assert json.loads((there / "provenance.json").read_text())["init"] == started["init"]
    assert f"\nstart       runs/dense at step 20 (sha256 {sha256[:12]})\n" in output
    summary = json.loads((there / "summary.json").read_text())
    assert (summary["tokens"], summary["total_tokens"]) == (10 * TOKENS, 30 * TOKENS)
    assert re.search(r"\ntokens +2,560, and 7,680 with those of the runs before\n", output)
    assert {"CONFIG_N_EMBD=32", "CONFIG_TOKENIZER_BYTES=y"} <= set((there / ".config").read_text().splitlines())
    shown = dict(re.findall(r"^(start|tokens) +(.+?) *$", _show(home, "runs/more"), re.MULTILINE))
    assert shown["tokens"] == "7,680, with those of the runs before"
    assert shown["start"] == f"runs/dense at step 20 (sha256 {sha256[:12]})"


def _show(home, name):
    return forked.run(home, "scripts/runs.py", "show", name, environment=environment()).stdout


def test_the_weights_are_those_and_all_else_starts_anew(made):
    rows = journal.history(made / "runs/later")
    first = rows["train", 1]["metrics"]
    assert (first["learning_rate"], first["tokens"]) == (pytest.approx(0.003 / 5), TOKENS)  # warm-up, from step 1
    assert first["train_loss"] < 0.7 * losses(made / "runs/dense")[1]  # the very same batch
    again = source.read(source.find(str(made / "runs/dense@40")), 32, 256).state
    model = newest(made / "runs/dense")["model"]
    assert all(torch.equal(again[name], model[name][: len(again[name])]) for name in model)


def test_a_shape_that_differs_leaves_no_folder(home):
    output = train(home, *begin("runs/dense", tracker_run_name="more", n_layer=3, model_name="custom"), code=2)
    assert output == "error: --n-layer=3 does not fit INIT_FROM=runs/dense, which has 2; leave it out\n"
    output = train(home, *begin("./nothing", tracker_run_name="more"), code=2)
    assert output.count("\n") == 1
    assert not (home / "runs/more").exists()


def killed(home, step, checkpoint=False, **changes):
    """The folder of a run, `more`, that was killed after this step, and if wanted after its first checkpoint."""
    process = start(home, *begin("runs/dense", tracker_run_name="more", **changes))
    wait_for_step(home / "runs/more", step)
    while checkpoint and not checkpoint_file.find(home / "runs/more/checkpoints"):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.communicate()
    return home / "runs/more"


def test_a_run_that_was_killed_before_its_first_checkpoint_reads_weights_and_masks_again(home):
    given = {"max_iters": 100, "checkpoint_interval": 0, "eval_interval": 0}
    given |= {"pruning_method": "given", "init_masks": "runs/later"}
    there = killed(home, 2, **given)
    (home / "runs/dense").rename(home / "runs/away")
    assert train(home, "--resume", "runs/more", code=1) == (
        f"error: {home}/runs/dense/checkpoints/step-000000040.pt: is gone, and the run began with it; restore it, or "
        "start a new run\n"
    )
    (home / "runs/away").rename(home / "runs/dense")
    newest_path = checkpoint.find(home / "runs/dense/checkpoints")[-1]
    before = newest_path.read_bytes()
    _change(newest_path)
    refused = train(home, "--resume", "runs/more", code=1)
    assert re.search(
        rf"^error: {newest_path}: has changed since the run began with it: its sha256 was \w{{12}} and is \w{{12}}; "
        r"restore it, or start a new run\n$",
        refused,
    )
    newest_path.write_bytes(before)
    train(home, "--resume", "runs/more")
    train(home, *begin("runs/dense", tracker_run_name="whole", **given))
    for name in ("model", "optimizer", "random"):
        assert_same(newest(there)[name], newest(home / "runs/whole")[name])


def _change(path):
    """The same weights in a file with other bytes."""
    state = checkpoint.load(path)
    rewrite(path, {**state, "train_seconds": state["train_seconds"] + 1})


def test_a_run_with_a_checkpoint_needs_the_weights_no_more(home):
    there = killed(home, 5, max_iters=100, eval_interval=0, checkpoint=True)
    shutil.rmtree(home / "runs/dense")
    train(home, "--resume", "runs/more", "--max-iters", "102")
    assert newest(there)["step"] == 102
    made = history.provenances(there)
    assert made[1]["init"] == made[0]["init"] and made[0]["init"]["step"] == 40
    again = [record for record in journal.read(there) if record["event"] == "resume"]
    assert "init" not in again[0]
    assert lineage.total_tokens(there, 102) == 142 * TOKENS


def test_a_job_that_is_started_again_needs_them_no_more(home):
    words = begin("runs/dense", tracker_run_name="more", max_iters=8)
    job = {"TORCHELASTIC_RUN_ID": "7", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}

    def begun():
        trainer = Trainer(home, words, environment() | job)
        return trainer.communicate(60)[0], trainer.returncode

    output, code = begun()
    assert code == 0, output
    shutil.rmtree(home / "runs/dense")
    output, code = begun()
    assert code == 0 and "runs/more is finished" in output, output


def test_a_retry_from_the_beginning_starts_from_the_same_weights(home, monkeypatch):
    monkeypatch.chdir(home)
    with poison(home, (3,), times=1):
        assert program.train(begin("runs/dense", tracker_run_name="more", retries=1, retry_lr_factor=1)) == 0
    assert sessions(home / "runs/more") == [("start", 0, None, None), ("resume", 0, 1, {})]
    assert program.train(begin("runs/dense", tracker_run_name="plain")) == 0
    assert_same(newest(home / "runs/more")["model"], newest(home / "runs/plain")["model"])


def test_two_ranks_start_from_the_same_weights(home):
    given = {"pruning_method": "given", "init_masks": "runs/later", "dropout": 0}
    words = begin("runs/dense@20", tracker_run_name="two", **given)
    common = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    common |= {**environment(), "SLURM_STEP_NODELIST": "localhost"}
    tasks = [Trainer(home, words, {**common, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}) for rank in "01"]
    outputs = [task.communicate(60)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs
    train(home, *begin("runs/dense@20", tracker_run_name="one", **given))
    one, two = (losses(home / "runs" / name) for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-5)
    assert_same(zeros(home / "runs/two"), zeros(home / "runs/one"))


# ---- from masks ------------------------------------------------------------------------------------------------------


def test_a_lottery_ticket_counts_every_run_once(home):
    """Iterative magnitude pruning: the weights of step 20 under the masks of a run that went on from step 40."""
    output = train(
        home,
        *begin("runs/dense@20", tracker_run_name="ticket", pruning_method="given", init_masks="runs/later"),
    )
    there, [started] = home / "runs/ticket", records(home / "runs/ticket", "start")
    path = home / "runs/later/checkpoints" / checkpoint.name(6)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    dense, later = run_id(home / "runs/dense"), run_id(home / "runs/later")
    flops = {dense: [40 * TOKENS * FLOPS] * 2, later: [6 * TOKENS * FLOPS, 6 * TOKENS * (FLOPS - 6 * 12_288)]}
    assert started["masks"] == {
        "from": "runs/later", "path": str(path), "sha256": sha256, "ancestors": {dense: 40 * TOKENS, later: 6 * TOKENS},
        "flops": flops,
    }  # fmt: skip
    assert f"\nmasks       runs/later (sha256 {sha256[:12]})\n" in output
    assert lineage.ancestors(there) == {dense: 40 * TOKENS, later: 6 * TOKENS}
    summary = json.loads((there / "summary.json").read_text())
    assert summary["total_tokens"] == 56 * TOKENS
    assert summary["total_training_flops"] == 56 * TOKENS * FLOPS
    # The 10 steps of the ticket and 6 of `later` had half of 24,576 weights.
    assert summary["total_training_flops_nonzeros"] == (56 * FLOPS - 16 * 6 * 12_288) * TOKENS
    assert records(there, "finish")[0]["flops"].items() <= summary.items()
    assert_same(zeros(there), zeros(home / "runs/later"))
    train(home, *begin("runs/ticket", tracker_run_name="next", pruning_method="given"))  # the zeros of the ticket
    assert_same(zeros(home / "runs/next"), zeros(home / "runs/later"))
    assert "masks" not in records(home / "runs/next", "start")[0]
    assert lineage.total_tokens(home / "runs/next", 10) == 66 * TOKENS


def test_zeros_need_weights(tmp_path):
    output = train(tmp_path, *arguments(pruning_method="given"), code=2)
    assert output == (
        "error: INIT_MASKS=zeros takes the zeros of trained weights, but INIT_FROM is empty, and random weights have "
        "no zeros; set INIT_FROM, or name masks with INIT_MASKS\n"
    )


def test_one_shot_pruning_is_not_trained(home):
    words = {"pruning_method": "magnitude", "pruning_dynamics": "oneshot", "tracker_run_name": "more"}
    output = train(home, *begin("runs/dense", **words), code=2)
    assert output == (
        "error: PRUNING_DYNAMICS=oneshot prunes a finished model and trains nothing; run it with make oneshot RUN=... "
        "PRUNING_METHOD=magnitude\n"
    )
    config = home / "runs/later/.config"
    made = Schema()
    made.load(config)
    made.override([("PRUNING_DYNAMICS", "oneshot", "test")])
    made.write(config)
    output = train(home, "--resume", "runs/later", code=2)
    assert output == (
        "error: runs/later: is a one-shot run, which has no steps to train; to train it further, begin a new run with "
        "INIT_FROM=runs/later\n"
    )


# ---- comparisons -----------------------------------------------------------------------------------------------------


def test_runs_are_ranked_only_at_equal_tokens_of_the_whole_chain(home):
    train(home, *begin("runs/dense", tracker_run_name="more", max_iters=6))
    dense, later, more = (difference.Side.load(home / "runs" / name) for name in ("dense", "later", "more"))
    assert list(difference.unequal(later, more)) == []
    assert difference.verdict(later, more, []).startswith("Equal budgets: at step 6 ")
    reasons = list(difference.unequal(dense, more))
    assert reasons == ["with the runs before, 10,240 and 11,776 tokens were trained"]
    assert difference.verdict(dense, more, reasons) == (
        "The budgets differ, so neither is ranked: with the runs before, 10,240 and 11,776 tokens were trained."
    )


def test_a_sweep_compares_what_was_trained_on_equally_many_tokens(home, monkeypatch):
    values = {**options(**NO_SHAPE), "tracker": "none", "max_iters": 6, "eval_interval": 3, "sample_tokens": 0}
    common = " ".join(f"{k.upper()}={text(v)}" for k, v in values.items() if k not in ("seed", "tracker_run_name"))
    lines = ["from-dense INIT_FROM=dense", "masked INIT_FROM=runs/later PRUNING_METHOD=given INIT_MASKS=later"]
    lines += ["alike INIT_FROM=runs/dense@40 WEIGHT_DECAY=0"]
    (home / "retrain").write_text("\n".join(["defconfig gpt2_tiny", "seeds 1", f"common {common}", *lines]) + "\n")
    monkeypatch.chdir(home)
    for one in sweep.read(Path("retrain"), adopt=adopt).runs():
        one.check()
        train(home, *one.words())
    _check_a_sweep_whose_source_changed()
    shutil.rmtree("runs/dense")  # nothing is left to do, so the weights are not needed
    plan = sweep.read(Path("retrain"), adopt=adopt)
    for one in plan.runs():
        one.check()
        assert one.finished
    shown = table.markdown(comparison.results(plan))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines()[2:5]]
    assert [row[0] for row in rows] == ["from-dense", "masked", "alike"]
    assert [row[1] for row in rows] == ["1", "2", "1"]  # blocks
    assert (rows[0][4], rows[1][4]) == ("", "") and re.fullmatch(r"[+-]0\.\d{4}", rows[2][4])
    assert (
        "- Only configurations of one block have equal tokens, those of the runs before included, so only those are "
        "ranked together: 1: 11,776 tokens for from-dense, alike; 2: 13,312 tokens for masked.\n"
    ) in shown


def _check_a_sweep_whose_source_changed():
    """With a run that is still to begin, the others must have begun with what is there now."""
    shutil.move("runs/retrain/alike-seed1", "away")
    check_sources(sweep.read(Path("retrain"), adopt=adopt))
    path = checkpoint.find(Path("runs/dense/checkpoints"))[-1]
    text = Path("retrain").read_text()
    Path("retrain").write_text(text.replace("INIT_FROM=runs/dense@40", "INIT_FROM=dense"))
    before = path.read_bytes()
    _change(path)
    with pytest.raises(UserError, match="from-dense-seed1: was begun with other content of INIT_FROM=runs/dense than"):
        check_sources(sweep.read(Path("retrain"), adopt=adopt))
    path.write_bytes(before)
    Path("retrain").write_text(text)
    shutil.move("away", "runs/retrain/alike-seed1")


def test_a_configuration_of_a_sweep_has_the_shape_of_its_weights(home, monkeypatch):
    monkeypatch.chdir(home)
    train(home, *arguments(tracker_run_name="wide", n_embd=64, max_iters=1))
    head = "defconfig gpt2_tiny\nseeds 1\ncommon DATASET=files DATASET_SOURCE=corpus.txt\n"
    (home / "retrain").write_text(f"{head}a INIT_FROM=runs/dense\nb INIT_FROM=runs/wide\n")
    plan = sweep.read(home / "retrain", adopt=adopt)
    assert [one.schema()["N_EMBD"] for one in plan.configurations] == [32, 64]
    (home / "retrain").write_text(f"{head}a INIT_FROM=runs/dense\nb INIT_FROM=runs/dense N_LAYER=4\n")
    with pytest.raises(UserError, match=r"retrain:5: N_LAYER=4 does not fit INIT_FROM=runs/dense, which has 2"):
        sweep.read(home / "retrain", adopt=adopt)


def test_data_is_prepared_with_the_tokenizer_of_the_weights(home):
    words = ["DATASET=files", "DATASET_SOURCE=corpus.txt", "DATA_DIR=other", "INIT_FROM=runs/dense"]
    done = forked.run(home, "gpt2/prepare_data.py", *words, environment=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    [folder] = (home / "other").iterdir()
    assert folder.name.endswith("-bytes")


def test_masks_from_nowhere_are_one_sentence(tmp_path):
    refused = train(tmp_path, *arguments(pruning_method="given", init_masks=""), code=2)
    assert refused == (
        "error: INIT_MASKS is empty, and PRUNING_METHOD=given needs masks; name a pruned run, or set INIT_MASKS=zeros\n"
    )
    assert not (tmp_path / "runs").exists()
