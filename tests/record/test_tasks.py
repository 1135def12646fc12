"""Results of tasks in a journal: which are valid, and what they leave as it was."""

from lib.record import export, history, journal, scores
from lib.record.in_force import InForce
from tests.runs import NOON, ended, evaluated, trained, write

ALIKE, CHANGED = {"changed": {}}, {"changed": {"MAX_ITERS": ["40", "80"]}}


def task(step, acc, name="hellaswag", **more):
    """A `task` event with one metric and its standard error."""
    about = {"task": name, "n": 100, "version": 1.0, "checkpoint": f"step-{step:09d}.pt"} | more
    return "task", step, {f"{name}/acc": acc, f"{name}/acc_stderr": 0.05}, about


def values(folder):
    """(event, step) -> the first value of each valid result."""
    rows = history.load(folder).tasks()
    return {(row["task"], row["step"]): next(iter(row["metrics"].values())) for row in rows}


def test_a_finished_run_stays_finished_with_its_step_and_its_time(tmp_path):
    events = [*trained(10, 40), evaluated(40, 2.0), ended(40), task(10, 0.2), task(40, 0.3), task(40, 0.6, "piqa")]
    folder = write(tmp_path / "run", *events)
    for known in (history.load(folder), history.skim(folder)):
        assert (history.state(known, folder), known.step, known.best()) == ("finished", 40, 2.0)
        assert known.seconds() == 4.0  # from the start to `finish`: a task may be measured days later
    assert values(folder) == {("hellaswag", 10): 0.2, ("hellaswag", 40): 0.3, ("piqa", 40): 0.6}
    assert journal.Journal(folder).ended(40)
    assert journal.final(folder, 40) is None  # this one has no final metrics
    assert set(journal.history(folder)) == {("train", 10), ("train", 40), ("eval", 40)}  # what make reproduce compares


def test_an_interrupted_run_stays_interrupted(tmp_path):
    folder = write(tmp_path / "run", *trained(10), ended(10, "interrupted"), task(10, 0.2))
    known = history.load(folder)
    assert (history.state(known, folder), known.step, known.seconds()) == ("interrupted", 10, 2.0)


def fold(*events):
    """The valid values, and what was taken back, of (event, step, metrics, details) with their places."""
    known = InForce()
    for place, (event, step, metrics, details) in enumerate(events):
        known.add({"event": event, "step": step, "metrics": metrics, **details}, place)
    found = {key: next(iter(row["metrics"].values())) for key, row in known.rows.items()}
    return found, known.taken_back, known.step


START = ("start", 0, {}, {})
ONE, TWO = trained(10, 20)


def test_the_latest_result_of_a_task_and_step_counts():
    found, taken, step = fold(START, ONE, TWO, task(20, 0.1), task(20, 0.9, "piqa"), task(20, 0.2), task(20, 0.2))
    results = {("task hellaswag", 20): 0.2, ("task piqa", 20): 0.9}
    assert (found, taken, step) == ({("train", 10): 0.8, ("train", 20): 0.4} | results, [(3, 5)], 20)
    assert list(found)[-1] == ("task hellaswag", 20)  # in the order of the journal


def test_a_result_goes_back_no_further_than_its_own_step():
    found, taken, step = fold(START, ONE, TWO, task(10, 0.1), ("resume", 20, {}, ALIKE), task(10, 0.5))
    assert (found, taken, step) == (
        {("train", 10): 0.8, ("train", 20): 0.4, ("task hellaswag", 10): 0.5}, [(3, 5)], 20,
    )  # fmt: skip


def test_a_step_with_another_result_takes_back_the_tasks_of_its_own_and_later_steps():
    other = ("train", 20, {"train_loss": 9.0}, {})
    found, taken, _ = fold(START, ONE, TWO, task(20, 0.1), task(10, 0.2), ("resume", 10, {}, ALIKE), other)
    assert (found, taken) == ({("train", 10): 0.8, ("task hellaswag", 10): 0.2, ("train", 20): 9.0}, [(2, 6)])


def test_a_run_that_is_made_longer_keeps_its_tasks_and_one_that_goes_back_loses_those_beyond():
    ends = ended(20)
    found, taken, _ = fold(START, ONE, TWO, ends, task(20, 0.1), ("resume", 20, {}, CHANGED))
    assert (found["task hellaswag", 20], taken) == (0.1, [])
    found, taken, step = fold(START, ONE, TWO, ends, task(20, 0.1), task(10, 0.2), ("resume", 10, {}, CHANGED))
    assert (found, taken, step) == ({("train", 10): 0.8, ("task hellaswag", 10): 0.2}, [(2, 6)], 10)


def test_a_run_that_continues_repeats_no_task(tmp_path):
    folder = write(tmp_path / "run", *trained(10, 20), task(20, 0.1), task(10, 0.2))
    book = journal.Journal(folder)
    assert book.expect(10) == 1  # the training step 20
    book.write("train", 20, trained(20)[0][2])
    assert journal.in_force(folder).taken_back == []
    book.close()


def test_a_result_without_its_name_or_count_is_a_damaged_line(tmp_path):
    folder = write(tmp_path / "run", task(10, 0.5))
    line = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)[1]
    assert journal.record(line)["task"] == "hellaswag"
    for damage in ((b'"task":"hellaswag"', b'"task":3'), (b'"n":100', b'"n":"100"'), (b'"n":100,', b"")):
        assert journal.record(line.replace(*damage)) is None
    assert journal.record(line.replace(b'"task":"hellaswag"', b'"task":"a\\u0007b"')) is None


def test_exports_have_the_results_in_the_row_of_their_step(tmp_path):
    folder = write(tmp_path / "run", *trained(10, 20), ended(20), task(10, 0.2), task(20, 0.3))
    table = export.table(history.load(folder))
    assert table.columns[-2:] == ["hellaswag/acc", "hellaswag/acc_stderr"]
    assert [(row["step"], row["hellaswag/acc"], row["time"]) for row in table.rows] == [
        (10, 0.2, NOON + 1), (20, 0.3, NOON + 2),
    ]  # fmt: skip


def test_scores_are_values_with_their_errors(tmp_path):
    folder = write(
        tmp_path / "run",
        task(10, 0.2),
        task(20, 0.3, of=500),
        ("task", 20, {"w/ppl": float("inf")}, {"task": "w", "n": 2}),
    )
    rows = list(scores.scores(history.load(folder).tasks()))
    assert rows == [
        ("hellaswag/acc", 0.2, 0.05, 100, None, "1.0", 10, "step-000000010"),
        ("hellaswag/acc", 0.3, 0.05, 100, 500, "1.0", 20, "step-000000020"),
        ("w/ppl", float("inf"), None, 2, None, "", 20, ""),
    ]
    assert scores.newest(history.load(folder).tasks())["hellaswag/acc"] == rows[1]
    assert scores.limited(history.load(folder).tasks()) == ["hellaswag"]
