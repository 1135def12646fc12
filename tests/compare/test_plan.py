"""What a sweep refuses of its own runs."""

from pathlib import Path

import pytest

from lib.base.errors import UsageError
from lib.compare.plan import Configuration, Sweep
from tests.report.made import run, trained_on

A, B = "a" * 64, "b" * 64


@pytest.fixture
def plan(tmp_path):
    """A sweep of three runs; the last one is still to begin. The runs have these fingerprints of data, or none."""

    def make(*data):
        folder = tmp_path / "few"
        for name, one in zip(("dense", "a"), data, strict=True):
            made = run(folder / f"{name}-seed1", 1, 3.0, status="interrupted")
            if one:
                trained_on(made, one)
        base = Path("defconfigs/gpt2_tiny_defconfig")
        configurations = tuple(Configuration(name, "few:1", base, (), ()) for name in ("dense", "a", "b"))
        return Sweep("few", folder, (1,), configurations)

    return make


@pytest.mark.parametrize("data", [(A, A), (A, None), (None, A), (None, None)])
def test_runs_on_the_same_or_on_unknown_data_go_on(plan, data):
    made = plan(*data)
    made.check_data()
    made.check_data(lambda schema: A)
    made.check_data(lambda schema: "")  # not prepared


def test_runs_on_different_data_are_refused(plan):
    made = plan(A, B)
    with pytest.raises(UsageError) as caught:
        made.check_data()
    assert caught.value.args == (
        f"{made.folder}/a-seed1: was trained on other data (sha256 bbbbbbbbbbbb) than {made.folder}/dense-seed1 "
        "(sha256 aaaaaaaaaaaa), so they are not comparable; remove the one whose data is gone, or give the sweep "
        "another name",
    )


@pytest.mark.parametrize(("data", "name"), [((A, A), "dense"), ((None, A), "a")])
def test_runs_on_other_data_than_new_ones_would_have_are_refused(plan, data, name):
    made = plan(*data)
    assert made.check_data() is None
    with pytest.raises(UsageError) as caught:
        made.check_data(lambda schema: B)
    assert caught.value.args == (
        f"{made.folder}/{name}-seed1: was trained on other data (sha256 aaaaaaaaaaaa) than is there now (sha256 "
        "bbbbbbbbbbbb), and runs that are still to begin would not be comparable; restore it, remove this folder or "
        "give the sweep another name",
    )
