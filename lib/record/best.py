"""Which evaluation of a run is its best: the trainer, checkpoints, summaries and lists of runs use this definition."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lib.record.journal import Record, number

# Sparsities that differ by at most this share of the weights are equal: a few weights become zero without pruning.
SAME = 1e-4


class Evaluation(NamedTuple):
    """A validation loss, and the sparsity of the model that was evaluated."""

    step: int
    val_loss: float  # nats per token
    sparsity: float


def best(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The lowest finite loss since the sparsity last changed; None if there is none.

    A pruned run often has a lower loss before pruning, but that loss is not a result of the final model.

    Each sparsity is compared with that of the first evaluation since the last change. So only the newest evaluation can
    become the best, and the trainer can save its checkpoint at that moment.
    """
    first = 0
    for place, one in enumerate(evaluations):
        if not abs(one.sparsity - evaluations[first].sparsity) <= SAME:  # `not <=` is also true for NaN
            first = place
    return _lowest(evaluations[first:])


def dense_best(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The best evaluation of the dense model; None if the final model is dense, or if no evaluation was dense."""
    if not evaluations or evaluations[-1].sparsity <= SAME:
        return None
    return _lowest(one for one in evaluations if one.sparsity <= SAME)


def evaluations(records: Iterable[Record]) -> list[Evaluation]:
    """The evaluations among the valid records, steps ascending.

    Earlier versions did not record the sparsity with an evaluation. Such an evaluation gets the sparsity of the last
    training record before it.
    """
    return list(_evaluations(sorted(records, key=lambda record: (record["step"], "val_loss" in record["metrics"]))))


def _evaluations(records: Iterable[Record]) -> Iterator[Evaluation]:
    sparsity = 0.0
    for record in records:
        metrics: Mapping[str, Any] = record["metrics"]
        sparsity = number(record.get("sparsity", metrics.get("sparsity", sparsity)))
        if "val_loss" in metrics:
            yield Evaluation(record["step"], number(metrics["val_loss"]), sparsity)


def _lowest(some: Iterable[Evaluation]) -> Evaluation | None:
    finite = (one for one in some if math.isfinite(one.val_loss))
    return min(finite, key=lambda one: one.val_loss, default=None)
