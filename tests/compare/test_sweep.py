"""Sweeps of the real trainer: the table, stopping and going on, and what is refused before anything is trained."""

import fcntl
import json
import os
import re
import signal
import statistics
import sys
import time
from pathlib import Path

import pytest

from gpt2 import sizing
from lib.base.errors import UsageError
from lib.compare import comparison, sweep, table
from lib.config.config_file import ConfigError
from scripts import sweep as sweep_program
from tests import forking
from tests.forked import Program
from tests.training import ROOT, TEXT, TINY, text

HEAD = "defconfig gpt2_tiny\nseeds 1 2\n"
OWN = {"seed", "tracker_run_name"}  # what a sweep sets itself
COMMON = " ".join(f"{k.upper()}={text(v)}" for k, v in (TINY | {"tracker": "none"}).items() if k not in OWN)
SMALL = COMMON.replace("N_LAYER=2", "N_LAYER=1").replace("GRADIENT_ACCUMULATION=2", "GRADIENT_ACCUMULATION=1")


def write(folder, *lines, head=HEAD):
    (folder / "corpus.txt").write_text(TEXT)
    path = folder / "few"
    path.write_text(head + "".join(f"{line}\n" for line in lines))
    return path


def start(folder, *words, prepare=forking.trainers):
    environment = {**os.environ, "CONFIG_SEED": "9"}  # must not matter
    return Program(folder, "scripts/sweep.py", ["few", *words], environment, prepare)


def run(folder, *words, code=0, **more):
    process = start(folder, *words, **more)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    return output


def events(folder):
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def provenance_of(run):
    return json.loads((run / "provenance.json").read_text())["options"]


def test_a_home_is_expanded_in_a_sweep(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").write_text("CONFIG_SEED=5\n")
    path = write(tmp_path, "a", "b OUTPUT_DIR=~/runs", head="defconfig ~/mine\nseeds 1\ncommon OUTPUT_DIR=~/runs\n")
    assert sweep.read(path).folder == tmp_path / "runs" / "few"


def test_a_byte_order_mark_is_dropped(tmp_path):
    path = write(tmp_path, "a")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert sweep.read(path).seeds == (1, 2)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("defconfig gpt2_tiny\nseed 1 2\n", ":2: there is no keyword 'seed'; did you mean seeds?"),
        ("deconfig gpt2_tiny\nseeds 1 2\n", ":1: there is no keyword 'deconfig'; did you mean defconfig?"),
    ],
)
def test_a_misspelt_keyword_is_one_error(tmp_path, head, expected):
    path = write(tmp_path, "a", "b SEED=1", "seed2 LEARNING_RATE=1e-3", head=head)
    with pytest.raises(ConfigError) as caught:
        sweep.read(path)
    rest = f"{path}:4: a sweep cannot assign SEED: the line `seeds` sets it"
    assert caught.value.problems == [f"{path}{expected}", rest]


# ---- whole sweeps ----------------------------------------------------------------------------------------------------


