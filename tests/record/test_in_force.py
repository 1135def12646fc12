"""Which records are in force: by hand, for each way in which a run goes back."""

from lib.record.in_force import InForce

CHANGED = {"LEARNING_RATE": ["0.5", "0.1"]}


def fold(*records):
    """(event, step, metrics or details) ... -> (event, step) and first metric of what is in force; what took back."""
    known = InForce()
    for place, (event, step, more) in enumerate(records):
        metrics = more if event not in ("start", "resume", "alert") else {}
        details = more if event in ("start", "resume", "alert") else {}
        known.add({"event": event, "step": step, "metrics": metrics, **details}, place)
    found = {key: next(iter(row["metrics"].values()), None) for key, row in (known.rows | known.others).items()}
    return found, known.taken_back


def train(step, loss):
    return "train", step, {"train_loss": loss}


START, ALIKE = ("start", 0, {}), {"changed": {}}


def test_other_options_take_back_what_is_beyond_their_step():
    records = [START, train(1, 1.0), ("eval", 1, {"val_loss": 1.5}), train(2, 2.0), ("system", 2, {"cpu": 9.0})]
    records += [("alert", 2, {"kind": "nan"}), ("finish", 2, {"final_val_loss": 3.0})]
    found, taken = fold(*records, ("resume", 1, {"changed": CHANGED}))
    assert (found, taken) == ({("train", 1): 1.0, ("eval", 1): 1.5}, [(3, 7)])
    found, taken = fold(*records, ("resume", 1, {"changed": CHANGED, "retry": 1}), train(2, 7.0))
    assert (found["train", 2], taken) == (7.0, [(3, 7)])


def test_other_options_take_back_nothing_up_to_their_step():
    found, taken = fold(START, train(1, 1.0), ("finish", 1, {"x": 1.0}), ("resume", 1, {"changed": CHANGED}))
    assert (found, taken) == ({("train", 1): 1.0, ("finish", 1): 1.0}, [])


def test_a_run_that_is_made_longer_keeps_the_final_metrics_of_each_end():
    """No tracker needs a second run for it."""
    ends = [("finish", step, {"final_val_loss": loss}) for step, loss in ((40, 3.0), (50, 2.0))]
    longer = {"changed": {"MAX_ITERS": ["40", "50"]}}
    found, taken = fold(START, train(40, 3.0), ends[0], ("resume", 40, longer), train(50, 2.0), ends[1])
    assert found == {("train", 40): 3.0, ("finish", 40): 3.0, ("train", 50): 2.0, ("finish", 50): 2.0}
    assert taken == []


def test_a_step_with_the_same_result_stays_as_it_was_recorded_first():
    again = ("train", 2, {"train_loss": 2.0, "tokens_per_second": 5.0})
    found, taken = fold(START, ("train", 2, {"train_loss": 2.0}), train(3, 3.0), ("resume", 1, ALIKE), again)
    assert (found, taken) == ({("train", 2): 2.0, ("train", 3): 3.0}, [])


def test_a_step_with_another_result_takes_back_it_and_what_came_after_it_in_earlier_sessions():
    records = [START, train(1, 1.0), train(2, 2.0), ("eval", 2, {"val_loss": 5.0}), train(3, 3.0)]
    records += [("alert", 3, {"kind": "sparsity"}), ("finish", 3, {"final_val_loss": 3.0})]
    found, taken = fold(*records, ("resume", 1, ALIKE), ("system", 2, {"cpu": 9.0}), train(2, 2.5))
    assert found == {("train", 1): 1.0, ("system", 2): 9.0, ("train", 2): 2.5, ("alert sparsity", 3): None}
    assert taken == [(2, 9)]
    more = [("eval", 2, {"val_loss": 6.0}), train(3, 3.5)]  # nothing is left to be taken back
    found, taken = fold(*records, ("resume", 1, ALIKE), train(2, 2.5), *more)
    assert (found["eval", 2], found["train", 3], taken) == (6.0, 3.5, [(2, 8)])


def test_within_a_session_the_first_record_of_a_step_stays():
    found, taken = fold(START, train(1, 1.0), train(1, 2.0), ("resume", 0, ALIKE), train(1, 3.0), train(1, 4.0))
    assert (found, taken) == ({("train", 1): 3.0}, [(1, 4)])


def test_a_sample_of_the_machine_stays_the_first_of_its_step():
    found, taken = fold(START, ("system", 1, {"cpu": 1.0}), ("resume", 0, ALIKE), ("system", 1, {"cpu": 2.0}))
    assert (found, taken) == ({("system", 1): 1.0}, [])


def test_what_is_no_measurement_is_not_in_force():
    others = [("finish", 1, {}), ("others", 1, {"x": 1.0}), ("trainer", 1, {"x": 1.0})]
    assert fold(START, *others) == ({}, [])
    series = [("train.2", 1, {"x": 1.0}), ("train", 1, {"x": 2.0})]
    assert fold(START, *series)[0] == {("train.2", 1): 1.0, ("train", 1): 2.0}
