"""Results of tasks as make show, make runs, make compare and make export show them."""

import json

import pytest

from tests.record.test_tasks import task
from tests.runs import ended, evaluated, trained, write


@pytest.fixture
def home(folder):
    """Three runs: `a` and `b` have results, `c` has none."""
    common = [*trained(10, 20), evaluated(20, 2.0), ended(20)]
    write(folder / "runs" / "a", *common, task(10, 0.25), task(20, 0.3125), task(20, 0.5, "piqa", n=8, of=100))
    write(folder / "runs" / "b", *common, task(20, 0.375))
    write(folder / "runs" / "c", *common)
    return folder


def lines(done):
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_show_has_a_table_of_results(home, program):
    text = lines(program("scripts/runs.py", "show", "runs/a"))
    start = text.index("tasks")
    assert [line.split() for line in text[start + 1 : start + 5]] == [
        ["value", "±", "stderr", "n", "version", "step", "checkpoint"],
        ["hellaswag/acc", "0.2500", "0.0500", "100", "1.0", "10", "step-000000010"],
        ["hellaswag/acc", "0.3125", "0.0500", "100", "1.0", "20", "step-000000020"],
        ["piqa/acc", "0.5000", "0.0500", "8", "of", "100", "1.0", "20", "step-000000020"],
    ]
    assert not any(line.startswith("hellaswag") for line in text[:start])
    assert "tasks" not in lines(program("scripts/runs.py", "show", "runs/c"))


def test_the_list_has_a_column_for_each_result_of_the_highest_step(home, program):
    assert [line.split("\t") for line in lines(program("scripts/runs.py", "list", "--tasks"))] == [
        ["run", "hellaswag/acc", "hellaswag/acc_stderr", "piqa/acc", "piqa/acc_stderr"],
        ["runs/a", "0.3125", "0.05", "0.5", "0.05"],
        ["runs/b", "0.375", "0.05", "", ""],
    ]


def test_a_folder_without_results_says_how_to_get_one(folder, program):
    write(folder / "runs" / "c", *trained(10))
    assert lines(program("scripts/runs.py", "list", "--tasks")) == [
        "runs: no run has results of tasks yet; measure one with: make evaluate RUN=... TASKS=hellaswag"
    ]


def test_a_comparison_shows_both(home, program):
    text = [line.split() for line in lines(program("scripts/runs.py", "compare", "runs/a", "runs/b"))]
    assert ["hellaswag/acc", "0.3125", "±", "0.0500", "0.3750", "±", "0.0500"] in text
    assert ["piqa/acc", "0.5000", "±", "0.0500*", "-"] in text


def test_an_export_has_them_in_the_row_of_their_step(home, program):
    rows = json.loads(program("scripts/runs.py", "export", "runs/a", "--format", "json", "--out", "-").stdout)
    assert [(row["step"], row["hellaswag/acc"], row.get("piqa/acc")) for row in rows] == [
        (10, 0.25, None),
        (20, 0.3125, 0.5),
    ]
