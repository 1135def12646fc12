"""Sections of a benchmark, as people see them."""

from bench.report import text


def test_a_section_that_was_not_measured_says_why():
    sentence = "threshold: not measured: the machine is busy (32 % of the processor time went to others)"
    assert text("threshold", {"busy": 0.318}) == sentence


def test_cases_are_shown_with_what_else_happened():
    cases = [
        {"name": "a", "median_seconds": 0.1, "iqr_seconds": 0.002, "rounds": [0.1] * 6, "interval": [0.095, 0.1025]},
        {"name": "b", "median_seconds": 0.2, "iqr_seconds": 0.004, "rounds": [0.2] * 6, "interval": [1.95, 2.04],
         "base": "a", "ratio": 2.0, "goal": "<= 3", "met": True},
    ]  # fmt: skip
    checks = [{"seconds": 1.0, "foreign": share, "speed": speed} for share, speed in ((0.004, 900), (0.021, 1000))]
    section = {"repeated": 2, "checks": checks, "weights": 5000, "cases": cases}
    head, a, b, meanwhile = text("threshold", section).splitlines()
    assert head.split("  ")[0] == "threshold, 5,000 weights, 6 rounds"
    assert a.split() == ["a", "100", "ms", "1%", "95", "ms–102", "ms"]
    assert b.split() == ["b", "200", "ms", "1%", "2.000", "1.950–2.040", "a", "<=", "3", "met"]
    assert meanwhile == "  others used at most 2.1 % of the processor time; clock 0.90 to 1; 2 x repeated"
    head, a, b, _ = text("threshold", section, busy=True).splitlines()
    assert (head.split()[-1], a.split()[-1]) == ("machine", "busy")
    assert b.split()[-4:] == ["a", "<=", "3", "busy"]  # no verdict


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
    assert text("utilisation", {"rows": {"gpt2": rows["gpt2"]}}, busy=True).splitlines() == [
        "utilisation  tokens/s  ratio    to     goal  machine",
        "gpt2          512,346    0.5  best  >= 0.55     busy",
    ]
