"""Which evaluation of a run is its best: trainer, checkpoints, summaries and everything that lists runs ask here."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lib.record.journal import Record, number

SAME = 1e-4  # share of the weights: two sparsities this near are one; single weights become zero without pruning too


class Evaluation(NamedTuple):
    """A validation loss and how sparse the model was that has it."""

    step: int
    val_loss: float  # nats per token
    sparsity: float


def best(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The lowest finite loss since the sparsity last changed; None if there is none.

    A pruned run was better before it was pruned. That is no result of the model that it ends with.

    The sparsity has changed when it is another one than at the first evaluation after the change before. So another
    evaluation becomes the best only when it is the newest, and the trainer can save its checkpoint at that moment.
    """
    first = 0
    for place, one in enumerate(evaluations):
        if not abs(one.sparsity - evaluations[first].sparsity) <= SAME:  # also where one of them is NaN
            first = place
    return _lowest(evaluations[first:])


def dense_best(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The best from before pruning began; None for a run that is dense in the end, or began pruned."""
    if not evaluations or evaluations[-1].sparsity <= SAME:
        return None
    return _lowest(one for one in evaluations if one.sparsity <= SAME)


def evaluations(records: Iterable[Record]) -> list[Evaluation]:
    """The evaluations among the records in force, steps ascending.

    Earlier versions did not record the sparsity with an evaluation. The last training record up to that step has it.
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
