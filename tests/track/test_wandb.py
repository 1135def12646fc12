"""Weights & Biases: everything a run has, in its files, once, read back by wandb; and what happens off the network."""

import math
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from lib.record import journal
from lib.track import wandb as wandb_adapter
from lib.track import wandb_private as private
from lib.track.cursor import path_of
from lib.track.tracker import Finding
from tests.track.wandb_server import KEY, NOWHERE, stopped_on_the_way
from tests.tracking import (
    ROOT,
    RUN_ID,
    assert_wandb_holds,
    new_run,
    recorded,
    state,
    sync,
    train,
    wandb_records,
    wandb_rows,
)

STRANGE = "größe/1 ..漢字" + "x" * 300
SYSTEM = {"system/cpu_percent": 12.5, "system/memory_used_gib": 3.0}
ALERT = {"kind": "sparsity", "level": "info", "message": "the run is at its target sparsity"}


def steps(api):
    return [line["step"] for line in api.run.history] if api.runs else []


def variables(api):
    return [body["variables"] for _, body in api.requests if body.get("variables")]


def test_wandb_holds_rows_configuration_and_final_metrics(run):
    output = train(run, "wandb")
    assert f"offline as configured; upload the run with: wandb sync {run}/wandb/offline-run-*" in output
    assert_wandb_holds(run)
    records = wandb_records(run)
    begun = next(r["run"] for r in records if r["type"] == "run")
    assert (begun["run_id"], begun["project"], begun["display_name"]) == (RUN_ID, "demo", "first")
    config = {name: value for name, value in begun["config"]["update"].items() if name != "_wandb"}
    assert config == {"tracker": ["wandb"], "wandb_offline": True, "learning_rate": 0.001, "prompt": ""}
    summary = {}
    for record in records:
        summary |= record.get("summary", {}).get("update", {})
    assert (summary["final_val_loss"], summary["best_val_loss"]) == (1.5, 1.25)
    assert next(r["metric"] for r in records if r["type"] == "metric")["step_metric"] == "step"
    times = [r["history"]["item"]["_timestamp"] for r in records if r["type"] == "history"]
    assert times == [r["time"] for r in journal.read(run) if r["event"] in ("train", "eval")]


def test_wandb_gets_the_last_end_of_a_run_that_was_extended(run):
    """An extended run has two ends in its journal; they may come in one delivery, and the summary holds one."""
    folder = new_run(run / "run")
    book = journal.Journal(folder)
    book.write("start", 0, config={"tracker": [], "wandb_offline": True})
    for end, loss in ((2, 2.5), (4, 1.5)):
        book.write("train", end, {"train_loss": loss})
        book.write("finish", end, {"final_val_loss": loss}, status="finished")
    book.close()
    done = sync(folder, "--tracker", "wandb")
    assert state(folder, "wandb").state == "finished", done.stdout + done.stderr
    assert wandb_rows(folder) == [(2, {"train_loss": 2.5}), (4, {"train_loss": 1.5})]
    summaries = [r["summary"]["update"] for r in wandb_records(folder) if r["type"] == "summary"]
    assert [s["final_val_loss"] for s in summaries if "final_val_loss" in s][-1] == 1.5


