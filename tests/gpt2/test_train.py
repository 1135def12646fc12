"""Whole runs through the command line: golden losses, resuming after a kill, signals, divergence."""

import json
import math
import re
import resource
import shutil
import signal
import subprocess
import time
from importlib import metadata
from pathlib import Path

import pytest
import torch

from lib.record import checkpoint, journal
from tests.forked import Trainer
from tests.training import arguments, environment, losses, program, start, train

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_losses_are_the_golden_ones(tmp_path, optimizer):
    """Any change of the training path shows here; if one is meant, replace the numbers and say why in the commit."""
    rate = 0.1 if optimizer == "sgd" else 0.003
    words = arguments(optimizer=optimizer, learning_rate=rate, dropout=0, max_iters=20)
    train(tmp_path, *words)
    golden = [float(line) for line in (GOLDEN / f"losses_{optimizer}.txt").read_text().splitlines()]
    assert list(losses(tmp_path / "runs/run").values()) == pytest.approx(
        golden, rel=1e-4
    )  # float32 on other processors
    assert len(golden) == 20


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 40 steps that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    output = train(folder, *arguments(json_output="result.json"))
    return folder, output


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(run / "checkpoints" / "step-000000040.pt")


def assert_same(a: object, b: object) -> None:
    """Equality of nested dictionaries, lists and tensors, bit for bit."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def assert_like_uninterrupted(run: Path, whole_run: Path) -> None:
    """The same losses, weights, optimizer state and random state as the whole run, each step once."""
    mine, theirs = journal.history(run), journal.history(whole_run)
    assert mine.keys() == theirs.keys()
    assert sorted(key for key in mine) == sorted(
        [("train", step) for step in range(1, 41)] + [("eval", step) for step in (0, 10, 20, 30, 40)]
    )
    volatile = {"tokens_per_second": None}
    for key in mine:
        assert mine[key]["metrics"] | volatile == theirs[key]["metrics"] | volatile, key
    a, b = final_weights(run), final_weights(whole_run)
    for name in ("model", "optimizer", "random", "step", "evaluations"):
        assert_same(a[name], b[name])


def test_the_forked_trainer_of_the_tests_is_the_program(tmp_path, whole):
    """Losses, weights and random state bit for bit, and what it prints but for what the clock tells."""
    output = train(tmp_path, *arguments(json_output="result.json"), by=program)
    assert_like_uninterrupted(tmp_path / "runs/run", whole[0] / "runs/run")
    clock = re.compile(
        r"[\d,.]+ tokens/s|in [\d.]+ seconds|about .+ here|about [\d,]+ s of steps|(?<=^time ) +[\d.:]+.*", re.MULTILINE
    )
    assert clock.sub("", output) == clock.sub("", whole[1]).replace(str(whole[0]), str(tmp_path))


def wait_for_step(run: Path, step: int) -> None:
    """Return once the journal has a training step at or beyond `step`."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (run / "journal.jsonl").exists() and max(losses(run), default=0) >= step:
            return
        time.sleep(0.005)
    raise AssertionError("the run did not get that far")


