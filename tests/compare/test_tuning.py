"""Equal tuning: the line `tune`, the methods that share a tuning, their trials, and the choice of the best."""

import fcntl
import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lib.base.errors import UserError
from lib.compare import methods, space, sweep, tuning
from lib.config.config_file import ConfigError
from lib.config.kconf import ROOT, Schema
from tests.compare.test_sweep import COMMON, provenance_of, run, write
from tests.runs import evaluated, trained
from tests.runs import write as write_run

HEAD = "defconfig gpt2_tiny\nseeds 1 2\ncommon TRACKER=none\n"
POINTS = (
    (("LEARNING_RATE", "0.0015"), ("PRUNING_STATE", "hybrid")),
    (("LEARNING_RATE", "0.004"), ("PRUNING_STATE", "variance")),
    (("LEARNING_RATE", "0.0098"), ("PRUNING_STATE", "hybrid")),
)
TUNE = "tune 3 LEARNING_RATE=log:1e-3:1e-2 PRUNING_STATE=hybrid,variance seeds 101 102 at TARGET_SPARSITY=0.8"


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Reads the sweep of these lines, whose trials are POINTS instead of Optuna's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuning, "points", lambda tuning: POINTS)

    def read(*lines, words=(), **more):
        Path("few").write_text(HEAD + "".join(f"{line}\n" for line in lines))
        return sweep.read(Path("few"), words, **more)

    return read


def parse(text, seeds=(1, 2)):
    return space.parse(text.split(), "few:5", Schema(), seeds)


def finish(plan, name, *losses):
    """Write the summaries of a trial's runs; None leaves a run unfinished."""
    for seed, loss in zip((101, 102), losses, strict=True):
        folder = plan.folder / "tuning" / f"{name}-seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        if loss is not None:
            (folder / "summary.json").write_text(json.dumps({"final_val_loss": loss}))


# ---- the line --------------------------------------------------------------------------------------------------------


def test_the_line_has_trials_space_seeds_and_sparsity():
    found = parse(
        "8 LEARNING_RATE=log:1e-4:1e-2 WEIGHT_DECAY=0.01:0.3 PRUNING_STATE=Hybrid,variance at TARGET_SPARSITY=.8"
    )
    assert (found.count, found.seeds, found.sparsity, found.place) == (8, (3,), ".8", "few:5")
    assert [(one.name, one.kind, one.texts) for one in found.space] == [
        ("LEARNING_RATE", "log", ("1e-4", "1e-2")),
        ("WEIGHT_DECAY", "linear", ("0.01", "0.3")),
        ("PRUNING_STATE", "choice", ("hybrid", "variance")),
    ]
    assert parse("2 GRAD_CLIP=0,1 seeds 101 102").seeds == (101, 102)


