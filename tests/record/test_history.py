"""What a run's folder tells: state, metrics in force, and what it was made with."""

import json
import math
from pathlib import Path

import pytest

from lib.base import files
from lib.base.errors import UsageError, UserError
from lib.record import history, journal
from tests.runs import NOON, ended, evaluated, trained, write


def test_a_whole_run(tmp_path):
    events = [evaluated(0, 5.0), *trained(1, 2), evaluated(2, 3.5), ended(2, total_time_seconds=9.5)]
    seen = history.load(write(tmp_path / "a", *events))
    assert (seen.step, seen.steps, seen.best(), seen.seconds()) == (2, 40, 3.5, 9.5)
    assert seen.time == NOON + 5
    assert (seen.last("tokens"), seen.last("nothing")) == (128, None)
    assert seen.values("val_loss") == {0: 5.0, 2: 3.5}
    assert history.state(seen, tmp_path / "a") == "finished"


def test_what_is_in_force_is_what_the_journal_says(tmp_path):
    changed = ("resume", 2, {}, {"changed": {"MAX_ITERS": ["40", "3"]}, "config": {"max_iters": 3}})
    alike = ("resume", 1, {}, {"changed": {}, "config": {"max_iters": 40}})
    folder = write(tmp_path / "a", *trained(1, 2, 4), evaluated(4, 1.0), alike, *trained(2), changed, *trained(3))
    seen = history.load(folder)
    assert seen.rows == journal.history(folder)
    assert (seen.step, seen.steps, seen.best()) == (3, 3, None)  # the loss at step 4 was taken back
    assert seen.seconds() == 4 + 1 + 1  # of the three sessions, without what was between them


def test_skimming_tells_the_same_of_the_run(tmp_path):
    system = ("system", 2, {"system/gpu0/power": 70.5}, {})
    folder = write(
        tmp_path / "a", evaluated(0, 5.0), *trained(1, 2), system, evaluated(2, 3.5), ("alert", 2, {}, {"message": "x"})
    )
    whole, skimmed = history.load(folder), history.skim(folder)
    for name in ("step", "steps", "time", "config", "alerts", "end"):
        assert getattr(skimmed, name) == getattr(whole, name), name
    assert (skimmed.best(), skimmed.last("tokens")) == (whole.best(), whole.last("tokens")) == (3.5, 128)


def test_skimming_and_loading_agree_on_steps_that_came_out_otherwise(tmp_path):
    again = ("train", 2, {"train_loss": 7.5}, {})
    before = [*trained(1, 2), evaluated(2, 3.0), *trained(3), evaluated(3, 1.5)]
    for resume in ({"changed": {}}, {"changed": {"SEED": ["1", "2"]}}):
        folder = write(tmp_path / str(len(resume["changed"])), *before, ("resume", 1, {}, resume), again)
        whole, skimmed = history.load(folder), history.skim(folder)
        assert (whole.step, whole.best(), whole.values("train_loss")) == (2, None, {1: 8.0, 2: 7.5})
        assert (skimmed.step, skimmed.best(), skimmed.last("train_loss")) == (2, None, 7.5)
    alike = write(tmp_path / "alike", *before, ("resume", 1, {}, {"changed": {}}), *trained(4))
    assert (history.skim(alike).step, history.skim(alike).best()) == (4, 1.5)


def test_nan_is_no_best_loss(tmp_path):
    seen = history.load(write(tmp_path / "a", evaluated(0, math.nan), evaluated(1, 2.0), evaluated(2, math.inf)))
    assert seen.best() == 2.0


def test_states(tmp_path):
    for status in ("finished", "interrupted", "diverged", "failed"):
        folder = write(tmp_path / status, *trained(1), ended(1, status), ("alert", 1, {}, {"message": "it ended"}))
        assert history.state(history.load(folder), folder) == status
    went_on = write(tmp_path / "b", *trained(1), ended(1, "interrupted"), ("resume", 1, {}, {"changed": {}}))
    assert history.state(history.skim(went_on), went_on) == "crashed"
    with files.held(went_on, "training"):
        assert history.state(history.skim(went_on), went_on) == "running"
    new = write(tmp_path / "new")
    (new / "journal.jsonl").unlink()
    assert history.state(history.load(new), new) == "crashed"
    with files.held(new, "training"):
        assert history.state(history.load(new), new) == "starting"


def test_damaged_lines_are_passed_over(tmp_path):
    folder = write(tmp_path / "a", *trained(1, 2, 3), evaluated(3, 2.0))
    path = folder / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\xff\x00 junk\n", lines[3], lines[4], b'{"seq":5,"event":"eval","st']))
    seen = history.load(folder)
    assert (journal.damaged(folder), list(seen.values("train_loss"))) == ([3], [1, 3])
    assert history.skim(folder).best() == 2.0  # the half line at the end is still being written
    path.write_bytes(b"\xff junk\n" * 9)
    assert history.state(history.skim(folder), folder) == "damaged"


def test_skimming_passes_over_the_damaged_lines_that_loading_does(tmp_path):
    folder = write(tmp_path / "a", evaluated(0, 5.0), *trained(10, 20, 30))
    good = (folder / "journal.jsonl").read_bytes()
    line = b'{"seq":9,"time":1,"event":"%s","step":40,"metrics":%s}'
    for metrics in (b'{"tokens_per_second":9}', b'{"val_loss":null}', b"[]", b"{"):
        torn, damaged = line % (b"train", metrics), b"".join(line % (e, b"{") + b"\n" for e in (b"train", b"eval"))
        (folder / "journal.jsonl").write_bytes(good + damaged + line % (b"eval", b'{"val_loss":null}') + b"\n" + torn)
        whole, skimmed = history.load(folder), history.skim(folder)
        for seen in (whole, skimmed):
            assert (seen.step, seen.last("tokens_per_second"), seen.best()) == (30, 100.0, 5.0)


