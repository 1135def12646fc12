"""What a run shows where the output is not a terminal, and durations."""

import pytest

from lib.record.best import Evaluation
from lib.terminal.console import Console, duration


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1:00"), (125.4, "2:05"), (3661, "1:01:01")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_records_are_lines(capsys):
    evaluations = []
    console = Console(100, 0, lambda: evaluations)
    train = {"train_loss": 2.5, "learning_rate": 6e-4, "tokens_per_second": 12345.6}
    console.show({"event": "train", "step": 10, "metrics": train})
    for step, loss in ((20, 2.0), (40, 2.25), (60, 1.5)):
        evaluations.append(Evaluation(step, loss, 0.0))
        console.show({"event": "eval", "step": step, "metrics": {"val_loss": loss, "val_perplexity": 7.389}})
    console.show({"event": "alert", "step": 61, "metrics": {}, "message": "trouble"})
    console.show({"event": "finish", "step": 61, "metrics": {}})
    assert capsys.readouterr().out.splitlines() == [
        "step  10/100  loss 2.5000  lr 6.00e-04  12,346 tokens/s",
        "step  20/100  val loss 2.0000  perplexity 7.39  best",
        "step  40/100  val loss 2.2500  perplexity 7.39",
        "step  60/100  val loss 1.5000  perplexity 7.39  best",
        "alert: trouble",
    ]
