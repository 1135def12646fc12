"""The journal: one line per event, whole, in order, each step once for its readers."""

import json
import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.record import journal
from lib.record.journal import Displaced, Journal, JournalError


def test_a_line_is_what_the_docstring_says(tmp_path):
    book = Journal(tmp_path, clock=lambda: 1234.5)
    book.write("start", 0, schema=journal.SCHEMA)
    book.write("train", 10, {"train_loss": 2.5, "tokens": 640})
    book.close()
    assert (tmp_path / "journal.jsonl").read_text() == (
        '{"seq":0,"time":1234.5,"event":"start","step":0,"metrics":{},"schema":1}\n'
        '{"seq":1,"time":1234.5,"event":"train","step":10,"metrics":{"train_loss":2.5,"tokens":640}}\n'
    )


def test_every_kind_of_number_survives_as_strict_json(tmp_path):
    book = Journal(tmp_path)
    infinities = {"nan": math.nan, "inf": math.inf, "minus": -math.inf}
    book.write("train", 1, infinities | {"big": 2**63, "np": np.float32(0.5), "torch": torch.tensor(1.5)})
    line = (tmp_path / "journal.jsonl").read_text()
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    [record] = journal.read(tmp_path)
    numbers = journal.numbers(record)
    assert math.isnan(numbers.pop("nan"))
    assert numbers == {"inf": math.inf, "minus": -math.inf, "big": 2**63, "np": 0.5, "torch": 1.5}


@given(st.dictionaries(st.text(), st.floats() | st.integers(-(2**70), 2**70)))
def test_any_metrics_are_read_back_as_written(metrics):
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        book = Journal(Path(name))
        book.write("train", 3, metrics)
        book.close()
        [record] = journal.read(Path(name))
    read = journal.numbers(record)
    assert read.keys() == metrics.keys()
    assert all(
        a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(read.values(), metrics.values(), strict=True)
    )


@pytest.mark.parametrize(
    "torn", [b'{"seq":2,"ti', b"\x00" * 100_000, b'{"seq":2,"time":1,"event":"train","step":9,"metrics":{}}']
)
def test_a_torn_last_line_is_cut_and_the_count_goes_on(tmp_path, torn):
    book = Journal(tmp_path)
    book.write("start", 0)
    book.write("train", 1, {"train_loss": 1.0})
    book.close()
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(torn)
    assert [r["seq"] for r in journal.read(tmp_path)] == [0, 1]  # a reader does not see the torn line
    book = Journal(tmp_path)
    book.write("resume", 1)
    assert [(r["seq"], r["event"]) for r in journal.read(tmp_path)] == [(0, "start"), (1, "train"), (2, "resume")]


def test_repeating_a_step_with_the_same_result_writes_nothing(tmp_path):
    book = Journal(tmp_path)
    for step in (5, 10, 15):
        book.write("train", step, {"train_loss": 1 / step, "tokens_per_second": 100.0})
    book.close()
    book = Journal(tmp_path)
    assert book.expect(5) == 2
    book.write("resume", 5)
    book.write("train", 10, {"train_loss": 1 / 10, "tokens_per_second": 55.0})  # another speed, the same loss
    book.write("train", 15, {"train_loss": 9.0, "tokens_per_second": 55.0})  # another loss
    book.write("train", 20, {"train_loss": 1 / 20, "tokens_per_second": 55.0})
    assert [(r["event"], r["step"]) for r in journal.read(tmp_path)] == [
        ("train", 5), ("train", 10), ("train", 15), ("resume", 5), ("train", 15), ("train", 20),
    ]  # fmt: skip
    history = journal.history(tmp_path)
    assert [step for _, step in history] == [5, 10, 15, 20]
    assert history["train", 15]["metrics"]["train_loss"] == 9.0  # the later one is in force


def test_a_repeated_record_of_an_earlier_version_stays_although_it_lacks_a_metric(tmp_path):
    book = Journal(tmp_path)
    book.write("eval", 5, {"val_loss": 2.0})
    book.write("eval", 10, {"val_loss": 1.0})
    book.close()
    book = Journal(tmp_path)
    book.expect(0)
    book.write("eval", 5, {"val_loss": 2.0, "val_bits_per_byte": 3.0})
    book.write("eval", 10, {"val_bits_per_byte": 1.5})  # a metric that is missing now is another result
    assert [(r["step"], r["metrics"]) for r in journal.read(tmp_path)] == [
        (5, {"val_loss": 2.0}), (10, {"val_loss": 1.0}), (10, {"val_bits_per_byte": 1.5}),
    ]  # fmt: skip