def test_a_sweep_is_trained_to_the_end_and_compared(tmp_path):
    write(tmp_path, f"common {COMMON}", "dense MAX_ITERS=20 # a comment", "still MAX_ITERS=20 WEIGHT_DECAY=0")
    output = run(tmp_path, "--jobs", "2", prepare=None)  # which starts its trainers as a user's sweep does
    home = tmp_path / "runs/few"
    assert "warning: a sweep does not read the environment's CONFIG_SEED" in output
    text = (home / "table.md").read_text()
    shown = output[output.index("configuration") :].splitlines()
    assert max(map(len, shown)) <= 80
    found = {}
    for name in ("dense", "still"):
        summaries = [json.loads((home / f"{name}-seed{seed}/summary.json").read_text()) for seed in (1, 2)]
        found[name] = [summary["final_val_loss"] for summary in summaries]
        assert [summary["tokens"] for summary in summaries] == [20 * 4 * 2 * 32] * 2
    (a, b), (c, d) = found["dense"], found["still"]
    assert a != b  # the seeds act
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[:4]]
    assert rows[0][:4] == ["configuration", "n", "validation loss", "against dense"]
    assert rows[2][:4] == ["dense", "2", f"{(a + b) / 2:.4f} ± {abs(a - b) / 2**0.5:.4f}", ""]
    gap = [c - a, d - b]
    assert rows[3][:4] == [
        "still", "2", f"{(c + d) / 2:.4f} ± {abs(c - d) / 2**0.5:.4f}",
        f"{sum(gap) / 2:+.4f} ± {abs(gap[0] - gap[1]) / 2**0.5:.4f}",
    ]  # fmt: skip
    assert rows[3][4:8] == ["0.0000", "70.8%", "24,576", "5,120"]
    assert shown[0].split() == "configuration n val loss vs dense sparsity in scope time".split()
    assert shown[2].split()[:5] == ["still", "2", *(rows[3][n].replace(" ± ", "±") for n in (2, 3, 4))]
    note = "24,576 weights are in scope, 70.8% of the model's 34,688."
    assert (f"- {note}" in text, f"-  {note}" in output) == (True, True)
    verdicts = " ".join(output[output.index("\nverdicts (dense is the reference)\n") :].split("\n\n")[0].split())
    assert re.search(rf"still: .*{abs(sum(gap) / 2):.4f} nats .* n = 2", verdicts)
    assert provenance_of(home / "still-seed2")["TRACKER_GROUP"]["value"] == "few"
    results = json.loads((home / "results.json").read_text())
    assert results["configurations"][1]["val_loss"] == {
        "n": 2, "mean": statistics.mean([c, d]), "sd": statistics.stdev([c, d])
    }  # fmt: skip
    assert results["configurations"][1]["options"] == {"MAX_ITERS": "20", "WEIGHT_DECAY": "0"}
    provenance = provenance_of(home / "still-seed2")
    assert (provenance["WEIGHT_DECAY"]["value"], provenance["SEED"]["value"]) == ("0", "2")
    assert "validation loss" in (home / "still-seed2.log").read_text()
    # Nothing is left to do, and a changed sweep does not take the old runs for its own.
    before = {path: path.stat().st_mtime_ns for path in home.glob("*-seed*/*")}
    assert "prepared" not in run(tmp_path)
    assert run(tmp_path, "--table-only").count("\ndense ") == 1
    assert before == {path: path.stat().st_mtime_ns for path in home.glob("*-seed*/*")}
    assert "was begun with ADAM_BETA2=0.95, and the sweep has 0.9 now" in run(tmp_path, "ADAM_BETA2=0.9", code=2)


