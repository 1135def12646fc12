"""What a job is to do: a fine-tuning gets the words of the user, a sweep has the same name here and there."""

from pathlib import Path

import pytest

from lib.base import durations
from lib.base.errors import UsageError
from lib.config import command_line
from lib.engines import engine
from lib.jobs import plan
from lib.jobs.inputs import Input
from lib.record import run
from tests.jobs.conftest import git


def schema(*words):
    return command_line.resolve("", words, {})[0]


@pytest.fixture
def old(folder):
    (folder / "runs/old/checkpoints").mkdir(parents=True)
    (folder / "runs/old/checkpoints/step-000000005.pt").touch()
    (folder / "runs/old/run.json").write_text('{"run_id": "a", "project": "p", "name": "old"}')


def test_a_fine_tuning_is_make_finetune_with_the_words_of_the_user(old):
    for name in ("rewards.py", "tasks.jsonl", "corpus.txt"):
        Path(name).touch()
    words = ["FINETUNE_RECIPE=grpo", "FINETUNE_REWARD=rewards.py:short", "FINETUNE_DATA=tasks.jsonl", "OUTPUT_DIR=runs"]
    of_the_run = ["INIT_FROM=elsewhere/old@5", "DATASET=files", "DATASET_SOURCE=corpus.txt"]
    made = plan.of_training("finetune", schema(*words, *of_the_run), words, [], "team", "old@5")
    assert made.begins[:2] == ["finetune", "FINETUNE_RECIPE=grpo"] and made.name.startswith("gpt2_grpo_")
    set_here = {"TRACKER=trackio", "TRACKIO_SPACE_ID=team/trackio", f"TRACKER_RUN_NAME={made.name}"}
    # The run may have other folders, and with RUN its configuration counts in place of .config.
    assert set(made.begins[2:]) == set_here | {"OUTPUT_DIR=runs", "DATA_DIR=data"}
    rewards, data = Input("FINETUNE_REWARD", Path("rewards.py"), ":short"), Input("FINETUNE_DATA", Path("tasks.jsonl"))
    assert made.inputs == [data, rewards, Input("RUN", Path("runs/old"), "@5")]  # not the corpus of the model
    assert made.goes_on == ["resume", f"RUN=runs/{made.name}", "FINETUNE_RECIPE=grpo"]
    with pytest.raises(UsageError, match=r"^RUN=gone: there is no such run here"):
        plan.of_training("finetune", schema(), [], source="gone")
    with pytest.raises(UsageError, match=r"^runs/old: there is no checkpoint '7'"):
        plan.of_training("finetune", schema(), [], source="old@7")


def test_a_fine_tuning_that_did_not_begin_is_begun_with_all_its_words(old):
    Path("a.jsonl").touch()
    first = ["FINETUNE_RECIPE=sft", "FINETUNE_DATA=a.jsonl", "FINETUNE_STEPS=20"]
    made = plan.of_training("finetune", schema(*first, "TRACKER_RUN_NAME=one"), first, source="old@5")
    assert list(made.words) == first
    again = plan.of_training(
        "finetune", schema(*first, "TRACKER_RUN_NAME=one", "FINETUNE_STEPS=30"), ["FINETUNE_STEPS=30"], source="old@5",
        before=made.words,
    )  # fmt: skip
    assert again.begins[1:4] == ["FINETUNE_RECIPE=sft", "FINETUNE_STEPS=20", "FINETUNE_STEPS=30"]  # the last one counts
    assert again.goes_on == ["resume", "RUN=runs/one", "FINETUNE_STEPS=30"]


@pytest.mark.parametrize(
    ("kind", "word", "told"),
    [
        ("finetune", "NPROC=2", ": make finetune, which the job calls, has no such word; leave it out"),
        ("train", "JOBS=2", ": make train, which the job calls, has no such word; leave it out"),
        ("train", "CHECKPOINT=best", ": make train, which the job calls, has no such word; leave it out"),
        ("sweep", "NPROC=2", f": {engine.ALONE}"),
        ("sweep", "ENGINE=ray", ": a job is one machine and takes no cluster; leave it out"),
        ("sweep", "BASELINE=old", ": a job has only its own runs; leave it out, and compare them after make fetch"),
        ("sweep", "ARGS=--table-only", ": a job takes no further arguments; leave it out"),
        ("train", "SWEEP=few", ": is for a sweep; give JOB=sweep too"),
        ("train", "NPROC=two", ": must be a whole number of at least 1, the number of processes to start"),
        ("sweep", "JOBS=0", ": must be a whole number of at least 1, the number of runs to train at the same time"),
        ("sweep", "SWEEP_TIME=0", f" is over at once; leave it out, or write {durations.EXAMPLES}"),
    ],
)
def test_words_that_a_job_would_drop_are_refused(kind, word, told):
    with pytest.raises(UsageError) as caught:
        plan.check_words(kind, [word])
    assert str(caught.value) == word + told
    plan.check_words("sweep", ["JOBS=2", "GPUS_PER_RUN=0.5", "SWEEP_TIME=1h", "FRESH=y"])