def test_a_changed_configuration_takes_back_what_was_beyond_the_checkpoint(tmp_path):
    book = Journal(tmp_path)
    for step in (5, 10, 15):
        book.write("train", step, {"train_loss": 1.0})
    book.write("resume", 10, changed={"MAX_ITERS": ["15", "12"]})
    book.write("train", 12, {"train_loss": 2.0})
    assert [step for _, step in journal.history(tmp_path)] == [5, 10, 12]


def test_a_reader_goes_on_from_an_offset(tmp_path):
    book = Journal(tmp_path)
    book.write("train", 1)
    [(first, offset)] = journal.tail(tmp_path)
    book.write("train", 2)
    assert first["step"] == 1
    assert [r["step"] for r in journal.read(tmp_path, offset)] == [2]


def test_the_newest_record_is_found_without_the_others(tmp_path):
    book = Journal(tmp_path)
    assert journal.newest(tmp_path) == (None, 0)
    written = [book.write("train", step) for step in (1, 2, 3)]
    whole = book.path.stat().st_size
    assert journal.newest(tmp_path) == (written[2], whole)
    assert journal.newest(tmp_path, whole) == (None, whole)
    with book.path.open("ab") as file:
        file.write(b"damaged\n" + b'{"seq":3,')  # and a line that is still being written
    assert journal.newest(tmp_path) == (written[2], whole)
    assert journal.newest(tmp_path, whole) == (None, whole)
    book.path.unlink()
    with pytest.raises(JournalError, match=r"journal\.jsonl: the journal cannot be read: No such file or directory$"):
        journal.newest(tmp_path)


def test_a_record_is_found_by_its_end(tmp_path):
    book = Journal(tmp_path)
    written = [book.write("alert", step, message="x" * size) for step, size in enumerate((1, 70_000, 200_000, 2))]
    ends = [end for _, end in journal.tail(tmp_path)]
    assert [journal.at(tmp_path, end) for end in ends] == written
    os.truncate(book.path, ends[1])
    with pytest.raises(JournalError, match=r"journal\.jsonl: the journal became shorter while it was read; "):
        journal.at(tmp_path, ends[2])
    book.path.unlink()
    with pytest.raises(JournalError, match=r"journal\.jsonl: the journal cannot be read: No such file or directory"):
        journal.at(tmp_path, ends[0])


def test_a_missing_journal_is_one_sentence(tmp_path):
    with pytest.raises(JournalError, match=r"the journal cannot be read: No such file or directory$"):
        list(journal.read(tmp_path))


@pytest.mark.parametrize(
    "line",
    [
        b"", b"nonsense", b'{"seq":0}', b"[1]", b"\xff\xfe", b"\0" * 50, b'"text"', b"[" * 100_000,
        b'{"seq":1,"time":5,"event":"","step":1,"metrics":{}}',
        b'{"seq":1,"time":5,"event":"train","step":-9,"metrics":{}}',
        b'{"seq":1,"time":NaN,"event":"train","step":1,"metrics":{}}',
        b'{"seq":1,"time":5,"event":"train","step":1,"metrics":{"train_loss":"low"}}',
        b'{"seq":1,"time":5,"event":"train","step":1,"metrics":{"train_loss":[1.5]}}',
        b'{"seq":1,"time":5,"event":"train","step":1,"metrics":[1.5]}',
    ],
)  # fmt: skip
def test_a_damaged_line_in_the_middle_is_passed_over_and_told_by_number(tmp_path, line):
    book = Journal(tmp_path)
    book.write("start", 0)
    book.close()
    with book.path.open("ab") as file:
        file.write(line + b"\n")
    book = Journal(tmp_path)
    book.write("train", 1, {"train_loss": 2.5})
    assert [(r["seq"], r["event"]) for r in journal.read(tmp_path)] == [(0, "start"), (1, "train")]
    assert journal.damaged(tmp_path) == [2]
    [_, (last, end)] = journal.tail(tmp_path)
    assert (last["step"], end) == (1, book.path.stat().st_size)