def test_ctrl_c_saves_and_the_same_command_goes_on_past_a_run_that_fails(tmp_path):
    late = "late OPTIMIZER=sgd LEARNING_RATE=10 WEIGHT_DECAY=1"  # which multiplies matrices by -9 at each step
    lines = (
        f"common {COMMON} MAX_ITERS=160 CHECKPOINT_INTERVAL=0 EVAL_INTERVAL=0",
        "dense",
        late,
        "sgd OPTIMIZER=sgd LEARNING_RATE=0.1",
    )
    write(tmp_path, *lines, head="defconfig gpt2_tiny\nseeds 3\n")
    home = tmp_path / "runs/few"
    process = start(tmp_path)
    journal = home / "dense-seed3/journal.jsonl"
    while not (journal.exists() and journal.read_text().count('"train"') > 5):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    stopped = int(re.search(r"^dense-seed3  stopped after step (\d+)  \(0 of 3 runs", output, re.MULTILINE)[1])
    assert (home / f"dense-seed3/checkpoints/step-{stopped:09}.pt").exists()
    assert not (home / "late-seed3").exists() and not (home / "sgd-seed3").exists()

    output = run(tmp_path, code=1)
    assert [e["step"] for e in events(home / "dense-seed3") if e["event"] == "resume"] == [stopped]
    assert [e["step"] for e in events(home / "dense-seed3") if e["event"] == "train"] == list(range(1, 161))
    assert re.search(r"^late-seed3  failed: the run has diverged.* \(2 of 3 runs", output, re.MULTILINE)
    assert re.search(
        r"^error: late-seed3 failed: the run has diverged.*; see runs/few/late-seed3.log$", output, re.MULTILINE
    )
    table = (home / "table.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines() if line.startswith("| ")]
    assert [(row[1], row[2], row[-2]) for row in rows[2:]] == [
        ("dense", "1", "0.003"), ("late", "0 of 1", "10"), ("sgd", "1", "0.1")
    ]  # fmt: skip
    assert "- Not the same in all configurations: LEARNING_RATE." in table
    assert re.search(r"- Diverged, so the figures .* show only the seeds that went well: late-seed3 \(at step", table)


def an_hour_passes():
    """In the program: the clock leaps when the first run has made a step."""
    clock, journal = time.monotonic, Path("runs/few/dense-seed3/journal.jsonl")
    time.monotonic = lambda: clock() + 3600 * (journal.exists() and '"train"' in journal.read_text())


def test_when_its_time_is_over_a_sweep_stops_and_goes_on_with_what_it_has_begun(tmp_path):
    write(
        tmp_path,
        f"common {SMALL} CHECKPOINT_INTERVAL=0 EVAL_INTERVAL=0",
        "dense MAX_ITERS=400",
        "short MAX_ITERS=5",
        head="defconfig gpt2_tiny\nseeds 3\n",
    )
    home = tmp_path / "runs/few"
    output = run(tmp_path, "--time", "1h", "--fresh", code=124, prepare=an_hour_passes)
    found = re.search(r"^dense-seed3  stopped after step (\d+)  \(0 of 2 runs", output, re.MULTILINE)
    assert found, output
    stopped = int(found[1])
    assert (home / f"dense-seed3/checkpoints/step-{stopped:09}.pt").exists()
    assert "\nthe time of the sweep is over; left: dense-seed3, short-seed3\n" in output
    assert "\nstopped; the same command continues the sweep\n" in output
    assert not (home / "short-seed3").exists()

    output = run(tmp_path, "--fresh")  # which means runs of other folders
    assert [e["step"] for e in events(home / "dense-seed3") if e["event"] == "resume"] == [stopped]
    assert [e["step"] for e in events(home / "dense-seed3") if e["event"] == "train"] == list(range(1, 401))
    assert (home / "short-seed3/summary.json").exists() and "the time of the sweep" not in output


def test_a_sweep_whose_runs_meet_their_time_says_so_and_what_lets_them_go_on(tmp_path):
    options = f"common {COMMON} CHECKPOINT_INTERVAL=0 EVAL_INTERVAL=0 MAX_ITERS=100000"
    write(tmp_path, options, "dense RUN_TIME=1s", head="defconfig gpt2_tiny\nseeds 3\n")
    output = run(tmp_path, code=124)
    assert re.search(
        r"^dense-seed3  RUN_TIME=1s is over after step \d+: a short run, which is not ranked", output, re.M
    )
    assert "\nRUN_TIME is over; left: dense-seed3\n" in output
    assert output.endswith("\nstopped; another RUN_TIME continues the sweep\n")


def test_no_time_is_no_time_of_a_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sweep.py", "few", "--time", "0m"])
    with pytest.raises(UsageError, match=r"^--time=0m is over at once; leave it out, or write 90s, 20m, 1h30m, 2d or "):
        sweep_program._arguments()


def test_the_words_of_the_command_line_are_a_sweep(tmp_path):
    words = ["--table-only", "PRUNING_METHOD=none,random", "SEED=1..2"]
    process = Program(tmp_path, "scripts/sweep.py", words, dict(os.environ))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert re.search(r"^runs/pruning-method-\w{6}: no run is finished yet, so there is no table$", output, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_is_trained_by_one_process(tmp_path):
    write(tmp_path, "dense")
    (tmp_path / "runs/few").mkdir(parents=True)
    with (tmp_path / "runs/few/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "error: runs/few: another process is training this sweep" in run(tmp_path, code=1)


# ---- what is refused -------------------------------------------------------------------------------------------------


def problems(path, *words):
    with pytest.raises(ConfigError) as error:
        sweep.read(path, words)
    return [problem.removeprefix(f"{path}:") for problem in error.value.problems]


def test_every_mistake_of_a_file_is_told_with_its_line(tmp_path):
    path = write(
        tmp_path,
        "common MAX_ITERS=10 WARMUP_STEPS=ten SEED=4",  # line 3
        "dense",
        "dense OPTIMIZER=sgd",
        "bad/name",
        "typo LERNING_RATE=1",
        "range WEIGHT_DECAY=11",
        "useless PRUNING_STATE=fisher",
        "word magnitude",
        "quote 'x",
        "high LEARNING_RATE=1e-5",
        "seeds 2",
        "fitting AUTO_BATCH=y",
        head="defconfig gpt2_tiny\nseeds 1 1 x\n",
    )
    assert problems(path) == [
        "2: a seed must be a whole number; got 'x'",
        "2: a seed is given twice",
        "3: a sweep cannot assign SEED: the line `seeds` sets it",
        f"5: a second line begins with dense; the first is {path}:4",
        "6: 'bad/name' cannot name folders; use up to 60 letters, digits, '.', '_', '-'",
        "10: expected NAME=value; got 'magnitude'",
        "11: cannot be understood: no closing quotation",
        f"13: a second line begins with seeds; the first is {path}:2",
        "14: a sweep cannot assign AUTO_BATCH: its runs would have different micro-batches; give BATCH_SIZE",
        "3: WARMUP_STEPS must be a whole number; got 'ten'",
        "7: unknown option LERNING_RATE; did you mean LEARNING_RATE?",
        "8: WEIGHT_DECAY must lie between 0 and 10; got 11",
        "9: PRUNING_STATE=fisher has no effect: it needs PRUNING_METHOD=state",
    ]
    path.write_text(path.read_text().replace("=ten", "=5"))
    assert "12: MIN_LR=0.0001 exceeds LEARNING_RATE=1e-05; lower it or use LR_SCHEDULE=constant" in problems(path)


def test_a_file_that_lacks_something_says_what(tmp_path):
    path = write(tmp_path, head="")
    assert [problem.strip() for problem in problems(path)] == [
        "lacks a line such as: defconfig gpt2_tiny",
        "lacks a line such as: seeds 1 2 3",
        "lacks configurations, which are lines such as: adam OPTIMIZER=adam",
    ]
    path = write(tmp_path, "dense", head="defconfig gpt2_tinny\nseeds 1\n")
    assert problems(path) == ["1: there is no preset or file 'gpt2_tinny'; did you mean gpt2_tiny?"]
    with pytest.raises(ConfigError, match="cannot be read as a sweep: No such file or directory"):
        sweep.read(tmp_path / "none")
    assert problems(write(tmp_path, "dense"), "MAX_ITERS") == ["command line: expected NAME=value; got 'MAX_ITERS'"]


@pytest.mark.parametrize(
    "word",
    [
        "BATCH_SIZE=9", "GRADIENT_ACCUMULATION=2", "BLOCK_SIZE=65", "DATASET=shakespeare",
        "TOKENIZER=gpt2", "VAL_FRACTION=0.1", "DATA_DIR=elsewhere", "WARMUP_STEPS=99", "LR_SCHEDULE=linear",
        "EVAL_SAMPLES=9", "EVAL_INTERVAL=9", "DROPOUT=0.1", "DTYPE=bfloat16", "OUTPUT_DIR=elsewhere",
    ],
)  # fmt: skip
def test_unequal_budgets_are_refused(tmp_path, word):
    name, _, value = word.partition("=")
    told = problems(write(tmp_path, "dense", f"other OPTIMIZER=adam {word}"))
    assert any(problem.startswith(f"4: other has {name}={value}, and dense has ") for problem in told)
    assert told[0].endswith(
        ": a table needs equal budgets, so only options of the menus Optimizer and Pruning, the size of the model, "
        "MAX_ITERS, LEARNING_RATE, MIN_LR and GRAD_CLIP may differ"
    )


def test_runs_without_validation_are_refused(tmp_path):
    told = "EVALUATE=n: the table of a sweep compares validation losses, so all its runs must measure them"
    assert problems(write(tmp_path, "a", "b EVALUATE=n")) == [f"4: {told}"]
    assert problems(write(tmp_path, "common EVALUATE=n", "a", "b MAX_ITERS=9")) == [f"3: {told}"]
    assert problems(write(tmp_path, "a", "b"), "EVALUATE=n") == [f"command line: {told}"]


def test_what_is_compared_may_differ(tmp_path):
    path = write(
        tmp_path,
        "dense",
        "state OPTIMIZER=adam PRUNING_METHOD=state TARGET_SPARSITY=0.8 LOG_INTERVAL=10 CHECKPOINT_INTERVAL=7",
        "clip GRAD_CLIP=0",
    )
    plan = sweep.read(path, ["OUTPUT_DIR=out"])
    assert plan.tuned() == {"GRAD_CLIP": ["1.0", "1.0", "0"]}
    assert [str(one.folder) for one in plan.runs()] == [
        f"out/few/{name}-seed{seed}" for seed in (1, 2) for name in ("dense", "state", "clip")
    ]


def test_trackers_group_the_runs_of_a_sweep_unless_it_names_a_group(tmp_path):
    words = [run.words() for run in sweep.read(write(tmp_path, "dense", "own TRACKER_GROUP=mine")).runs()]
    groups = [[word for word in some if word.startswith("TRACKER_GROUP=")] for some in words]
    assert groups == [["TRACKER_GROUP=few"], ["TRACKER_GROUP=mine"]] * 2


def test_an_old_name_of_an_option_is_the_same_option(tmp_path):
    made = sweep.read(write(tmp_path, "dense", "a DECAY_LR=n"), ["LR_SCHEDULE=linear"])
    assert [one.schema()["LR_SCHEDULE"] for one in made.configurations] == ["linear", "linear"]
    for run in made.runs():
        assert [word for word in run.words() if "LR" in word.split("=")[0]] == ["LR_SCHEDULE=linear"]


def results(scope=(90, 1000), tuned=None):
    """What two configurations came to, the second of them pruned where `scope` says: (weights, of all)."""
    weights, parameters = scope
    run = {
        "seed": 1,
        "folder": "runs/few/a-seed1",
        "finished": True,
        "weights_in_scope": weights,
        "parameters": parameters,
    }
    figures = {"val_loss": 1.5, "sparsity": 0.7, "scope": weights / parameters, "average_nonzeros": 27.0, "tokens": 512,
               "seconds": 754.0}  # fmt: skip
    spread = {name: {"n": 1, "mean": value, "sd": None} for name, value in figures.items()}
    first = {"configuration": "dense", "options": {}, "runs": [run | {"scope": 0.9, "weights_in_scope": 900}], **spread}
    gap = {"difference": {"n": 1, "mean": 0.25, "sd": 0.125}}
    second = {
        "configuration": "attention",
        "options": {},
        "runs": [run | {"scope": weights / parameters}],
        **spread,
        **gap,
    }
    blocks = [{"budget": "512 tokens", "value": "512", "configurations": ["dense", "attention"]}]
    return {
        "quantity": "tokens",
        "reference": "dense",
        "blocks": blocks,
        "outliers": [],
        "sweep": "few",
        "seeds": [1],
        "tuned": tuned or {},
        "made_by": [],
        "configurations": [first, second],
    }


def test_on_a_screen_a_table_has_what_80_columns_hold():
    assert table.screen(results())[0] == [
        "configuration",
        "n",
        "val loss",
        "vs dense",
        "sparsity",
        "in scope",
        "time",
    ]
    assert table.screen(results())[2] == ["attention", "1", "1.5000", "+0.2500±0.1250", "0.7000", "9.0%", "12:34"]
    tuned = {"LEARNING_RATE": ["1e-3", "2e-3"], "GRAD_CLIP": ["1", "0"]}
    assert table.screen(results(tuned=tuned))[0][4:] == ["sparsity", "learning rate", "grad clip"]
    assert table.screen(results(tuned=tuned), 200)[2][4:] == ["0.7000", "9.0%", "12:34", "2e-3", "0"]


def test_scopes_that_differ_are_told_with_their_configurations():
    notes = list(table.notes(results()))
    assert "900 weights are in scope, 90.0% of the model's 1,000: dense." in notes
    assert "90 weights are in scope, 9.0% of the model's 1,000: attention." in notes
    assert "900 weights are in scope, 90.0% of the model's 1,000." in table.notes(results(scope=(900, 1000)))


def test_one_seed_has_no_spread():
    assert comparison.spread([2.0]) == {"n": 1, "mean": 2.0, "sd": None}
    assert comparison.spread([1.0, 2.0, 4.0]) == {"n": 3, "mean": 7 / 3, "sd": pytest.approx((7 / 3) ** 0.5)}


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").iterdir()), ids=lambda path: path.name)
def test_the_sweeps_of_the_repository_are_valid(path):
    plan = sweep.read(path, choose=sizing.choose)
    assert len(plan.seeds) >= 3
    assert len({tuple(one.schema().values().items()) for one in plan.configurations}) == len(plan.configurations)


def test_what_match_chose_is_told(tmp_path):
    half = "PRUNING_METHOD=magnitude PRUNING_DYNAMICS=static TARGET_SPARSITY=0.5"
    write(tmp_path, f"common {COMMON}", f"half {half}", "small match=final-nonzeros:half", "long match=flops:half")
    said = run(tmp_path, "--table-only").splitlines()[1:]  # after a warning
    # 12 x 1 x 32^2; and 40 x 256 x (226,560 - 6 x 12,288) operations are those of 27 dense steps and a bit
    assert said[0] == (
        "small: match=final-nonzeros:half chose N_LAYER=1 N_HEAD=2 N_EMBD=32: 12,288 weights in scope for 12,288 "
        "non-zeros at the end, exactly as many (0.00 % off)"
    )
    assert said[1].startswith("long: match=flops:half chose MAX_ITERS=27: 1,565,982,720 FLOPs of training, 0.06 % more")


def test_what_cannot_be_trained_is_told_before_anything_is_trained(tmp_path):
    pruned = "PRUNING_METHOD=magnitude"
    write(
        tmp_path,
        "dense",
        f"scope {pruned} PRUNING_SCOPE=foo",
        f"order {pruned} PRUNING_WARMUP=0.8 PRUNING_END=0.3",
        f"groups {pruned} PRUNING_DISTRIBUTION=n-m PRUNING_N=4 PRUNING_M=2",
        "late OPTIMIZER=adamwspam SPAM_INTERVAL=100",
        f"fine {pruned}",
    )
    lines = [line for line in run(tmp_path, code=2).splitlines() if line.startswith("error: ")]
    assert "'foo' matches no parameter" in lines[0]
    assert "before pruning starts at step" in lines[1]
    assert lines[2].endswith("PRUNING_N=4 must be less than PRUNING_M=2")
    assert lines[3].startswith("error: few:7: SPAM_WARMUP_STEPS=150 does not end before the next reset")
    assert len(lines) == 4
    assert not (tmp_path / "runs").exists()
