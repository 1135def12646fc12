"""The table of a sweep while it trains: its lines, what it knows of runs, and that it leaves the terminal clean."""

import itertools
import json
import os
import re

from lib.compare import live, sweep
from lib.compare.live import Doing, Row, State
from tests import own_terminal
from tests.compare.test_sweep import COMMON, write
from tests.training import ROOT

ROWS = (
    Row("dense", 3, 2, 3.1578, (Doing("seed 3", 0.454, 123.0),), (), 5),
    Row("magnitude-gradual-0.8", 3, 1, 3.20111, (Doing("seed 3", 0.0, None),), ("seed 2 failed",), 4),
    Row("wanda", 3, 3, 3.25, (), (), 6),
    Row("late", 3),
)
VERDICT = "wanda: worse than dense by 0.0922 nats (2.92 %), 95 % interval +0.0801 to +0.1043, p = 0.003, n = 3."
STATE = State(ROWS, "7 of 12 runs, 48:00 left", 0.62, (VERDICT,))


def texts(*arguments, **more):
    return [text for text, _ in live.lines(*arguments, **more)]


def test_a_table_has_a_line_for_each_configuration_a_total_and_verdicts():
    assert texts(STATE, 120, 40) == [
        "configuration          done  val loss  now",
        "dense                   2/3    3.1578  seed 3 45%, 2:03 left",
        "magnitude-gradual-0.8   1/3    3.2011  seed 3 starts; seed 2 failed",
        "wanda                   3/3    3.2500",
        "late                    0/3         -",
        "7 of 12 runs, 48:00 left  ████████████████████████░░░░░░░░░░░░░░░░  62%",
        "so far: wanda: worse than dense by 0.0922 nats (2.92 %), 95 % interval +0.0801 to +0.1043, p = 0.003, n = 3.",
    ]
    styles = [style for _, style in live.lines(STATE, 120, 40)]
    assert styles == ["dim", "cyan", "red", "green", "dim", "bold", ""]


def test_a_narrow_table_is_shortened():
    assert texts(STATE, 50, 40, bar="#-") == [
        "configuration     done  val loss  now",
        "dense              2/3    3.1578  seed 3 45% 2:03",
        "magnitude-grad..   1/3    3.2011  seed 3 starts..",
        "wanda              3/3    3.2500",
        "late               0/3         -",
        "7 of 12 runs, 48:00 left  ###########-------  62%",
        "so far: wanda: worse than dense by 0.0922 nats ..",
    ]
    assert texts(STATE, 30, 40)[-2:] == ["7 of 12 runs, 48:00 left", "so far: wanda: worse than d.."]


def test_a_table_always_fits():
    rows = [row._replace(name=f"{row.name}-{n}") for n in range(9) for row in ROWS]
    for columns, height in itertools.product(range(2, 121), range(1, 40)):
        found = texts(STATE._replace(rows=rows, verdicts=[VERDICT] * 30), columns, height)
        assert max(map(len, found)) < columns
        assert len(found) < max(2, height)


def test_a_table_that_is_too_high_has_what_is_trained_then_failed_ones_then_the_newest():
    rows = [
        *(Row(f"old-{n}", 2, 1, 3.0, (), (), n) for n in range(1, 9)),
        Row("failed", 2, 0, None, (), ("seed 1 failed",), 1),
        Row("trained", 2, 0, None, (Doing("seed 1", 0.5, 9.0),)),
    ]
    state = State(rows, "9 of 20 runs", 0.45, [f"old-{n}: undecided." for n in range(1, 10)])
    assert texts(state, 60, 12) == [
        "configuration  done  val loss  now",
        "old-6           1/2    3.0000",
        "old-7           1/2    3.0000",
        "old-8           1/2    3.0000",
        "failed          0/2         -  seed 1 failed",
        "trained         0/2         -  seed 1 50% 9 s",
        "5 of 10 not shown",
        "9 of 20 runs  ██████████████████░░░░░░░░░░░░░░░░░░░░░░  45%",
        "so far: old-1: undecided.",
        "  old-2: undecided.",
        "  old-3: undecided.",
    ]
    assert texts(state, 60, 3) == ["9 of 20 runs  ██████████████████░░░░░░░░░░░░░░░░░░░░░░  45%"]


def finished(run, loss):
    run.folder.mkdir(parents=True)
    (run.folder / "summary.json").write_text(json.dumps({"final_val_loss": loss}))


def plan_of(folder):
    write(folder, f"common OUTPUT_DIR={folder}/runs", "dense", "still WEIGHT_DECAY=0")
    return sweep.read(folder / "few")