@pytest.mark.parametrize(
    "line, told",
    [
        ("LEARNING_RATE=1e-4:1e-2", "tune needs a number of trials from 1 to 256 first"),
        ("0 LEARNING_RATE=1e-4:1e-2", "tune needs a number of trials from 1 to 256 first"),
        ("8", "tune needs options with a range or values"),
        ("8 LERNING_RATE=1e-4:1e-2", "unknown option LERNING_RATE; did you mean LEARNING_RATE?"),
        ("8 OPTIMIZER=adam,adamw", "OPTIMIZER makes a method or its sparsity"),
        ("8 TARGET_SPARSITY=0.1:0.5", "TARGET_SPARSITY makes a method or its sparsity"),
        ("8 BATCH_SIZE=4,8", "BATCH_SIZE must be equal in all configurations"),
        ("8 N_EMBD=64,128", "N_EMBD must be equal in all configurations"),
        ("8 PRUNING_SCOPE=attention,mlp", "PRUNING_SCOPE is a list or a text"),
        ("8 LEARNING_RATE=0.1:1e-3", "write the smaller number first"),
        ("8 WEIGHT_DECAY=log:0:0.3", "a log range must begin above 0"),
        ("8 WEIGHT_DECAY=0.1:11", "WEIGHT_DECAY must lie between 0 and 10; got 11"),
        ("8 PRUNING_STATE=hybrid,none", "PRUNING_STATE must be one of hybrid"),
        ("8 PRUNING_STATE=log:1:2", "PRUNING_STATE has no numbers"),
        ("8 WEIGHT_DECAY=0.1", "write at least two different values"),
        ("8 WEIGHT_DECAY=0.1,.1", "write at least two different values"),
        ("8 WEIGHT_DECAY=0.1,0.2 WEIGHT_DECAY=0:1", "WEIGHT_DECAY is given twice"),
        ("8 WEIGHT_DECAY=0:1 seeds 2 7", "seed 2 of tuning is among the reported seeds"),
        ("8 WEIGHT_DECAY=0:1 seeds", "expected whole numbers after seeds"),
        ("8 WEIGHT_DECAY=0:1 seeds 7 7", "a seed of tuning is given twice"),
        ("8 WEIGHT_DECAY=0:1 seeds x", "a seed of tuning must be a whole number; got 'x'"),
        ("8 WEIGHT_DECAY=0:1 at MAX_ITERS=3", "after at stands the sparsity of the trials"),
        ("8 WEIGHT_DECAY=0:1 at TARGET_SPARSITY=2", "TARGET_SPARSITY must lie between"),
    ],
)
def test_a_bad_line_is_one_sentence(line, told):
    with pytest.raises(ConfigError) as caught:
        parse(line)
    [problem] = caught.value.problems
    assert problem.startswith("few:5: ") and told in problem


def test_values_are_short_texts_within_the_range():
    log, linear, choice, whole = parse(
        "1 LEARNING_RATE=log:1e-4:1e-2 WEIGHT_DECAY=0.01:0.3 PRUNING_STATE=hybrid,variance SPAM_INTERVAL=log:10:1000"
    ).space
    assert [log.text(share) for share in (0, 0.25, 0.5, 1)] == ["1e-4", "0.000316", "0.001", "1e-2"]
    assert [linear.text(share) for share in (0, 1 / 3, 1)] == ["0.01", "0.107", "0.3"]
    assert [choice.text(share) for share in (0, 0.49, 0.5, 1)] == ["hybrid", "hybrid", "variance", "variance"]
    assert [whole.text(share) for share in (0.1, 0.5)] == ["16", "100"]
    assert [log.at_edge(text) for text in ("0.00015", "0.0002", "0.001", "0.007")] == [True, False, False, True]


# ---- methods and trials ----------------------------------------------------------------------------------------------


LINES = (
    "dense",
    "sgd OPTIMIZER=sgd",
    "state PRUNING_METHOD=state TARGET_SPARSITY=0.5,0.8",
    "wanda from=@dense oneshot PRUNING_METHOD=wanda TARGET_SPARSITY=0.5",
    "retrained from=@wanda PRUNING_METHOD=given",
)


def test_sparsities_share_a_method_and_chains_have_none(read):
    plan = read(*LINES, TUNE)
    assert [(one.name, one.names, one.first.name) for one in tuning.methods(plan)] == [
        ("dense", ("dense",), "dense"),
        ("sgd", ("sgd",), "sgd"),
        ("state", ("state-0.5", "state-0.8"), "state-0.8"),
    ]
    assert tuning.untuned(plan) == {
        "wanda": "one-shot pruning trains nothing",
        "retrained": "it begins from another run of the sweep",
    }
    only_state = read(*LINES, "tune 2 PRUNING_STATE=hybrid,variance at TARGET_SPARSITY=0.7")
    assert [one.first.name for one in tuning.methods(only_state)] == ["state-0.5"]
    assert tuning.untuned(only_state)["dense"] == "it uses none of the tuned options"
    assert tuning.methods(read("dense")) == []


