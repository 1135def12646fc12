"""make evaluate and EVAL_TASKS as a user runs them: on a run that the real trainer made, with local data."""

import csv
import json
import os
import signal
import sys
import time

import pytest

from gpt2.evaluation import tasks
from lib.base.errors import UsageError
from lib.record import history, journal
from tests import forked, training
from tests.gpt2.evaluation.test_tasks import ROWS, write

SHORT = {"max_iters": 20, "sample_tokens": 0, "block_size": 64, "tracker": "csv", "dropout": 0.0}
NEEDS_LM_EVAL = pytest.mark.extra("lm_eval")


def local(folder, count=3):
    """Local data of piqa and wikitext."""
    for name in ("piqa", "wikitext"):
        path, row = ROWS[name]
        write(folder / "tasks" / f"{path}.jsonl", [row] * count)
    return str(folder / "tasks")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a run that measured piqa at its end, and what it printed."""
    home = tmp_path_factory.mktemp("home")
    words = [*training.arguments(**SHORT), "--eval-tasks=piqa", f"--task-data={local(home)}"]
    return home, training.train(home, *words)


@pytest.fixture
def home(made):
    return made[0]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A folder with a run of two steps that measured no task."""
    home = tmp_path_factory.mktemp("plain")
    training.train(home, *training.arguments(**SHORT | {"max_iters": 2, "eval_interval": 2, "tracker": "none"}))
    return home


def evaluate(home, *words, code=0):
    done = forked.run(home, "scripts/evaluate.py", *words, environment=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def results(run):
    """(task, step) -> n of the valid results."""
    return {(row["task"], row["step"]): row["n"] for row in history.load(run).tasks()}


def stored(run):
    with (run / "metrics.csv").open(newline="") as file:
        return {(row["event"], row["step"], row["metric"]): row["value"] for row in csv.DictReader(file)}


@NEEDS_LM_EVAL
def test_a_run_measures_its_tasks_after_its_last_step(made):
    home, printed = made
    run = home / "runs" / "run"
    (row,) = training.records(run, "task")
    assert (row["task"], row["step"], row["n"], row["version"], row["checkpoint"], row["dtype"]) == (
        "piqa", 20, 3, 1.0, "step-000000020.pt", "float32",
    )  # fmt: skip
    assert history.state(history.load(run), run) == "finished"
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    assert float(stored(run)["task piqa", "20", "piqa/acc"]) == row["metrics"]["piqa/acc"]
    assert any(line.split()[:1] == ["piqa/acc_norm"] for line in printed.splitlines())
    assert "\nrecorded in runs/run/journal.jsonl; see make show RUN=runs/run\n" in printed


@NEEDS_LM_EVAL
def test_a_checkpoint_is_measured_recorded_and_delivered(home):
    run = home / "runs" / "run"
    printed = evaluate(home, "--run", "runs/run", "--checkpoint", "10", "--tasks", "piqa,wikitext", "EVAL_LIMIT=2")
    sha = next(row["sha256"] for row in training.records(run, "task") if row["step"] == 10)
    head = printed.splitlines()[0]
    assert head == f"runs/run, step-000000010, weights sha256 {sha[:12]}, float32, cpu, lm-eval 0.4.13"
    assert "note: EVAL_LIMIT left out items of piqa, wikitext, so these values are not comparable" in printed
    assert results(run) == {("piqa", 10): 2, ("piqa", 20): 3, ("wikitext", 10): 2}
    assert {event for event, step, _ in stored(run) if step == "10"} >= {"task piqa", "task wikitext"}
    assert history.state(history.load(run), run) == "finished"


@NEEDS_LM_EVAL
def test_a_run_with_results_is_finished_and_can_be_made_longer(home):
    run = home / "runs" / "run"
    before = results(run)
    assert "is finished" in training.train(home, "--resume", "runs/run")
    training.train(home, "--resume", "runs/run", "--max-iters", "22", "--eval-tasks=")
    assert (results(run), history.load(run).step) == (before, 22)
    assert journal.in_force(run).taken_back == []


@NEEDS_LM_EVAL
def test_other_weights_only_print_their_results(home):
    before = (home / "runs/run/journal.jsonl").read_bytes()
    words = [
        "INIT_FROM=runs/run@20",
        "--tasks",
        "piqa",
        f"TASK_DATA={home}/tasks",
        "JSON_OUTPUT=out.json",
        "DEVICE=cpu",
    ]
    evaluate(home, *words, "DTYPE=float32")
    found = json.loads((home / "out.json").read_text())
    assert (found["model"], found["step"], [one["n"] for one in found["results"]]) == ("runs/run@20", 20, [3])
    assert (home / "runs/run/journal.jsonl").read_bytes() == before


@NEEDS_LM_EVAL
def test_ctrl_c_leaves_the_run_finished(tmp_path):
    words = training.arguments(**SHORT | {"max_iters": 2, "eval_interval": 2, "tracker": "none"})
    process = training.start(tmp_path, *words, "--eval-tasks=wikitext", f"--task-data={local(tmp_path, 3000)}")
    path, deadline = tmp_path / "runs/run/summary.json", time.monotonic() + 90
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    run = tmp_path / "runs" / "run"
    assert process.returncode == 130, printed
    assert "the tasks were not measured; measure them with: make evaluate RUN=runs/run TASKS=wikitext" in printed
    assert (history.state(history.load(run), run), results(run)) == ("finished", {})


@NEEDS_LM_EVAL
def test_a_wrong_task_is_an_error_before_there_is_a_run(tmp_path):
    printed = training.train(tmp_path, *training.arguments(), "--eval-tasks=piqqa", code=2)
    assert "error: piqqa: lm-eval has no task of this name; did you mean piqa?" in printed
    assert not (tmp_path / "runs").exists()


def test_without_lm_eval_one_sentence_says_how_to_install_it(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "site-packages" not in path])
    with pytest.raises(UsageError) as error:
        tasks.check("piqa", "")
    assert str(error.value) == (
        f"tasks are measured by lm-eval, which is not installed; run: {sys.executable} -m pip install lm_eval==0.4.13"
    )
    tasks.check("", "")  # no task needs no package
    with pytest.raises(UsageError, match=r"^' , ' names no task; give names of lm-eval's tasks, separated by commas$"):
        tasks.check(" , ", "")