@pytest.mark.parametrize("step", [3, 14, 27])
def test_a_killed_run_resumes_bit_for_bit(tmp_path, whole, step):
    process = start(tmp_path, *arguments())
    run = tmp_path / "runs/run"
    wait_for_step(run, step)
    process.kill()
    process.communicate()
    assert not (run / "summary.json").exists()
    output = train(tmp_path, "--resume", "runs/run")
    assert "resuming runs/run after step" in output
    assert_like_uninterrupted(run, whole[0] / "runs/run")
    [before, after] = [r for r in journal.read(run) if r["event"] in ("start", "resume")]
    assert (before["event"], after["event"]) == ("start", "resume")
    assert before["run_id"] == after["run_id"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_resume(tmp_path, whole, number, code):
    process = start(tmp_path, *arguments())
    run = tmp_path / "runs/run"
    wait_for_step(run, 12)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    [finish] = [r for r in journal.read(run) if r["event"] == "finish"]
    assert (finish["status"], finish["metrics"]) == ("interrupted", {})
    assert f"stopped after step {finish['step']}; continue with: make resume RUN=runs/run" in output
    assert checkpoint.find(run / "checkpoints")[-1].name == checkpoint.name(finish["step"])
    train(tmp_path, "--resume", "latest")
    assert_like_uninterrupted(run, whole[0] / "runs/run")


def test_a_run_ends_with_a_summary(whole):
    folder, output = whole
    run = folder / "runs/run"
    summary = json.loads((run / "summary.json").read_text())
    history = journal.history(run)
    evaluations = {step: r["metrics"]["val_loss"] for (event, step), r in history.items() if event == "eval"}
    assert summary == json.loads((folder / "result.json").read_text())
    assert summary["final_val_loss"] == evaluations[40]
    assert summary["best_val_loss"] == min(evaluations.values())
    assert (summary["steps"], summary["tokens"], summary["sparsity"]) == (40, 40 * 4 * 2 * 32, 0.0)
    assert summary["total_time_seconds"] > 0
    assert evaluations[40] < evaluations[0]  # it learned
    for words in ("a sample the model wrote", f"{evaluations[40]:.4f} final", "tokens/s", "runs/run", "make dashboard"):
        assert words in output
    [finish] = [r for r in journal.read(run) if r["event"] == "finish"]
    assert finish["metrics"].keys() == {"final_val_loss", "best_val_loss", "total_time_seconds"}


def test_training_records_carry_the_promised_metrics(whole):
    history = journal.history(whole[0] / "runs/run")
    train_metrics, eval_metrics = history["train", 10]["metrics"], history["eval", 10]["metrics"]
    assert train_metrics.keys() == {
        "train_loss", "learning_rate", "sparsity", "average_nonzeros", "grad_norm", "tokens", "tokens_per_second",
    }  # fmt: skip
    assert train_metrics["tokens"] == 10 * 4 * 2 * 32
    assert train_metrics["sparsity"] == 0.0
    assert eval_metrics["val_perplexity"] == pytest.approx(math.exp(eval_metrics["val_loss"]))
    bits = eval_metrics["val_loss"] / math.log(2)  # of the tokenizer bytes, and these windows are in one document
    assert eval_metrics["val_bits_per_byte"] == pytest.approx(bits)


def test_a_run_keeps_its_configuration_and_where_it_came_from(whole):
    run = whole[0] / "runs/run"
    assert 'CONFIG_LEARNING_RATE="0.003"' in (run / ".config").read_text().splitlines()
    assert "CONFIG_MAX_ITERS=40" in (run / "defconfig").read_text().splitlines()
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["options"]["MAX_ITERS"] == {"value": "40", "source": "--max-iters"}
    assert provenance["options"]["GRAD_CLIP"] == {"value": "1.0", "source": "default"}
    assert provenance["packages"]["torch"] == metadata.version("torch")


def test_a_finished_run_says_so_and_goes_on_when_it_gets_more_steps(tmp_path, whole):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    assert "runs/run is finished" in train(tmp_path, "--resume", "runs/run")
    output = train(tmp_path, "--resume", "runs/run", "--max-iters", "45")
    assert "changed: MAX_ITERS 40 -> 45" in output
    assert sorted(losses(tmp_path / "runs/run")) == list(range(1, 46))
    assert json.loads((tmp_path / "runs/run/summary.json").read_text())["steps"] == 45


def contents(run):
    """Every file of a run's folder."""
    return {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["LEARNING_RATE=1e-4", "GRAD_CLIP=0"], "GRAD_CLIP 1.0 -> 0, LEARNING_RATE 0.003 -> 1e-4"),
        (["--lr-schedule", "constant"], "LR_SCHEDULE cosine -> constant, MIN_LR 6e-5 -> unset"),
        (["THREADS=2", "NAN_POLICY=skip"], "NAN_POLICY stop -> skip, NAN_SKIP_LIMIT unset -> 10"),
        (["MODEL_NAME=gpt2"], None),
        (["BATCH_SIZE=8", "GRADIENT_ACCUMULATION=1"], "BATCH_SIZE 4 -> 8, GRADIENT_ACCUMULATION 2 -> 1"),
    ],
)
def test_a_finished_run_refuses_what_would_be_for_further_steps(tmp_path, whole, words, values):
    """Its configuration would else say what none of its results was made with; `make reproduce` goes by that."""
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)
    output = train(tmp_path, "--resume", "runs/run", *words, code=2)
    if values:
        assert output == (
            f"error: runs/run: has made all of its 40 steps, so it is too late to change {values}; raise MAX_ITERS to "
            "continue training with this change, or start a new run\n"
        )
    assert contents(tmp_path) == before