def test_the_rows_of_a_sweep_have_the_mean_over_the_seeds(tmp_path):
    plan = plan_of(tmp_path)
    table, (dense, still, dense2, still2) = live.Table(plan, {}), plan.runs()
    finished(dense, 3.0)
    finished(dense2, 3.5)
    table.end(still, "failed")
    table.end(dense, "finished")
    table.end(dense2, "finished")
    assert table.rows({still2.name: (0.25, 60.0)}) == [
        Row("dense", 2, 2, 3.25, (), (), 3),
        Row("still", 2, 0, None, (Doing("seed 2", 0.25, 60.0),), ("seed 1 failed",), 1),
    ]
    assert table.titles == ("configuration", "val loss")


def test_the_trials_of_a_method_are_one_row_with_the_best_loss(tmp_path):
    plan = plan_of(tmp_path)
    table = live.Table(plan, {"dense": ("adamw", 1), "still": ("adamw", 2)})
    for run, loss in zip(plan.runs(), (3.0, 2.0, 3.5), strict=False):  # the second trial has one of two seeds
        finished(run, loss)
        table.end(run, "finished")
    doing = {plan.runs()[3].name: (0.5, None)}
    assert table.rows(doing) == [Row("adamw", 4, 3, 3.25, (Doing("trial 2 seed 2", 0.5, None),), (), 3)]
    assert table.titles == ("method", "best loss")


def test_verdicts_are_found_again_after_a_run_has_ended():
    found = iter([["first"], ["second"]])
    verdicts = live.Verdicts(lambda: next(found))
    assert verdicts.newest() == ()
    for expected in ("first", "second"):
        verdicts.stale = True
        verdicts.newest()
        verdicts.thread.join()
        assert verdicts.newest() == verdicts.newest() == (expected,)


def test_in_the_background_no_table_is_drawn_over_the_shell(monkeypatch, capsys):
    screen, written = live.Screen(), []
    monkeypatch.setattr(screen, "live", True)
    monkeypatch.setattr(screen, "_write", written.append)
    monkeypatch.setattr(os, "tcgetpgrp", lambda fd: os.getpgrp())
    screen.show(lambda: STATE)
    monkeypatch.setattr(os, "tcgetpgrp", lambda fd: os.getpgrp() + 1)
    screen.say("a line", lambda: STATE)
    screen.leave()
    assert capsys.readouterr().out == "a line\n"
    assert [text.count("dense") for text in written] == [2, 0, 0]
    assert written[1:] == ["", ""]


class Terminal:
    """What a terminal shows, as far as the table uses it: newlines, returns, moves up, and erasing."""

    def __init__(self):
        self.lines, self.row, self.column = [""], 0, 0

    def feed(self, text):
        for part in re.findall(r"\033\[\??\d*[A-Za-z]|\033\[[\d;]*m|[^\033]", text):
            line = self.lines[self.row]
            if part == "\n":
                self.row += 1
                self.lines += [""] * (self.row == len(self.lines))
            elif part == "\r":
                self.column = 0
            elif part.endswith("A"):
                self.row -= int(part[2:-1])
            elif part == "\033[K":
                self.lines[self.row] = line[: self.column]
            elif part == "\033[J":
                self.lines[self.row :] = [line[: self.column]]
            elif part[0] != "\033":
                self.lines[self.row] = line[: self.column].ljust(self.column) + part + line[self.column + 1 :]
                self.column += 1
            else:
                assert part.endswith("m"), part  # such as one that hides the cursor
        return self


def test_ctrl_c_removes_the_table_and_leaves_the_lines(tmp_path):
    write(tmp_path, f"common {COMMON} MAX_ITERS=100000 CHECKPOINT_INTERVAL=0 EVAL_INTERVAL=0", "dense", "still")
    words = [str(ROOT / "scripts/sweep.py"), "few"]
    process, ours = own_terminal.start(tmp_path, words, TERM="xterm", PYTHONIOENCODING="utf-8")
    seen, stopped = b"", False
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # EIO: the program has ended
            break
        seen += part
        journal = tmp_path / "runs/few/dense-seed1/journal.jsonl"
        if not stopped and b"dense" in seen and b" left" in seen and journal.exists():
            stopped = True
            screen = Terminal().feed(seen.decode().replace("\r\n", "\n\r"))
            assert any(re.match(r"dense +0/2 +-  seed 1 \d+%", line) for line in screen.lines), screen.lines
            assert any(re.match(r"0 of 4 runs, .* left +[█░]{20,}  +0%", line) for line in screen.lines)
            os.write(ours, b"\x03")
    os.close(ours)
    assert process.wait(60) == 130
    assert b"\033[?25l" not in seen  # the cursor was never hidden
    lines = Terminal().feed(seen.decode().replace("\r\n", "\n\r")).lines
    lines = [line.strip() for line in lines if line.strip()]
    at = lines.index("SIGINT: stopping after this batch, then saving; a second one stops at once")
    assert lines[at - 1].startswith("data/files-corpus.txt")  # the table was between these
    assert not any("█" in line or "val loss" in line for line in lines)
    assert re.fullmatch(r"dense-seed1  stopped after step \d+  \(0 of 4 runs.*\)", lines[-3])
    assert lines[-1] == "stopped; the same command continues the sweep"