def test_all_methods_have_the_same_trials_without_what_they_do_not_use(read):
    plan = read(*LINES, TUNE)
    values = {}
    for trial in tuning.planned(plan):
        values.setdefault(trial.method.name, []).append(trial.values)
    assert values["state"] == list(POINTS)
    assert values["dense"] == values["sgd"] == [point[:1] for point in POINTS]
    runs = {run.name: run for run in tuning.stage(plan).runs()}
    assert len(runs) == 3 * 3 * 2
    run = runs["state-trial2-seed102"]
    assert run.folder == Path("runs/few/tuning/state-trial2-seed102")
    words = {"SEED=102", "LEARNING_RATE=0.004", "PRUNING_STATE=variance", "TARGET_SPARSITY=0.8"}
    assert words | {"TRACKER_GROUP=few-tuning"} <= set(run.words())
    assert runs["sgd-trial1-seed101"].schema()["TARGET_SPARSITY"] is None


def test_a_method_is_called_like_its_first_configuration_without_the_sparsity(read):
    magnitude, tune = "PRUNING_METHOD=magnitude", "tune 2 LEARNING_RATE=log:1e-3:1e-2 at TARGET_SPARSITY=0.8"
    lines = [
        f"magnitude-50 {magnitude} TARGET_SPARSITY=0.5",
        f"magnitude-80 {magnitude} TARGET_SPARSITY=0.80",
        f"owl-50 {magnitude} PRUNING_DISTRIBUTION=owl TARGET_SPARSITY=0.5",
        f"owl-80 {magnitude} PRUNING_DISTRIBUTION=owl TARGET_SPARSITY=0.8",
        "str-50 PRUNING_METHOD=str STR_DECAY=0.0012",
        "str-80 PRUNING_METHOD=str STR_DECAY=0.0023",
        "with-80-80-twice PRUNING_METHOD=movement TARGET_SPARSITY=0.8",
        "small-dense-80 match=average-nonzeros:magnitude-80",
        "matrix OPTIMIZER=adam PRUNING_METHOD=random PRUNING_WARMUP=0.1,0.2 TARGET_SPARSITY=0.5,0.8",
        f"magnitude {magnitude} PRUNING_WARMUP=0.05 TARGET_SPARSITY=0.5",
        f"magnitude-70 {magnitude} PRUNING_WARMUP=0.15 TARGET_SPARSITY=0.7",
        f"magnitude-2 {magnitude} PRUNING_WARMUP=0.35 TARGET_SPARSITY=0.02",
    ]

    def choose(schema, quantity, theirs):
        return [("N_EMBD", "80")], ""

    def names(lines):
        return [method.name for method in tuning.methods(read(*lines, tune, choose=choose))]

    every = ["magnitude", "owl", "str-50", "str-80", "with-80-twice", "small-dense"]
    every += ["pruning-warmup-0.1", "pruning-warmup-0.2", "magnitude-2", "magnitude-70", "magnitude-2-2"]
    assert names(lines) == every
    assert names(lines[:3]) == every[:2] and names(lines[:10]) == every[:9]  # which later lines do not change
    assert names(["matrix PRUNING_METHOD=none,magnitude OPTIMIZER=adam,adamw TARGET_SPARSITY=0.5,0.8"]) == [
        "dense-adam", "dense-adamw", "magnitude-adam", "magnitude-adamw"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name, sparsity, told",
    [
        ("state-0.5", "0.50", "state"),
        ("0.5-state", "0.5", "state"),
        ("pruning-method-state-target-sparsity-0.5-seed-1", "0.5", "pruning-method-state-seed-1"),
        ("target-sparsity-0.5-x", "0.5", "x"),
        ("width-50-0.5", "0.5", "width-50"),
        ("2-4", "0.5", "2-4"),
        ("0.5", "0.5", "0.5"),
        ("x-50", None, "x-50"),
    ],
)
def test_a_sparsity_in_a_name_is_found(name, sparsity, told):
    assert methods._without(name, sparsity) == told


