"""The pages on tracking name only what exists, and what they say about the pinned libraries is so."""

import ast
import contextlib
import csv
import inspect
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from lib.config.command_line import assignments
from lib.config.kconf import Schema
from tests.training import ROOT, TEXT, arguments

NAMES = ("tracking", "guides", "distributed", "accelerate")
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in NAMES}
ALL = "\n".join(PAGES.values())
MAKE = sorted(set(re.findall(r"\bmake ([a-z][a-z0-9-]*)((?: [A-Z_]+=(?:\"[^\"]*\"|[^\s`;,)\"]+))*)", ALL)))
FLAGS = set(  # of other programs
    """attempts backend-store-uri cluster dry-run env export flavor gpus-per-task import-offline-session include-online
    logdir max-restarts nnodes nproc-per-node ntasks port project pty rdzv-backend rdzv-endpoint rdzv-id requeue
    reward_funcs samples_per_plugin secrets standalone timeout token volume wait with yes""".split()
)


@pytest.mark.parametrize(("target", "words"), MAKE)
def test_make_commands_exist(target, words):
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{target}:|^\.PHONY:(.*\\\n)*.* {target}\b", makefile, re.MULTILINE), target
    [line] = re.findall(r"^override OURS +:= (.*)", makefile, re.MULTILINE)
    own = {*line.split(), "ARGS", "PYTHON"}
    given = [word for word in re.findall(r'[A-Z_]+=(?:"[^"]*"|\S+)', words) if word.split("=")[0] not in own]
    given = [word.replace('"', "") for word in given if "..." not in word]
    Schema().override(assignments(given)[1])


def test_flags_are_ours_or_those_of_named_programs():
    options = {name.lower().replace("_", "-") for name in Schema().options}
    found = set(re.findall(r"(?<![\w-])--([a-z][a-z0-9_-]+)", ALL)) - {"config", "resume"}
    assert found - options - FLAGS == set()
    assert {"tracker", "output-dir"} <= found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_pages_and_headings(page):
    for target, anchor in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", PAGES[page]):
        path = ROOT / "docs" / target if target else ROOT / "docs" / f"{page}.md"
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text()), (target, anchor)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_files_of_tests_that_the_pages_name_exist():
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", ALL))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    assert len(named) >= 10


def test_the_guides_programs_are_python():
    programs = re.findall(r"```python\n(.*?)```", ALL, re.DOTALL)
    assert len(programs) >= 5
    for text in programs:
        ast.parse(text)


def test_the_table_of_variables_names_options_that_exist():
    table = PAGES["tracking"].split("## Variables of the libraries")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row[2])}
    assert named <= set(Schema().options)
    assert {"TRACKER_PROJECT", "TRACKER_RUN_NAME", "WANDB_ENTITY"} <= named
    variables = {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row[0])}
    assert {"WANDB_PROJECT", "WANDB_DIR", "WANDB_API_KEY", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_DIR"} <= variables
    assert {"TRACKIO_SPACE_ID", "TRACKIO_BUCKET_ID", "TRACKIO_DATASET_ID", "HF_TOKEN"} <= variables


def test_names_of_options_and_variables_are_real():
    rows = re.findall(r"^\| (`.*?) \|", PAGES["tracking"].split("## Variables of the libraries")[1], re.MULTILINE)
    variables = {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)}
    theirs = {"CLEARML_OFFLINE_MODE", "SWANLAB_MODE", "TRACKIO_PROJECT"}  # of libraries; the last is read by none
    named = set(re.findall(r"\b((?:TRACKER|TRACKIO|WANDB|MLFLOW|COMET|CLEARML|SWANLAB)_[A-Z_]*[A-Z])\b", ALL))
    assert named - variables - set(Schema().options) - theirs == set()


def test_the_versions_that_were_checked_are_the_pinned_ones():
    [paragraph] = re.findall(r"^Checked on .*?\n\n", PAGES["guides"], re.MULTILINE | re.DOTALL)
    pins = (ROOT / "pyproject.toml").read_text()
    found = re.findall(r"([a-z][\w-]*)\s(\d+\.\d+\.\d+)", paragraph)
    assert len(found) == 8
    assert [name for name, version in found if not re.search(rf'"{name}(\[\w+\])?=={version}"', pins)] == []


# ---- what the pages say about the libraries -------------------------------------------------------------------------


def test_trackio_takes_a_name_and_needs_a_project():
    import trackio

    parameters = inspect.signature(trackio.init).parameters
    assert "name" in parameters and "run_name" not in parameters
    assert parameters["project"].default is inspect.Parameter.empty


def test_trackio_show_has_no_port():
    done = run("trackio", "show", "--port", "8080")
    assert done.returncode == 2
    assert "invalid choice: '8080'" in done.stderr


