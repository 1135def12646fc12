"""The cursor: what of a journal is delivered to a tracker, as what, and that it is delivered once."""

import math

import pytest

from lib.errors import UserError
from lib.journal import Journal
from lib.track.cursor import Cursor, path_of
from lib.track.tracker import Alert, Row


@pytest.fixture
def book(tmp_path):
    return Journal(tmp_path, clock=lambda: 100.5)


def items(cursor, folder):
    return [item for _, _, item in cursor.ahead(folder) if item]


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
    cursor = Cursor()
    assert [item.step for item in items(cursor, tmp_path) if isinstance(item, Row)] == [1, 2, 3]
    first = cursor.batch(tmp_path, 6)
    cursor.advance(first)
    assert (cursor.rows, cursor.delivered) == (6, {"train": 2, "alert nan": 2, "alert sparsity": 2})
    assert [(item.kind, item.step) for item in items(cursor, tmp_path) if isinstance(item, Alert)] == [
        ("nan", 3),
        ("sparsity", 3),
    ]
    assert cursor.pending(tmp_path) == 3


def test_an_alert_of_an_older_journal_has_no_kind(book, tmp_path):
    book.write("alert", 4, message="the loss is not a number")
    assert items(Cursor(), tmp_path) == [Alert("alert", 4, 100.5, "warn", "the loss is not a number")]


def test_a_damaged_line_is_passed_over(book, tmp_path):
    book.write("train", 1, {"train_loss": 1.0})
    with book.path.open("a") as file:
        file.write("}{\n")
    book.write("train", 2, {"train_loss": 2.0})
    cursor = Cursor()
    cursor.advance(cursor.batch(tmp_path, 10))
    assert (cursor.rows, cursor.offset) == (2, book.path.stat().st_size)


def test_the_state_is_stored_whole_and_read_back(tmp_path):
    (tmp_path / "trackers").mkdir()
    cursor = Cursor(offset=7, seq=3, delivered={"train": 5}, rows=4, state="live", note="here")
    cursor.save(tmp_path, "accelerate:aim")
    assert path_of(tmp_path, "accelerate:aim") == tmp_path / "trackers" / "accelerate-aim.json"
    assert Cursor.load(tmp_path, "accelerate:aim") == cursor
    assert Cursor.load(tmp_path, "csv") == Cursor()
    path_of(tmp_path, "csv").write_text('{"offset": 1, "mood": 2}')
    with pytest.raises(UserError, match=r"csv\.json: the tracker's state cannot be read: "):
        Cursor.load(tmp_path, "csv")