def test_trials_that_repeat_are_replaced_until_there_are_as_many_or_the_space_is_used_up(read, monkeypatch):
    intervals = ("2", "2", "1", "2", "3", "1", "2", "2", *["2"] * 50)
    points = [(("PRUNING_INTERVAL", one), ("PRUNING_WARMUP", f"0.{n}1")) for n, one in enumerate(intervals)]
    drawn = []
    monkeypatch.setattr(tuning, "points", lambda tuning: (drawn.append(point) or point for point in points))
    pruned = "PRUNING_METHOD=magnitude TARGET_SPARSITY=0.5"
    lines = [f"gradual {pruned}", f"rigl {pruned} PRUNING_DYNAMICS=rigl"]

    def numbers(line):
        drawn.clear()
        found = {}
        for trial in tuning.planned(read(*lines, line)):
            found.setdefault(trial.method.name, []).append((trial.number, dict(trial.values)["PRUNING_INTERVAL"]))
        return found

    found = numbers("tune 3 PRUNING_INTERVAL=1:3 PRUNING_WARMUP=0.01:0.71")
    assert found["gradual"] == [(1, "2"), (2, "2"), (3, "1")]
    assert found["rigl"] == [(1, "2"), (3, "1"), (5, "3")]
    found = numbers("tune 4 PRUNING_INTERVAL=1:3 PRUNING_WARMUP=0.01:0.71")
    assert len(found["gradual"]) == 4
    assert found["rigl"] == [(1, "2"), (3, "1"), (5, "3")] and len(drawn) == 4 + 5
    found = numbers("tune 2 PRUNING_INTERVAL=log:2:2000 PRUNING_WARMUP=0.01:0.71")
    assert found["rigl"] == [(1, "2"), (3, "1")]
    monkeypatch.setattr(tuning, "points", lambda tuning: (drawn.append(point) or point for point in points[8:]))
    found = numbers("tune 2 PRUNING_INTERVAL=2:3 PRUNING_WARMUP=0.01:0.71")
    assert found["rigl"] == [(1, "2")] and len(drawn) == 2 + 32


def test_a_method_with_fewer_trials_is_noted(read, monkeypatch):
    monkeypatch.setattr(
        tuning, "points", lambda tuning: [(("PRUNING_STATE", one),) for one in ("hybrid", "fisher") * 9]
    )
    states = [f"state-{one} PRUNING_METHOD=state TARGET_SPARSITY={one}" for one in ("0.5", "0.8")]
    record = tuning.record(read(*states, "tune 3 PRUNING_STATE=hybrid,fisher at TARGET_SPARSITY=0.8"))
    assert [row["values"]["PRUNING_STATE"] for row in record["trials"]] == ["hybrid", "fisher"]
    assert record["asked"] == 3 and list(tuning.notes(record)) == [
        "The methods are not equally tuned. The space has fewer than 3 different trials for some: state 2."
    ]


def test_sizes_that_match_chose_are_one_method_of_their_own(read):
    def choose(schema, quantity, theirs):  # stands for gpt2.sizing: half of the width at 0.5, a quarter at 0.8
        return [("N_EMBD", {0.5: "80", 0.8: "40"}[theirs["TARGET_SPARSITY"]])], ""

    plan = read(
        "dense",
        "half match=average-nonzeros:magnitude-0.5",
        "small match=average-nonzeros:magnitude-0.8",
        "magnitude PRUNING_METHOD=magnitude TARGET_SPARSITY=0.5,0.8",
        TUNE,
        choose=choose,
    )
    assert [(one.name, one.names, one.first.name) for one in tuning.methods(plan)] == [
        ("dense", ("dense",), "dense"),
        ("half", ("half", "small"), "small"),
        ("magnitude", ("magnitude-0.5", "magnitude-0.8"), "magnitude-0.8"),
    ]
    sizes = {trial.method.name: trial.runs[0].schema()["N_EMBD"] for trial in tuning.planned(plan)}
    assert sizes == {
        "dense": 160, "half": 40, "magnitude": 160
    }  # fmt: skip