def test_whole_numbers_of_numpy_and_torch_keep_all_their_digits(tmp_path):
    book = Journal(tmp_path)
    book.write("train", 1, {"numpy": np.int64(2**62 + 1), "torch": torch.tensor(2**62 + 1), "flag": np.bool_(True)})
    [record] = journal.read(tmp_path)
    assert record["metrics"] == {"numpy": 2**62 + 1, "torch": 2**62 + 1, "flag": True}


def test_an_alert_of_a_repeated_step_is_not_written_again(tmp_path):
    book = Journal(tmp_path)
    book.write("alert", 5, kind="sparsity", level="info", message="there")
    book.write("alert", 5, kind="nan", level="error", message="not a number")
    assert book.expect(2) == 2
    book.write("alert", 5, kind="sparsity", level="info", message="there")
    book.write("alert", 6, kind="sparsity", level="info", message="there")
    assert [(r["kind"], r["step"]) for r in journal.read(tmp_path)] == [("sparsity", 5), ("nan", 5), ("sparsity", 6)]


def test_threads_write_whole_lines_with_numbers_of_their_own(tmp_path):
    book = Journal(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: book.write("train", n, {"train_loss": n / 2}), range(400)))
    records = list(journal.read(tmp_path))
    assert [r["seq"] for r in records] == list(range(400))
    assert sorted(r["step"] for r in records) == list(range(400))


def test_a_full_disk_is_one_sentence_and_leaves_whole_lines(tmp_path):
    book = Journal(tmp_path)
    book.write("start", 0)
    os.dup2(os.open("/dev/full", os.O_WRONLY), book.fd)
    why = r"No space left on device; it takes \d+ bytes and [\d,]+ bytes are free there; make room"
    with pytest.raises(JournalError, match=rf"step 1 cannot be recorded: {why}$"):
        book.write("train", 1, {"train_loss": 1.0})
    assert [r["event"] for r in journal.read(tmp_path)] == ["start"]


def test_a_clock_that_is_set_back_changes_no_order(tmp_path):
    moments = iter([7200.0, 7260.5, 60.0, 61.0, 9_000_000.0])
    book = Journal(tmp_path, clock=lambda: next(moments))
    book.write("start", 0, config={"max_iters": 3})
    for step in (1, 2, 3):
        book.write("train", step, {"train_loss": 1.0})
    book.write("finish", 3, status="interrupted")
    assert [(r["seq"], r["step"], r["time"]) for r in journal.read(tmp_path)] == [
        (0, 0, 7200.0), (1, 1, 7260.5), (2, 2, 60.0), (3, 3, 61.0), (4, 3, 9_000_000.0),
    ]  # fmt: skip
    assert journal.damaged(tmp_path) == []
    assert [step for _, step in journal.history(tmp_path)] == [1, 2, 3]


# ---- a journal that is no longer at its place ------------------------------------------------------------------------


def test_a_removed_journal_is_noticed_with_the_next_line_and_put_back_whole(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    book = Journal(folder)
    book.write("start", 0)
    shutil.rmtree(folder)
    with pytest.raises(Displaced, match=r"/run/journal.jsonl: was removed, moved or replaced by another file during"):
        book.write("train", 1, {"train_loss": 2.5})
    assert book.place() is None
    folder.mkdir()
    book.move(folder)
    book.write("train", 2, {"train_loss": 1.5})
    assert [(r["seq"], r["event"], r["step"]) for r in journal.read(folder)] == [
        (0, "start", 0), (1, "train", 1), (2, "train", 2),
    ]  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="this system does not tell where an open file is")
def test_a_moved_journal_is_found_and_goes_on(tmp_path):
    before, after = tmp_path / "run", tmp_path / "moved"
    before.mkdir()
    book = Journal(before)
    before.rename(after)
    with pytest.raises(Displaced):
        book.write("start", 0)
    assert book.place() == after
    book.move(after)
    book.write("train", 1, {"train_loss": 2.5})
    assert [r["event"] for r in journal.read(after)] == ["start", "train"]


def test_another_file_in_the_journals_place_is_noticed_and_left_alone(tmp_path):
    book = Journal(tmp_path)
    book.write("start", 0)
    (tmp_path / "copy").write_bytes(book.path.read_bytes())  # as `sed -i` does
    (tmp_path / "copy").rename(book.path)
    with pytest.raises(Displaced):
        book.write("train", 1, {"train_loss": 2.5})
    assert [r["event"] for r in journal.read(tmp_path)] == ["start"]
