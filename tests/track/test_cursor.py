"""The cursor: what of a journal is delivered to a tracker, as what, and when the tracker has to begin again."""

import contextlib
import json
import math
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.base.errors import UserError
from lib.record import journal, run
from lib.record.journal import Journal
from lib.track.cursor import Backlog, Cursor, path_of
from lib.track.tracker import Alert, Row

CHANGED = {"LEARNING_RATE": ["0.5", "0.1"]}


@pytest.fixture
def book(tmp_path):
    return Journal(tmp_path, clock=lambda: 100.5)


def items(cursor, folder):
    return cursor.batch(Backlog(folder).update(), 10**9)[0]


def deliver(cursor, folder):
    """Count everything as delivered; returns what was."""
    found, edge = cursor.batch(Backlog(folder).update(), 10**9)
    cursor.advance(edge, len(found))
    return found


def is_stale(cursor, folder):
    return cursor.is_stale(Backlog(folder).update())


def steps(found):
    return [(item.event, item.step) for item in found if isinstance(item, Row)]


def test_rows_and_alerts_are_delivered_and_nothing_else(book, tmp_path):
    book.write("start", 0, config={})
    book.write("train", 1, {"train_loss": math.inf, "tokens": 2**70})
    book.write("system", 1, {"system/cpu_percent": 50.0})
    book.write("alert", 1, kind="sparsity", level="info", message="there")
    book.write("later", 1, {"of": 1.0})
    book.write("finish", 1, status="diverged")
    book.write("finish", 1, {"final_val_loss": 2.5}, status="finished")
    assert items(Cursor(), tmp_path) == [
        Row("train", 1, 100.5, {"train_loss": math.inf, "tokens": 2**70}),
        Row("system", 1, 100.5, {"system/cpu_percent": 50.0}),
        Alert("sparsity", 1, 100.5, "info", "there"),
        Row("finish", 1, 100.5, {"final_val_loss": 2.5}),
    ]


def test_a_repeated_step_is_delivered_once_and_so_is_an_alert_of_a_kind(book, tmp_path):
    for step in (1, 2, 2, 1, 3):
        book.write("train", step, {"train_loss": float(step)})
        book.write("alert", step, kind="nan", level="error", message=f"at {step}")
        book.write("alert", step, kind="sparsity", level="info", message=f"at {step}")
    cursor, backlog = Cursor(), Backlog(tmp_path).update()
    assert [item.step for item in items(cursor, tmp_path) if isinstance(item, Row)] == [1, 2, 3]
    first, edge = cursor.batch(backlog, 6)
    cursor.advance(edge, len(first))
    assert (len(first), cursor.rows, cursor.pending(backlog)) == (6, 6, 3)
    assert [(item.kind, item.step) for item in items(cursor, tmp_path) if isinstance(item, Alert)] == [
        ("nan", 3),
        ("sparsity", 3),
    ]


def test_rows_that_were_delivered_and_are_taken_back_make_a_tracker_begin_again(book, tmp_path):
    book.write("start", 0, config={})
    for step in (1, 2, 3):
        book.write("train", step, {"train_loss": float(step)})
    cursor = Cursor()
    assert steps(deliver(cursor, tmp_path)) == [("train", 1), ("train", 2), ("train", 3)]
    book.write("resume", 3, changed=CHANGED)  # nothing is beyond
    assert not is_stale(cursor, tmp_path)
    book.write("resume", 1, changed=CHANGED)
    book.write("train", 2, {"train_loss": 9.0})
    assert is_stale(cursor, tmp_path)
    assert cursor.pending(Backlog(tmp_path).update()) == 2
    cursor.begin_again()
    assert (cursor.edition, cursor.rows, is_stale(cursor, tmp_path)) == (2, 0, False)
    assert [row.metrics["train_loss"] for row in deliver(cursor, tmp_path)] == [1.0, 9.0]
    assert not is_stale(cursor, tmp_path)


def test_rows_that_are_taken_back_before_they_are_delivered_are_never_delivered(book, tmp_path):
    book.write("start", 0, config={})
    book.write("train", 1, {"train_loss": 1.0})
    cursor = Cursor()
    deliver(cursor, tmp_path)
    for step in (2, 3, 4):
        book.write("train", step, {"train_loss": float(step)})
    book.write("resume", 1, changed=CHANGED)
    for step in (2, 3):
        book.write("train", step, {"train_loss": 10.0 * step})
    backlog = Backlog(tmp_path).update()
    first, edge = cursor.batch(backlog, 1)  # never ends before a record that takes back what is before the end
    cursor.advance(edge, len(first))
    assert [row.metrics["train_loss"] for row in first] == [20.0]
    assert not cursor.is_stale(backlog)
    assert [row.metrics["train_loss"] for row in deliver(cursor, tmp_path)] == [30.0]