@pytest.mark.parametrize(
    "lines, told",
    [
        (["dense LEARNING_RATE=2e-3", TUNE], "few:4: LEARNING_RATE=2e-3: few:5 tunes it; leave it out"),
        (["common LEARNING_RATE=2e-3", "dense", TUNE], "few:4: LEARNING_RATE=2e-3: few:6 tunes it; leave it out"),
        (["dense", "tune 2 PRUNING_STATE=hybrid,variance"], "few:5: no configuration of the sweep uses PRUNING_STATE"),
        (
            ["state PRUNING_METHOD=state TARGET_SPARSITY=0.5,0.8", "tune 2 LEARNING_RATE=log:1e-3:1e-2"],
            "few:5: state-0.5 and others share their tuning; add its sparsity: at TARGET_SPARSITY=0.8",
        ),
        (
            ["dense MIN_LR=0.0018", TUNE],
            "few:5: trial 1 of dense: ",
        ),
    ],
)
def test_what_cannot_be_tuned_is_told_before_anything_trains(read, lines, told):
    with pytest.raises(ConfigError) as caught:
        tuning.stage(read(*lines))
    [problem] = caught.value.problems
    assert problem == told or (told.endswith(": ") and problem.startswith(told))


# ---- the choice ------------------------------------------------------------------------------------------------------


def test_the_lowest_mean_loss_is_chosen_and_lost_trials_are_not(read):
    plan = read("dense", "state PRUNING_METHOD=state TARGET_SPARSITY=0.5,0.8", TUNE)
    for name, each in {
        "dense-trial1": (3.0, 3.0),
        "dense-trial2": (1.0, None),  # failed
        "dense-trial3": (1.0, math.nan),
        "state-trial1": (2.0, 4.0),
        "state-trial2": (3.1, 3.1),
        "state-trial3": (2.5, 2.9),
    }.items():
        finish(plan, name, *each)
    (plan.folder / "tuning/dense-trial2-seed102.log").touch()  # its trainer ended before there was a run
    lost = next(trial for trial in tuning.planned(plan) if trial.configuration.name == "dense-trial2")
    with (plan.folder / "tuning/dense-trial2-seed102.log").open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        assert tuning.state(lost) == "unfinished"  # its trainer only starts
    found = tuning.chosen(plan)
    values = {
        one.name: tuple(
            one.schema().options[name].text for name in ("LEARNING_RATE", "PRUNING_STATE", "TARGET_SPARSITY")
        )
        for one in found.configurations
    }
    assert values == {
        "dense": ("0.0015", "", ""),
        "state-0.5": ("0.0098", "hybrid", "0.5"),
        "state-0.8": ("0.0098", "hybrid", "0.8"),
    }
    assert tuning.chosen(found) == found
    record = tuning.record(found)
    keys = "method trial state val_loss chosen edge".split()
    assert [tuple(row[key] for key in keys) for row in record["trials"]] == [
        ("dense", 1, "finished", 3.0, True, []),
        ("state", 1, "finished", 3.0, False, []),
        ("dense", 2, "failed", None, False, []),
        ("state", 2, "finished", 3.1, False, []),
        ("dense", 3, "diverged", None, False, []),
        ("state", 3, "finished", 2.7, True, ["LEARNING_RATE"]),
    ]
    assert list(tuning.notes(record | {"untuned": {"wanda": "one-shot pruning trains nothing"}})) == [
        "dense was tuned in 3 trials, of which 1 diverged and 1 failed, with 2 seeds; trial 1 is used: "
        "LEARNING_RATE=0.0015, val loss 3.0000.",
        "state was tuned in 3 trials with 2 seeds; trial 3 is used: LEARNING_RATE=0.0098, "
        "PRUNING_STATE=hybrid, val loss 2.7000.",
        "state: LEARNING_RATE is near the edge of the space; widen it.",
        "The methods are not equally tuned. Trials without a result: dense 1 of 3, state 0 of 3.",
        "Not tuned, beside tuned methods: wanda: one-shot pruning trains nothing.",
    ]