def test_a_stopped_run_cannot_be_declared_whole(tmp_path, whole):
    """Its weights were made on the way to another MAX_ITERS; `make reproduce` would repeat another run."""
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    run = tmp_path / "runs/run"
    (run / "summary.json").unlink()
    (run / "checkpoints" / checkpoint.name(40)).unlink()
    before = contents(run)
    assert train(tmp_path, "--resume", "runs/run", "MAX_ITERS=30", code=2) == (
        "error: runs/run: is at step 30 of MAX_ITERS=40, so MAX_ITERS=30 leaves no step to train; "
        "choose a larger number, or use the checkpoint as it is\n"
    )
    assert contents(run) == before
    assert "changed: MAX_ITERS 40 -> 35" in train(tmp_path, "--resume", "runs/run", "MAX_ITERS=35")
    assert json.loads((run / "summary.json").read_text())["steps"] == 35


def test_a_finished_run_is_untouched_by_what_changes_no_result(tmp_path, whole):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)
    words = [
        "TRACKER=csv",
        "LOG_INTERVAL=7",
        "EVAL_INTERVAL=7",
        "CHECKPOINT_KEEP=9",
        "PROMPT=Hello",
        "DATA_DIR=none",
        "THREADS=2",
    ]
    assert "runs/run is finished: see " in train(tmp_path, "--resume", "runs/run", *words)
    assert contents(tmp_path) == before


def test_a_run_that_lacks_its_last_evaluation_may_get_it_on_another_device(tmp_path, whole):
    """No step is left to make, so nothing else can change."""
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    run = tmp_path / "runs/run"
    (run / "summary.json").unlink()
    text = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    (run / "journal.jsonl").write_text("".join(line for line in text if '"step":40' not in line or '"train"' in line))
    before = contents(tmp_path)
    output = train(tmp_path, "--resume", "runs/run", "THREADS=2", "LEARNING_RATE=1e-4", code=2)
    assert "too late to change LEARNING_RATE 0.003 -> 1e-4; raise" in output
    assert contents(tmp_path) == before
    assert "changed: THREADS 1 -> 2" in train(tmp_path, "--resume", "runs/run", "THREADS=2")
    assert json.loads((run / "summary.json").read_text())["steps"] == 40


def test_a_run_goes_on_where_it_was_trained(tmp_path, whole):
    """Its data and text are found there, wherever the resume is started; what is given now starts from here."""
    shutil.copytree(whole[0], tmp_path / "home")
    for path in (tmp_path / "home/runs/run").glob("provenance*.json"):
        made = json.loads(path.read_text())
        path.write_text(json.dumps(made | {"folder": str(tmp_path / "home")}))
    here, home = tmp_path / "here", tmp_path / "home"
    here.mkdir()
    output = train(here, "--resume", "../home/runs/run", "MAX_ITERS=42", "JSON_OUTPUT=out.json")
    assert f"note: the run was trained in {home}; relative paths, such as DATA_DIR=data, start from {home}\n" in output
    assert f"resuming {home}/runs/run after step 40" in output
    assert sorted(path.name for path in here.iterdir()) == ["corpus.txt", "out.json"]  # the helper's text
    assert json.loads((here / "out.json").read_text())["steps"] == 42
    assert sorted(losses(home / "runs/run")) == list(range(1, 43))
    home.rename(tmp_path / "moved")  # to another machine, say
    output = train(tmp_path / "moved", "--resume", "run", "MAX_ITERS=43")
    assert "note:" not in output
    assert "tokens for train" not in output  # nothing was prepared anew
    (tmp_path / "moved/runs/run").rename(tmp_path / "moved/alone")
    (tmp_path / "moved").rename(tmp_path / "again")
    output = train(tmp_path / "again", "--resume", "alone", "MAX_ITERS=44")
    note = (
        f"the run was trained in {tmp_path}/moved; relative paths, such as DATA_DIR=data, start from {tmp_path}/again"
    )
    assert f"note: {note}\n" in output
    assert "tokens for train" not in output