def test_what_was_handed_over_when_the_process_died_counts_as_delivered(book, tmp_path):
    book.write("start", 0, config={})
    book.write("train", 2, {"train_loss": 2.0})
    cursor = Cursor()
    cursor.reach = cursor.batch(Backlog(tmp_path).update(), 10)[1]
    assert steps(items(cursor, tmp_path)) == [("train", 2)]  # comes again
    book.write("resume", 1, changed=CHANGED)
    assert is_stale(cursor, tmp_path)


def test_an_alert_that_is_taken_back_alone_is_no_reason_to_begin_again(book, tmp_path):
    book.write("start", 0, config={})
    book.write("train", 1, {"train_loss": 1.0})
    book.write("alert", 2, kind="nan", level="error", message="not a number")
    cursor = Cursor()
    deliver(cursor, tmp_path)
    book.write("resume", 1, changed=CHANGED)
    assert not is_stale(cursor, tmp_path)


STEPS = st.integers(1, 4)
EVENTS = st.lists(
    st.tuples(st.sampled_from(["train", "eval", "system", "alert"]), STEPS, st.integers(0, 2))
    | st.tuples(st.sampled_from(["resume", "changed", "deliver", "hand over"]), STEPS, st.just(0)),
    max_size=40,
)


@given(EVENTS, st.integers(1, 5))
def test_whatever_happens_a_tracker_holds_the_rows_in_force(events, limit):
    """The tracker here keeps what it got first for a step, as real ones do."""
    import tempfile

    with tempfile.TemporaryDirectory() as name, contextlib.closing(Journal(name)) as book:
        cursor, held = Cursor(), {}
        book.write("start", 0, config={})
        for event, step, value in [*events, ("deliver", 1, 0)]:
            if event in ("deliver", "hand over"):
                backlog = Backlog(name).update()
                if cursor.is_stale(backlog):
                    cursor.begin_again()
                    held.clear()
                while cursor.pending(backlog):
                    batch, edge = cursor.batch(backlog, limit)
                    cursor.reach = max(edge, cursor.reach)
                    for row in batch:
                        if isinstance(row, Row):
                            held.setdefault((row.event, row.step), row.metrics)
                    if event == "hand over":  # and die
                        break
                    cursor.advance(edge, len(batch))
                    assert not cursor.is_stale(backlog)
            elif event in ("resume", "changed"):
                book.write("resume", step, changed=CHANGED if event == "changed" else {})
            else:
                book.write(event, step, {} if event == "alert" else {"x": value}, kind="nan")
        in_force = {key: row["metrics"] for key, row in journal.in_force(name).rows.items()}
    assert held == in_force


def test_a_batch_is_about_as_large_as_asked_for(book, tmp_path):
    for step in range(10):
        book.write("train", step, {"train_loss": 1.0})
    cursor, backlog = Cursor(), Backlog(tmp_path).update()
    sizes = []
    while cursor.pending(backlog):
        found, edge = cursor.batch(backlog, 4)
        cursor.advance(edge, len(found))
        sizes.append(len(found))
    assert (sizes, cursor.rows, cursor.offset) == ([4, 4, 2], 10, book.path.stat().st_size)


def test_a_backlog_is_read_once_and_handed_over_in_one_more_reading(book, tmp_path, monkeypatch):
    """However many batches there are."""
    for step in range(500):
        book.write("train", step, {"train_loss": 1.0})
    parsed, parse = [], journal.record
    monkeypatch.setattr(journal, "record", lambda line: parsed.append(line) or parse(line))
    cursor, backlog, batches = Cursor(), Backlog(tmp_path).update(), 0
    while cursor.pending(backlog):
        found, edge = cursor.batch(backlog, 10)
        cursor.advance(edge, len(found))
        batches += 1
    assert (batches, cursor.rows) == (50, 500)
    assert len(parsed) == 500 + 500 + 49  # each batch but the last looks at the record after it
    assert cursor.batch(backlog, 10) == ([], book.path.stat().st_size)


def test_a_backlog_holds_about_a_hundred_bytes_of_a_row(book, tmp_path):
    for step in range(4_000):
        book.write("train", step, {"train_loss": 1.0, "learning_rate": 0.1, "grad_norm": 1.0, "tokens": step})
    tracemalloc.start()
    try:
        backlog = Backlog(tmp_path).update()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert (Cursor().pending(backlog), held < 150 * 4_000) == (4_000, True)


