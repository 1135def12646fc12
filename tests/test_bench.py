"""The benchmark runs and what it writes has its form; how fast anything is, no test says."""

import json
import math
import signal
import subprocess
import sys
import time

import pytest

from lib.timing import Case, Timer, meets, quartiles
from tests.training import ROOT

MEASURED = {
    "ceilings": {"matrix product, 64 x 64, float32", "copy"},
    "threshold": {"fused AdamW step", "exact threshold", "torch.kthvalue"},
    "masks": {"fused AdamW step", "keeping a mask", "mask update, magnitude", "mask update, state"},
    "optimizers": {"fused AdamW step", "sgd", "adam", "adamw", "adamwadv", "adamwspam", "stablespam", "muon"},
    "step": {"dense step", "step with a 50 % mask", "keeping the mask alone"},
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """(what a quick run printed, what it wrote)."""
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    words = ["--size", "tiny", "--rounds", "1", "--device", "cpu", "--dtype", "float32", "--json", str(path)]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/bench.py", *words], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout, json.loads(path.read_text())


def test_every_section_has_its_cases_and_positive_numbers(bench):
    _, report = bench
    assert report["machine"].startswith("cpu, float32, ")
    assert list(report["sections"]) == ["ceilings", "memory", "threshold", "masks", "optimizers", "step"]
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
    methods = bench[1]["sections"]["memory"]["methods"]
    assert {name: methods[name]["bytes_per_weight"] for name in ("magnitude", "state", "movement")} == {
        "magnitude": 1, "state": 1, "movement": 5,
    }  # fmt: skip
    assert methods["soft movement"]["bytes_per_weight"] == pytest.approx(13, abs=0.01)  # and a counter per tensor
    assert {sizes["mask_bytes_in_checkpoint"] for sizes in methods.values()} == {0.125}


def test_the_table_has_a_line_per_case(bench):
    output, report = bench
    lines = output.splitlines()
    for section in report["sections"].values():
        for case in section.get("cases", ()):
            assert any(line.startswith(case["name"]) for line in lines)
    assert "met" not in output and "MISSED" not in output  # goals are for the size of GPT-2


def test_bad_arguments_are_one_sentence(program):
    done = program("scripts/bench.py", "--rounds", "0")
    assert (done.returncode, done.stderr) == (2, "error: --rounds must be 1 or more; got 0\n")
    done = program("scripts/bench.py", "--json", "nowhere/bench.json")
    sentence = (
        "error: --json nowhere/bench.json: cannot be written; name a file in a folder that is there and writable\n"
    )
    assert (done.returncode, done.stderr) == (2, sentence)
    done = program("scripts/bench.py", "--dtype", "float8")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_ctrl_c_prints_what_there_is(tmp_path):
    words = ["--size", "tiny", "--rounds", "1000000", "--only", "ceilings", "--json", str(tmp_path / "bench.json")]
    process = subprocess.Popen([sys.executable, ROOT / "scripts/bench.py", *words], stdout=subprocess.PIPE, text=True)
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
    assert "".join(calls) == "ababab"
    assert [len(case.seconds) for case in cases] == [2, 2]
    assert cases[1].ratios == [b / a for a, b in zip(cases[0].seconds, cases[1].seconds, strict=True)]


def test_a_ratio_is_the_median_over_rounds_and_not_of_medians():
    case = Case("b", print, base="a", goal="<= 2", work=6.0, unit="GB", every=2)
    case.seconds, case.ratios = [2.0, 3.0, 30.0], [2.0, 1.0, 3.0]
    figures = case.result()
    assert (figures["median_seconds"], figures["iqr_seconds"]) == (3.0, 14.0)
    assert (figures["ratio"], figures["ratio_per_step"], figures["met"]) == (2.0, 1.0, True)
    assert (figures["rate"], figures["rate_unit"]) == (2.0, "GB/s")