def test_wandb_sync_without_a_path_looks_only_in_this_folder(tmp_path):
    done = run("wandb", "sync", cwd=tmp_path)
    assert (done.returncode, "No runs to sync" in done.stderr) == (0, True)


@pytest.mark.extra("mlflow")
def test_mlflow_refuses_folders_and_start_run_takes_no_address(tmp_path):
    import mlflow

    assert "tracking_uri" not in inspect.signature(mlflow.start_run).parameters
    with pytest.raises(mlflow.exceptions.MlflowException, match="maintenance mode"):
        mlflow.MlflowClient(f"file:{tmp_path}").search_experiments()


@pytest.mark.extra("accelerate")
def test_accelerate_has_nine_trackers_and_a_decorator():
    from accelerate import Accelerator
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, register_tracker_class

    assert sorted(LOGGER_TYPE_TO_CLASS) == [
        "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb",
    ]  # fmt: skip
    assert callable(register_tracker_class)
    with pytest.raises(TypeError, match="context manager"), Accelerator().on_main_process:
        pass


@pytest.mark.extra("accelerate")
def test_a_trainer_reports_to_nobody_and_refuses_to_evaluate_without_data(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    defaults = {name: value.default for name, value in inspect.signature(TrainingArguments).parameters.items()}
    assert (defaults["report_to"], defaults["project"], defaults["eval_strategy"]) == ("none", "huggingface", "no")
    assert defaults["trackio_space_id"] is None and "logging_dir" not in defaults
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=8, n_positions=4))
    with pytest.raises(ValueError, match="eval_dataset"):
        Trainer(model, TrainingArguments(str(tmp_path), eval_strategy="steps", use_cpu=True), train_dataset=[{}])


@pytest.mark.extra("accelerate")
def test_a_script_may_name_a_space():
    from lib.espalier_tracker import EspalierTracker

    assert 'trackio_space_id="user/trackio"' in (ROOT / "docs/finetuning.md").read_text()
    tracker = EspalierTracker("sft", trackers=("trackio",), trackio_space_id="user/trackio")
    assert tracker.options["trackio_space_id"] == "user/trackio"


@pytest.mark.extra("accelerate")
def test_the_callback_of_the_guides_records_a_trainer(tmp_path, monkeypatch):
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    from lib.espalier_tracker import EspalierTracker

    monkeypatch.chdir(tmp_path)
    program = re.findall(r"```python\n(.*?)```", PAGES["guides"], re.DOTALL)[0]
    [callback] = [node for node in ast.parse(program).body if isinstance(node, ast.ClassDef)]
    tracker = EspalierTracker("mine", trackers=("csv",), output_dir="runs")
    names = {"TrainerCallback": TrainerCallback, "tracker": tracker}
    exec(ast.unparse(callback), names)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=8, n_positions=4))
    data = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 8
    settings = TrainingArguments("out", max_steps=3, logging_steps=1, per_device_train_batch_size=2, use_cpu=True)
    Trainer(model, settings, train_dataset=data, callbacks=[names["Espalier"]()]).train()
    tracker.finish()
    with Path("runs/mine/metrics.csv").open(newline="") as file:
        rows = [(row["step"], row["metric"]) for row in csv.DictReader(file)]
    assert [step for step, metric in rows if metric == "loss"] == ["1", "2", "3"]
    assert [step for step, metric in rows if metric == "train_loss"] == ["3"]


@pytest.mark.extra("ray")
def test_the_program_for_ray_passes_the_variables_on(tmp_path):
    [program] = re.findall(r"```python\n(.*?)```", PAGES["distributed"], re.DOTALL)
    (tmp_path / "corpus.txt").write_text(TEXT)
    words = arguments(dropout=0, batch_size=1, gradient_accumulation=8, max_iters=4, tracker="trackio")
    words[words.index("corpus.txt")] = str(tmp_path / "corpus.txt")
    for old, new in {
        "/shared": str(tmp_path),
        "num_workers=8, use_gpu=True": "num_workers=2",
        '"8"]': f'"8", *{words}]',
    }.items():
        assert old in program
        program = program.replace(old, new)
    env = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "RAY_USAGE_STATS_ENABLED": "0"}
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, check=True, timeout=240)
    assert [folder.name for folder in (tmp_path / "runs").iterdir()] == ["run"]
    [database] = (tmp_path / "trackio").glob("*.db")
    with contextlib.closing(sqlite3.connect(database)) as opened:
        assert opened.execute("select distinct step from metrics order by step").fetchall() == [(n,) for n in range(5)]


def run(name: str, *words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    program = Path(sys.executable).with_name(name)
    env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    return subprocess.run([program, *words], cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
