"""Alerts: what a run's records give rise to, and that a run really tells it in its journal and terminal."""

import math

from gpt2.alerts import Alert, Watch
from lib import journal
from tests.training import arguments, train


def looks(watch, *events):
    return [alert for event in events for alert in watch.look(*event)]


def test_a_validation_loss_worse_than_guessing_is_divergence():
    watch = Watch(256, math.inf, False)  # guessing: ln 256 = 5.545 nats
    events = [("eval", 10 * n, {"val_loss": loss}) for n, loss in enumerate((7.0, 6.0, 6.2, math.nan))]
    assert looks(watch, *events) == [
        Alert("divergence", "warn", "the validation loss 6.2 is worse than guessing's 5.545"),
        Alert("divergence", "warn", "the validation loss nan is worse than guessing's 5.545"),
    ]


def test_the_sparsity_asked_for_is_told_once_and_not_again_after_a_resume():
    events = [("train", step, {"sparsity": s}) for step, s in ((1, 0.0), (2, 0.4999), (3, 0.5), (4, 0.5))]
    assert looks(Watch(256, 0.5, False), *events) == [
        Alert("sparsity", "info", "the sparsity asked for is reached: 50.0000%")
    ]
    assert looks(Watch(256, 0.5, True), *events) == []
    assert looks(Watch(256, math.inf, False), *events) == []


def test_the_end_is_told_when_it_is_one():
    metrics = {"final_val_loss": 1.60704, "best_val_loss": 1.5}
    assert looks(
        Watch(256, math.inf, False), ("finish", 2400, metrics, "finished"), ("finish", 9, {}, "interrupted")
    ) == [Alert("finished", "info", "the run is finished after 2,400 steps: validation loss 1.6070, best 1.5000")]


def alerts(run):
    return [(r["step"], r["kind"], r["level"]) for r in journal.read(run) if r["event"] == "alert"]


def test_a_pruned_run_tells_its_sparsity_and_its_end(tmp_path):
    output = train(tmp_path, *arguments(pruning_method="magnitude", target_sparsity=0.3, pruning_interval=5))
    assert alerts(tmp_path / "runs" / "run") == [(30, "sparsity", "info"), (40, "finished", "info")]
    assert "note: the sparsity asked for is reached: 30.00" in output
    last = list(journal.read(tmp_path / "runs" / "run"))[-1]
    assert (last["event"], last["status"]) == ("finish", "finished")
