"""The benchmark runs, and what it writes has the right form; no test measures a speed."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from bench import Bench, foreign, priority
from bench.timing import Timer
from lib.base import load, threads
from lib.base.errors import UsageError
from lib.machine import device
from tests import forked
from tests.bench import zygote
from tests.training import ROOT

MEASURED = {
    "ceilings": {"float32, 64 x 64 x 64, mm", "float32, 64 x 64 x 64, linear", "copy"},
    "threshold": {"fused AdamW step", "exact threshold", "torch.kthvalue"},
    "masks": {
        "fused AdamW step", "keeping a mask", "mask update, magnitude", "mask update, neurons and heads",
        "mask update, owl", "mask update, granet", "mask update, mest",
    },
    "hidden weights": {
        "fused AdamW step",
        "weights of a pass, ste",
        "weights of a pass, s-ste",
        "mask update, ste",
        "mask update, s-ste",
    },
    "rewiring": {"fused AdamW step", "mask update, set", "mask update, chts"},
    "optimizers": {"fused AdamW step", "sgd", "adam", "adamw", "adamwadv", "adamwspam", "stablespam", "muon"},
    "step": {"dense step", "step with a 50 % mask", "keeping the mask alone", "step with a teacher"},
    "saving": {"copy of the state", "save as the loop sees it", "save until it is written", "blocking save"},
    "passes before the first step": {"scores by gradient", "scores by grasp", "scores by synflow"},
    "scale of the threshold": {"threshold of 1,000 weights", "threshold of 10,000 weights"},
    "tracking": {"no tracker", "three live trackers"},
    "scale of the journal": {"history of 10 steps", "history of 100 steps", "a record"},
}  # fmt: skip
# 6 for each weight of a block of width 32 (12,704), of the last norm (64) and of the head (256 x 32), and attention
# over 16 tokens: 12 x 32 x 16.
FLOPS_PER_TOKEN = 6 * (12_704 + 64 + 8_192) + 6_144


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """(what a quick run printed, what it wrote); test_reference.py has programs that are started and measured."""
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    words = ["--size", "tiny", "--rounds", "1", "--allow-busy", "--device", "cpu", "--dtype", "float32"]
    words += ["--json", str(path)]
    program = forked.Program(path.parent, "bench/run.py", words, dict(os.environ), zygote.programs, apart=True)
    output, errors = program.communicate()
    assert (program.returncode, errors) == (0, "")
    return output, json.loads(path.read_text())


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
    assert " met" not in output and "MISSED" not in output  # goals are for the size of GPT-2
    tables = [line for line in lines[1:] if "  " in line.strip() and "others used at most" not in line]
    assert len(tables) > 50 and all(line.endswith((" machine", " busy")) for line in tables)
    assert report["allow_busy"] is True


def test_bad_arguments_are_one_sentence(program):
    done = program("bench/run.py", "--rounds", "0")
    assert (done.returncode, done.stderr) == (2, "error: --rounds must be 1 or more; got 0\n")
    done = program("bench/run.py", "--within", "1")
    assert (done.returncode, done.stderr) == (2, "error: --within must be 0 or more and less than 1; got 1\n")
    done = program("bench/run.py", "--allow-busy", "--check")
    sentence = "error: --allow-busy: such figures are not compared; leave out --check and --write-table\n"
    assert (done.returncode, done.stderr) == (2, sentence)
    done = program("bench/run.py", "--realtime", "--only", "track")
    sentence = "error: --only track: trackers run at the lowest priority; leave out --realtime\n"
    assert (done.returncode, done.stderr) == (2, sentence)
    done = program("bench/run.py", "--json", "nowhere/bench.json")
    sentence = "error: --json nowhere/bench.json: cannot be written; name a file in a writable folder\n"
    assert (done.returncode, done.stderr) == (2, sentence)
    done = program("bench/run.py", "--size", "tiny", "--check")
    sentence = "error: --size tiny: the table is of size gpt2; leave out --check and --write-table, or --size\n"
    assert (done.returncode, done.stderr) == (2, sentence)
    done = program("bench/run.py", "--dtype", "float8")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def two_tries():
    """In the benchmark: do not try for long."""
    foreign._TRIES = 2


def test_a_busy_machine_is_not_measured(tmp_path):
    """By real programs that use at least a 16th of it."""
    command = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(command) for _ in range(threads.cores() // 16 + 1)]
    try:
        words = ["--size", "tiny", "--device", "cpu", "--only", "scale-prune", "--json", str(tmp_path / "bench.json")]
        program = forked.Program(tmp_path, "bench/run.py", words, dict(os.environ), two_tries, apart=True)
        output, errors = program.communicate(timeout=120)
    finally:
        for one in busy:
            one.kill()
            one.wait()
    (shown,) = [line for line in output.splitlines() if line.startswith("scale of the threshold")]
    sentence = r"not measured: the machine is busy \((\d+) % of the processor time went to others\)"
    share = int(re.fullmatch(f"scale of the threshold: {sentence}", shown)[1])
    advice = "; stop the other programs, or use --allow-busy for figures without a verdict"
    assert re.fullmatch(f"error: scale-prune: {sentence}{re.escape(advice)}\n", errors)
    assert program.returncode == 1
    sections = json.loads((tmp_path / "bench.json").read_text())["sections"]
    assert sections.keys() == {"scale of the threshold"}
    assert sections["scale of the threshold"]["busy"] == pytest.approx(share / 100, abs=0.006)
    assert share > 3


def test_a_single_run_is_repeated_too(monkeypatch):
    chosen = device.choose(device.SystemOptions("cpu", "float32", 0, False, "float32"))
    made = Bench(chosen, "tiny", Timer(chosen.device, 1))
    shares = [0.5, 0.01, *[0.25] * 10]
    monkeypatch.setattr(foreign, "read", lambda writes: load.Reading(0.0, 1.0, 0.0, 0.0, 1))
    monkeypatch.setattr(foreign, "WINDOW", 0.0)
    monkeypatch.setattr(foreign, "foreign", lambda begin, end: shares.pop(0))
    runs = iter(["disturbed", "alone"])
    assert made.alone("section", lambda: next(runs)) == "alone"
    assert made.sections == {}
    with pytest.raises(foreign.Busy):
        made.alone("section", lambda: "disturbed")
    assert (made.sections, shares) == ({"section": {"busy": 0.25}}, [])


def test_real_time_priority_is_asked_of_the_system(monkeypatch):
    asked = []
    monkeypatch.setattr(os, "sched_setscheduler", lambda *words: asked.append(words), raising=False)
    priority.realtime()
    assert asked == [(0, os.SCHED_RR, os.sched_param(1))]

    def refuse(*words):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with pytest.raises(UsageError, match=r"^--realtime: Operation not permitted; run it as root, or leave it out$"):
        priority.realtime()
    monkeypatch.delattr(os, "sched_setscheduler")
    with pytest.raises(UsageError, match=r"^--realtime: this system has no such priority; leave it out$"):
        priority.realtime()


def test_ctrl_c_prints_what_there_is(tmp_path):
    words = ["--size", "tiny", "--rounds", "1000000", "--within", "0", "--allow-busy", "--only", "ceilings"]
    words += ["--json", str(tmp_path / "bench.json")]
    with subprocess.Popen(
        [sys.executable, ROOT / "bench/run.py", *words], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline().endswith(", size tiny\n")
            time.sleep(1)
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "copy" in output
    assert output.endswith("interrupted\n")
    cases = json.loads((tmp_path / "bench.json").read_text())["sections"]["ceilings"]["cases"]
    assert all(len(case["rounds"]) > 1 for case in cases)
