"""The benchmark runs, and what it writes has the right form; no test measures a speed."""

import json
import math
import signal
import subprocess
import sys
import time

import pytest

from bench.timing import Case, Timer, meets, quartiles
from tests import forked
from tests.training import ROOT

MEASURED = {
    "ceilings": {"float32, 64 x 64 x 64, mm", "float32, 64 x 64 x 64, linear", "copy"},
    "threshold": {"fused AdamW step", "exact threshold", "torch.kthvalue"},
    "masks": {"fused AdamW step", "keeping a mask", "mask update, magnitude", "mask update, state"},
    "optimizers": {"fused AdamW step", "sgd", "adam", "adamw", "adamwadv", "adamwspam", "stablespam", "muon"},
    "step": {"dense step", "step with a 50 % mask", "keeping the mask alone"},
    "saving": {"copy of the state", "save as the loop sees it", "save until it is written", "blocking save"},
    "scale of the threshold": {"threshold of 1,000 weights", "threshold of 10,000 weights"},
    "tracking": {"no tracker", "three live trackers"},
    "scale of the journal": {"history of 10 steps", "history of 100 steps", "a record"},
}
# 6 for each weight of a block of width 32 (12,704), of the last norm (64) and of the head (256 x 32), and attention
# over 16 tokens: 12 x 32 x 16.
FLOPS_PER_TOKEN = 6 * (12_704 + 64 + 8_192) + 6_144


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """(what a quick run printed, what it wrote)."""
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    words = ["--size", "tiny", "--rounds", "1", "--device", "cpu", "--dtype", "float32", "--json", str(path)]
    done = forked.run(path.parent, "bench/run.py", *words)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout, json.loads(path.read_text())


def test_every_section_has_its_cases_and_positive_numbers(bench):
    _, report = bench
    assert report["machine"].startswith("cpu, float32, ")
    assert MEASURED.keys() | {"memory", "utilisation", "scale of training"} <= report["sections"].keys()
    for title, names in MEASURED.items():
        cases = report["sections"][title]["cases"]
        assert names <= {case["name"] for case in cases}
        for case in cases:
            assert len(case["rounds"]) == 1
            assert case["median_seconds"] == case["rounds"][0]
            assert case["iqr_seconds"] == 0
            numbers = [value for value in case.values() if isinstance(value, float) and value != 0]
            assert all(math.isfinite(number) and number > 0 for number in numbers)
            assert ("ratio" in case) == ("base" in case)


def test_ratios_are_to_the_case_they_name(bench):
    _, report = bench
    cases = {case["name"]: case for case in report["sections"]["threshold"]["cases"]}
    assert cases["torch.kthvalue"]["base"] == "exact threshold"
    seconds = {name: case["median_seconds"] for name, case in cases.items()}
    assert cases["torch.kthvalue"]["ratio"] == pytest.approx(seconds["torch.kthvalue"] / seconds["exact threshold"])
    assert cases["exact threshold"]["ratio"] == pytest.approx(seconds["exact threshold"] / seconds["fused AdamW step"])
    update = report["sections"]["masks"]["cases"][2]
    assert update["ratio_per_step"] == pytest.approx(update["ratio"] / 50)


def test_memory_is_counted_from_the_tensors(bench):
    methods = bench[1]["sections"]["memory"]["rows"]
    assert {name: methods[name]["bytes per weight"] for name in ("magnitude", "state", "movement")} == {
        "magnitude": 1, "state": 1, "movement": 5,
    }  # fmt: skip
    assert methods["soft movement"]["bytes per weight"] == pytest.approx(13, abs=0.01)  # and a counter per tensor
    assert {sizes["mask in a checkpoint"] for sizes in methods.values()} == {0.125}


def test_whole_runs_are_measured(bench):
    used = bench[1]["sections"]["utilisation"]["rows"]["tiny, 2 x 16 tokens"]
    grown = bench[1]["sections"]["scale of training"]["rows"]["tiny"]
    assert grown["tokens"] == 32
    assert used["to"] == "best matrix product"
    rates = [case["rate"] for case in bench[1]["sections"]["ceilings"]["cases"] if case["name"].startswith("float32, ")]
    assert used["ratio"] == pytest.approx(used["GFLOP/s"] / max(rates))
    assert used["GFLOP/s"] == pytest.approx(used["tokens/s"] * FLOPS_PER_TOKEN / 1e9)
    assert 100 < used["peak MiB"] < 2000 and 100 < grown["peak MiB"] < 2000