def test_a_late_failure_keeps_what_was_measured_before_it(plain):
    (plain / "good.txt").write_text("A text that is long enough for a window of 64 bytes. " * 3)
    (plain / "bad.jsonl").write_text('{"content": "a"}\n')
    words = ["--run=runs/run", "--perplexity=good.txt,bad.jsonl", "JSON_OUTPUT=out.json"]
    assert "bad.jsonl:1: has no field 'text'" in evaluate(plain, *words, code=2)
    assert results(plain / "runs" / "run") == {("perplexity/good.txt", 2): 2}
    found = json.loads((plain / "out.json").read_text())
    assert [(one["task"], one["n"]) for one in found["results"]] == [("perplexity/good.txt", 2)]


def test_results_of_other_data_or_another_context_are_not_those_of_the_run(plain):
    run = plain / "runs" / "run"
    evaluate(plain, "--run=runs/run", "BATCH_SIZE=3", "DTYPE=bfloat16")
    (row,) = (row for row in history.load(run).tasks() if row["task"] == "validation")
    assert (row["block_size"], row["dtype"], len(row["data_sha256"])) == (64, "bfloat16", 64)
    assert row["data"].startswith("files-bytes: ")
    before = (run / "journal.jsonl").read_bytes()
    context = evaluate(plain, "--run=runs/run", "BLOCK_SIZE=16", code=2)
    assert context == (
        "error: BLOCK_SIZE=16: the run has BLOCK_SIZE=64, and results are recorded as its own; leave it out, or "
        "measure INIT_FROM=runs/run, which records nothing\n"
    )
    other = evaluate(plain, "--run=runs/run", "DATASET_SOURCE=good.txt", code=2)
    assert "DATASET_SOURCE=good.txt: the run has DATASET_SOURCE=corpus.txt" in other
    (plain / "corpus.txt").write_text("Another text of the same name. " * 3000)
    moved = evaluate(plain, "--run=runs/run", "DATA_DIR=other", code=1)
    assert "runs/run: was trained on other data than " in moved
    assert (run / "journal.jsonl").read_bytes() == before


@NEEDS_LM_EVAL
def test_a_task_with_a_malformed_row_leaves_the_run_finished(tmp_path):
    folder = local(tmp_path)
    write(tmp_path / "tasks/EleutherAI/lambada_openai/default/test.jsonl", [{"text": "one two"}, {"text": None}])
    words = training.arguments(**SHORT | {"max_iters": 2, "eval_interval": 2, "tracker": "none"})
    printed = training.train(tmp_path, *words, "--eval-tasks=piqa,lambada_openai", f"--task-data={folder}")
    assert f"note: not all tasks were measured: {folder}: the data of task lambada_openai does not fit: " in printed
    assert "measure them with: make evaluate RUN=runs/run TASKS=piqa,lambada_openai" in printed
    run = tmp_path / "runs" / "run"
    assert (history.state(history.load(run), run), results(run)) == ("finished", {("piqa", 2): 3})


def test_bad_words_are_one_sentence(tmp_path):
    from tests.runs import ended, trained
    from tests.runs import write as write_run

    run = write_run(tmp_path / "runs" / "a", *trained(10), ended(10))
    (run / ".config").write_text("")
    assert "name a run or INIT_FROM, not both" in evaluate(tmp_path, "--run", "runs/a", "INIT_FROM=x", code=2)
    assert "this run has no checkpoint yet" in evaluate(tmp_path, "--run", "runs/a", code=2)
    assert evaluate(tmp_path, "--run", "runs/a", "EVAL_TASKS=piqa,arc_easy", code=2) == (
        "error: EVAL_TASKS=piqa,arc_easy: is for the end of a training; use TASKS=piqa,arc_easy\n"
    )
    for words, given in ((["--max-iters", "5"], "MAX_ITERS=5"), (["PRUNING_METHOD=wanda"], "PRUNING_METHOD=wanda")):
        assert evaluate(tmp_path, "--run", "runs/a", *words, code=2) == (
            f"error: {given}: make evaluate trains nothing, so it has no effect; leave it out\n"
        )
    assert evaluate(tmp_path, "--run", "runs/a", "TASK=piqa", code=2) == (
        "error: TASK=piqa: unknown option; did you mean --tasks (TASKS=... with make)?\n"
    )
    (tmp_path / "mine.json").write_text('{"a": 1}')
    wrong = evaluate(tmp_path, "INIT_FROM=x", "JSON_OUTPUT=mine.json", code=2)
    assert "JSON_OUTPUT=mine.json: exists and holds no results of make evaluate; name another file" in wrong
