"""The configuration of make oneshot: which options come from the run, which from .config, and what is refused."""

import re

import pytest

from lib.base.errors import UserError
from scripts import oneshot
from tests import forked, runs
from tests.training import schema


@pytest.fixture
def dense(tmp_path, monkeypatch):
    """runs/dense, a run that was pruned while it trained, with checkpoints of steps 20 and 40."""
    monkeypatch.chdir(tmp_path)
    folder = runs.write(tmp_path / "runs/dense", runs.ended(40))
    made = schema(
        tmp_path,
        dataset_source="corpus.txt",
        optimizer="muon",
        pruning_method="magnitude",
        pruning_dynamics="rigl",
        pruning_distribution="erk",
        target_sparsity=0.9,
        pruning_interval=5,
        json_output="dense.json",
        tracker_run_name="dense",
        tracker_tags="mine",
        tracker_project="ours",
    )
    made.write(folder / ".config")
    (folder / "checkpoints").mkdir()
    for step in (20, 40):
        (folder / f"checkpoints/step-0000000{step}.pt").touch()
    return folder


def refused(*words):
    with pytest.raises(UserError) as error:
        oneshot.configuration(list(words))
    return str(error.value)


def test_model_data_and_trackers_are_those_of_the_run_and_pruning_is_not(dense):
    found = oneshot.configuration(["--run", "runs/dense", "PRUNING_METHOD=magnitude"])
    ours = {"N_LAYER": 2, "N_EMBD": 32, "DATASET": "files", "OPTIMIZER": "muon", "SEED": 7, "TRACKER_TAGS": "mine"}
    assert {name: found[name] for name in ours} == ours
    assert found["TRACKER_PROJECT"] == "ours"
    assert found["INIT_FROM"] == "runs/dense@40"
    pruning = {name: found[name] for name in ("PRUNING_DYNAMICS", "PRUNING_DISTRIBUTION", "TARGET_SPARSITY")}
    assert pruning == {"PRUNING_DYNAMICS": "oneshot", "PRUNING_DISTRIBUTION": "global-rms", "TARGET_SPARSITY": 0.5}
    assert (found["TRACKER_RUN_NAME"], found["JSON_OUTPUT"]) == ("", "")


def test_the_latest_run_is_the_default_and_words_count(dense):
    words = ["PRUNING_METHOD=wanda", "CALIBRATION_SAMPLES=5", "TRACKER_RUN_NAME=mine", "BATCH_SIZE=2"]
    found = oneshot.configuration(["--checkpoint", "20", *words])
    assert found["INIT_FROM"] == "runs/dense@20"
    assert (found["CALIBRATION_SAMPLES"], found["TRACKER_RUN_NAME"], found["BATCH_SIZE"]) == (5, "mine", 2)
    assert oneshot.configuration(["--run", str(dense), "--pruning-method", "random"])["INIT_FROM"] == f"{dense}@40"
    assert oneshot.configuration(["--run", "dense", "PRUNING_METHOD=random"])["INIT_FROM"] == "runs/dense@40"


def test_with_init_from_the_options_are_those_of_config(dense):
    (dense.parents[1] / ".config").write_text("CONFIG_PRUNING_METHOD_WANDA=y\nCONFIG_BATCH_SIZE=3\n")
    found = oneshot.configuration(["INIT_FROM=elsewhere"])
    assert (found["INIT_FROM"], found["BATCH_SIZE"], found["SEED"]) == ("elsewhere", 3, 1337)
    assert (found["PRUNING_METHOD"], found["PRUNING_DYNAMICS"]) == ("wanda", "oneshot")
    assert oneshot.configuration(["--init-from", "elsewhere", "PRUNING_METHOD=random"])["PRUNING_METHOD"] == "random"


def test_a_note_names_what_is_not_used_of_config(dense, capsys):
    words, config = ["--run", "runs/dense", "PRUNING_METHOD=wanda"], dense.parents[1] / ".config"
    config.write_text('CONFIG_PRUNING_METHOD_WANDA=y\nCONFIG_TARGET_SPARSITY="0.9"\nCONFIG_BATCH_SIZE=3\n')
    assert oneshot.configuration(words)["TARGET_SPARSITY"] == 0.5
    assert capsys.readouterr().err == (
        "note: with RUN, the menu Pruning of .config is not used (TARGET_SPARSITY=0.9); give what you want of it as "
        "words\n"
    )
    oneshot.configuration([*words, "TARGET_SPARSITY=0.9"])
    config.write_text("CONFIG_BATCH_SIZE=3\nnonsense\n")
    oneshot.configuration(words)
    config.write_text('CONFIG_TARGET_SPARSITY="0.9"\nCONFIG_PRUNING_METHOD_RANDOM=y\n')
    assert oneshot.configuration(["INIT_FROM=elsewhere"])["TARGET_SPARSITY"] == 0.9
    assert capsys.readouterr().err == ""


NAME_ONE = "make oneshot prunes by magnitude, wanda, sparsegpt or random: name one, as in PRUNING_METHOD=sparsegpt"
REFUSED = {
    "": NAME_ONE,
    "PRUNING_METHOD=gradient": NAME_ONE,
    "PRUNING_METHOD=given": NAME_ONE,
    "PRUNING_METHOD=random PRUNING_DYNAMICS=gradual": "PRUNING_DYNAMICS=gradual: make oneshot sets "
    "PRUNING_DYNAMICS=oneshot; leave it out",
    "PRUNING_METHOD=random --run runs/dense INIT_FROM=a": "RUN=runs/dense and INIT_FROM=a both name a model; give one "
    "of them",
    "PRUNING_METHOD=random --checkpoint best --init-from a": "CHECKPOINT=best is of a RUN; write INIT_FROM=RUN@best",
    "PRUNING_METHOD=random --checkpoint 30": "runs/dense: there is no checkpoint '30'; choose newest, best (if "
    "CHECKPOINT_BEST kept it), or one of step-000000020, step-000000040",
    "PRUNING_METHOD=random --run nothing": "nothing: there is no run in this folder (run.json is missing)",
    "PRUNING_METHOD=random CALIBRATION_SAMPLES=3": "CALIBRATION_SAMPLES=3 has no effect: it needs "
    "PRUNING_METHOD=wanda or sparsegpt or PRUNING_DISTRIBUTION=owl",
    "PRUNING_METHOD=wanda PRUNING_DISTRIBUTION=n-m TARGET_SPARSITY=0.7": "TARGET_SPARSITY=0.7 has no effect: it needs ",
    "PRUNING_METHOD=magnitud": "PRUNING_METHOD=magnitud must be one of ",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_no_one_shot_pruning_is_one_sentence(dense, words):
    sentence = refused(*words.split())
    assert sentence.startswith(REFUSED[words])
    assert "\n" not in sentence


def test_the_help_says_how_it_is_used(tmp_path):
    text = forked.run(tmp_path, "scripts/oneshot.py", "--help").stdout
    assert "scripts/oneshot.py --run RUN PRUNING_METHOD=sparsegpt" in text
    assert re.search(r"--checkpoint newest\|best\|STEP\n", text)
    assert "--calibration-samples" in text
    assert "neither that menu of .config nor that of the run is used" in " ".join(text.split())
