"""Results of tasks as make show, make runs, make compare and make export show them."""

import json

import pytest

from tests.record.test_tasks import task
from tests.runs import ended, evaluated, trained, write
from tests.scripts.test_runs import screen


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


def of_model(step):
    """What make evaluate measures of every model."""
    yield "task", step, {"size/dense_float32_bytes": 5158944}, {"task": "size", "n": 16}
    yield "task", step, {"speed/dense_prompt_tokens_per_second": 8279.97}, {"task": "speed", "n": 50}
    yield "task", step, {"validation/loss": 2.1, "validation/loss_stderr": 0.01}, {"task": "validation", "n": 9}


def test_a_terminal_shows_names_and_numbers_in_full_in_as_many_tables_as_it_needs(folder):
    texts = ("task", 20, {"c4/loss": 4.5, "c4/loss_stderr": 0.25, "c4/perplexity": 90.0171}, {"task": "c4", "n": 256})
    common = [*trained(20), ended(20), task(20, 0.3125, n=8, of=100), task(20, 0.5, "lambada_openai"), texts]
    write(folder / "runs" / "a-name-of-34-characters-0123456789", *common, *of_model(20))
    write(folder / "runs" / "b", *trained(20), *of_model(20))
    write(folder / "runs" / "c", task(20, 0.125))
    lines = [line.rstrip() for line in screen(folder, "list", "--tasks", columns=80).splitlines()]
    assert [line for line in lines if "─" not in line] == [
        "runs/                                       c4/loss  c4/perplexity",
        "a-name-of-34-characters-0123456789  4.5000 ± 0.2500        90.0171",
        "c                                                 -              -",
        "",
        "runs/                                  hellaswag/acc  lambada_openai/acc",
        "a-name-of-34-characters-0123456789  0.3125 ± 0.0500*     0.5000 ± 0.0500",
        "c                                    0.1250 ± 0.0500                   -",
        "",
        "* EVAL_LIMIT left items out, so this value is not comparable with others",
    ]
    narrow = [line.rstrip() for line in screen(folder, "list", "--tasks", columns=30).splitlines()]
    assert "a-name-of-34-characters-0123456789        90.0171" in narrow
    (wide,) = [line.split() for line in screen(folder, "list", "--tasks", columns=130).splitlines() if "runs/" in line]
    assert wide == ["runs/", "c4/loss", "c4/perplexity", "hellaswag/acc", "lambada_openai/acc"]


def test_without_a_terminal_no_column_is_empty(folder, program):
    text = ("task", 20, {"c4/loss": 4.5, "c4/loss_stderr": 0.25, "c4/perplexity": 90.0171}, {"task": "c4", "n": 256})
    write(folder / "runs" / "a", text, *of_model(20))
    write(folder / "runs" / "b", *of_model(20))
    assert lines(program("scripts/runs.py", "list", "--tasks")) == [
        "run\tc4/loss\tc4/loss_stderr\tc4/perplexity", "runs/a\t4.5\t0.25\t90.0171",
    ]  # fmt: skip


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
