"""Alerts: what a run's records give rise to, and that a run really tells it in its journal and terminal."""

import math
import random

from gpt2.alerts import Alert, Spikes, Watch, worse_since
from lib.record import journal
from tests.training import arguments, train


def looks(watch, *events):
    return [alert for event in events for alert in watch.look(*event)]


def test_a_validation_loss_worse_than_guessing_is_divergence():
    watch = Watch(256, math.inf, False, 0)  # guessing: ln 256 = 5.545 nats
    events = [("eval", 10 * n, {"val_loss": loss}) for n, loss in enumerate((7.0, 6.0, 6.2, math.nan))]
    assert looks(watch, ("eval", 0, {"val_loss": math.nan}), *events) == [
        Alert("divergence", "warn", "the validation loss nan is worse than guessing, whose loss is 5.545"),
        Alert("divergence", "warn", "the validation loss 6.2 is worse than guessing, whose loss is 5.545"),
        Alert("divergence", "warn", "the validation loss nan is worse than guessing, whose loss is 5.545"),
    ]


def test_the_sparsity_asked_for_is_told_once_and_not_again_after_a_resume():
    events = [
        ("train", step, {"sparsity": s, "train_loss": 2.0}) for step, s in ((1, 0.0), (2, 0.4999), (3, 0.5), (4, 0.5))
    ]
    assert looks(Watch(256, 0.5, False, 0), *events) == [
        Alert("sparsity", "info", "the target sparsity is reached: 50.0000%")
    ]
    assert looks(Watch(256, 0.5, True, 0), *events) == []
    assert looks(Watch(256, math.inf, False, 0), *events) == []


def test_the_end_of_pruning_without_a_target_is_told_once():
    events = [("train", step, {"sparsity": 0.1 * step, "train_loss": 2.0}) for step in (1, 2, 4, 5)]
    assert looks(Watch(256, math.inf, False, 0, 3), *events) == [
        Alert("sparsity", "info", "pruning has ended at a sparsity of 40.0000%")
    ]
    assert looks(Watch(256, math.inf, True, 0, 3), *events) == []


def test_the_end_is_told_when_it_is_one():
    metrics = {"final_val_loss": 1.60704, "best_val_loss": 1.5}
    assert looks(
        Watch(256, math.inf, False, 0), ("finish", 2400, metrics, "finished"), ("finish", 9, {}, "interrupted")
    ) == [Alert("finished", "info", "the run is finished after 2,400 steps: validation loss 1.6070, best 1.5000")]
    without = ("finish", 2400, {"total_time_seconds": 1.5}, "finished")  # EVALUATE=n
    assert looks(Watch(256, math.inf, False, 0), without) == [
        Alert("finished", "info", "the run is finished after 2,400 steps")
    ]


def noisy(count, seed=0):
    """A loss that falls from 4 towards 2, with the noise of a small batch."""
    chance = random.Random(seed)
    return [2 + 2 * math.exp(-n / 50) + chance.gauss(0, 0.1) for n in range(count)]


def spikes(losses, sigma=7.0):
    """The indices at which a spike begins."""
    found = Spikes(sigma)
    return [n for n, loss in enumerate(losses) if found.look(loss)]


def test_a_spike_is_told_once_and_noise_never():
    losses = noisy(1000)
    assert spikes(losses) == []
    for n in (*range(300, 306), 310, 700, 701):  # the third is of the first: there were not ten calm ones between
        losses[n] += 3
    losses[500] = math.nan  # no number, and no spike
    assert spikes(losses) == [300, 700]
    assert spikes(losses, sigma=0) == []
    assert spikes([*noisy(64), 99.0]) == [64] and spikes([*noisy(63), 99.0]) == []  # too few to judge by
    assert spikes([2.0] * 100 + [5.0]) == []  # of no noise nothing is known


def test_the_sentence_of_a_spike_has_its_height():
    watch = Watch(256, math.inf, False, 7)
    events = [("train", n, {"train_loss": loss, "sparsity": 0.0}) for n, loss in enumerate([1.0, 3.0] * 40 + [10.0])]
    assert looks(watch, *events) == [
        Alert("spike", "warn", "the training loss 10 is 8.0 standard deviations above 2, the mean of the losses before")
    ]


def test_a_run_that_goes_on_sees_the_spikes_of_one_that_was_never_interrupted(tmp_path):
    losses = noisy(600)
    for n in (200, 205, 400, 404, 411, 430):
        losses[n] += 3
    losses[250:300] = [math.nan] * 50
    book = journal.Journal(tmp_path)
    for n, loss in enumerate(losses):
        book.write("train", n, {"train_loss": loss, "sparsity": 0.0})
    book.close()
    for begin in (100, 201, 206, 299, 405, 409, 412, 420, 599):
        watch = Watch(256, math.inf, False, 7.0)
        watch.recall(tmp_path, begin - 1)
        found = [n for n in range(begin, 600) if watch.spikes.look(losses[n])]
        assert found == [n for n in spikes(losses) if n >= begin], begin


def test_since_when_a_run_is_worse_than_guessing(tmp_path):
    """1.1 times ln 256 = 6.0997; the losses of the left-out steps between are no number, and no better."""
    book = journal.Journal(tmp_path)
    rows = [("eval", 0, 7.0), ("train", 5, 6.0), ("train", 10, 6.2), ("eval", 10, math.nan), ("train", 15, 99.0)]
    expected = (0, math.inf, 10, 10, 10)
    for (event, step, loss), since in zip(rows, expected, strict=True):
        book.write(event, step, {{"train": "train_loss", "eval": "val_loss"}[event]: loss})
        assert worse_since(tmp_path, 256) == since
    book.close()


def alerts(run):
    return [(r["step"], r["kind"], r["level"]) for r in journal.read(run) if r["event"] == "alert"]


def test_a_pruned_run_tells_its_sparsity_and_its_end(tmp_path):
    output = train(tmp_path, *arguments(pruning_method="magnitude", target_sparsity=0.3, pruning_interval=5))
    assert alerts(tmp_path / "runs" / "run") == [(30, "sparsity", "info"), (40, "finished", "info")]
    assert "note: the target sparsity is reached: 30.00" in output
    last = list(journal.read(tmp_path / "runs" / "run"))[-1]
    assert (last["event"], last["status"]) == ("finish", "finished")
