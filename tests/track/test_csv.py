"""The csv tracker, read back by csv and by pandas: every value once, bit for bit, whatever was killed, cut or full."""

import csv
import math
import resource
from datetime import datetime

import pandas
import pytest

from lib.base.errors import UserError
from lib.record import journal
from lib.record.run import Identity
from lib.track import csv as adapter
from lib.track.tracker import Media, Row
from tests.tracking import RUN_ID, expected, new_run, recorded, run, state, sync, train, train_while_lanes_die

__all__ = ["run"]  # a fixture


def lines(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def assert_holds(folder):
    header, *found = lines(folder / "metrics.csv")
    assert header == ["time", "event", "step", "metric", "value"]
    times = {(r["event"], r["step"]): r["time"] for r in reversed(list(journal.read(folder)))}
    wanted = {
        (event, step, name): value
        for (event, step), metrics in expected(folder).items()
        for name, value in metrics.items()
    }
    assert sorted((event, int(step), name) for _, event, step, name, _ in found) == sorted(wanted)
    for moment, event, step, name, text in found:
        value = wanted[event, int(step), name]
        assert float(text) == value or (math.isnan(float(text)) and math.isnan(value))
        assert datetime.fromisoformat(moment).timestamp() == pytest.approx(times[event, int(step)], abs=1e-6)


def opened(folder):
    tracker = adapter.Tracker()
    tracker.open(Identity(RUN_ID, "demo", "first"), {}, folder)
    return tracker


def rows(first, end):
    return [Row("train", step, 1e9 + step, {"train_loss": step / 3, 'a "b", c': step}) for step in range(first, end)]


def text(end):
    """What the file holds after rows(0, end)."""
    times = [f"2001-09-09T01:46:{40 + step}.000000+00:00" for step in range(end)]
    body = [
        f'{moment},train,{step},train_loss,{step / 3!r}\n{moment},train,{step},"a ""b"", c",{step}\n'
        for step, moment in enumerate(times)
    ]
    return "".join(["time,event,step,metric,value\n", *body])


# ---- what arrives ----------------------------------------------------------------------------------------------------


def test_rows_arrive_with_their_times_and_pandas_reads_every_bit(run):
    output = train(run, "csv")
    assert f"csv       finished  25 rows delivered\n          writing {run}/metrics.csv" in output
    assert_holds(run)
    assert not (run / "alerts.csv").exists()
    table = pandas.read_csv(run / "metrics.csv", parse_dates=["time"])
    assert (str(table.time.dt.tz), str(table.value.dtype), str(table.step.dtype)) == ("UTC", "float64", "int64")
    loss = table[table.metric == "train_loss"].set_index("step").value
    assert loss[7] == 1.0 and loss[2] == 8 / 3 and math.isnan(loss[3]) and list(loss[[4, 5]]) == [math.inf, -math.inf]


def test_numbers_keep_every_digit(tmp_path):
    numbers = {"a": 0.1 + 0.2, "b": 2**70 + 1, "c": True, "d": math.nan, "e": -math.inf, "f": 5e-324, "g": -0.0}
    opened(tmp_path).log([Row("eval", 3, 1795280346.123456, numbers)])
    assert [line[4] for line in lines(tmp_path / "metrics.csv")[1:]] == [
        "0.30000000000000004", "1180591620717411303425", "1", "nan", "-inf", "5e-324", "-0.0",
    ]  # fmt: skip
    assert lines(tmp_path / "metrics.csv")[1][:4] == ["2026-11-21T16:59:06.123456+00:00", "eval", "3", "a"]


def test_a_line_is_a_record_whatever_a_name_holds(tmp_path):
    names = {"two\nlines": 1, "two\\nlines": 2, "größe, 大小": 3, "a\r\nb": 4, "\ud800": 5}
    for _ in range(2):
        opened(tmp_path).log([Row("train", 1, 1e9, names)])
        assert [line[3:] for line in lines(tmp_path / "metrics.csv")[1:]] == [
            ["two\\nlines", "1"], ["two\\nlines", "2"], ["größe, 大小", "3"], ["a\\r\\nb", "4"], ["\\ud800", "5"],
        ]  # fmt: skip


def test_alerts_have_a_file_of_their_own(run):
    alert = {"kind": "diverged", "level": "error", "message": "the loss,\nor its gradient, is no number"}
    folder = recorded(run / "run", ("train", 1, {"loss": 1.0}, {}), ("alert", 1, {}, alert), ("alert", 2, {}, alert))
    for _ in range(2):
        assert sync(folder, "--tracker", "csv").returncode == 0
        header, *found = lines(folder / "alerts.csv")
        assert header == ["time", "kind", "step", "level", "message"]
        message = "the loss,\\nor its gradient, is no number"
        assert [line[1:] for line in found] == [["diverged", step, "error", message] for step in ("1", "2")]
        (folder / "trackers" / "csv.json").unlink()


def test_media_are_listed_once_and_replaced_when_the_file_is_rewritten(tmp_path):
    listed = [
        Media(kind, name, step, 1e9 + step, tmp_path / "media" / file)
        for kind, name, step, file in [
            ("text", "sample", 5, "sample-5.txt"),
            ("text", "loss, and\nmore", 5, "loss-5.txt"),
            ("image", "loss, and more", 5, "loss-5.png"),
            ("text", "sample", 10, "sample-10.txt"),
        ]
    ]
    text = (
        "time,kind,step,name,file\n"
        "2001-09-09T01:46:45.000000+00:00,text,5,sample,media/sample-5.txt\n"
        '2001-09-09T01:46:45.000000+00:00,text,5,"loss, and\\nmore",media/loss-5.txt\n'
        '2001-09-09T01:46:45.000000+00:00,image,5,"loss, and more",media/loss-5.png\n'
        "2001-09-09T01:46:50.000000+00:00,text,10,sample,media/sample-10.txt\n"
    )
    for size in range(len(text)):
        (tmp_path / "media.csv").write_text(text[:size])
        for _ in range(2):
            opened(tmp_path).media(listed[:3])
            opened(tmp_path).media(listed)
            assert (tmp_path / "media.csv").read_text() == text
    tracker = opened(tmp_path)
    tracker.rewrite([], [])
    tracker.media(listed[3:])
    assert [line[1:] for line in lines(tmp_path / "media.csv")[1:]] == [["text", "10", "sample", "media/sample-10.txt"]]


# ---- deaths ----------------------------------------------------------------------------------------------------------


def test_a_lane_killed_at_any_instant_delivers_every_row_once_in_the_end(run):
    train_while_lanes_die(run, "csv", 60)
    for _ in range(2):  # the second time without the cursor, which a kill may lose
        assert sync(run).returncode == 0
        assert_holds(run)
        (run / "trackers" / "csv.json").unlink()


def test_a_file_cut_anywhere_and_continued_is_the_file_that_was_never_cut(tmp_path):
    whole = text(3).encode()
    for size in range(len(whole) + 1):
        folder = new_run(tmp_path / str(size))
        (folder / "metrics.csv").write_bytes(whole[:size])
        opened(folder).log(rows(0, 5))
        opened(folder).log(rows(2, 6))
        assert (folder / "metrics.csv").read_text() == text(6)


def test_a_full_disk_leaves_whole_lines_and_goes_on_when_there_is_room(tmp_path):
    tracker, limits = opened(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    for size, before, end in ((10, "", 2), (len(text(2)) + 20, text(2), 4)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            with pytest.raises(UserError, match=r"metrics.csv: cannot be written: File too large; it takes \d+ b"):
                tracker.log(rows(0, end))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (tmp_path / "metrics.csv").read_text() == before
        tracker.log(rows(0, end))
        assert (tmp_path / "metrics.csv").read_text() == text(end)


def test_a_damaged_line_is_left_alone(tmp_path):
    damaged = text(3).replace("train,1,train_loss", '"tr\0ain').encode() + b"\xff\xfe\n\n"
    (tmp_path / "metrics.csv").write_bytes(damaged)
    opened(tmp_path).log(rows(0, 4))
    assert (tmp_path / "metrics.csv").read_bytes() == damaged + text(4)[len(text(3)) :].encode()


def test_a_file_of_somebody_else_is_a_sentence_and_untouched(run):
    (run / "metrics.csv").write_text("step,loss\n1,2.5\n")
    with pytest.raises(UserError, match=r"/metrics\.csv: the tracker csv did not write this file; move it away$"):
        opened(run)
    output = train(run, "csv")
    assert f"{run}/metrics.csv: the tracker csv did not write this file; move it away" in output
    assert (run / "metrics.csv").read_text() == "step,loss\n1,2.5\n"
    (run / "metrics.csv").rename(run / "mine.csv")
    assert sync(run).returncode == 0 and state(run, "csv").state == "finished"
    assert_holds(run)


def test_a_run_without_metrics_is_held_and_deleted_metrics_are_missed(tmp_path):
    tracker = opened(tmp_path)
    assert not tracker.holds()
    tracker.media([Media("text", "sample", 5, 1e9, tmp_path / "media" / "sample-5.txt")])
    assert (tmp_path / "metrics.csv").read_text() == "time,event,step,metric,value\n" and opened(tmp_path).holds()
    opened(tmp_path).log(rows(0, 2))
    assert (tmp_path / "metrics.csv").read_text() == text(2)
    (tmp_path / "metrics.csv").unlink()
    assert not opened(tmp_path).holds()


def test_a_deleted_file_is_written_again(run):
    train(run, "csv")
    before = (run / "metrics.csv").read_bytes()
    (run / "metrics.csv").unlink()
    done = sync(run)
    assert (done.returncode, f"{run} does not hold the run any more and gets all of it again" in done.stdout) == (
        0,
        True,
    )
    assert (run / "metrics.csv").read_bytes() == before