def test_a_batch_holds_what_is_in_force_of_what_is_read(book, tmp_path):
    """What is written after that may take it back."""
    book.write("train", 1, {"train_loss": 1.0})
    backlog = Backlog(tmp_path).update()
    book.write("train", 2, {"train_loss": 2.0})
    assert steps(Cursor().batch(backlog, 10)[0]) == [("train", 1)]


def test_rows_without_metrics_are_neither_delivered_nor_pending(book, tmp_path):
    book.write("train", 1, {})
    book.write("train", 2, {"train_loss": 2.0})
    cursor = Cursor()
    assert cursor.pending(Backlog(tmp_path).update()) == 1
    assert steps(deliver(cursor, tmp_path)) == [("train", 2)]


def test_a_repeated_step_is_compared_with_its_record_in_the_journal(book, tmp_path):
    book.write("start", 0, config={})
    for step in (1, 2, 3):
        book.write("train", step, {"train_loss": float(step)})
    backlog = Backlog(tmp_path).update()
    book.write("resume", 1)
    book.write("train", 2, {"train_loss": 2.0, "mfu": 0.5})
    assert backlog.update().taken_back == []
    book.write("train", 3, {"train_loss": 3.5})
    assert len(backlog.update().taken_back) == 1
    assert [row.metrics["train_loss"] for row in items(Cursor(), tmp_path)] == [1.0, 2.0, 3.5]


def test_the_runs_of_a_tracker_have_names_of_their_own():
    first = run.Identity("0123456789ab", "demo", "sgd")
    assert Cursor().identity(first) == Cursor(edition=0).identity(first) == first
    assert Cursor(edition=3).identity(first) == run.Identity("0123456789ab_3", "demo", "sgd~3")


def test_an_alert_of_an_older_journal_has_no_kind(book, tmp_path):
    book.write("alert", 4, message="the loss is not a number")
    assert items(Cursor(), tmp_path) == [Alert("alert", 4, 100.5, "warn", "the loss is not a number")]


def test_a_damaged_line_is_passed_over(book, tmp_path):
    book.write("train", 1, {"train_loss": 1.0})
    with book.path.open("a") as file:
        file.write("}{\n")
    book.write("train", 2, {"train_loss": 2.0})
    cursor = Cursor()
    deliver(cursor, tmp_path)
    assert (cursor.rows, cursor.offset) == (2, book.path.stat().st_size)


def test_the_state_is_stored_whole_and_read_back(tmp_path):
    (tmp_path / "trackers").mkdir()
    cursor = Cursor(offset=7, reach=9, edition=2, rows=4, state="live", note="here")
    cursor.save(tmp_path, "accelerate:aim")
    assert path_of(tmp_path, "accelerate:aim") == tmp_path / "trackers" / "accelerate-aim.json"
    assert Cursor.load(tmp_path, "accelerate:aim") == cursor
    assert Cursor.load(tmp_path, "csv") == Cursor()
    for damaged in ('{"offset": 1, "mood": 2}', "[]", '"edition"', '{"offset": 1, "edition": true}'):
        path_of(tmp_path, "csv").write_text(damaged)
        with pytest.raises(UserError, match=r"csv\.json: the tracker's state cannot be read: "):
            Cursor.load(tmp_path, "csv")


def test_a_state_of_before_begins_again_only_where_something_was_taken_back(book, tmp_path):
    """Earlier code delivered what came first for a step, whatever came of it later."""
    (tmp_path / "trackers").mkdir()
    book.write("start", 0, config={})
    book.write("train", 1, {"train_loss": 1.0})
    book.write("train", 2, {"train_loss": 2.0})

    def before():
        state = {"offset": book.path.stat().st_size, "seq": 2, "delivered": {"train": 2}, "rows": 2, "state": "live"}
        path_of(tmp_path, "csv").write_text(json.dumps({**state, "message": "", "note": ""}))
        return Cursor.load(tmp_path, "csv")

    assert (before().pending(Backlog(tmp_path).update()), is_stale(before(), tmp_path)) == (0, False)
    book.write("resume", 1, changed=CHANGED)
    book.write("train", 2, {"train_loss": 9.0})
    cursor = before()
    assert (is_stale(cursor, tmp_path), cursor.edition) == (True, 0)
    cursor.begin_again()
    assert (is_stale(cursor, tmp_path), cursor.edition) == (False, 2)