def test_a_disabled_wandb_gets_no_row_and_gets_them_all_later(run, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    output = train(run, "wandb")
    assert "wandb     failed    0 rows delivered, 25 pending" in output
    assert "WANDB_MODE=disabled: wandb would discard all rows; unset it, or remove wandb from TRACKER" in output
    monkeypatch.delenv("WANDB_MODE")
    done = sync(run)
    assert "wandb     finished  25 rows delivered" in done.stdout
    assert_wandb_holds(run)


def test_metrics_with_names_of_wandbs_get_others(run):
    ours = {"step": 99, "_step": 98, "_timestamp": 97.0, "_loss": 2.0}
    records = [("train", 2, ours, {}), ("eval", 2, {"step": 96}, {}), ("finish", 2, ours, {"status": "finished"})]
    folder = recorded(run.parent / "second", *records)
    for _ in range(2):  # the second time as after a lost cursor
        done = sync(folder, "--tracker", "wandb")
        assert "wandb     finished  3 rows delivered" in done.stdout, done.stdout + done.stderr
        (folder / "trackers" / "wandb.json").unlink()
    theirs = {"metric/step": 99, "metric/_step": 98, "metric/_timestamp": 97.0, "metric/_loss": 2.0}
    assert wandb_rows(folder) == [(2, theirs), (2, {"metric/step": 96})]
    updates = [r["summary"]["update"] for r in wandb_records(folder) if r["type"] == "summary"]
    assert any(theirs.items() <= update.items() for update in updates)


def test_wandbs_mode_is_the_variable_then_the_option_then_whether_there_is_a_key(tmp_path, monkeypatch):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    def mode(offline, **env):
        with monkeypatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            return wandb_adapter._mode(wandb_adapter.WandbOptions(offline), Path("runs/a"))

    where = "upload the run with: wandb sync runs/a/wandb/offline-run-*"
    assert mode(True, WANDB_MODE="online") == ("online", "")
    assert mode(False, WANDB_MODE="offline") == ("offline", f"offline by WANDB_MODE; {where}")
    assert mode(True, WANDB_API_KEY=KEY) == ("offline", f"offline as configured; {where}")
    assert mode(False) == ("offline", f"offline because there is no API key; {where}")
    assert mode(False, WANDB_API_KEY=KEY) == (None, "")
    assert "wandb sync 'my runs/a'/wandb/offline-run-*" in wandb_adapter._offline(Path("my runs/a"), "as configured")


def test_a_wandb_file_cut_anywhere_yields_the_records_before_the_cut(run, tmp_path):
    train(run, "wandb", end=300)
    path = next(run.glob("wandb/offline-run-*/*.wandb"))
    whole, data = list(private.TransactionLog(path).bodies()), path.read_bytes()
    assert len(data) > 2 * 32768 and len(whole) == len(wandb_records(run))
    growing = tmp_path / "growing.wandb"
    log, seen = private.TransactionLog(growing), []
    for size in [*range(0, len(data), 997), len(data)]:
        growing.write_bytes(data[:size])
        seen += log.bodies()
        assert seen == whole[: len(seen)]
    assert seen == whole


def test_every_kind_of_event_arrives_once_with_group_tags_and_entity(run):
    folder = recorded(
        run.parent / "second",
        ("train", 3, {"train_loss": math.nan, "tokens": 2**63 - 1, "huge": 2**70, "endless": 10**400}, {}),
        ("system", 3, SYSTEM, {}),
        ("eval", 3, {"val_loss": -math.inf}, {}),
        ("alert", 3, {}, ALERT),
        ("system", 4, SYSTEM, {}),
        ("alert", 4, {}, ALERT),
        ("alert", 4, {}, {**ALERT, "kind": "diverged", "level": "error"}),
        ("finish", 4, {"final_val_loss": math.inf, "tokens": 2**64}, {"status": "finished"}),
        tracker_group="g" * 200,
        tracker_tags=f"small, a b ,,small,{'t' * 80}",
        wandb_entity="someone",
    )
    identity = (folder / "run.json").read_text()
    (folder / "run.json").write_text(identity.replace('"second"', f'"{STRANGE}"'))
    for _ in range(2):  # the second time as after a lost cursor
        done = sync(folder, "--tracker", "wandb")
        assert "wandb     finished  8 rows delivered" in done.stdout, done.stdout + done.stderr
        (folder / "trackers" / "wandb.json").unlink()
    records = wandb_records(folder)
    items = [r["history"]["item"] for r in records if r["type"] == "history"]
    rows = [{name: value for name, value in item.items() if name[0] != "_"} for item in items]
    assert rows == [
        {"step": 3, "train_loss": "NaN", "tokens": 9223372036854775807, "huge": 2.0**70, "endless": "Infinity"},
        {"step": 3, **SYSTEM},
        {"step": 3, "val_loss": "-Infinity"},
        {"step": 4, **SYSTEM},
    ]
    begun = next(r["run"] for r in records if r["type"] == "run")
    text = begun["display_name"] + ": the run is at its target sparsity (step {})"
    found = [(r["alert"]["title"], r["alert"]["text"], r["alert"]["level"]) for r in records if r["type"] == "alert"]
    assert found == [
        ("sparsity", text.format(3), "INFO"),
        ("sparsity", text.format(4), "INFO"),
        ("diverged", text.format(4), "ERROR"),
    ]
    assert (begun["entity"], begun["tags"][:2]) == ("someone", ["small", "a b"])
    assert [len(begun["run_group"]), len(begun["display_name"])] == [128, 128] and len(begun["tags"][2]) == 64
    assert not [r for r in records if r["type"] == "stats"]


def test_the_doctor_finds_mode_key_and_server(unplugged, monkeypatch):
    def examine():  # in a process of its own: wandb reads the environment once
        code = "from lib.track import wandb; print(*wandb.examine({'wandb_offline': False}), sep='\\n')"
        command = [sys.executable, "-c", code]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60).stdout.splitlines()

    assert examine() == [
        str(Finding("mode", "online", True)),
        str(Finding("API key", "there", True)),
        str(Finding("server", f"{NOWHERE} does not answer (ConnectionError)", False)),
    ]
    monkeypatch.setenv("WANDB_API_KEY", "short")
    problem = "WANDB_API_KEY invalid: API key must have 40+ characters, has 5."
    assert examine() == [str(Finding("API key", f"cannot be right: {problem}; run: wandb login --relogin", False))]
    monkeypatch.delenv("WANDB_API_KEY")
    note = "offline because there is no API key; upload the run with: wandb sync RUN/wandb/offline-run-*"
    assert examine() == [
        str(Finding("mode", note, True)),
        str(Finding("API key", "none, so runs stay offline; run: wandb login", True)),
    ]


def test_a_dead_process_of_wandb_is_replaced(run):
    """wandb writes by a process of its own; when that is killed, the rows go into another file, and none is lost."""
    process = stopped_on_the_way(run, deadline=90)
    lane = psutil.Process(int(path_of(run, "wandb", "lock").read_text()))
    [core] = [child for child in lane.children(recursive=True) if "wandb-core" in child.name()]
    core.kill()
    process.send_signal(signal.SIGCONT)
    output = process.communicate(timeout=180)[0]
    assert "wandb     finished  49 rows delivered" in output
    assert_wandb_holds(run)


def test_a_disabled_wandb_is_refused_before_a_run_begins(program):
    done = program("gpt2/train.py", "--tracker", "wandb", "--max-iters", "1", WANDB_MODE="disabled")
    assert done.returncode == 2
    assert "error: tracker wandb: WANDB_MODE=disabled: wandb would discard all rows; unset it, or remove" in done.stderr