def test_skimming_tells_the_steps_of_a_script_that_counts_epochs_beside_them(tmp_path):
    events = [("train", 700, {"loss": 1.0}, {}), ("train.2", 1, {"loss": 2.0}, {}), ("train.2", 2, {"loss": 3.0}, {})]
    assert history.skim(write(tmp_path / "a", *events)).step == 700
    start = {"event": "train", "other": {"event": "finish"}}  # the script's own options
    assert len(history.skim(write(tmp_path / "b", config=start)).sessions) == 1


def test_a_metric_of_several_series_is_several_columns(tmp_path):
    rows = [
        ("train", 1, {"loss": 4.0, "step": 7.0}, {}), ("train.2", 1, {"loss": 3.0, "accuracy": 0.5}, {}),
        ("eval", 1, {"loss": 5.0, "val_loss": 2.0}, {}), ("eval.2", 1, {"val_loss": 1.0}, {}),
    ]  # fmt: skip
    seen = history.load(write(tmp_path / "a", *rows))
    assert {name: seen.values(name) for name in seen.names()} == {
        "loss": {1: 4.0}, "train/step": {1: 7.0}, "train.2/loss": {1: 3.0}, "accuracy": {1: 0.5},
        "eval/loss": {1: 5.0}, "val_loss": {1: 2.0}, "eval.2/val_loss": {1: 1.0},
    }  # fmt: skip
    assert (seen.best(), seen.values("step"), seen.values("nothing")) == (1.0, {}, {})


def test_what_is_no_run_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match=r"there is no run in this folder \(run.json is missing\)$"):
        history.load(tmp_path)
    write(tmp_path / "a")
    (tmp_path / "a/run.json").write_text("{")
    with pytest.raises(UserError, match="the run's identity cannot be read"):
        history.skim(tmp_path / "a")


def test_runs_are_found_with_those_of_sweeps(tmp_path):
    for name in ("a", "few/dense-seed1", "few/half-seed1"):
        write(tmp_path / name)
    write(tmp_path / "a/inner")  # in a run's own folder there are no others
    (tmp_path / "not-a-run").mkdir()
    assert [str(path.relative_to(tmp_path)) for path in history.find(tmp_path)] == [
        "a", "few/dense-seed1", "few/half-seed1",
    ]  # fmt: skip
    with pytest.raises(UsageError, match=r"there is no run in this folder yet; start one with make train$"):
        history.find(tmp_path / "not-a-run")


def test_paths_start_where_the_run_was_trained_or_where_output_dir_leads_to_it(tmp_path, monkeypatch):
    new, old = tmp_path / "new", tmp_path / "old"
    run = new / "runs/few/run"
    run.mkdir(parents=True)
    gone = str(old)
    assert history.places(run, "runs/few", gone) == [new]
    assert history.places(run, "./runs/few/", gone) == [new]
    assert history.places(run, "few", "") == [new / "runs"]
    assert history.places(run, ".", gone) == [new / "runs/few"]
    for elsewhere in ("runs", "../few", str(run.parent), "a/long/way/" + str(run.parent)[1:], "~/few"):
        assert history.places(run, elsewhere, gone) == [], elsewhere
    old.mkdir()
    assert history.places(run, "runs/few", gone) == [old, new]
    monkeypatch.chdir(new / "runs")
    assert history.places(Path("few/run"), "runs/few", "x" * 5000) == [new]


def test_options_come_from_where_they_were_set_first(tmp_path):
    first = {"SEED": {"value": "7", "source": "--seed"}, "OPTIMIZER": {"value": "sgd", "source": ".config:3"}}
    then = {
        "SEED": {"value": "7", "source": "runs/a/.config:9"},
        "OPTIMIZER": {"value": "adam", "source": "--optimizer"},
    }
    latest = then | {"OPTIMIZER": {"value": "adam", "source": "runs/a/.config:3"}}
    for name, options in (("", first), ("-9", then), ("-10", latest)):
        (tmp_path / f"provenance{name}.json").write_text(json.dumps({"options": options}))
    (tmp_path / "defconfig").write_text("CONFIG_SEED=7\nCONFIG_OPTIMIZER_ADAM=y\nCONFIG_GONE=1\n# a comment\n")
    assert history.options(tmp_path) == {"SEED": ("7", "--seed"), "OPTIMIZER": ("adam", "--optimizer")}
    assert list(history.differing(tmp_path)) == ["SEED", "OPTIMIZER", "GONE"]


def test_code_has_a_name():
    made = {"commit": "0123456789abcdef", "uncommitted_changes": None}
    assert history.code(made) == "0123456789"
    assert (
        history.code(made | {"uncommitted_changes": {"sha256": "feedbeef", "file": "changes.patch"}})
        == "0123456789 with uncommitted changes feedbe"
    )
    changes = {"sha256": "feedbeef", "file": None}  # too large, say
    assert history.code(made | {"uncommitted_changes": changes}) == (
        "0123456789 with uncommitted changes that were not kept"
    )
    assert history.code({"commit": None}) == "unknown"
