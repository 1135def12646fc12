"""How runs look where there is no terminal, and how numbers look."""

import math

import pytest

from lib.terminal import view


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (0.0, "0.0000"), (1.60704, "1.6070"), (6e-5, "6.00e-05"), (-0.5, "-0.5000"), (128, "128"),
        (1_228_800, "1,228,800"), (11783.4, "11,783"), (1.5e12, "1.50e+12"), (math.nan, "nan"), (-math.inf, "-inf"),
    ],
)  # fmt: skip
def test_numbers(value, text):
    assert view.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0 s"), (59.9, "59 s"), (60, "1 min"), (3600, "1 h"), (86399, "23 h"), (172800, "2 d")]
)
def test_ages(seconds, text):
    assert view.age(1e9, now=1e9 + seconds) == text


def test_sparklines():
    rising = {step: float(step) for step in range(1, 9)}
    assert view.sparkline(rising, 8, 8) == " ▁▂▃▄▅▇█"
    assert view.sparkline({0: 1.0, 4: 0.0}, 8, 9) == "████▁    "  # held until the next, nothing after the last
    assert view.sparkline({0: 2.0, 1: math.nan, 2: 2.0}, 2, 3) == "▁!▁"
    assert view.sparkline({0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}, 3, 2) == "▁█"  # means of two each
    assert view.sparkline({}, 0, 3) == "   "
    assert view.sparkline({5: 1.0}, 0, 1) == "▁"


def test_without_a_terminal_a_table_has_tabs_and_numbers_in_full(capsys):
    columns = [view.Column("run", left=True), view.Column("loss", view.loss)]
    view.table(columns, [("a name, as long as it may be " * 9, 1.23456789), ("b", None)])
    assert capsys.readouterr().out == f"run\tloss\n{'a name, as long as it may be ' * 9}\t1.23456789\nb\t\n"


def test_without_a_terminal_a_grid_is_aligned_and_nothing_is_cut(capsys):
    view.out(view.heading("title"), view.grid([("a", "x" * 200, "1"), ("long", "[red]", "22")], right=1), "end")
    assert capsys.readouterr().out.splitlines() == [
        "",
        "title",
        f"a     {'x' * 200}   1",
        f"long  [red]{' ' * 195}  22",
        "end",
    ]
