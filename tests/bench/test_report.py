"""The ratios of a benchmark in the documentation, and what has become worse since."""

import json

import pytest

from bench.report import Ratio, compare, ratios, read_table, text, write_table
from lib.base.errors import UserError

MACHINE = "cpu, bfloat16, 2 threads"
PAGE = """# Performance

<!-- written by bench/run.py --write-table -->
| section | case | to | ratio | goal | date | machine |
|---|---|---|--:|--:|---|---|
| threshold | exact threshold | fused AdamW step | 3 | <= 3 | 2026-11-20 | cpu, bfloat16, 2 threads |
| threshold | torch.kthvalue | exact threshold | 7 | >= 5 | 2026-11-20 | cpu, bfloat16, 2 threads |
| masks | mask update, state | fused AdamW step | 42 |  | 2026-11-20 | cpu, bfloat16, 2 threads |
| utilisation | gpt2 | best matrix product | 0.6 | >= 0.55 | 2026-11-20 | NVIDIA H200, bfloat16 |
<!-- end -->

More text.
"""


def report(threshold=3.0, kthvalue=7.0, update=42.0, machine=MACHINE):
    """What --json writes, without the figures that no ratio needs."""
    cases = [
        {"name": "fused AdamW step", "median_seconds": 0.05},
        {"name": "exact threshold", "base": "fused AdamW step", "ratio": threshold, "goal": "<= 3", "met": True},
        {"name": "torch.kthvalue", "base": "exact threshold", "ratio": kthvalue, "goal": ">= 5", "met": True},
    ]
    updates = [{"name": "mask update, state", "base": "fused AdamW step", "ratio": update}]
    sections = {"threshold": {"cases": cases}, "masks": {"cases": updates}}
    return {"machine": machine, "date": "2026-11-21", "sections": sections}


@pytest.fixture
def page(tmp_path):
    (tmp_path / "page.md").write_text(PAGE)
    return tmp_path / "page.md"


def test_a_table_is_read(page):
    table = read_table(page)
    assert len(table) == 4
    assert table[1] == Ratio("threshold", "torch.kthvalue", "exact threshold", 7.0, ">= 5", "2026-11-20", MACHINE)
    assert table[2].goal == ""


def test_ratios_are_taken_from_cases_and_rows():
    rows = {
        "gpt2": {"tokens/s": 5e5, "ratio": 0.6, "to": "best matrix product", "goal": ">= 0.55"},
        "other": {"loss": 3},
    }
    made = {"machine": "m", "date": "d", "sections": {"utilisation": {"rows": rows}}}
    assert ratios(made) == [Ratio("utilisation", "gpt2", "best matrix product", 0.6, ">= 0.55", "d", "m")]
    assert [ratio.ratio for ratio in ratios(report())] == [3.0, 7.0, 42.0]


def test_a_table_is_written_in_place_of_what_this_machine_had(page):
    write_table(page, report(threshold=2.51234))
    new = "| threshold | exact threshold | fused AdamW step | 2.51 | <= 3 | 2026-11-21 | cpu, bfloat16, 2 threads |"
    before, after = PAGE.splitlines(), page.read_text().splitlines()
    assert after[5] == new
    assert after[6:8] == [line.replace("2026-11-20", "2026-11-21") for line in before[6:8]]
    assert after[:5] + after[8:] == before[:5] + before[8:]  # the other machine's line too


def test_ten_per_cent_are_forgiven(page):
    assert compare(report(threshold=3.29, kthvalue=6.4, update=46.0), read_table(page)) == ("3 ratios compared", [])


def test_each_ratio_is_worse_in_its_own_direction(page):
    _, worse = compare(report(threshold=3.31, kthvalue=6.3, update=46.3), read_table(page))
    assert worse == [
        "threshold: exact threshold / fused AdamW step is 3.31, and was 3 on 2026-11-20",
        "threshold: torch.kthvalue / exact threshold is 6.3, and was 7 on 2026-11-20",
        "masks: mask update, state / fused AdamW step is 46.3, and was 42 on 2026-11-20",
    ]
    assert compare(report(threshold=1.0, kthvalue=20.0, update=1.0), read_table(page))[1] == []


def test_another_machine_of_the_kind_is_named_and_another_kind_is_refused(page):
    note, worse = compare(report(machine="cpu, float32, 16 threads"), read_table(page))
    assert worse == []
    assert note == (
        "3 ratios compared; this machine is 'cpu, float32, 16 threads', the table's 'cpu, bfloat16, 2 threads'"
    )
    sentence = "the table has no ratios of these sections on NVIDIA T4, float16; add them with --write-table"
    assert compare(report(machine="NVIDIA T4, float16"), read_table(page)) == ("no ratios compared", [sentence])


def test_a_page_without_a_table_or_with_a_broken_one_is_named(page):
    page.write_text(PAGE.replace("| 7 |", "| seven |"))
    with pytest.raises(UserError, match=r"torch.kthvalue.*is not a ratio"):
        read_table(page)
    page.write_text("# Performance\n")
    with pytest.raises(UserError, match="has no table; put the lines"):
        read_table(page)


def test_the_program_stores_and_compares_a_finished_run(page, program):
    path = page.with_name("bench.json")
    made = report(threshold=2.0)
    for section in made["sections"].values():
        section["cases"] = [{"median_seconds": 0.1, "iqr_seconds": 0.0, "rounds": [0.1], **c} for c in section["cases"]]
    path.write_text(json.dumps(made))
    done = program("bench/run.py", "--report", str(path), "--table", str(page), "--write-table", "--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\n3 ratios compared\n")
    made["sections"]["threshold"]["cases"][1]["ratio"] = 2.3
    path.write_text(json.dumps(made))
    done = program("bench/run.py", "--report", str(path), "--table", str(page), "--check")
    sentence = "error: threshold: exact threshold / fused AdamW step is 2.3, and was 2 on 2026-11-21\n"
    assert (done.returncode, done.stderr) == (1, sentence)


def test_rows_are_shown_with_their_goals():
    rows = {
        "gpt2": {"tokens/s": 512345.6, "ratio": 0.5, "to": "best", "goal": ">= 0.55"},
        "gpt2-xl": {"tokens/s": 41.5, "ratio": 0.6, "to": "best", "goal": ">= 0.55"},
    }
    assert text("utilisation", {"rows": rows}).splitlines() == [
        "utilisation  tokens/s  ratio    to            goal",
        "gpt2          512,346    0.5  best  >= 0.55 MISSED",
        "gpt2-xl          41.5    0.6  best     >= 0.55 met",
    ]
