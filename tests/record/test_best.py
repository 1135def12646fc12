"""Which evaluation is the best: the lowest loss since the sparsity last changed, in force, finite."""

import math

from hypothesis import given
from hypothesis import strategies as st

from lib.record.best import Evaluation, best, dense_best, evaluations

# Dense, then pruned to 99 %.
PRUNED = [(0, 5.5, 0.0), (10, 2.9987, 0.0), (20, 3.4, 0.72), (30, 3.0531, 0.98999), (40, 3.1, 0.99)]


def made(rows):
    return [Evaluation(*row) for row in rows]


def test_the_best_is_as_sparse_as_the_model_is_in_the_end():
    seen = made(PRUNED)
    assert best(seen) == (30, 3.0531, 0.98999)
    assert dense_best(seen) == (10, 2.9987, 0.0)
    assert best(seen[:3]) == (20, 3.4, 0.72)  # with another sparsity it starts anew
    assert [best(seen[:2]), dense_best(seen[:2])] == [(10, 2.9987, 0.0), None]  # it has one name
    assert [best([]), dense_best([])] == [None, None]


def test_a_sparsity_that_falls_again_and_a_loss_that_is_no_number():
    assert best(made([(1, 2.0, 0.5), (2, 1.0, 0.3), (3, 3.0, 0.5)])) == (3, 3.0, 0.5)  # it has changed, twice
    assert best(made([(1, 2.0, 0.5), (2, 3.0, 0.50009)])) == (1, 2.0, 0.5)
    assert best(made([(1, 2.0, 0.5), (2, 3.0, 0.50011)])) == (2, 3.0, 0.50011)
    assert best(made([(1, 2.0, 0.0), (2, math.nan, 0.0), (3, math.inf, 0.0)])) == (1, 2.0, 0.0)
    assert best(made([(1, 2.0, 0.0), (2, math.nan, 0.5)])) is None
    assert dense_best(made([(1, math.nan, 0.0), (2, 3.0, 0.5)])) is None
    assert best(made([(1, 2.0, 0.0), (2, 2.0, 0.0)])) == (1, 2.0, 0.0)  # the first of equals


def test_the_best_is_never_one_that_was_not_the_best_when_it_was_made():
    """Its checkpoint would be gone, or was never saved."""
    seen = made([(1, 1.0, 0.50000), (2, 2.0, 0.50020), (3, 3.0, 0.50009)])
    assert [best(seen[:n]).step for n in (1, 2, 3)] == [1, 2, 3]
    drifting = made([(1, 1.0, 0.50000), (2, 2.0, 0.50009), (3, 3.0, 0.50018), (4, 4.0, 0.50009)])
    assert [best(drifting[:n]).step for n in (1, 2, 3, 4)] == [1, 1, 3, 3]


SPARSITIES = st.sampled_from([0.0, 9e-5, 0.3, 0.5, 0.50005, 0.50009, 0.50018, 0.5002])


@given(st.lists(st.tuples(st.floats(), SPARSITIES), min_size=1))
def test_the_best_stays_until_a_newer_one_is_better_or_the_sparsity_changes(rows):
    seen = [Evaluation(step, *row) for step, row in enumerate(rows)]
    before = None
    for count, newest in enumerate(seen, 1):
        found = best(seen[:count])
        if found not in (before, newest):
            assert found is None
            assert not math.isfinite(newest.val_loss)
        if found:
            assert abs(found.sparsity - newest.sparsity) <= 2.001e-4
            assert not newest.val_loss < found.val_loss or newest.val_loss == -math.inf
        before = found


def record(event, step, **more):
    metrics = {name: value for name, value in more.items() if name != "detail"}
    return {"event": event, "step": step, "metrics": metrics} | more.get("detail", {})


def test_evaluations_of_records():
    rows = [
        record("eval", 10, val_loss=3.0, detail={"sparsity": 0.25}),
        record("train", 10, sparsity=0.2),
        record("eval", 0, val_loss="NaN"),
        record("eval", 25, val_loss=2.0),
        record("train", 20, sparsity=0.5),
        record("train", 30, sparsity=0.75),
        record("eval", 30, val_loss=1),
    ]
    [first, *rest] = evaluations(rows)
    assert (first.step, math.isnan(first.val_loss), first.sparsity) == (0, True, 0.0)
    assert rest == [(10, 3.0, 0.25), (25, 2.0, 0.5), (30, 1.0, 0.75)]
