"""What match= chose before tuning stays true: values that would change it are refused, and no others."""

from pathlib import Path

import pytest

from gpt2 import sizing
from lib.compare import rematch, sweep, tuning
from lib.config.config_file import ConfigError
from tests.training import ROOT

HEAD = "defconfig gpt2_tiny\nseeds 1 2\ncommon TRACKER=none MAX_ITERS=1000\n"
PRUNED = "magnitude PRUNING_METHOD=magnitude TARGET_SPARSITY=0.8"


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Checks the sweep of these lines, whose line `tune` has one trial for each of the values."""
    monkeypatch.chdir(tmp_path)

    def check(*lines, choose=sizing.choose, **values):
        points = tuple(zip(*([(name, text) for text in texts] for name, texts in values.items()), strict=True))
        monkeypatch.setattr(tuning, "points", lambda tuning: points)
        space = " ".join(f"{name}={','.join(dict.fromkeys(texts))}" for name, texts in values.items())
        tune = f"tune {len(points)} {space} at TARGET_SPARSITY=0.8"
        Path("few").write_text(HEAD + "".join(f"{line}\n" for line in (*lines, tune)))
        rematch.check(sweep.read(Path("few"), choose=sizing.choose), choose)

    return check


def problems(check, *lines, **values):
    with pytest.raises(ConfigError) as caught:
        check(*lines, **values)
    return list(caught.value.problems)


def test_a_schedule_that_changes_the_average_of_the_target_is_refused(check):
    rates = {"LEARNING_RATE": ["1e-3", "2e-3"]}
    assert problems(
        check, "small match=average-nonzeros:magnitude", PRUNED, **rates, PRUNING_WARMUP=["0.25", "0.5"]
    ) == [
        "few:6: PRUNING_WARMUP=0.5, which trial 2 gives magnitude, changes what match=average-nonzeros:magnitude chose "
        "for small; leave PRUNING_WARMUP out of tune, or leave out match=average-nonzeros:magnitude"
    ]


def test_dynamics_that_need_each_other_are_named_together(check):
    [problem] = problems(
        check,
        "small match=average-nonzeros:magnitude",
        PRUNED,
        PRUNING_SCHEDULE=["cubic", "polynomial"],
        PRUNING_POWER=["2", "3.5"],
    )
    assert problem.startswith("few:6: PRUNING_SCHEDULE=polynomial PRUNING_POWER=3.5, which trial 2 gives magnitude, ")
    assert "; leave PRUNING_SCHEDULE and PRUNING_POWER out of tune, or leave out match=" in problem


def test_the_operations_of_the_sized_one_count_too(check):
    long = "long PRUNING_METHOD=random TARGET_SPARSITY=0.8 match=flops:dense"
    [problem] = problems(check, "dense", long, PRUNING_END=["0.75", "0.4"])
    assert problem.startswith("few:6: PRUNING_END=0.4, which trial 2 gives long, changes what match=flops:dense chose")
    [problem] = problems(check, "long match=flops:magnitude", PRUNED, PRUNING_INTERVAL=["20", "1"])
    assert problem.startswith("few:6: PRUNING_INTERVAL=20, which trial 1 gives magnitude, changes what ")


def test_what_changes_no_matched_quantity_may_be_tuned(check):
    tuned = {"LEARNING_RATE": ["1e-3", "2e-3"], "WEIGHT_DECAY": ["0.1", "0"], "PRUNING_WARMUP": ["0.25", "0.5"]}
    check("small match=final-nonzeros:magnitude", PRUNED, **tuned)
    del tuned["PRUNING_WARMUP"]
    state = "state PRUNING_METHOD=state TARGET_SPARSITY=0.8"
    check("small match=average-nonzeros:state", state, **tuned, PRUNING_STATE=["hybrid", "fisher"])
    check("long match=flops:magnitude", PRUNED, "tokens match=tokens:magnitude", **tuned)


def test_nothing_is_chosen_again_for_options_that_prune_nothing(check):
    def choose(*given):
        raise AssertionError

    check("small match=average-nonzeros:magnitude", PRUNED, choose=choose, LEARNING_RATE=["1e-3", "2e-3"])


@pytest.mark.extra("optuna")
def test_the_trials_of_the_study_change_no_size():
    plan = sweep.read(ROOT / "sweeps/study", choose=sizing.choose)
    assert [one.name for one in plan.configurations if one.matched] == [
        "small-dense-50", "small-dense-80", "small-dense-90"
    ]  # fmt: skip
    rematch.check(plan, sizing.choose)