@pytest.mark.parametrize(
    "end, told",
    [
        ({"status": "diverged"}, "diverged"),
        ({"status": "failed", "message": "out of memory"}, "failed"),
        ({"status": "interrupted", "message": "RUN_TIME=2s is over"}, "short"),
        ({"status": "interrupted"}, "unfinished"),
        (None, "failed"),  # its trainer was killed
    ],
)
def test_how_a_trial_ended_is_told_by_its_journals(read, end, told):
    plan = read("dense", TUNE)
    trial = tuning.planned(plan)[0]
    finish(plan, "dense-trial1", 3.0, None)
    assert (tuning.state(trial), tuning.losses(trial)) == ("unfinished", [3.0, math.inf])
    write_run(trial.runs[1].folder, *trained(1), *([("finish", 1, {}, end)] if end else []))
    assert (tuning.state(trial), tuning.losses(trial)) == (told, [3.0, math.inf])


def test_a_short_trial_is_neither_chosen_nor_finished(read):
    plan = read("dense", TUNE)
    short = {"status": "interrupted", "message": "RUN_TIME=2s is over"}
    for seed in (101, 102):  # it had the lowest loss so far
        folder = plan.folder / f"tuning/dense-trial1-seed{seed}"
        write_run(folder, *trained(1), evaluated(1, 0.5), ("finish", 1, {}, short))
    with pytest.raises(UserError, match=r"; RUN_TIME stopped some: raise it, or change the space in few:5$"):
        tuning.chosen(plan)
    finish(plan, "dense-trial2", 3.0, 3.0)
    finish(plan, "dense-trial3", 3.5, 3.5)
    assert [one.schema()["LEARNING_RATE"] for one in tuning.chosen(plan).configurations] == [0.004]
    record = tuning.record(plan)
    assert [(row["state"], row["val_loss"], row["chosen"]) for row in record["trials"]] == [
        ("short", None, False), ("finished", 3.0, True), ("finished", 3.5, False)
    ]  # fmt: skip
    assert list(tuning.notes(record)) == [
        "dense was tuned in 3 trials, of which 1 stopped short, with 2 seeds; trial 2 is used: "
        "LEARNING_RATE=0.004, val loss 3.0000."
    ]


def test_trials_that_are_lost_alike_leave_the_methods_equal():
    row = {"val_loss": None, "chosen": False}
    rows = [row | {"method": method, "state": "failed"} for method in ("dense", "pruned")]
    assert list(tuning.notes({"trials": rows})) == []
    diverged = [rows[0] | {"state": "diverged"}, rows[1] | {"state": "finished"}]
    assert list(tuning.notes({"trials": diverged})) == []  # that is what its values are worth
    lost, won = rows[0] | {"state": "short"}, rows[1] | {"state": "finished", "val_loss": 2.5}
    assert list(tuning.notes({"trials": [lost, won]})) == []  # nothing is chosen while trials are trained
    won |= {"chosen": True, "trial": 1, "values": {"SEED": "1"}, "losses": [2.5], "edge": []}
    assert list(tuning.notes({"trials": [lost, won]})) == [
        "pruned was tuned in 1 trial with 1 seed; trial 1 is used: SEED=1, val loss 2.5000.",
        "The methods are not equally tuned. Trials without a result: dense 1 of 1, pruned 0 of 1.",
    ]


def test_without_a_finished_trial_nothing_is_chosen(read):
    plan = read("dense", TUNE)
    finish(plan, "dense-trial1", math.nan, 1.0)
    with pytest.raises(UserError, match="no trial of dense is finished with a finite loss, so nothing can be"):
        tuning.chosen(plan)


# ---- Optuna ----------------------------------------------------------------------------------------------------------


def test_without_optuna_one_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)  # as if it were not installed
    with pytest.raises(
        UserError, match=r"^few:5: tuning needs the package optuna; run: .* -m pip install optuna=="
    ) as it:
        next(space.points(parse("2 WEIGHT_DECAY=0:1")))
    assert "\n" not in str(it.value)


