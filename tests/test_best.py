"""Which evaluation is the best: the lowest loss among those as sparse as the last one, in force, finite."""

import math

from hypothesis import given
from hypothesis import strategies as st

from lib.best import Evaluation, best, dense_best, evaluations

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
    assert best(made([(1, 2.0, 0.5), (2, 1.0, 0.3), (3, 3.0, 0.50009)])) == (1, 2.0, 0.5)
    assert best(made([(1, 2.0, 0.5), (2, 1.0, 0.3), (3, 3.0, 0.50011)])) == (3, 3.0, 0.50011)
    assert best(made([(1, 2.0, 0.0), (2, math.nan, 0.0), (3, math.inf, 0.0)])) == (1, 2.0, 0.0)
    assert best(made([(1, 2.0, 0.0), (2, math.nan, 0.5)])) is None
    assert dense_best(made([(1, math.nan, 0.0), (2, 3.0, 0.5)])) is None
    assert best(made([(1, 2.0, 0.0), (2, 2.0, 0.0)])) == (1, 2.0, 0.0)  # the first of equals


@given(
    st.lists(
        st.builds(Evaluation, st.integers(0, 9), st.floats(), st.sampled_from([0.0, 9e-5, 0.3, 0.5, 0.50005, 0.5002])),
        min_size=1,
    )
)
def test_no_evaluation_that_counts_is_better(seen):
    found = best(seen)
    count = [one for one in seen if abs(one.sparsity - seen[-1].sparsity) <= 1e-4 and math.isfinite(one.val_loss)]
    assert (found in count) if count else (found is None)
    assert all(found.val_loss <= one.val_loss for one in count)


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
