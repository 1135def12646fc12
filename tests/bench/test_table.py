"""The table of goals: as text after a benchmark, and in docs/performance.md."""

import json
from pathlib import Path

import pytest

from bench import goals, table
from bench.goals import Goal
from bench.results import Figure, read
from lib.base.errors import UserError
from tests.bench.test_results import KEPT, MACHINE, report
from tests.training import ROOT

INTEL = "cpu, float32, 2 threads, Intel, AVX-512, 2 of 2 cores"
PAGE = """# Performance

<!-- written by bench/run.py --write-table -->
| old |
<!-- end -->

More text.
"""
GOALS = [
    Goal("threshold", "threshold", "exact threshold", "<= 2", "Threshold: two comparisons."),
    Goal("kthvalue", "threshold", "torch.kthvalue", ">= 5", "Kthvalue: never shown."),
    Goal("eager", "4x128", "nanoGPT not compiled", ">="),
    Goal("first step", "start", "first step", "<= 0.4", "Start: imports."),
    Goal("speed", "4x128, bfloat16", "nanoGPT compiled", ">= 1.2", "Never measured."),
]
TABLE = f"""\
| CPU | bound | {INTEL} | {MACHINE} |
|---|--:|--:|--:|
| measured | | 2026-11-29 | 2026-11-20 |
| threshold | ≤ 2 | 1.5 met | 3 (2.9–3.1) MISSED |
| kthvalue | ≥ 5 | not measured | 7 met |
| eager |  | 0.91 |  |
| first step | ≤ 0.4 | not measured | 0.5 s MISSED |
| speed | ≥ 1.2 | no bfloat16 | not measured |

No NVIDIA GPU was measured. Its goals: utilisation ≥ 0.5.

Why goals are missed:

- Threshold: two comparisons.
- Start: imports.
"""


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(goals, "_CPU", GOALS)
    monkeypatch.setattr(goals, "_CUDA", [Goal("utilisation", "utilisation", "gpt2", ">= 0.5")])


@pytest.fixture
def files(tmp_path):
    """The arguments that name a page and its figures."""
    (tmp_path / "page.md").write_text(PAGE)
    (tmp_path / "results.json").write_text(json.dumps([figure._asdict() for figure in KEPT]))
    return "--table", str(tmp_path / "page.md"), "--results", str(tmp_path / "results.json")


def test_every_machine_has_a_column():
    found = [Figure("threshold", "exact threshold", "step", 1.5, [], "2026-11-29", "2.13.0", INTEL)]
    found.append(Figure("4x128", "nanoGPT not compiled", "ours", 0.91, [], "2026-11-29", "2.13.0", INTEL))
    assert table.markdown([*KEPT[:4], *found]) == TABLE
    gpu = table.markdown(KEPT).split("\n\n")[1].splitlines()
    assert gpu[0] == "| NVIDIA GPU | bound | NVIDIA H200, bfloat16 |"
    assert gpu[3] == "| utilisation | ≥ 0.5 | 0.6 met |"


def test_the_goals_stand_at_the_end_of_a_benchmark():
    made = report(threshold=2.5)
    made["sections"]["4x128"] = {"rows": {"nanoGPT not compiled": {"ratio": 0.9, "to": "ours"}}}
    made["sections"]["start"] = {"busy": 0.3}
    assert [line.split() for line in table.text(made).splitlines()] == [
        ["goal", "bound", "figure"],
        ["threshold", "<=", "2", "2.5", "MISSED"],
        ["kthvalue", ">=", "5", "7", "met"],
        ["eager", ">=", "0.9"],
        ["first", "step", "<=", "0.4", "not", "measured:", "busy"],
        ["-", "Threshold:", "two", "comparisons."],
        ["1", "more", "goals", "were", "not", "measured"],
    ]
    assert table.text(report() | {"sections": {}}) == ""


def test_the_page_is_written_between_its_marks(files, program):
    assert program("bench/run.py", "--page-only", *files).returncode == 0
    page = Path(files[1]).read_text()
    before, after = PAGE.split("| old |\n")
    assert page.startswith(f"{before}| CPU | bound | {MACHINE} |\n") and page.endswith(after)


def test_a_page_without_marks_is_named(tmp_path):
    (tmp_path / "page.md").write_text("# Performance\n")
    with pytest.raises(UserError, match="has no table; put the lines"):
        table.write(tmp_path / "page.md", KEPT)


def test_docs_performance_shows_the_kept_figures(monkeypatch):
    monkeypatch.undo()
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    assert table.markdown(read(ROOT / "bench/results.json")) in page, "run `make bench ARGS=--page-only`"


def test_every_goal_names_a_section_and_a_case_once(monkeypatch):
    monkeypatch.undo()
    for kind in ("cpu", "cuda"):
        places = [(goal.section, goal.case) for goal in goals.of(kind)]
        assert len(places) == len(set(places))
    assert goals.bound("cpu", "masks", "keeping a mask") == "<= 0.2"
    assert goals.bound("cpu", "4x128 beside nanoGPT, float32", "nanoGPT not compiled") == ""
    assert goals.bound("cuda", "threshold", "exact threshold") == "<= 0.005"
    assert goals.bound("cpu", "threshold", "fused AdamW step") == ""


def test_the_program_keeps_and_compares_a_finished_run(files, program, tmp_path):
    path = tmp_path / "bench.json"
    made = report(threshold=2.0)
    for section in made["sections"].values():
        section["cases"] = [{"median_seconds": 0.1, "iqr_seconds": 0.0, "rounds": [0.1], **c} for c in section["cases"]]
    path.write_text(json.dumps(made))
    done = program("bench/run.py", "--report", str(path), *files, "--write-table", "--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\n3 ratios compared\n")
    assert "| exact threshold, x AdamW | ≤ 2 | 2 met |" in Path(files[1]).read_text()
    made["sections"]["threshold"]["cases"][1]["ratio"] = 2.3
    path.write_text(json.dumps(made))
    done = program("bench/run.py", "--report", str(path), *files, "--check")
    sentence = "error: threshold: exact threshold / fused AdamW step is 2.3, and was 2 on 2026-11-21\n"
    assert (done.returncode, done.stderr) == (1, sentence)


def test_a_check_of_what_was_not_measured_fails(files, program, tmp_path):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(report() | {"sections": {"threshold": {"busy": 0.318}}}))
    done = program("bench/run.py", "--report", str(path), *files, "--check")
    sentence = "error: threshold: not measured: the machine is busy (32 % of the processor time went to others)\n"
    assert (done.returncode, done.stderr) == (1, sentence)
    assert done.stdout.endswith("\nno ratios compared\n")


def test_figures_of_a_busy_machine_are_not_kept_or_compared(files, program, tmp_path):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(report() | {"allow_busy": True, "sections": {}}))
    done = program("bench/run.py", "--report", str(path), *files, "--write-table")
    sentence = "error: this report is from --allow-busy; its ratios are not compared and do not go into the table\n"
    assert (done.returncode, done.stderr, Path(files[1]).read_text()) == (1, sentence, PAGE)