@pytest.mark.extra("optuna")
def test_trials_are_the_same_in_every_process_and_do_not_depend_on_their_number():
    line = "8 LEARNING_RATE=log:1e-4:1e-2 WEIGHT_DECAY=0.01:0.3 PRUNING_STATE=hybrid,variance"
    code = (
        "import itertools, json; from lib.compare import space; from lib.config.kconf import Schema\n"
        f"found = space.points(space.parse({line!r}.split(), 'few:5', Schema(), [1]))\n"
        "print(json.dumps(list(itertools.islice(found, 8))))"
    )
    texts = [
        subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    ]
    assert texts[0] == texts[1]
    here = list(itertools.islice(space.points(parse(line, [1])), 8))
    assert json.loads(texts[0]) == [[list(pair) for pair in point] for point in here]
    assert list(itertools.islice(space.points(parse("3" + line[1:], [1])), 8)) == here  # the 4th is drawn with 2 * 3
    # A Sobol sequence of 8 points has one in each eighth of every coordinate.
    rates = sorted(math.log(float(point[0][1]) / 1e-4, 100) for point in here)
    assert [int(share * 8) for share in rates] == list(range(8))
    assert sorted(point[2][1] for point in here) == ["hybrid"] * 4 + ["variance"] * 4


@pytest.mark.extra("optuna")
def test_trials_are_trained_before_the_sweep_which_then_has_their_best_values(tmp_path):
    common = " ".join(word for word in COMMON.split() if not word.startswith(("LEARNING_RATE=", "MAX_ITERS=")))
    tune = "tune 2 LEARNING_RATE=log:1e-3:1e-2 seeds 101"
    write(tmp_path, f"common {common} MAX_ITERS=10", "dense", tune, head="defconfig gpt2_tiny\nseeds 1\n")
    output = run(tmp_path)
    home = tmp_path / "runs/few"
    kept = json.loads((home / "results.json").read_text())["tuning"]
    summaries = [home / f"tuning/dense-trial{number}-seed101/summary.json" for number in (1, 2)]
    losses = [json.loads(path.read_text())["final_val_loss"] for path in summaries]
    assert [row["losses"] for row in kept["trials"]] == [[loss] for loss in losses]
    best = losses.index(min(losses))
    assert [row["chosen"] for row in kept["trials"]] == [number == best for number in (0, 1)]
    rate = kept["trials"][best]["values"]["LEARNING_RATE"]
    assert provenance_of(home / "dense-seed1")["LEARNING_RATE"]["value"] == rate
    assert f"trial {best + 1} is used: LEARNING_RATE={rate}" in " ".join(output.split())
    # The same command derives the same trials, and trains nothing again.
    before = {path: path.stat().st_mtime_ns for path in home.rglob("journal.jsonl")}
    assert len(before) == 3 and "prepared" not in run(tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in home.rglob("journal.jsonl")}
    # Trials that an earlier version called otherwise count by what they are.
    for path in (home / "tuning").glob("dense-trial*"):
        path.rename(path.with_name(f"adamw-{path.name}"))
    before = {path: path.stat().st_mtime_ns for path in home.rglob("journal.jsonl")}
    assert re.search(r"Still to be made: 0\. ", " ".join(run(tmp_path, "--dry-run").split()))
    for words in (["--table-only"], [], ["--fresh"]):
        output = run(tmp_path, *words)
        assert f"trial {best + 1} is used: LEARNING_RATE={rate}" in " ".join(output.split())
        assert before == {path: path.stat().st_mtime_ns for path in home.rglob("journal.jsonl")}
    again = json.loads((home / "results.json").read_text())["tuning"]["trials"]
    assert [(row["method"], row["losses"], row["chosen"]) for row in again] == [
        ("dense", row["losses"], row["chosen"]) for row in kept["trials"]
    ]
    assert [Path(row["folders"][0]).name for row in again] == [f"adamw-dense-trial{n}-seed101" for n in (1, 2)]