@pytest.fixture
def moved(tmp_path, whole):
    """The folder of a run that was trained in q1, which is called q2 now."""
    shutil.copytree(whole[0], tmp_path / "q2")
    for path in (tmp_path / "q2/runs/run").glob("provenance*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"folder": str(tmp_path / "q1")}))
    (tmp_path / "here").mkdir()
    return tmp_path / "q2/runs/run"


def resume(folder, *words):
    """What a resume that is started in `folder` prints; nothing is put there."""
    process = Trainer(folder, ["--resume", *words], environment())
    return process.communicate(timeout=120)[0]


def test_a_run_finds_its_data_where_it_was_moved_with_them(tmp_path, moved):
    output = resume(tmp_path / "here", "../q2/runs/run", "MAX_ITERS=42")
    note = f"{tmp_path}/q1; relative paths, such as DATA_DIR=data, start from {tmp_path}/q2"
    assert f"note: the run was trained in {note}\n" in output
    assert "tokens for train" not in output  # nothing was prepared anew
    assert list((tmp_path / "here").iterdir()) == []
    assert sorted(losses(moved)) == list(range(1, 43))


def test_data_are_not_prepared_anew_in_a_foreign_folder(tmp_path, moved):
    (tmp_path / "q2/data").rename(tmp_path / "kept")
    (tmp_path / "here/data").mkdir()  # other data, as any clone has
    data, before = next((tmp_path / "kept").iterdir()).name, contents(moved)
    assert "q2/runs/run is finished: see " in resume(tmp_path / "here", "../q2/runs/run")  # which needs no data
    assert resume(tmp_path / "here", "../q2/runs/run", "MAX_ITERS=42") == (
        f"error: ../q2/runs/run: was trained in {tmp_path}/q1, and there is no data/{data} in {tmp_path}/q2 or "
        f"{tmp_path}/here; say which folder has its data now, as in DATA_DIR=/path/to/data\n"
    )
    assert contents(moved) == before
    assert list((tmp_path / "here").rglob("*")) == [tmp_path / "here/data"]
    output = resume(tmp_path / "here", "../q2/runs/run", "MAX_ITERS=42", "DATA_DIR=../kept")
    assert f"{tmp_path}/q1; relative paths start from {tmp_path}/q2\n" in output
    assert "tokens for train" not in output
    assert sorted(losses(moved)) == list(range(1, 43))


def test_a_source_that_is_given_for_a_session_starts_from_here(tmp_path, moved):
    """It is a file here; where the run was trained there is none of this name."""
    (tmp_path / "q2/corpus.txt").rename(tmp_path / "here/same.txt")
    shutil.rmtree(tmp_path / "q2/data")
    words = ["../q2/runs/run", "MAX_ITERS=42", "DATASET_SOURCE=same.txt", "DATA_DIR=fresh"]
    output = resume(tmp_path / "here", *words)
    assert "tokens for train" in output
    assert sorted(losses(moved)) == list(range(1, 43))
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["fresh", "same.txt"]
    assert sorted(path.name for path in (tmp_path / "q2").iterdir()) == ["result.json", "runs"]


def test_an_older_checkpoint_is_gone_back_to_by_moving_the_newer_ones(tmp_path, whole):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    before = losses(tmp_path / "runs/run")
    newest, older = (f"runs/run/checkpoints/{checkpoint.name(step)}" for step in (40, 30))
    assert "runs/run is finished" in train(tmp_path, "--resume", newest)
    output = train(tmp_path, "--resume", older, code=2)
    command = f"mkdir -p runs/run/newer && mv {newest} runs/run/summary.json runs/run/newer"
    assert output == (
        "error: runs/run: continues from its newest checkpoint, step-000000040.pt; to go back to step-000000030.pt, "
        f"first move everything newer away: {command} && make resume RUN=runs/run\n"
    )
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    assert "resuming runs/run after step 30" in train(tmp_path, "--resume", older)
    assert losses(tmp_path / "runs/run") == before
    assert "there is no checkpoint 'step-000000031.pt'; choose newest, best (if CHECKPOINT_BEST kept it)" in train(
        tmp_path, "--resume", "runs/run/checkpoints/step-000000031.pt", code=2
    )


def test_the_same_name_twice_makes_two_runs(tmp_path):
    outputs = [train(tmp_path, *arguments(max_iters=5)) for _ in range(2)]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["run", "run-2"]
    note = "note: runs/run exists, so this run is called run-2; to continue run instead: make resume RUN=runs/run\n"
    assert [output.count(note) for output in outputs] == [0, 1]
    assert "exists" not in outputs[0]
    assert len(losses(tmp_path / "runs/run")) == len(losses(tmp_path / "runs/run-2")) == 5
    assert losses(tmp_path / "runs/run") == losses(tmp_path / "runs/run-2")


def test_the_split_of_the_batch_does_not_change_what_is_learned(tmp_path):
    runs = []
    for batch_size, accumulation in ((8, 1), (4, 2), (1, 8)):
        changes = {"batch_size": batch_size, "gradient_accumulation": accumulation, "dropout": 0, "max_iters": 20}
        train(tmp_path, *arguments(**changes, tracker_run_name=f"run{batch_size}"))
        runs.append(list(losses(tmp_path / f"runs/run{batch_size}").values()))
    assert runs[0] == pytest.approx(runs[1], rel=1e-5)
    assert runs[0] == pytest.approx(runs[2], rel=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_loss_that_is_no_number_stops_the_run_with_its_last_good_weights(tmp_path, dtype):
    wild = arguments(
        optimizer="sgd",
        learning_rate=10,
        grad_clip=0,
        lr_schedule="constant",
        warmup_steps=0,
        dtype=dtype,
        log_interval=7,
    )
    output = train(tmp_path, *wild, code=1)
    assert "the loss or its gradient is NaN or infinite; lower LEARNING_RATE" in output
    run = tmp_path / "runs/run"
    state = checkpoint.load(checkpoint.find(run / "checkpoints")[-1])
    assert all(torch.isfinite(weight).all() for weight in state["model"].values())
    *_, alert, finish = journal.read(run)
    assert (alert["event"], finish["event"], finish["status"]) == ("alert", "finish", "diverged")
    assert finish["step"] == state["step"] < 40
    assert all(math.isfinite(loss) for loss in losses(run).values())
    assert f"step {state['step'] + 1}: " in alert["message"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_learns_about_the_same(tmp_path, whole, dtype):
    train(tmp_path, *arguments(dtype=dtype))
    half, full = losses(tmp_path / "runs/run"), losses(whole[0] / "runs/run")
    assert half != full
    assert max(abs(half[step] - full[step]) for step in full) < 0.05


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--n-head", "3"], "error: N_EMBD=32 cannot be divided among N_HEAD=3 heads; choose a multiple"),
        (["--min-lr", "0.1"], "error: MIN_LR=0.1 exceeds LEARNING_RATE=0.003; lower it or use LR_SCHEDULE=constant"),
        (["--json-output", "none/a.json"], "JSON_OUTPUT=none/a.json: cannot be written; name a file in a folder that"),
        (["--optimizr", "sgd"], "error: unknown flag --optimizr; did you mean --optimizer?"),
        (["PRUNING_METHOD=magnitude", "PRUNING_DISTRIBUTION=n-m", "PRUNING_M=3"],
         "error: PRUNING_M=3 must divide the input dimension of every tensor, but h.0.attn.c_attn.weight has 32"),
        (["PRUNING_METHOD=magnitude", "PRUNING_END=41"], "error: PRUNING_END=41 lies beyond MAX_ITERS=40"),
        (["OPTIMIZER=adamwspam", "SPAM_INTERVAL=100"], "error: SPAM_WARMUP_STEPS=150 does not end before"),
        (["--compile"], "error: --compile: the compiler none is not installed"),
        (["--device", "mps"], "finds no such device here; use --device auto"),
        (["--resume", "runs/none"], "there is no run in this folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_before_a_run_is_made(tmp_path, words, message, monkeypatch):
    """And before data are prepared."""
    monkeypatch.setenv("CXX", "none")
    output = train(tmp_path, *arguments(), *words, code=2)
    assert message in output
    assert "Traceback" not in output
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "data").exists()


def test_a_folder_of_runs_that_cannot_be_is_said_before_data_are_prepared(tmp_path):
    output = train(tmp_path, *arguments(output_dir="corpus.txt/runs"), code=1)
    place = f"{tmp_path}/corpus.txt"
    assert f"error: corpus.txt/runs: the run's folder cannot be made there: {place} is not a folder\n" in output
    assert not (tmp_path / "data").exists()


def test_a_run_stays_the_run_it_is(tmp_path, whole):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    output = train(tmp_path, "--resume", "runs/run", "--seed", "8", "--optimizer", "sgd", code=2)
    kept = "OPTIMIZER adamw -> sgd, SEED 7 -> 8"
    assert f"error: runs/run: a resumed run keeps the options it began with ({kept}); start a new run instead" in output
    output = train(tmp_path, "--resume", "runs/run", "--pruning-method", "random", code=2)
    assert "PRUNING_METHOD none -> random, " in output
    assert "TARGET_SPARSITY unset -> 0.5" in output
    output = train(tmp_path, "--resume", "runs/run", "--batch-size", "3", code=2)
    assert "a resumed run keeps BATCH_SIZE x GRADIENT_ACCUMULATION" in output


@pytest.mark.parametrize(
    ("optimizer", "changes", "expected"),
    [
        ("adamw", {"weight_decay": 0.5, "adam_beta2": 0.5}, {"weight_decay": 0.5, "betas": (0.9, 0.5)}),
        ("sgd", {"sgd_momentum": 0.25}, {"momentum": 0.25}),
    ],
)
def test_an_option_of_the_optimizer_that_changes_on_resume_acts(tmp_path, optimizer, changes, expected):
    train(tmp_path, *arguments(optimizer=optimizer, max_iters=10))
    flags = [word for name, value in changes.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    output = train(tmp_path, "--resume", "runs/run", "--max-iters", "20", *flags)
    assert all(f"changed: {name.upper()} " in output for name in changes)
    group = checkpoint.load(tmp_path / "runs/run/checkpoints/step-000000020.pt")["optimizer"]["param_groups"][0]
    assert {name: group[name] for name in expected} == expected


def test_a_longer_run_that_is_stopped_again_goes_on(tmp_path):
    train(tmp_path, *arguments(max_iters=10, n_layer=1, n_embd=16, gradient_accumulation=1))
    process = start(tmp_path, "--resume", "runs/run", "--max-iters", "600")
    wait_for_step(tmp_path / "runs/run", 20)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert not (tmp_path / "runs/run/summary.json").exists()
    assert "resuming runs/run after step" in train(tmp_path, "--resume", "latest", "--max-iters", "601")
    assert json.loads((tmp_path / "runs/run/summary.json").read_text())["steps"] == 601


def test_other_data_is_not_trained_on(tmp_path):
    train(tmp_path, *arguments(max_iters=10))
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "corpus.txt").write_text("Something else to read, and read again.\n" * 3000)
    process = Trainer(tmp_path, ["--resume", "runs/run", "--max-iters", "20"], environment())
    output, _ = process.communicate()
    assert process.returncode == 1
    assert (
        "error: runs/run: was trained on other data than data/files-corpus.txt-574ad6-bytes holds "
        "(train-00000.bin, val-00000.bin); restore that data\n"
    ) in output


def test_a_run_cannot_end_before_where_it_is(tmp_path, whole):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "data")
    output = train(tmp_path, "--resume", "runs/run", "--max-iters", "30", code=2)
    assert not (tmp_path / "data").exists()
    assert "runs/run: is at step 40, beyond MAX_ITERS=30; raise MAX_ITERS" in output


def test_a_run_stopped_before_its_first_step_loses_nothing(tmp_path, whole):
    """The signal comes while the model is evaluated for the first time, on many windows so that there is time."""
    process = start(tmp_path, *arguments(eval_samples=3000))
    run = tmp_path / "runs/run"
    while not (run / "journal.jsonl").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    train(tmp_path, "--resume", "runs/run")
    evaluated = [step for event, step in journal.history(run) if event == "eval"]
    assert evaluated == [0, 10, 20, 30, 40]
    assert losses(run) == losses(whole[0] / "runs/run")


def test_resumed_runs_are_found_where_they_are_configured_to_be(tmp_path):
    train(tmp_path, *arguments(max_iters=10, output_dir="out"))
    assert "out/run is finished" in train(tmp_path, "--resume", "latest", "--output-dir", "out")
    assert "out/run is finished" in train(tmp_path, "--resume", "latest", "OUTPUT_DIR=out")


def test_nobody_reading_the_output_does_not_stop_a_run(tmp_path):
    process = start(tmp_path, *arguments())
    while "run folder" not in process.stdout.readline():
        pass
    process.stdout.close()
    assert process.wait(60) == 0
    assert json.loads((tmp_path / "runs/run/summary.json").read_text())["steps"] == 40


def test_a_compiled_run_resumes_bit_for_bit(tmp_path):
    """With a last evaluation batch of another size, which must not change the code that training is compiled to.

    The compiled code counts the inputs by which Wanda prunes, so the masks tell whether it does.
    """
    compiled = {
        "compile": True, "eval_samples": 6, "max_iters": 20, "dropout": 0, "eval_interval": 5, "n_layer": 1,
        "pruning_method": "wanda", "pruning_interval": 4,
    }  # fmt: skip
    train(tmp_path, *arguments(**compiled, tracker_run_name="whole"))
    run = tmp_path / "runs/run"
    shutil.copytree(tmp_path / "runs/whole", run)
    (run / "checkpoints" / checkpoint.name(20)).unlink()
    (run / "summary.json").unlink()
    assert "after step 10" in train(tmp_path, "--resume", "runs/run")
    a, b = (checkpoint.load(tmp_path / f"runs/{name}/checkpoints/step-000000020.pt") for name in ("run", "whole"))
    for part in ("model", "optimizer", "pruner"):
        assert_same(a[part], b[part])
    assert sum(record["event"] == "eval" for record in journal.read(run)) == 5  # none was recorded twice
    train(tmp_path, *arguments(**compiled | {"compile": False}, tracker_run_name="eager"))
    assert losses(tmp_path / "runs/whole") == pytest.approx(losses(tmp_path / "runs/eager"), rel=1e-4)
    eager = checkpoint.load(tmp_path / "runs/eager/checkpoints/step-000000020.pt")
    zeros = [{name: (value == 0).sum().item() for name, value in one["model"].items()} for one in (b, eager)]
    assert zeros[0] == zeros[1] and sum(zeros[0].values()) > 1000


def test_another_arithmetic_may_be_chosen_on_resume(tmp_path):
    train(tmp_path, *arguments(max_iters=10))
    output = train(tmp_path, "--resume", "runs/run", "--max-iters", "20", "--dtype", "float16")
    assert "changed: DTYPE float32 -> float16" in output


def test_two_trainers_do_not_share_a_run(tmp_path):
    process = start(tmp_path, *arguments(max_iters=100_000))
    wait_for_step(tmp_path / "runs/run", 1)
    output = train(tmp_path, "--resume", "runs/run", code=1)
    assert "another process is training this run; wait for it or stop it" in output
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130


@pytest.mark.parametrize(("interval", "last"), [(0, 40), (10, 20)])
def test_a_run_whose_checkpoint_cannot_be_written_is_not_finished(tmp_path, interval, last):
    """A periodic checkpoint is written while training goes on: at the next one it is said, and that one fails."""
    limit = 200_000  # bytes of a file; a checkpoint has 400,000, everything else less than half of the limit
    process = start(tmp_path, *arguments(checkpoint_interval=interval))
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    run = tmp_path / "runs/run"
    names = [checkpoint.name(step) for step in range(interval, last + 1, interval or 40) if step]
    lines = [line for line in output.splitlines() if "MB cannot be written (" in line]
    assert [line.split(":")[0] for line in lines] == ["alert"] * (len(names) - 1) + ["error"]
    assert all(f"runs/run/checkpoints/{name}: " in line for name, line in zip(names, lines, strict=True))
    assert "Traceback" not in output
    [finish] = [r for r in journal.read(run) if r["event"] == "finish"]
    assert (finish["status"], finish["step"]) == ("failed", last)
    assert list((run / "checkpoints").iterdir()) == []
    assert not (run / "summary.json").exists()


def test_a_run_with_a_value_that_is_no_longer_allowed_goes_on_with_another(tmp_path):
    train(tmp_path, *arguments(max_iters=2))
    own = tmp_path / "runs/run/.config"
    own.write_text(re.sub(r'(?<=CONFIG_ADAM_EPSILON=").*?(?=")', "0", own.read_text()))
    output = train(tmp_path, "--resume", "runs/run", "MAX_ITERS=3", "ADAM_EPSILON=1e-7")
    assert "changed: ADAM_EPSILON 0 -> 1e-7" in output
    assert 'CONFIG_ADAM_EPSILON="1e-7"' in own.read_text()
