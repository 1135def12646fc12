"""Sweeps of the real trainer: the table, stopping and going on, and what is refused before anything is trained."""

import fcntl
import json
import os
import re
import signal
import statistics
import time

import pytest

from lib.compare import comparison, sweep
from lib.config.config_file import ConfigError
from tests.forked import Program
from tests.training import ROOT, TEXT, TINY, text

HEAD = "defconfig gpt2_tiny\nseeds 1 2\n"
OWN = {"seed", "tracker_run_name"}  # what a sweep sets itself
COMMON = " ".join(f"{k.upper()}={text(v)}" for k, v in (TINY | {"tracker": "none"}).items() if k not in OWN)


def write(folder, *lines, head=HEAD):
    (folder / "corpus.txt").write_text(TEXT)
    path = folder / "few"
    path.write_text(head + "".join(f"{line}\n" for line in lines))
    return path


def start(folder, *words):
    environment = {**os.environ, "CONFIG_SEED": "9"}  # must not matter
    return Program(folder, "scripts/sweep.py", ["few", *words], environment)


def run(folder, *words, code=0):
    process = start(folder, *words)
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
    output = run(tmp_path, "--jobs", "2")
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
    assert "- Not finished, so not in these figures: late-seed3." in table


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
        "MAX_ITERS=1201", "BATCH_SIZE=9", "GRADIENT_ACCUMULATION=2", "BLOCK_SIZE=65", "DATASET=shakespeare",
        "TOKENIZER=gpt2", "VAL_FRACTION=0.1", "DATA_DIR=elsewhere", "WARMUP_STEPS=99", "LR_SCHEDULE=linear",
        "EVAL_SAMPLES=9", "EVAL_INTERVAL=9", "N_LAYER=5", "DROPOUT=0.1", "DTYPE=bfloat16", "OUTPUT_DIR=elsewhere",
    ],
)  # fmt: skip
def test_unequal_budgets_are_refused(tmp_path, word):
    name, _, value = word.partition("=")
    told = problems(write(tmp_path, "dense", f"other OPTIMIZER=adam {word}"))
    assert any(problem.startswith(f"4: other has {name}={value}, and dense has ") for problem in told)
    assert told[0].endswith(
        ": a table needs equal budgets, so only options of the menus Optimizer and Pruning, and LEARNING_RATE, MIN_LR, "
        "GRAD_CLIP, may differ"
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
    return {"sweep": "few", "seeds": [1], "tuned": tuned or {}, "made_by": [], "configurations": [first, second]}


def test_on_a_screen_a_table_has_what_80_columns_hold():
    assert comparison.screen(results())[0] == [
        "configuration",
        "n",
        "val loss",
        "vs dense",
        "sparsity",
        "in scope",
        "time",
    ]
    assert comparison.screen(results())[2] == ["attention", "1", "1.5000", "+0.2500±0.1250", "0.7000", "9.0%", "12:34"]
    tuned = {"LEARNING_RATE": ["1e-3", "2e-3"], "GRAD_CLIP": ["1", "0"]}
    assert comparison.screen(results(tuned=tuned))[0][4:] == ["sparsity", "learning rate", "grad clip"]
    assert comparison.screen(results(tuned=tuned), 200)[2][4:] == ["0.7000", "9.0%", "12:34", "2e-3", "0"]


def test_scopes_that_differ_are_told_with_their_configurations():
    notes = list(comparison.notes(results()))
    assert "900 weights are in scope, 90.0% of the model's 1,000: dense." in notes
    assert "90 weights are in scope, 9.0% of the model's 1,000: attention." in notes
    assert "900 weights are in scope, 90.0% of the model's 1,000." in comparison.notes(results(scope=(900, 1000)))


def test_one_seed_has_no_spread():
    assert comparison._spread([2.0]) == {"n": 1, "mean": 2.0, "sd": None}
    assert comparison._spread([1.0, 2.0, 4.0]) == {"n": 3, "mean": 7 / 3, "sd": pytest.approx((7 / 3) ** 0.5)}


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").iterdir()), ids=lambda path: path.name)
def test_the_sweeps_of_the_repository_are_valid(path):
    plan = sweep.read(path)
    assert len(plan.seeds) >= 3
    assert len({tuple(one.schema().values().items()) for one in plan.configurations}) == len(plan.configurations)


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