def test_a_run_goes_on_from_its_newest_checkpoint():
    plan.check_words("finetune", ["CHECKPOINT=best"])
    with pytest.raises(
        UsageError, match=r"^CHECKPOINT=best: a run goes on from its newest checkpoint; leave CHECKPOIN"
    ):
        plan.check_words("finetune", ["CHECKPOINT=best"], goes_on=True)


def test_only_a_block_size_that_the_user_gave_cuts_the_weights_in_the_job(folder):
    (folder / ".config").write_text("CONFIG_BLOCK_SIZE=64\n")
    words = ["INIT_FROM=openai-community/gpt2", "OUTPUT_DIR=runs"]
    made = plan.of_training("train", schema(*words), words, [], "", "")
    assert made.begins == ["train"] and "BLOCK_SIZE" not in made.sent + made.kept
    cut = [*words, "BLOCK_SIZE=32"]
    made = plan.of_training("train", schema(*cut), cut, [], "", "")
    assert made.begins == ["train", "BLOCK_SIZE=32"] and "CONFIG_BLOCK_SIZE=32" in made.kept
    (folder / ".config").write_text(made.kept)  # from which a second job begins the run, if the first one did not
    assert plan.of_training("train", schema(), [], [], "", "", before=[]).begins == ["train", "BLOCK_SIZE=32"]
    without = plan.of_training("train", schema("BLOCK_SIZE=32", "INIT_FROM="), [], [], "", "")
    assert without.begins == ["train"] and "CONFIG_BLOCK_SIZE=32" in without.sent


def test_no_tracker_is_added_to_what_the_user_said(folder):
    assert plan.of_training("train", schema("TRACKER=none"), []).trackers == ()
    assert plan.of_training("train", schema(), [], before=[]).trackers == ()
    made = plan.of_training("train", schema("TRACKER=csv"), [])
    assert (made.trackers, made.space) == (("csv",), "")
    made = plan.of_training("train", schema("TRACKER=all", "TRACKIO_SPACE_ID=a/b"), [])
    assert (made.trackers, made.space) == (("all",), "a/b")


def test_a_sweep_without_a_file_has_the_same_name_in_the_job(folder, tmp_path_factory, monkeypatch):
    words = ["OPTIMIZER=adam,adamw", "SEED=1..2", "TRACKER=trackio", "OUTPUT_DIR=elsewhere"]
    (folder / ".config").write_text("CONFIG_MAX_ITERS=7\n")
    made = plan.of_sweep(None, words)
    assert made.folder == Path("elsewhere") / made.name and made.remote == f"runs/{made.name}"
    assert made.environment == {"TRACKIO_SPACE_ID": "trackio", "ESPALIER_PROJECT": run.project_name()}
    monkeypatch.chdir(tmp_path_factory.mktemp("job"))
    Path(".config").write_text(made.sent)
    assert str(plan.of_sweep(None, made.begins[1:]).folder) == made.remote


def test_data_of_this_machine_goes_along(folder):
    (folder / "bins").mkdir()
    made = plan.of_training("train", schema("DATASET=bins", "DATA_DIR=bins"), ["DATA_DIR=bins"])
    assert made.inputs == [Input("DATA_DIR", Path("bins"))]
    assert made.goes_on == ["resume", f"RUN=runs/{made.name}"]


def test_folders_that_a_job_writes_stay_here(folder):
    assert plan.of_training("train", schema("DATA_CACHE_DIR=.", "DATA_DIR=."), []).inputs == []


def test_a_sweep_reads_only_files_of_the_repository(folder, monkeypatch):
    (folder / "corpus.txt").write_text("text")
    words = ["OPTIMIZER=adam,adamw", "DATASET=files", "DATASET_SOURCE=corpus.txt"]
    monkeypatch.setattr(plan, "ROOT", folder)
    with pytest.raises(
        UsageError, match=r"^DATASET_SOURCE=corpus.txt: the runs of a sweep read only files of the repo"
    ):
        plan.of_sweep(None, words)
    git(folder, "init", "--quiet")
    assert plan.of_sweep(None, words).inputs == []
    with pytest.raises(UsageError, match=r"^DATASET_SOURCE=typo.txt: there is no such file or folder here"):
        plan.of_sweep(None, [*words[:2], "DATASET_SOURCE=typo.txt"])