def test_one_shot_pruning_is_measured_by_parts(bench):
    rows = bench[1]["sections"]["one-shot, a block"]["rows"]
    inputs, solving, onward, whole = rows.values()
    # A block of width 32 and context 32; 2 windows are measured, and 4 are those of a whole run of 2 blocks.
    assert inputs["GFLOP/s"] * inputs["seconds"] == pytest.approx(64 * (35 * 32**2 + 2 * 32 * 32) / 1e9)
    assert onward["GFLOP/s"] * onward["seconds"] == pytest.approx(64 * (24 * 32**2 + 2 * 32 * 32) / 1e9)
    seconds = 2 * (2 * inputs["seconds"] + onward["seconds"]) + 2 * solving["seconds"]
    assert whole["seconds"] == pytest.approx(seconds)
    rates = [case["rate"] for case in bench[1]["sections"]["ceilings"]["cases"] if case["name"].startswith("float32, ")]
    assert whole["ratio"] == pytest.approx(whole["GFLOP/s"] / max(rates))
    assert "one-shot" not in bench[1]["sections"]  # takes minutes: only where it is named


def test_the_table_has_a_line_per_case(bench):
    output, report = bench
    lines = output.splitlines()
    for section in report["sections"].values():
        for case in section.get("cases", ()):
            assert any(line.startswith(case["name"]) for line in lines)
    assert "met" not in output and "MISSED" not in output  # goals are for the size of GPT-2


def test_bad_arguments_are_one_sentence(program):
    done = program("bench/run.py", "--rounds", "0")
    assert (done.returncode, done.stderr) == (2, "error: --rounds must be 1 or more; got 0\n")
    done = program("bench/run.py", "--json", "nowhere/bench.json")
    sentence = "error: --json nowhere/bench.json: cannot be written; name a file in a writable folder\n"
    assert (done.returncode, done.stderr) == (2, sentence)
    done = program("bench/run.py", "--size", "tiny", "--check")
    sentence = "error: --size tiny: the table is of size gpt2; leave out --check and --write-table, or --size\n"
    assert (done.returncode, done.stderr) == (2, sentence)
    done = program("bench/run.py", "--dtype", "float8")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_ctrl_c_prints_what_there_is(tmp_path):
    words = ["--size", "tiny", "--rounds", "1000000", "--only", "ceilings", "--json", str(tmp_path / "bench.json")]
    process = subprocess.Popen([sys.executable, ROOT / "bench/run.py", *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().endswith(", size tiny\n")
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "copy" in output
    assert output.endswith("interrupted\n")
    cases = json.loads((tmp_path / "bench.json").read_text())["sections"]["ceilings"]["cases"]
    assert all(len(case["rounds"]) > 1 for case in cases)


# ---- timing ----------------------------------------------------------------------------------------------------------


def test_quartiles_are_interpolated():
    assert quartiles([4.0, 1.0, 2.0, 3.0]) == (1.75, 2.5, 3.25)
    assert quartiles([5.0]) == (5.0, 5.0, 5.0)


def test_goals():
    assert meets(0.35, "<= 0.35") and not meets(0.36, "<= 0.35")
    assert meets(5.0, ">= 5") and not meets(4.9, ">= 5")


def test_variants_take_turns_and_the_first_round_warms_up():
    import torch

    calls = []
    cases = [Case("a", lambda: calls.append("a")), Case("b", lambda: calls.append("b"), base="a")]
    Timer(torch.device("cpu"), rounds=2).measure("order", cases)
    assert "".join(calls) == "baabba"  # every other round backwards
    assert [len(case.seconds) for case in cases] == [2, 2]
    assert cases[1].ratios == [b / a for a, b in zip(cases[0].seconds, cases[1].seconds, strict=True)]


def test_a_ratio_is_the_median_over_rounds_and_not_of_medians():
    case = Case("b", print, base="a", goal="<= 2", work=6.0, unit="GB", every=2)
    case.seconds, case.ratios = [2.0, 3.0, 30.0], [2.0, 1.0, 3.0]
    figures = case.result()
    assert (figures["median_seconds"], figures["iqr_seconds"]) == (3.0, 14.0)
    assert (figures["ratio"], figures["ratio_per_step"], figures["met"]) == (2.0, 1.0, True)
    assert (figures["rate"], figures["rate_unit"]) == (2.0, "GB/s")


def test_a_case_may_report_its_seconds_and_have_a_goal_for_them():
    import torch

    seconds = iter([4.0, 6.0])
    case = Case("a process", lambda: next(seconds), goal="<= 4.5", reports=True)  # two runs: none to warm up
    Timer(torch.device("cpu"), rounds=2).measure("processes", [case])
    figures = case.result()
    assert (figures["rounds"], figures["median_seconds"], figures["met"]) == ([4.0, 6.0], 5.0, False)
    assert "ratio" not in figures
