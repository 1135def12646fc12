"""How metrics are shown, and what a damaged journal says of it."""

import pytest

from gpt2 import loop
from lib.base.metric import EARLIER, Metric, chart_order, described, line, rows
from lib.prune import pruner
from lib.record import history, journal
from tests.runs import write

NORM = Metric("weight_norm", label="norm", form=".1f", unit=" in all", row=7, chart=11)


def test_a_metric_is_its_name():
    assert {NORM: 1.0} == {"weight_norm": 1.0}
    assert NORM.text(12.34) == "norm 12.3 in all"


def test_a_line_has_the_labelled_metrics_with_the_optional_ones_last():
    metrics = {
        "train_loss": 2.5,
        "learning_rate": 6e-4,
        "sparsity": 0.5,
        "grad_norm": 1.0,
        "tokens_per_second": 12345.6,
    }
    assert line(metrics, EARLIER) == "loss 2.5000  lr 6.00e-04  12,346 tokens/s  sparsity 50.0%"
    assert line(metrics | {"sparsity": 0.0}, EARLIER) == "loss 2.5000  lr 6.00e-04  12,346 tokens/s"
    assert line({"weight_norm": 2.0, "train_loss": 1.5}, EARLIER | {NORM: NORM}) == "norm 2.0 in all  loss 1.5000"


def test_orders():
    known = (EARLIER | {NORM: NORM}).values()
    assert rows(known) == [
        "train_loss", "val_loss", "learning_rate", "sparsity", "tokens_per_second", "grad_norm", "weight_norm",
    ]  # fmt: skip
    assert chart_order(known) == [
        "val_loss", "train_loss", "sparsity", "learning_rate", "grad_norm", "tokens_per_second", "val_perplexity",
        "average_nonzeros", "mfu", "tokens", "weight_norm",
    ]  # fmt: skip


NEWER = ("val_bits_per_byte", "distill_loss")  # than descriptions


def test_runs_of_today_show_their_metrics_as_those_of_earlier_versions():
    today = [value for module in (loop, pruner) for value in vars(module).values() if isinstance(value, Metric)]
    shown = {metric: metric.shown for metric in today if metric not in NEWER}
    assert shown == {name: metric.shown for name, metric in EARLIER.items()}


def test_descriptions_travel_in_the_journal(tmp_path):
    run = write(tmp_path / "run", ("train", 1, {NORM: 3.0}, {"shown": {NORM: NORM.shown}}))
    found = history.load(run).shown["weight_norm"]
    assert (found, found.shown) == ("weight_norm", NORM.shown)


@pytest.mark.parametrize(
    "entry",
    [
        {"label": 1}, {"form": "1000000000.f"}, {"form": "{}"}, {"wide": 2}, {"row": True}, {"row": None},
        {"label": "\x1b[31m"}, {"unit": "\n"}, ["label"], "x",
    ],
)  # fmt: skip
def test_a_description_that_cannot_be_used_makes_the_record_a_damaged_one(tmp_path, entry):
    with pytest.raises((ValueError, TypeError)):
        described({"shown": {"a": entry}})
    run = write(tmp_path / "run", ("train", 1, {"a": 1.0}, {"shown": {"a": entry}}))
    assert journal.damaged(run) == [2]
